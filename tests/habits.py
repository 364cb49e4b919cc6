"""Habits of PyTorch users around a module, and what becomes of each before and after a growth.

``python tests/habits.py`` prints the table of docs/compatibility.md, which tests/test_habits.py
compares. Each row is one function. It calls `first` before the habit and `then` after it; one of
the two grows the model, so that each habit is met in both orders.
"""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint

import splitgrow
from benchmarks.vision import torchvision

Grow = Callable[[Any], None]
Row = Callable[[Any, Tensor, Grow, Grow], None]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a habit.

    Attributes:
        words: The outcome, as the page has it, with the way out.
        pattern: A pattern of the error's or the warning's message; empty if it works.
    """

    words: str = "works"
    pattern: str = ""


WORKS = Outcome()


@dataclass(frozen=True)
class Habit:
    """A row of the table.

    Attributes:
        name: The habit, as the page has it.
        run: Does it and checks the result.
        before: The outcome if the model grows afterwards.
        after: The outcome if the model has grown already.
    """

    name: str
    run: Row
    before: Outcome
    after: Outcome


HABITS: list[Habit] = []


def habit(name: str, before: Outcome = WORKS, after: Outcome = WORKS) -> Callable[[Row], Row]:
    """Adds a row."""

    def add(run: Row) -> Row:
        HABITS.append(Habit(name, run, before, after))
        return run

    return add


class Net(nn.Module):
    """A small network with a convolution, norms, a residual block and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.body, self.drop = nn.Conv2d(4, 4, 3, padding=1), nn.Dropout(0.0)
        self.first, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.body(x)).mean((2, 3))
        return self.head(self.drop(self.first(x)).tanh())


def network() -> tuple[Any, Tensor]:
    """A growable network in evaluation mode with stirred values, and an input."""
    torch.manual_seed(0)
    x = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    net = Net().double()
    net(x)
    return splitgrow.growable(net.eval(), x[:2]), x


def grow(model: Any) -> None:
    """Grows in width, twice, and lets the new blocks count."""
    growing = splitgrow.handle(model)
    growing.expand_layer("stem", 2, freeze=False)
    growing.expand_layer("first", 3, freeze=False)
    with torch.no_grad():
        for parameter in growing.parameters_of(1) + growing.parameters_of(2):
            parameter.add_(0.2 * torch.randn_like(parameter))


def close(one: Tensor, other: Tensor, at_most: float = 1e-9) -> None:
    """Fails unless two tensors are equal up to rounding."""
    assert one.shape == other.shape
    gap = (one - other).abs().max().item()
    assert gap <= at_most, f"differs by {gap:.3g}"


def plain(model: Any) -> nn.Module:
    """The independent answer: a network of the user's class with the same function."""
    return splitgrow.merge(model)


def train(model: nn.Module, optimizer: Any, x: Tensor, steps: int = 2) -> None:
    """A few steps."""
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def everything(model: nn.Module) -> list[Tensor]:
    """Copies of all parameters."""
    return [p.detach().clone() for p in model.parameters()]


# -- modules and their parameters


@habit("`model.apply(f)` reaches every layer")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    seen: list[nn.Module] = []
    m.apply(seen.append)
    assert {id(module) for module in m.modules()} == {id(module) for module in seen}
    then(m)
    close(m(x), plain(m)(x))


@habit("`apply` with an initialiser by type sets every Linear and convolution")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    def init(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.constant_(module.weight, 0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    first(m)
    m.apply(init)
    oracle = plain(m)
    for name in ("stem", "body", "first", "head"):
        weight = oracle.get_submodule(name).weight
        assert weight.eq(0.01).all()
    then(m)
    close(m(x), plain(m)(x))


@habit("`nn.init` on a layer's weight")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    nn.init.ones_(m.first.weight)
    assert plain(m).first.weight.eq(1).all()
    then(m)


@habit("in-place change of a layer's weight under `no_grad`")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    before = plain(m)
    with torch.no_grad():
        m.first.weight.mul_(0.5)
        before.first.weight.mul_(0.5)
    close(m(x), before(x))
    then(m)


@habit("walking `named_modules`, `named_parameters`, `get_parameter`, `get_submodule`")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    for path, module in m.named_modules():
        assert m.get_submodule(path) is module
    for path, parameter in m.named_parameters():
        assert m.get_parameter(path) is parameter
    then(m)


@habit("counting parameters")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    assert sum(p.numel() for p in m.parameters()) == sum(p.numel() for p in plain(m).parameters())
    then(m)


@habit("`parameters_to_vector` and `vector_to_parameters`")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    before = m(x).detach()
    vector = nn.utils.parameters_to_vector(m.parameters()).detach().clone()
    nn.utils.vector_to_parameters(vector * 0, m.parameters())
    assert m(x).abs().max() == 0
    nn.utils.vector_to_parameters(vector, m.parameters())
    close(m(x), before)
    then(m)


IN_PARTS = Outcome(
    "fails in torch: frozen weights are parts of a larger tensor; `merge` first", "view size"
)


@habit(
    "the same with a frozen past",
    IN_PARTS,
    IN_PARTS,
)
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    splitgrow.handle(m).expand_layer("first", 2)
    m(x)
    vector = nn.utils.parameters_to_vector(m.parameters())
    assert len(vector) == sum(p.numel() for p in m.parameters())
    assert all(p.view(-1).numel() == p.numel() for p in m.parameters())


@habit("an attribute, a buffer and a parameter of one's own")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    m.epoch, m.temperature = 3, nn.Parameter(torch.ones(()).double())
    m.register_buffer("mean", torch.zeros(3))
    then(m)
    assert (m.epoch, m.temperature.item(), len(m.mean)) == (3, 1.0, 3)
    assert {"temperature", "mean"} <= m.state_dict().keys()


CHANGED = Outcome("growth is refused: call `growable` again", "changed since it was analysed")


@habit("a layer replaced by hand", CHANGED, CHANGED)
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    m.head = nn.Linear(m.head.in_features, 5).double()
    assert m(x).shape == (4, 5)
    splitgrow.handle(m).expand_layer("body", 1)


@habit("replaced by hand, and `growable` called again")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    m.head = nn.Linear(m.head.in_features, 5).double()
    splitgrow.growable(m, x)
    before = m(x).detach()
    splitgrow.handle(m).expand_layer("body", 2)
    close(m(x), before)
    then(m)


@habit("`train`, `eval`, `requires_grad_` on the whole")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    before = m(x).detach()
    m.train().requires_grad_(False)
    assert not any(p.requires_grad for p in m.parameters())
    m.requires_grad_(True).eval()
    close(m(x), before)
    then(m)


@habit("freezing by name, or by the type of module")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    for name, parameter in m.named_parameters():
        parameter.requires_grad_(not name.startswith(("stem", "norm")))
    still = [p.detach().clone() for n, p in m.named_parameters() if n.startswith(("stem", "norm"))]
    old = [p for n, p in m.named_parameters() if n.startswith(("stem", "norm"))]
    then(m)
    optimizer = torch.optim.SGD([p for p in m.parameters() if p.requires_grad], 0.1)
    train(m, optimizer, x)
    assert all(torch.equal(p, value) for p, value in zip(old, still, strict=True))


# -- hooks


@habit("forward hooks, also with `prepend` and `always_call`")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    seen: list[tuple[int, ...]] = []
    handle = m.first.register_forward_hook(lambda _, args, out: seen.append(tuple(out.shape)))
    then(m)
    seen.clear()
    m(x)
    assert seen == [(4, m.first.out_features)]
    handle.remove()
    m(x)
    assert len(seen) == 1


@habit("forward hooks that change the output")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    before = m(x).detach()
    m.head.register_forward_hook(lambda _, args, out: 2 * out)
    close(m(x), 2 * before)
    then(m)
    assert m.head._forward_hooks


@habit("forward pre-hooks with keyword arguments")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    m.body.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs), with_kwargs=True)
    before = m(x).detach()
    then(m)
    close(plain(m)(x), m(x))
    assert before.shape[0] == 4


@habit("full backward hooks")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    seen: list[tuple[int, ...]] = []
    m.first.register_full_backward_hook(lambda _, inp, out: seen.append(tuple(out[0].shape)))
    then(m)
    seen.clear()
    m(x).sum().backward()
    assert seen == [(4, m.first.out_features)]


@habit("hooks on parameters: `register_hook`, `register_post_accumulate_grad_hook`")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    seen: list[int] = []
    for parameter in m.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: seen.append(id(p)))
        parameter.register_hook(lambda grad: grad.clamp(-1, 1))
    hooked = {id(p) for p in m.parameters()}
    then(m)
    m(x).sum().backward()
    assert set(seen) == hooked


@habit("global module hooks")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    seen: list[str] = []
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, args, out: seen.append(type(module).__name__)
    )
    try:
        first(m)
        then(m)
        seen.clear()
        m(x)
    finally:
        hook.remove()
    assert "Net" in seen
    assert "Dropout" in seen


# -- weights that are computed, masked or shared


@habit(
    "`weight_norm` and other parametrizations of torch without buffers",
    Outcome(
        "works: the original stays parametrized, new blocks and merged layers are plain; channels "
        "can go under `weight_norm`, and where parts make parts"
    ),
    Outcome("refused: `splitgrow.merge` first", "merge"),
)
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    parametrizations.weight_norm(m.first)
    m = splitgrow.growable(m, x)
    before = m(x).detach()
    m.expand_layer("first", 2)
    close(m(x), before)
    assert type(m.first[1]) is nn.Linear
    close(plain(m)(x), before)


@habit(
    "`spectral_norm`, `orthogonal` by torch's parametrizations",
    Outcome("that layer and those tied to it do not grow: remove it first", "parametrization of"),
    Outcome("refused: `splitgrow.merge` first", "merge"),
)
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    parametrizations.spectral_norm(m.first)
    splitgrow.growable(m, x)
    before = m(x).detach()
    splitgrow.handle(m).expand_layer("stem", 1, optimizer=None)
    close(m(x), before)


@habit(
    "`nn.utils.prune` on a layer",
    Outcome("that layer and those tied to it do not grow: remove it first", "computed from other"),
    Outcome("refused: `splitgrow.merge` first", "merge"),
)
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    prune.l1_unstructured(m.first, "weight", 0.5)
    splitgrow.growable(m, x)
    splitgrow.handle(m).expand_layer("stem", 1)


@habit("tied weights")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    m.twin = m.head  # the same module at a second path
    splitgrow.growable(m, x)
    then(m)
    assert m.twin is m.head


# -- copies and files


@habit("`copy.deepcopy`")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    twin = copy.deepcopy(m)
    before = twin(x).detach()
    then(m)
    close(twin(x), before)
    splitgrow.handle(twin).expand_layer("body", 1)
    close(twin(x), before)


@habit("`pickle`, `torch.save` of the whole model")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    file = io.BytesIO()
    torch.save(m, file)
    file.seek(0)
    for twin in (pickle.loads(pickle.dumps(m)), torch.load(file, weights_only=False)):
        close(twin(x), m(x).detach())
        then(twin)


@habit("`state_dict` and `load_state_dict` of a fresh model")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    fresh, _ = network()
    file = io.BytesIO()
    torch.save(m.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    close(fresh(x), m(x).detach())
    then(fresh)


@habit("`load_state_dict(assign=True)`, `strict=False`")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    for options in ({"assign": True}, {"strict": False}):
        fresh, _ = network()
        fresh.load_state_dict(copy.deepcopy(m.state_dict()), **options)
        close(fresh(x), m(x).detach())
    then(fresh)


@habit("a prefix added to a state_dict and removed")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    state = {f"module.{name}": value for name, value in m.state_dict().items()}
    fresh, _ = network()
    fresh.load_state_dict({name.removeprefix("module."): v for name, v in state.items()})
    close(fresh(x), m(x).detach())
    then(fresh)


@habit(
    "a head dropped from a state_dict, `strict=False`",
    after=Outcome("refused if the head has grown: load it all, then reset it", "is missing"),
)
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    state = {k: v for k, v in m.state_dict().items() if not k.startswith("head")}
    fresh, _ = network()
    fresh.load_state_dict(state, strict=False)
    close(plain(fresh).first.weight, plain(m).first.weight)
    then(fresh)


@habit("safetensors: `save_file(model.state_dict())`")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    m(x)
    with tempfile.TemporaryDirectory() as folder:
        save_file(m.state_dict(), Path(folder, "m.safetensors"))
        fresh, _ = network()
        fresh.load_state_dict(load_file(Path(folder, "m.safetensors")))
    close(fresh(x), m(x).detach())
    then(fresh)


@habit("keeping the best state_dict, and going back to it")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    best, before = copy.deepcopy(m.state_dict()), m(x).detach()
    train(m, torch.optim.SGD(m.parameters(), 0.1), x)
    m.load_state_dict(best)
    close(m(x), before)
    then(m)


@habit(
    "going back to a state_dict from before a growth",
    Outcome(
        "loads, and warns: later blocks stay; the warning names the ways back", "is from before"
    ),
)
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    state = copy.deepcopy(m.state_dict())
    then(m)
    m.load_state_dict(state)


# -- dtypes and devices


@habit("`model.double()`, `.float()`, `.bfloat16()`")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    m.float()
    assert {p.dtype for p in m.parameters()} == {torch.float32}
    before = m(x.float()).detach()
    then(m.double())
    assert before.dtype is torch.float32


@habit("`.to(device)`, `.to(memory_format=torch.channels_last)`")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    before = m(x).detach()
    m.to("cpu").to(memory_format=torch.channels_last)
    close(m(x.contiguous(memory_format=torch.channels_last)), before)
    then(m)


@habit("autocast in bfloat16")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m.float())
    then(m)
    with torch.autocast("cpu", torch.bfloat16):
        out = m(x.float())
    assert out.dtype is torch.bfloat16
    close(out.double(), m(x.float()).double(), 0.1)


# -- training


@habit("an optimizer told of the growth")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    optimizer = torch.optim.AdamW(m.parameters(), 1e-3)
    train(m, optimizer, x)
    splitgrow.handle(m).expand_layer("first", 2, optimizer=optimizer)
    old = everything(m)
    train(m, optimizer, x)
    new = splitgrow.handle(m).parameters_of(1)
    moved = {id(p) for p, was in zip(m.parameters(), old, strict=True) if not torch.equal(p, was)}
    assert moved & {id(p) for p in new}


@habit(
    "an optimizer that is not told of the growth",
    Outcome("warns at its next step", "no optimizer trains"),
)
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    optimizer = torch.optim.AdamW(m.parameters(), 1e-3)
    then(m)
    train(m, optimizer, x)


@habit("param groups by name and by dimensions, layer-wise rates")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    decayed = [p for p in m.parameters() if p.dim() > 1]
    others = [p for p in m.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    )
    splitgrow.handle(m).insert_layer("first", "residual", optimizer=optimizer)
    for group, matrices in zip(optimizer.param_groups, (True, False), strict=True):
        assert {p.dim() > 1 for p in group["params"]} == {matrices}
    train(m, optimizer, x)


@habit("gradient accumulation, and growth between two backward passes")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    m(x).square().sum().backward()
    grads = {id(p): p.grad.clone() for p in m.parameters() if p.grad is not None}
    splitgrow.handle(m).expand_layer("first", 2, freeze=False)
    m(x).square().sum().backward()
    for parameter in m.parameters():
        if id(parameter) in grads:
            close(parameter.grad, 2 * grads[id(parameter)])
    then(m)


@habit("`clip_grad_norm_`, `clip_grad_value_`")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    oracle = plain(m)
    for model in (m, oracle):
        model(x).square().sum().backward()
    norms = [nn.utils.clip_grad_norm_(model.parameters(), 0.1) for model in (m, oracle)]
    close(norms[0], norms[1])
    nn.utils.clip_grad_value_(m.parameters(), 0.01)
    then(m)


@habit("`GradScaler`")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m.float())
    optimizer = torch.optim.SGD(m.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    splitgrow.handle(m).expand_layer("first", 1, optimizer=optimizer)
    before = everything(m)
    scaler.scale(m(x.float()).square().mean()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert any(not torch.equal(p, b) for p, b in zip(m.parameters(), before, strict=True))


@habit("schedulers")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    optimizer = torch.optim.SGD(m.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    splitgrow.handle(m).expand_layer("first", 1, optimizer=optimizer)
    train(m, optimizer, x)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] < 0.1


@habit("LBFGS", Outcome("refused: make a new one after the growth", "LBFGS keeps one flat history"))
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    optimizer = torch.optim.LBFGS(m.parameters(), max_iter=2)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = m(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    if first is not grow:
        splitgrow.handle(m).expand_layer("first", 1, optimizer=optimizer)


@habit("an average by `AveragedModel` (EMA, SWA), with `splitgrow.follow`")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    average = AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    average.update_parameters(m)
    splitgrow.follow(average, m)
    then(m)
    for _ in range(60):
        average.update_parameters(m)
    close(average.eval()(x), m(x))


@habit(
    "an average that nobody told",
    Outcome("growth warns: `splitgrow.follow`", "splitgrow.follow"),
)
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    average = AveragedModel(m)
    average.update_parameters(m)
    then(m)
    average.update_parameters(m)


@habit("`update_bn` of an average")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    average = splitgrow.follow(AveragedModel(m), m)
    then(m)
    update_bn([x], average)
    assert average.module.norm.running_mean.shape == (m.norm.running_mean.shape[0],)


@habit("a penalty on all parameters; importance by name (EWC)")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    anchors = {name: p.detach().clone() for name, p in m.named_parameters()}
    loss = sum((p - anchors[name]).square().sum() for name, p in m.named_parameters())
    (m(x).sum() + loss).backward()
    then(m)


@habit("noise or decay on `p.grad` and `p.data` by hand")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    oracle = plain(m)
    for model in (m, oracle):
        model(x).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.grad.mul_(0.5)
                parameter.data.add_(parameter.grad, alpha=-0.1)
    close(m(x), oracle(x))
    then(m)


# -- running


@habit("`torch.compile`")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    compiled = torch.compile(m, backend="eager")
    close(compiled(x), m(x))
    then(m)
    close(compiled(x), m(x))


@habit("activation checkpointing")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    then(m)
    oracle = plain(m)
    inputs = x.clone().requires_grad_()
    (one,) = torch.autograd.grad(checkpoint(m, inputs, use_reentrant=False).sum(), inputs)
    (other,) = torch.autograd.grad(oracle(inputs).sum(), inputs)
    close(one, other)


@habit("`nn.DataParallel` without devices")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    wrapped = nn.DataParallel(m)
    then(m)
    close(wrapped(x), m(x))


@habit("`torch.func`: `functional_call`, `grad`, `vmap` over copies of parameters")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    then(m)
    named = {name: p.detach() for name, p in m.named_parameters()}

    def loss(values: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return torch.func.functional_call(m, values, (inputs,)).square().sum()

    m(x).square().sum().backward()
    gradients = torch.func.grad(loss)(named, x)
    for name, parameter in m.named_parameters():
        close(gradients[name], parameter.grad)
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(named, x[:, None])
    for name, gradient in each.items():
        close(gradient.sum(0), gradients[name])


@habit("gradients of gradients, `jacrev`")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    then(m)
    oracle = plain(m)
    close(torch.func.jacrev(m)(x[:1]), torch.func.jacrev(oracle)(x[:1]))
    inputs = x.clone().requires_grad_()
    found = []
    for model in (m, oracle):
        (once,) = torch.autograd.grad(model(inputs).square().sum(), inputs, create_graph=True)
        (twice,) = torch.autograd.grad(once.square().sum(), inputs)
        found.append(twice)
    close(found[0], found[1])


@habit("`inference_mode`, `no_grad`")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    with torch.inference_mode():
        one = m(x)
    with torch.no_grad():
        close(one.clone(), m(x))
    then(m)
    m(x).sum().backward()


@habit("growth inside of `inference_mode` or `no_grad`")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    with torch.inference_mode():
        first(m)
        then(m)
    m(x).sum().backward()
    assert all(p.grad is not None for p in m.parameters())


@habit("`torch.jit.trace`, `torch.export`")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(m, x, check_trace=False)
    exported = torch.export.export(m, (x,)).module()
    close(traced(x), m(x))
    close(exported(x), m(x))
    then(m)


@habit("`torch.jit.script`", after=Outcome("refused: `splitgrow.merge` first", "merge"))
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        close(torch.jit.script(m)(x), m(x))


@habit(
    "LoRA by PEFT",
    Outcome("growth is refused: merge the adapters first, and add them anew", "merge"),
    Outcome("refused by PEFT: `splitgrow.integrations.peft`, or `merge` first", "not supported"),
)
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    torchvision()  # transformers imports it, and peft that
    peft = pytest.importorskip("peft")
    first(m)
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["first"]), m)
    then(m)


@habit(
    "`torch.fx.symbolic_trace`",
    after=Outcome("refused: `splitgrow.fuse`, or `merge` first", "torch.fx cannot trace"),
)
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    close(torch.fx.symbolic_trace(m)(x), m(x))
    then(m)


@habit("`share_memory()` for other processes")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    before = m(x).detach()
    m.share_memory()
    then(m)
    assert before.shape == (4, 3)
    assert m.head.weight.shape[0] == 3


@habit("`SyncBatchNorm.convert_sync_batchnorm`", CHANGED)
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    nn.SyncBatchNorm.convert_sync_batchnorm(m)
    close(m(x), plain(m)(x))
    then(m)


@habit("a feature extractor of the children: `nn.Sequential(*list(model.children())[:2])`")
def _(m: Any, x: Tensor, first: Grow, then: Grow) -> None:
    first(m)
    features = nn.Sequential(*list(m.children())[:2])
    then(m)
    assert features(x).shape[0] == 4


def describe() -> str:
    """The table, as the page has it."""
    lines = ["| habit | before growth | after growth |", "|---|---|---|"]
    lines += [f"| {row.name} | {row.before.words} | {row.after.words} |" for row in HABITS]
    return "\n".join(lines)


if __name__ == "__main__":
    print(describe())  # noqa: T201

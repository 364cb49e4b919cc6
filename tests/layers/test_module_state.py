"""A closed generation is recovered bit for bit, for any state that forward changes."""

from __future__ import annotations

import copy
import pickle
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import splitgrow
from splitgrow.errors import CheckpointError, SplitGrowError
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.journal import Journal, journal_of
from splitgrow.layers.module_state import BUFFERS

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
WIDTH = 8


class Average(nn.Module):
    """Moves an average of what it sees; `always` in evaluation, too."""

    def __init__(self, *, always: bool = False, persistent: bool = True, replace: bool = False):
        super().__init__()
        self.register_buffer("average", torch.zeros(WIDTH), persistent=persistent)
        self.always, self.replace = always, replace

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.always:
            with torch.no_grad():
                now = 0.9 * self.average + 0.1 * x.detach().mean(0)
                if self.replace:
                    self.average = now
                else:
                    self.average.copy_(now)
        return x - self.average


class Counting(nn.Module):
    """Counts its calls in training by whatever it is given, and scales by the count."""

    def __init__(self, start: Any, step: Callable[[Any, Tensor], Any], scale: Callable[[Any], Any]):
        super().__init__()
        if isinstance(start, Tensor):
            self.register_buffer("count", start)
        else:
            self.count = start
        self.step, self.scale = step, scale

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count = self.step(self.count, x.detach())
        return x * self.scale(self.count)


class Tracker:
    """An object that is no module."""

    def __init__(self) -> None:
        self.steps, self.mean = 0, torch.zeros(WIDTH)


class Tracking(nn.Module):
    """Keeps its state in an object."""

    def __init__(self, tracker: Any) -> None:
        super().__init__()
        self.tracker = tracker

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.tracker.steps += 1
            self.tracker.mean = 0.5 * (self.tracker.mean + x.detach().mean(0))
        return x * (1 + 1 / (1 + self.tracker.steps)) - self.tracker.mean


class Lazy(nn.Module):
    """Makes its state at the fifth call in training, and goes on with it."""

    def __init__(self, *, buffer: bool) -> None:
        super().__init__()
        self.as_buffer, self.calls = buffer, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        if self.calls > 4 and not hasattr(self, "seen"):
            if self.as_buffer:
                self.register_buffer("seen", x.detach().mean(0))
            else:
                self.seen = x.detach().mean(0)
        return x - self.seen if hasattr(self, "seen") else x


class Codebook(nn.Module):
    """A vector quantizer, whose codes follow what they are nearest to."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(5, WIDTH))
        self.register_buffer("used", torch.zeros(5, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.detach(), self.codes).argmin(1)
        if self.training:
            self.codes.index_add_(0, nearest, 0.1 * (x.detach() - self.codes[nearest]))
            self.used += torch.bincount(nearest, minlength=5)
        return x + self.codes[nearest] + self.used[nearest, None] / 100


class Renorm(nn.Module):
    """A running norm as users write it, in evaluation moving slowly."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(WIDTH))
        self.momentum = 0.3

    def forward(self, x: Tensor) -> Tensor:
        momentum = self.momentum if self.training else 0.01
        self.running_mean.lerp_(x.detach().mean(0), momentum)
        if self.training:
            self.momentum *= 0.9
        return x - self.running_mean


class Bypassed(nn.Module):
    """Uses a norm's statistics without calling the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return F.batch_norm(x, norm.running_mean, norm.running_var, training=self.training)


class Instance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(WIDTH, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.unsqueeze(-1).repeat(1, 1, 2) * torch.tensor([1.0, 2.0])).sum(-1)


class Frozen(nn.BatchNorm1d):
    """A norm that never trains, and counts in evaluation."""

    def train(self, mode: bool = True) -> Frozen:
        return super().train(mode=False)

    def forward(self, x: Tensor) -> Tensor:
        self.running_mean.add_(0.01)
        return super().forward(x)


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Average(), Average(replace=True)])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


class Shared(nn.Module):
    """Two modules with one buffer, which one of them moves."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = Average(), Average()
        self.other.average = self.one.average
        self.alias = [self.one.average]

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return y - self.other.average + self.alias[0].sin()


def _appended(items: Any, x: Tensor) -> Any:
    items.append(x.mean().item())
    return items


def _kept(items: dict[str, Any], x: Tensor) -> dict[str, Any]:
    items["sum"] = items.get("sum", 0) + x.mean(0)
    items.setdefault("seen", set()).add(len(items["seen"]) if "seen" in items else 0)
    return items


def _linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "spectral norm": lambda: parametrizations.spectral_norm(_linear()),
    "old spectral norm": lambda: spectral_norm(_linear()),
    "weight norm": lambda: parametrizations.weight_norm(_linear()),
    "old weight norm": lambda: weight_norm(_linear()),
    "average": Average,
    "average in evaluation": lambda: Average(always=True),
    "average not persistent": lambda: Average(persistent=False),
    "average assigned": lambda: Average(replace=True),
    "integer buffer": lambda: Counting(
        torch.zeros((), dtype=torch.long), lambda n, _: n.add_(1), lambda n: 1 + 1 / (1 + n)
    ),
    "boolean buffer": lambda: Counting(
        torch.tensor([False]), lambda n, x: n ^ (x.sum() != 0), lambda n: 1 + n.long()
    ),
    "int": lambda: Counting(0, lambda n, _: n + 1, lambda n: 1 / (1 + n)),
    "float": lambda: Counting(1.0, lambda n, _: n * 0.9, lambda n: n),
    "complex": lambda: Counting(1j, lambda n, _: n * 0.9j, abs),
    "flag": lambda: Counting(start=False, step=lambda n, _: not n, scale=lambda n: 2 if n else 1),
    "text": lambda: Counting("a", lambda n, _: n + "a", len),
    "nothing": lambda: Counting(None, lambda n, x: x.mean(), lambda n: 1 if n is None else n),
    "list": lambda: Counting([], _appended, lambda n: 1 + sum(n)),
    "queue": lambda: Counting(deque([0.0], 3), _appended, lambda n: 1 + sum(n)),
    "dict": lambda: Counting({}, _kept, lambda n: n.get("sum", 1) * len(n.get("seen", "a"))),
    "tensor attribute": lambda: Tracking(SimpleNamespace(steps=0, mean=torch.zeros(WIDTH))),
    "object": lambda: Tracking(Tracker()),
    "lazy attribute": lambda: Lazy(buffer=False),
    "lazy buffer": lambda: Lazy(buffer=True),
    "codebook": Codebook,
    "norm of the user's": Renorm,
    "norm passed by": Bypassed,
    "batch norm": lambda: nn.BatchNorm1d(WIDTH),
    "cumulative batch norm": lambda: nn.BatchNorm1d(WIDTH, momentum=None),
    "instance norm": Instance,
    "frozen norm": lambda: Frozen(WIDTH),
    "list of modules": Listed,
    "shared buffer": Shared,
}
HELD = {"weight norm", "old weight norm", "batch norm", "cumulative batch norm", "instance norm"}
"""What freezing holds still by itself."""
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),  # torch's own, inside
]
every_module = pytest.mark.parametrize("name", MODULES)


class Net(nn.Module):
    """Something with state between layers, and state of its own."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(3, WIDTH)
        self.between = between
        self.mid = nn.Linear(WIDTH, 6)
        self.act = nn.ReLU()
        self.head = nn.Linear(6, 2)
        self.calls = 0
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            self.total += x.mean()
        y = self.act(self.mid(self.between(self.first(x))))
        return self.head(y) + self.total + 1 / (1 + self.calls)


def made(name: str) -> Any:
    torch.manual_seed(0)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return splitgrow.growable(Net(MODULES[name]()), X)
    finally:
        torch.set_default_dtype(previous)


def train(model: Any, steps: int = 3) -> None:
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    none = [torch.zeros(1, requires_grad=True)]
    optimizer = torch.optim.SGD(parameters or none, lr=0.1, momentum=0.9, weight_decay=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(X * (1 + step)).square().mean()
        if parameters:
            loss.backward()
        optimizer.step()


def output(model: nn.Module, x: Tensor = X) -> Tensor:
    """In evaluation, of a copy, since it may move something."""
    for module in model.modules():
        if "weight" in vars(module):  # of an old weight norm; with a history it cannot be copied
            module.weight = module.weight.detach()
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x)


def shown(model: Any, generation: int, x: Tensor = X) -> Tensor:
    model.eval()
    with model.at(generation):
        result = model(x)
        model(x + 1)
    return result


def grown(name: str) -> tuple[Any, list[Tensor]]:
    """A model that closed three generations in different ways, and what it gave before each."""
    model, before = made(name), []
    train(model)
    before.append(output(model))
    model.expand_layer("mid", 2)
    train(model)
    before.append(output(model))
    model.next_generation()
    model.expand_layer("mid", 1)
    model.insert_layer("act")
    train(model)
    before.append(output(model))
    model.next_generation()
    train(model)
    return model, before


Closed = tuple[str, Any, list[Tensor]]


@pytest.fixture(scope="module", params=MODULES)
def closed(request: pytest.FixtureRequest) -> Closed:
    """A kind of module, a model with it, and what that gave: its past stays whatever is done."""
    return request.param, *grown(request.param)


def test_a_closed_generation_is_the_same_to_the_bit(closed: Closed) -> None:
    _, model, before = closed
    today, kept = output(model), held(model)
    for generation in (0, 2, 1, 0):
        assert torch.equal(shown(model, generation), before[generation]), generation
    assert torch.equal(output(model), today)
    assert same_objects(held(model), kept), "something else is there than before"


@pytest.mark.parametrize("name", list(MODULES)[::3])
def test_without_what_was_taken_down_it_would_differ(name: str, monkeypatch: Any) -> None:
    model, before = grown(name)
    monkeypatch.setattr("splitgrow.growth.history.show_", lambda *_: None)
    model.total.copy_(0)  # the network's own state is no part of this
    history_of(model).states.clear()
    calls, total = state_at(grown(name)[0])
    model.calls = calls
    model.total.copy_(total)
    assert torch.equal(shown(model, 0), before[0]) == (name in HELD)


def state_at(model: Any) -> tuple[int, Tensor]:
    """What the network itself held when generation 0 was closed."""
    (state,) = [s for s in history_of(model).states[0] if s.module is model]
    return state.values[""]["calls"], state.values[BUFFERS]["total"]


def held(model: nn.Module) -> list[dict[str, Any]]:
    own = [{**vars(module), "training": None} for module in model.modules()]
    for each in own:
        each.pop("weight", None)  # what an old weight norm has computed last
    return own + [dict(module._buffers) for module in model.modules()]


def same_objects(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    skipped = {"view", "_runner", "_splitgrow_history"}
    return all(
        list(a) == list(b) and all(a[key] is b[key] for key in a if key not in skipped)
        for a, b in zip(one, other, strict=True)
    )


def test_a_merged_generation_is_the_same_to_the_bit(closed: Closed) -> None:
    _, model, before = closed
    for generation, expected in enumerate(before):
        merged = splitgrow.merge(model, generation=generation)
        assert merged.mid.out_features == (6, 8, 9)[generation]
        assert torch.equal(output(merged), expected) or generation  # helpers add up otherwise
        assert torch.allclose(output(merged), expected, rtol=0, atol=1e-12)
    assert torch.equal(shown(model, 0), before[0])


def test_copies_have_the_generations_of_their_own(closed: Closed) -> None:
    _, model, before = closed
    twin = copy.deepcopy(model)
    train(model, 1)
    for generation, expected in enumerate(before):
        assert torch.equal(shown(twin, generation), expected)
        assert torch.equal(shown(model, generation), expected)


UNFILED = {"lazy buffer", "lazy attribute"}


def test_a_checkpoint_holds_the_closed_generations(closed: Closed, tmp_path: Path) -> None:
    name, model, before = closed
    if name in UNFILED:
        pytest.skip("a fresh model lacks what came to be")
    splitgrow.save(model, tmp_path / "a.safetensors")
    fresh = made(name)
    splitgrow.load(fresh, tmp_path / "a.safetensors")
    for generation, expected in enumerate(before):
        assert torch.equal(shown(fresh, generation), expected)
    splitgrow.save(fresh, tmp_path / "b.safetensors")
    journals = [journal_of(each, history_of(each)).to_json() for each in (model, fresh)]
    assert journals[0] == journals[1]


def test_a_state_dict_holds_the_closed_generations(closed: Closed) -> None:
    name, model, before = closed
    if name in UNFILED:
        pytest.skip("a fresh model lacks what came to be")
    fresh = made(name)
    if name in {"average", "object", "codebook"}:  # as a part of something else
        nn.ModuleList([fresh]).load_state_dict(nn.ModuleList([model]).state_dict())
    else:
        fresh.load_state_dict(model.state_dict())
    for generation, expected in enumerate(before):
        assert torch.equal(shown(fresh, generation), expected)
    train(model, 1)
    model.load_state_dict(fresh.state_dict())
    assert torch.equal(shown(model, 0), before[0])


@pytest.mark.filterwarnings("ignore::splitgrow.SplitGrowWarning")
def test_an_earlier_state_dict_brings_its_buffers_for_what_was_closed_since() -> None:
    model = made("average")
    train(model)
    state, before = copy.deepcopy(model.state_dict()), output(model)
    calls = model.calls
    train(model)
    model.calls = calls
    model.expand_layer("mid", 2)
    train(model)
    model.load_state_dict(state)
    assert torch.equal(shown(model, 0), before)


def test_a_journal_without_states_is_read() -> None:
    model, _ = grown("average")
    journal = journal_of(model, history_of(model))
    text = journal.to_json()
    assert Journal.from_json(text) == journal
    old = Journal.from_json(text[: text.index(', "states"')] + ', "version": 1}')
    assert old.states == {}
    assert old.generation == journal.generation


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"average"', '"forward"'),
        ('"average"', '"__class__"'),
        ('"path": "between"', '"path": "elsewhere"'),
        ('"float64"', '"float32"'),
        ('"float64"', '"nn"'),
        ('"shape": [8]', '"shape": [1000000000000]'),
        ('"content": "', '"content": "!'),
        ('{"tensor": "value"}', "[]"),
        ('{"tensor": "value"}', '{"tensor": "none"}'),
        ('{"tensor": "value"}', '{"code": "1"}'),
    ],
)
def test_a_journal_that_names_what_cannot_be_is_refused_and_changes_nothing(old, new) -> None:
    model, before = grown("average")
    fresh = made("average")
    state = model.state_dict()
    text = bytes(state["_extra_state"].tolist()).decode()
    assert old in text
    hostile = text.replace(old, new).encode()
    state["_extra_state"] = torch.frombuffer(bytearray(hostile), dtype=torch.uint8)
    today = output(fresh)
    with pytest.raises(CheckpointError):
        fresh.load_state_dict(state)
    assert torch.equal(output(fresh), today)
    assert fresh.generation == 0
    assert torch.equal(shown(model, 0), before[0])


@every_module
def test_a_converted_model_has_converted_generations(name: str) -> None:
    model, _ = grown(name)
    if name in {"object", "tensor attribute", "nothing", "lazy attribute", "dict", "shared buffer"}:
        return  # torch does not convert tensors in attributes either
    expected = output(splitgrow.merge(model, generation=0).float(), X.float())
    assert torch.equal(shown(model.float(), 0, X.float()), expected)


def test_nothing_is_moved_or_converted_while_a_generation_is_shown() -> None:
    model, before = grown("average")
    with model.at(0), pytest.raises(SplitGrowError, match="move or convert"):
        model.float()
    assert torch.equal(shown(model, 0), before[0])


def test_pickles_hold_the_closed_generations() -> None:
    model, before = grown("average")
    assert torch.equal(shown(pickle.loads(pickle.dumps(model)), 0), before[0])


def test_a_buffer_that_does_not_change_is_held_once() -> None:
    model, _ = grown("batch norm")
    states = history_of(model).states
    held = [
        {id(v) for s in states[g] for v in s.values.get(BUFFERS, {}).values() if v is not None}
        for g in (0, 1, 2)
    ]
    assert held[0] & held[1] & held[2]


def test_unfreezing_lets_go_of_what_was_taken_down() -> None:
    model, _ = grown("average")
    model.unfreeze()
    assert history_of(model).states == {}


def test_a_failed_growth_takes_nothing_down(monkeypatch: Any) -> None:
    model = made("average")
    monkeypatch.setattr("splitgrow.growth.placing.place_", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.expand_layer("mid", 2)
    assert history_of(model).states == {}


def test_what_fails_inside_leaves_what_was_there() -> None:
    model, before = grown("object")
    today, kept = output(model), held(model)

    def fail() -> None:
        with model.at(0):
            model.eval()(X)
            model.between.tracker.steps = 100
            model.made_inside = 3
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(output(model), today)
    assert same_objects(held(model), kept)
    assert torch.equal(shown(model, 0), before[0])


def test_a_model_on_the_meta_device_closes_generations() -> None:
    with torch.device("meta"):
        model = splitgrow.growable(Net(Average()), torch.empty(2, 3))
    model.expand_layer("mid", 2)
    model.next_generation()
    with model.at(0):
        assert model(torch.empty(2, 3, device="meta")).is_meta


def test_a_frozen_network_may_run_in_training_mode_inside() -> None:
    model, before = grown("average")
    model.train()
    with model.at(0):
        model(X)
    assert torch.equal(shown(model, 0), before[0])


class Outside(nn.Module):
    """Keeps its counter on a layer that grows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 6), nn.Linear(6, 2)
        self.first.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.first.calls += 1
        return self.head(self.first(x)) / (1 + self.first.calls)


def test_a_number_that_lies_on_a_grown_layer_is_that_of_the_generation() -> None:
    torch.manual_seed(0)
    model = splitgrow.growable(Outside().double(), X)
    train(model)
    before = output(model)
    model.expand_layer("first", 2)
    train(model)
    today = output(model)
    assert model.first.calls > 3
    assert torch.equal(shown(model, 0), before)
    assert torch.equal(output(model), today)

"""The tensors of a grown layer act as those of the plain one: reading, writing, gradients."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from grown_layers import LAYERS, Layer, grown, input_of
from helpers import assert_equal
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import splitgrow
from splitgrow.errors import SplitGrowError, UnsupportedLayerError

BY_NAME = {layer.name: layer for layer in LAYERS}
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)


def tensors(layer: nn.Module) -> dict[str, Tensor]:
    """The plain layer's tensors, read one by one."""
    names = [name for name, _ in (*layer.named_parameters(), *layer.named_buffers())]
    return {name: getattr(layer, name) for name in names}


def values(split: Any) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in tensors(split.plain()).items()}


def no_grad(write: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    def quiet(w: Tensor) -> None:
        with torch.no_grad():
            write(w)

    return quiet


def iadd(w: Tensor) -> None:
    w += 0.25


def item(w: Tensor) -> None:
    w[0] = 0.5


def masked(w: Tensor) -> None:
    w[w > 0.1] = 0.0


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "zeros_": nn.init.zeros_,
    "constant_": lambda w: nn.init.constant_(w, 0.3),
    "normal_": nn.init.normal_,
    "uniform_": nn.init.uniform_,
    "trunc_normal_": lambda w: nn.init.trunc_normal_(w, std=0.1),
    "data.mul_": lambda w: w.data.mul_(2),
    "data.clamp_": lambda w: w.data.clamp_(-0.1, 0.1),
    "data[0]": lambda w: item(w.data),
    "detach().add_": lambda w: w.detach().add_(1),
    "add_": no_grad(lambda w: w.add_(0.5)),
    "+=": no_grad(iadd),
    "an item": no_grad(item),
    "a mask": no_grad(masked),
    "a row's view": no_grad(lambda w: w[0].zero_()),
    "a transposed view": no_grad(lambda w: w.movedim(0, -1)[..., 1].fill_(2)),
    "a flat view": no_grad(lambda w: w.view(-1)[1:3].fill_(4)),
    "copy_": no_grad(lambda w: w.copy_(torch.arange(w.numel()).view(w.shape) / 7)),
    "out=": no_grad(lambda w: torch.mul(w, 3, out=w)),
    "a function in place": no_grad(lambda w: F.relu(w, inplace=True)),
    "foreach": no_grad(lambda w: torch._foreach_mul_([w], 0.5)),
    "data =": lambda w: setattr(w, "data", torch.full_like(w, 0.2).detach()),
    "index_fill_": no_grad(lambda w: w.index_fill_(0, torch.tensor([0]), 9)),
}
MATRICES: dict[str, Callable[[Tensor], Any]] = {
    "kaiming_uniform_": nn.init.kaiming_uniform_,
    "kaiming_normal_": nn.init.kaiming_normal_,
    "xavier_uniform_": nn.init.xavier_uniform_,
    "xavier_normal_": nn.init.xavier_normal_,
    "orthogonal_": nn.init.orthogonal_,
}


@every_layer
def test_reading_sees_what_the_plain_layer_has(layer: Layer) -> None:
    split = grown(layer, freeze=True)
    plain = split.plain()
    for name, expected in tensors(plain).items():
        own = getattr(split, name)
        assert own.shape == expected.shape
        assert own.dtype == expected.dtype
        if own.dim():
            assert_equal(own.detach() + 0, expected.detach())
        assert own.is_leaf
        assert own.grad_fn is None


@every_layer
def test_every_way_of_writing_reaches_the_blocks(layer: Layer) -> None:
    """Writing to the plain layer and to the grown one leaves the same values."""
    split = grown(layer, freeze=False)
    for name, parameter in split.plain().named_parameters():
        ways = {**WRITES, **(MATRICES if parameter.dim() > 1 else {})}
        for way in ways.values():
            plain = split.plain()
            for one in (plain, split):
                torch.manual_seed(4)
                way(getattr(one, name))
            for key, value in values(split).items():
                assert_close(value, dict(tensors(plain))[key])


def assert_close(one: Tensor, other: Tensor) -> None:
    assert (one - other).abs().max() <= 1e-12 * max(other.abs().max().item(), 1)


@every_layer
def test_its_own_initialisation_is_the_plain_layers(layer: Layer) -> None:
    split = grown(layer, freeze=False)
    if not hasattr(split, "reset_parameters"):
        pytest.skip("it has none")
    plain = split.plain()
    for one in (plain, split):
        torch.manual_seed(4)
        one.reset_parameters()
    for key, value in values(split).items():
        assert_close(value, tensors(plain)[key])


def test_what_is_written_is_what_the_layer_computes_with() -> None:
    split = grown(BY_NAME["Linear"], freeze=False)
    x = input_of(BY_NAME["Linear"], split, (4, 6))
    for mode in ("merged", "blockwise", "auto"):
        with splitgrow.execution(mode):
            split(x)
            nn.init.constant_(split.weight, 0.5)
            assert_equal(
                split(x) - split.bias, x.sum(1, keepdim=True).expand(4, split.sizes()[1]) / 2
            )
            nn.init.normal_(split.weight)
            assert_equal(split(x), split.plain()(x))


@pytest.mark.filterwarnings("ignore::splitgrow.SplitGrowWarning")
def test_a_tensor_that_is_kept_stays_up_to_date() -> None:
    split = grown(BY_NAME["Linear"], freeze=False)
    weight = split.weight
    row = weight.detach()[2]
    optimizer = torch.optim.SGD(split.parameters(), 0.1)
    split(input_of(BY_NAME["Linear"], split, (4, 6))).sum().backward()
    optimizer.step()
    assert_close(weight.detach() + 0, split.plain().weight)
    assert_close(row + 0, split.plain().weight[2])
    with torch.no_grad():
        row.zero_()
    assert not split.plain().weight[2].any()
    assert split.plain().weight[1].all()


def test_an_optimizer_of_the_whole_weight_trains_the_blocks() -> None:
    split = grown(BY_NAME["Linear"], freeze=False)
    plain, x = split.plain(), input_of(BY_NAME["Linear"], split, (4, 6))
    for make in (lambda p: torch.optim.SGD(p, 0.1, 0.9), lambda p: torch.optim.Adam(p, 0.1)):
        pairs = [(layer, make([layer.weight])) for layer in (split, plain)]
        for _ in range(3):
            for layer, optimizer in pairs:
                optimizer.zero_grad()
                layer(x).sin().sum().backward()
                optimizer.step()
        assert_close(split.plain().weight, plain.weight)


def test_what_is_frozen_is_never_written_to() -> None:
    """It is what an earlier generation is made of; the rest is left alone with it."""
    split = grown(BY_NAME["Linear"], freeze=True)
    before = values(split)
    for write in (nn.init.zeros_, WRITES["data.mul_"], WRITES["a row's view"]):
        with pytest.raises(UnsupportedLayerError, match=r"frozen in block 0.*unfreeze"):
            write(split.weight)
        assert all(torch.equal(v, before[k]) for k, v in values(split).items())
    with torch.no_grad():
        split.weight[-1] = 1.5  # a unit that trains
        split.weight.clamp_(-100, 100)
    assert (split.plain().weight[-1] == 1.5).all()


def test_a_leaf_that_trains_is_not_written_to_while_autograd_records() -> None:
    split = grown(BY_NAME["Linear"], freeze=False)
    before = values(split)
    for write in (lambda w: w.mul_(2), item, iadd, lambda w: w[0].zero_()):
        with pytest.raises(RuntimeError, match="leaf Variable"):
            write(split.weight)
    assert all(torch.equal(v, before[k]) for k, v in values(split).items())


@every_layer
def test_gradients_are_read_and_written_as_one(layer: Layer) -> None:
    split = grown(layer, freeze=False)
    x = input_of(layer, split, layer.shapes[0])
    plain = split.plain()
    for name, _ in plain.named_parameters():
        assert getattr(split, name).grad is None
    if not [*plain.parameters()]:
        return
    for one in (split, plain):
        one(x).sin().sum().backward()
    for name, parameter in plain.named_parameters():
        own = getattr(split, name)
        assert_close(own.grad + 0, parameter.grad)
        own.grad.mul_(2)
        assert_close(getattr(split, name).grad + 0, 2 * parameter.grad)
        own.grad = torch.ones_like(parameter)
        assert_close(getattr(split, name).grad + 0, torch.ones_like(parameter))
        own.grad.zero_()
        assert not getattr(split, name).grad.any()
        own.grad = None
        assert all(
            getattr(block, name, None) is None or getattr(block, name).grad is None
            for block in split
        )
        with pytest.raises(RuntimeError, match="different size"):
            own.grad = torch.ones(77)


def test_what_is_frozen_receives_no_gradient() -> None:
    split = grown(BY_NAME["Linear"], freeze=True)
    split.weight.grad = torch.ones(split.weight.shape, dtype=torch.float64)
    assert split[0].weight.grad is None
    assert not split.weight.grad[: split[0].weight.shape[0], :6].all()
    assert split.weight.grad.any()


def test_requiring_gradients_is_said_to_all_blocks() -> None:
    split = grown(BY_NAME["Linear"], freeze=False)
    split.weight.requires_grad = False
    assert not any(block.weight.requires_grad for block in split)
    assert not split.weight.requires_grad
    split.weight.requires_grad_(True)
    assert all(block.weight.requires_grad for block in split)
    with torch.no_grad():
        assert split.weight.requires_grad


def test_a_mark_on_a_weight_is_one_on_all_blocks() -> None:
    split = grown(BY_NAME["Linear"], freeze=False)
    split.weight.no_decay = True
    assert all(block.weight.no_decay for block in split)
    assert split.weight.no_decay
    assert not hasattr(split.weight, "another")


def test_functions_of_the_weight_are_differentiable_by_the_blocks() -> None:
    split = grown(BY_NAME["Linear"], freeze=False)
    plain, x = split.plain(), input_of(BY_NAME["Linear"], split, (4, 6))
    for one in (split, plain):
        (F.linear(x, one.weight * 2).sum() + one.weight.t().pow(2).sum()).backward()
    assert_close(split.weight.grad + 0, plain.weight.grad)
    weight = split.weight
    (found,) = torch.autograd.grad(F.linear(x, weight).sum(), weight)
    (expected,) = torch.autograd.grad(F.linear(x, plain.weight).sum(), plain.weight)
    assert_close(found, expected)
    assert type(F.linear(x, weight)) is Tensor


def test_compiling_and_transforms_read_it_as_plain_ops() -> None:
    split = grown(BY_NAME["Linear"], freeze=False)
    x = input_of(BY_NAME["Linear"], split, (4, 6))

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = split

        def forward(self, x: Tensor) -> Tensor:
            return (
                F.linear(x, self.layer.weight).sum() + self.layer(x).sum() * self.layer.in_features
            )

    module = Reads()
    expected = module(x)
    assert_equal(torch.compile(module, backend="eager")(x), expected)
    assert_equal(functional_call(module, dict(module.named_parameters()), (x,)), expected)
    parameters = {n: p.detach() for n, p in module.named_parameters()}
    found = grad(lambda p: functional_call(module, p, (x,)))(parameters)
    expected.backward()
    for name, parameter in module.named_parameters():
        assert_close(found[name], parameter.grad)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda w: pickle.loads(pickle.dumps(w))])
def test_a_copy_of_a_weight_is_a_parameter_of_its_own(copied: Callable[[Any], Any]) -> None:
    split = grown(BY_NAME["Linear"], freeze=False)
    before = split.plain().weight.detach()
    weight = copied(split.weight)
    assert type(weight) is nn.Parameter
    with torch.no_grad():
        weight.zero_()
    assert torch.equal(split.plain().weight, before)


@every_layer
def test_statistics_are_those_of_the_plain_layer(layer: Layer) -> None:
    split = grown(layer, freeze=False)
    for name, _ in split.plain().named_buffers():
        plain = split.plain()
        for one in (split, plain):
            getattr(one, name).fill_(3)
        for key, value in values(split).items():
            assert_close(value, tensors(plain)[key])


def test_statistics_that_are_held_are_not_reset() -> None:
    split = grown(BY_NAME["BatchNorm1d"], freeze=True)
    before = split[0].running_mean.clone()
    with pytest.raises(UnsupportedLayerError, match=r"running_mean.*frozen"):
        split.reset_running_stats()
    assert torch.equal(split[0].running_mean, before)


REPLACEMENTS: dict[str, Callable[[Any], Any]] = {
    "an assigned parameter": lambda m: setattr(m, "weight", nn.Parameter(torch.zeros(10, 10))),
    "an assigned tensor": lambda m: setattr(m, "weight", torch.zeros(10, 10)),
    "none for the bias": lambda m: setattr(m, "bias", None),
    "a deleted weight": lambda m: delattr(m, "weight"),
    "register_parameter": lambda m: m.register_parameter("weight", None),
    "register_buffer": lambda m: m.register_buffer("bias", torch.zeros(10)),
    "a width": lambda m: setattr(m, "out_features", 3),
    "a block": lambda m: setattr(m, "0", nn.Identity()),
    "a block by its number": lambda m: m.__setitem__(1, nn.Bilinear(3, 3, 3)),
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "weight norm of old": nn.utils.weight_norm,
    "spectral norm of old": nn.utils.spectral_norm,
    "any parametrization": lambda m: nn.utils.parametrize.register_parametrization(
        m, "weight", nn.Identity()
    ),
    "pruning by size": lambda m: prune.l1_unstructured(m, "weight", 0.5),
    "pruning at random": lambda m: prune.random_unstructured(m, "weight", 0.5),
    "pruning of units": lambda m: prune.ln_structured(m, "weight", 0.5, 2, 0),
    "pruning by a mask": lambda m: prune.custom_from_mask(m, "weight", torch.ones(10, 10)),
    "pruning everywhere": lambda m: prune.global_unstructured(
        [(m, "weight")], prune.L1Unstructured, amount=0.2
    ),
    "a hook on its gradient": lambda m: m.weight.register_hook(lambda g: g),
    "memory of its own": lambda m: m.weight.set_(torch.zeros(10, 10).double()),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("way", REPLACEMENTS)
def test_what_cannot_be_done_is_refused_in_words_and_changes_nothing(way: str) -> None:
    split = grown(BY_NAME["Linear"], freeze=False)
    before, state, hooks = values(split), dict(vars(split)), [*split._forward_pre_hooks]
    parameters = [*split.parameters()]
    with pytest.raises(SplitGrowError, match="grown") as refusal:
        REPLACEMENTS[way](split)
    assert "splitgrow.merge" in str(refusal.value)
    assert all(torch.equal(v, before[k]) for k, v in values(split).items())
    assert vars(split).keys() == state.keys()
    assert [*split._forward_pre_hooks] == hooks
    assert [id(p) for p in split.parameters()] == [id(p) for p in parameters]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "apply", [parametrizations.spectral_norm, nn.utils.spectral_norm, nn.utils.weight_norm]
)
def test_what_a_refusal_advises_works(apply: Callable[[nn.Module], Any]) -> None:
    """Remove it, grow, merge, apply it again."""
    x = torch.randn(3, 4)
    model: Any = nn.Sequential(apply(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 2))
    layer = next(layer for layer in splitgrow.growable(model, x).layers if layer.name == "0")
    assert not layer.growable
    assert "splitgrow.merge" in layer.reason
    model = splitgrow.growable(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), x)
    model.expand_layer("0", 2)
    plain: Any = splitgrow.merge(model)
    expected = plain(x)
    apply(plain[0])
    if apply is nn.utils.weight_norm:
        assert_equal(plain(x), expected)
    assert plain(x).shape == expected.shape


def test_a_norm_takes_a_new_eps_and_momentum_as_the_plain_one() -> None:
    split = grown(BY_NAME["BatchNorm1d"], freeze=False).train()
    x = input_of(BY_NAME["BatchNorm1d"], split, (4, 6))
    for mode in ("merged", "blockwise"):
        plain = split.plain()
        for one in (split, plain):
            one.eps, one.momentum = 0.5, 0.75
        assert {block.eps for block in split} == {0.5}
        with splitgrow.execution(mode):
            assert_equal(split(x), plain(x))
        assert_close(split.running_mean + 0, plain.running_mean)
        split.eps = 1e-5


def test_a_convolution_takes_another_stride() -> None:
    split = grown(BY_NAME["Conv2d"], freeze=False)
    x = input_of(BY_NAME["Conv2d"], split, (3, 6, 7, 5))
    split(x)
    split.stride = (2, 2)
    for mode in ("merged", "blockwise"):
        with splitgrow.execution(mode):
            assert_equal(split(x), split.plain()(x))


def test_anyone_may_keep_something_of_their_own_on_it() -> None:
    """Counters of operations, as profilers have them on every module."""
    model: Any = splitgrow.growable(
        nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), torch.ones(1, 4)
    )
    model.expand_layer("0", 2)

    def count(module: nn.Module) -> None:
        module.register_buffer("total_ops", torch.zeros(1))
        module.calls = 0

    model.apply(count)
    for module in model.modules():
        module.calls += 1
        module.total_ops += 2
    assert all(module.calls == 1 and module.total_ops == 2 for module in model.modules())
    assert model[0]._buffers.keys() == {"total_ops"}


def test_it_has_the_plain_layers_attributes_and_no_others() -> None:
    for layer in LAYERS:
        split = grown(layer)
        plain = split.plain()
        for name in dir(plain):
            if name[:1] != "_" and not callable(getattr(plain, name)):
                assert hasattr(split, name), (layer.name, name)
        for name, value in vars(plain).items():
            if name[:1] != "_" and not isinstance(value, bool):
                assert getattr(split, name) == value, (layer.name, name)
        assert not hasattr(split, "total_ops")
        assert not hasattr(split, "parametrizations")


def test_the_law_sees_a_write_that_vanishes() -> None:
    """A control."""
    split = grown(BY_NAME["Linear"], freeze=False)
    before = values(split)
    split.weight.clone().detach().zero_()
    assert all(torch.equal(v, before[k]) for k, v in values(split).items())
    nn.init.zeros_(split.weight)
    assert not all(torch.equal(v, before[k]) for k, v in values(split).items())

"""A grown layer trains as the plain layer that it stands for, in front of any other module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES, Case
from grown_layers import LAYERS, Layer, grown, input_of
from helpers import assert_equal, randomise, randomise_new_blocks, split_layers, tensors_of
from torch import Tensor, nn
from torch.nn import functional as F

import splitgrow
from splitgrow.utils.spans import regions

MODES = ("merged", "blockwise", "auto")


def slice_assigned(h: Tensor) -> Tensor:
    h[..., :1] = 0.5
    return h


def added_to(h: Tensor) -> Tensor:
    h += torch.ones_like(h) / 3
    return h


def masked(h: Tensor) -> Tensor:
    h[h > 0.5] = 0
    return h


CONTINUATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda h: h,
    "ReLU(inplace=True)": nn.ReLU(inplace=True),
    "h += r": added_to,
    "h.mul_()": lambda h: h.mul_(1.5),
    "dropout in place": lambda h: F.dropout(h, 0.5, True, inplace=True),
    "slice assignment": slice_assigned,
    "mask assignment": masked,
    "a view of it in place": lambda h: h.view(h.shape).mul_(2),
    "flattened, then in place": lambda h: h.flatten().tanh_(),
    "chained": lambda h: h.sub_(0.1).mul_(2).sigmoid_(),
}


def computed(
    layer: nn.Module, x: Tensor, after: Callable[[Tensor], Tensor], *, again: bool
) -> tuple[Tensor, list[Tensor | None], list[Tensor | None]]:
    """The output, and the gradients of the input and of what trains, of first and second order."""
    own = x.detach().clone(memory_format=torch.preserve_format)
    own = own.requires_grad_() if x.is_floating_point() else own
    wanted = [own, *(p for p in layer.parameters() if p.requires_grad)]
    wanted = wanted if own.requires_grad else wanted[1:]
    torch.manual_seed(5)
    y = after(layer(own))
    loss = (y * y.detach().cos()).sum() + y.pow(3).sum() / 7
    first = torch.autograd.grad(loss, wanted, create_graph=again, allow_unused=True)
    second: list[Tensor | None] = []
    if again:  # of the input's gradient, which is the same function of grown and plain weights
        second = list(torch.autograd.grad(first[0].square().sum(), wanted, allow_unused=True))
    return y.detach(), list(first), second


def assert_trains_alike(
    split: Any, x: Tensor, after: Callable[[Tensor], Tensor], mode: Any, *, again: bool = False
) -> None:
    """Outputs and gradients, those of blocks against slices of the plain layer's."""
    plain = split.plain().requires_grad_(True)
    try:
        expected, *theirs = computed(plain, x, after, again=again)
    except (RuntimeError, ValueError, IndexError, UserWarning) as refusal:
        with splitgrow.execution(mode), pytest.raises(type(refusal)):
            computed(split, x, after, again=again)
        return
    with splitgrow.execution(mode):
        y, *ours = computed(split, x, after, again=again)
    assert_close(y, expected)
    names = [name for name, _ in plain.named_parameters()]
    for mine, whole in zip(ours[: 1 + again], theirs, strict=False):
        if x.is_floating_point():
            assert_close(mine.pop(0), whole.pop(0))
        assert_slices(split, mine, dict(zip(names, whole, strict=True)))


def assert_slices(split: Any, mine: list[Any], whole: dict[str, Any]) -> None:
    composition = split.composition()
    place = 0
    for index, block in enumerate(split):
        for name, parameter in block.named_parameters():
            if not parameter.requires_grad:
                continue
            gradient, full = mine[place], whole[name]
            place += 1
            if full is None or gradient is None:
                assert_close(gradient, full)
                continue
            if split.layer_type.merging.couples:  # the plain layer's weights are multiples
                born = composition.outs.until(composition.blocks[index].edit).length
                full = full * (born / composition.outs.length) ** 0.5
            for there, own in regions(composition.places(index, name), gradient.dim()):
                assert_close(gradient[own], full[there], full)


def assert_close(one: Tensor | None, other: Tensor | None, scale_of: Tensor | None = None) -> None:
    if one is None or other is None:  # no gradient is one of zeros
        assert all(tensor is None or not tensor.any() for tensor in (one, other))
        return
    assert one.shape == other.shape
    if one.numel():
        reference = other if scale_of is None else scale_of
        scale = max(reference.abs().max().item(), 1.0)
        assert (one - other).abs().max().item() <= 1e-11 * scale


every_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
Pair = tuple[Layer, Any]
PAIRS = [
    pytest.param((layer, freeze), id=f"{layer.name}-{'frozen' if freeze else 'free'}")
    for layer in LAYERS
    for freeze in (True, False)
]


@pytest.fixture(scope="module", params=PAIRS)
def pair(request: pytest.FixtureRequest) -> Pair:
    """A layer and what became of it, which is in evaluation mode and only runs."""
    layer, freeze = request.param
    return layer, grown(layer, freeze=freeze)


def test_a_grown_layer_trains_as_the_plain_one_whatever_follows(pair: Pair) -> None:
    """Every continuation behind inputs of the usual rank, two of them behind those of others."""
    layer, split = pair
    for place, shape in enumerate(layer.shapes):
        x = input_of(layer, split, shape)
        for name, after in CONTINUATIONS.items():
            if not place or name in {"as it is", "ReLU(inplace=True)"}:
                for mode in MODES if place else MODES[:2]:
                    assert_trains_alike(split, x, after, mode)


def test_a_grown_layer_can_be_differentiated_again(pair: Pair) -> None:
    layer, split = pair
    for shape in layer.shapes if not layer.vocabulary else ():
        x = input_of(layer, split, shape)
        for mode in MODES:
            assert_trains_alike(split, x, lambda h: h.sin().mul_(2), mode, again=True)


STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "every second row": lambda x: torch.cat([x, x])[::2],
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "expanded": lambda x: x[:1].expand_as(x),
    "a part of something wider": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
}


def test_a_grown_layer_takes_input_however_it_lies(pair: Pair) -> None:
    layer, split = pair
    for shape in layer.shapes:
        x = input_of(layer, split, shape)
        for lies in STRIDES.values() if x.dim() > 1 and x.numel() else ():
            own = lies(x)
            for mode in MODES[:2]:
                assert_trains_alike(split, own, nn.ReLU(inplace=True), mode)


class InPlace:
    """A forward hook that goes on in place."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        for tensor in tensors_of(output):
            if tensor.is_floating_point():  # not the lengths of packed sequences
                tensor.mul_(1.25).sub_(0.125)


@pytest.mark.parametrize("mode", MODES[:2])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_trains_with_something_in_place_behind_every_grown_layer(
    case: Case, mode: Any
) -> None:
    (x,) = case.inputs()
    model: Any = splitgrow.growable(randomise(case.model()), x)
    layer = next(layer for layer in model.layers if layer.growable)
    model.expand_layer(layer.name, layer.step, freeze=False)
    randomise_new_blocks(model)
    plain: Any = splitgrow.merge(model).requires_grad_(True)
    model.requires_grad_(True)
    splits = dict(model.named_modules())
    there = dict(plain.named_modules())  # where tensors of modules are no modules
    names = [n for n, m in splits.items() if m in set(split_layers(model)) and n in there]
    for name in names:
        splits[name].register_forward_hook(InPlace())
        plain.get_submodule(name).register_forward_hook(InPlace())
    with splitgrow.execution(mode):
        y = model(x)
        sum(t.sin().sum() for t in tensors_of(y)).backward()
    expected = plain(x)
    sum(t.sin().sum() for t in tensors_of(expected)).backward()
    assert_equal(y, expected)
    for name in names:
        split = splits[name]
        if not split.layer_type.merging.computes_weight and split.layer_type.merging.side_by_side:
            whole = {n: p.grad for n, p in plain.get_submodule(name).named_parameters()}
            assert_slices(split, [p.grad for p in split.parameters()], whole)


MOVING = tuple(layer for layer in LAYERS if layer.name.startswith("BatchNorm"))


@pytest.mark.parametrize("layer", MOVING, ids=lambda layer: layer.name)
def test_norms_of_which_a_part_moves_go_on_in_place(layer: Layer) -> None:
    """Against themselves, block by block, where every block is one of torch's own."""
    for after in CONTINUATIONS.values():
        results = []
        for mode in ("merged", "blockwise"):
            split = grown(layer, freeze=True).train()
            x = input_of(layer, split, layer.shapes[0]).requires_grad_()
            torch.manual_seed(3)
            with splitgrow.execution(mode):
                y = after(split(x))
                wanted = [x, *(p for p in split.parameters() if p.requires_grad)]
                found = torch.autograd.grad(y.sin().sum(), wanted)
            results.append([y, *found, *split.buffers()])
        for one, other in zip(*results, strict=True):
            assert_close(one, other)


@pytest.mark.parametrize("mode", MODES)
def test_too_small_a_batch_is_refused_as_by_the_plain_norm(mode: Any) -> None:
    layer = next(layer for layer in LAYERS if layer.name == "BatchNorm1d")
    split = grown(layer, freeze=True).train()
    x = torch.randn(1, split.sizes()[0], dtype=torch.float64)
    with splitgrow.execution(mode), pytest.raises(ValueError, match="more than 1 value"):
        split(x)
    with splitgrow.execution(mode):
        assert split(x[:0]).shape == (0, split.sizes()[1])


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "one channel more": lambda x: torch.cat([x, x.narrow(1, 0, 1)], 1),
    "one dimension more": lambda x: x[..., None].expand(*x.shape, 3),
    "two dimensions more": lambda x: x[..., None, None].expand(*x.shape, 3, 3),
    "a dimension less": lambda x: x[0],
    "two dimensions less": lambda x: x[0, 0],
    "of whole numbers": lambda x: x.long(),
}


@every_layer
def test_what_the_plain_layer_refuses_a_grown_one_refuses(layer: Layer) -> None:
    split = grown(layer, freeze=True)
    x = input_of(layer, split, layer.shapes[0])
    for wrong in WRONG.values() if not layer.vocabulary else ():
        for mode in MODES:
            assert_trains_alike(split, wrong(x), lambda h: h.double().mul_(2), mode)


def test_the_law_sees_a_gradient_that_is_wrong() -> None:
    """A control: a layer that forgets what stands behind it."""
    split = grown(LAYERS[0])
    x = input_of(LAYERS[0], split, (4, 6))
    turns = iter([1.0, 2.0])
    with pytest.raises(AssertionError):
        assert_trains_alike(split, x, lambda h: h.mul_(next(turns)), "merged")

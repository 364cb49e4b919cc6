"""Layers whose weights are turned or computed: only the trained part of a gradient is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import assert_equal, randomise, randomise_new_blocks
from library_types import taken
from product_shapes import ProductShapes
from torch import Tensor, nn

import splitgrow
from splitgrow.layers import partial_product

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def timm(name: str, **options: Any) -> Callable[[int, int], nn.Module]:
    return lambda ins, outs: taken(f"timm.layers.{name}")(ins, outs, 3, **options)


def weight_normed(ins: int, outs: int) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(ins, outs, 3, padding=1))


MADE: dict[str, Callable[[int, int], nn.Module]] = {
    "weight norm": weight_normed,
    "transposed": lambda ins, outs: taken("transformers.pytorch_utils.Conv1D")(outs, ins),
    "standardised": timm("std_conv.StdConv2d"),
    "standardised, groups": timm("std_conv.StdConv2d", groups=2),
    "scaled": timm("std_conv.ScaledStdConv2d", stride=2),
    "scaled same": timm("std_conv.ScaledStdConv2dSame", stride=2),
    "same": timm("conv2d_same.Conv2dSame", stride=2, dilation=2),
}
NAMES = [pytest.param(n, marks=() if n == "weight norm" else pytest.mark.zoo) for n in MADE]
named = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def grown(name: str, *, freeze: bool = True) -> tuple[Any, Tensor]:
    """Three such layers after three growths, the last of which trains alone."""
    torch.manual_seed(0)
    make = MADE[name]
    model: Any = nn.Sequential(make(4, 6), nn.Tanh(), make(6, 8), nn.Tanh(), make(8, 4))
    shape = (2, 5, 4) if name == "transposed" else (2, 4, 8, 7)
    x = torch.randn(shape, generator=torch.manual_seed(1), dtype=torch.float64)
    model = splitgrow.growable(randomise(model.double()), x)
    for turn in range(3):
        if turn and freeze:
            model.next_generation()
        model.expand({one.name: one.step for one in model.layers if one.growable}, freeze=freeze)
    randomise_new_blocks(model)
    return model, x


def gradients(run: Any, model: nn.Module, x: Tensor, *, twice: bool = False) -> list[Any]:
    """Those of what trains and of the input; of the input's own gradient if `twice`."""
    x = x.clone().requires_grad_()
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    y = run(x).square().sum()
    if twice:
        first = torch.autograd.grad(y, wanted, create_graph=True)
        y = sum(each.square().sum() for each in first)
    return list(torch.autograd.grad(y, wanted))


def assert_close(ours: list[Any], theirs: list[Any], tolerance: float = 1e-12) -> None:
    scale = max(each.abs().max().item() for each in theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max().item() <= tolerance * scale


def block_by_block(model: Any, x: Tensor, *, twice: bool = False) -> list[Any]:
    """The oracle: torch's own gradients of each block."""
    with splitgrow.execution("blockwise"):
        return gradients(model, model, x, twice=twice)


@named
@pytest.mark.parametrize("freeze", [True, False], ids=["frozen past", "nothing frozen"])
def test_gradients_are_those_of_the_blocks(name: str, freeze: bool) -> None:
    model, x = grown(name, freeze=freeze)
    wanted = block_by_block(model, x)
    with splitgrow.execution("merged"):
        assert_close(gradients(model, model, x), wanted)
    assert {run.way for run in model.runs.values()} == {"merged"}
    for run in model.runs.values():
        assert run.gradient is not None
        assert (run.gradient < 0.5) == freeze


@named
def test_second_derivatives_are_those_of_the_blocks(name: str) -> None:
    model, x = grown(name)
    wanted = block_by_block(model, x, twice=True)
    with splitgrow.execution("merged"):
        assert_close(gradients(model, model, x, twice=True), wanted)


@named
def test_compiled_gradients_are_those_of_the_blocks(name: str) -> None:
    model, x = grown(name)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_close(gradients(compiled, model, x), block_by_block(model, x))


@named
@pytest.mark.parametrize("way", ["eager", "compiled"])
def test_no_gradient_of_a_whole_weight_is_computed(name: str, way: str) -> None:
    model, x = grown(name)
    whole = tuple(splitgrow.merge(model)[2].weight.shape)
    run = model if way == "eager" else torch.compile(model, backend="aot_eager", fullgraph=True)
    with splitgrow.execution("merged"):
        loss = run(x).square().sum()
    with ProductShapes() as shapes:
        loss.backward()
    assert whole not in shapes.seen
    model.unfreeze()
    with splitgrow.execution("merged"):
        loss = model(x).square().sum()
    with ProductShapes() as shapes:
        loss.backward()
    assert whole in shapes.seen


@named
def test_autocast_gives_gradients_in_the_dtype_of_the_parameters(name: str) -> None:
    model, x = grown(name)
    exact = block_by_block(model, x)
    model, x = model.float(), x.float()
    with splitgrow.execution("merged"), torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
        rounded = gradients(lambda x: model(x).float(), model, x)
    assert {each.dtype for each in rounded} == {torch.float32}
    assert_close([each.double() for each in rounded], exact, 0.1)


@named
def test_hooks_on_blocks_run(name: str) -> None:
    model, x = grown(name)
    calls: list[nn.Module] = []
    for split in model.modules():
        if isinstance(split, splitgrow.layers.split_layer.SplitLayer):
            split[-1].register_forward_hook(lambda *_: calls.append(_[0]))
    wanted = block_by_block(model, x)
    assert len(calls) == 3
    assert_close(gradients(model, model, x), wanted)
    assert len(calls) == 6


@named
def test_a_change_in_place_counts_at_once(name: str) -> None:
    """Nothing that is computed is kept: not of frozen parameters, and not of `.data`."""
    model, x = grown(name)
    with splitgrow.execution("merged"):
        model(x)
        for parameter in model.parameters():
            parameter.data.mul_(1.25)
        ours = model(x)
    with splitgrow.execution("blockwise"):
        assert_equal(ours, model(x))


@named
def test_control_a_wrong_strip_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right, module = partial_product.shares_of, splitgrow.layers.merged_matmul
    for place in (partial_product, module):
        monkeypatch.setattr(
            place, "shares_of", lambda *_: [each * (1 + 1e-9) for each in right(*_)]
        )
    model, x = grown(name)
    wanted = block_by_block(model, x)
    with splitgrow.execution("merged"), pytest.raises(AssertionError):
        assert_close(gradients(model, model, x), wanted)

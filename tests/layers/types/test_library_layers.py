"""The laws hold for the layers of timm and transformers, each between two plain ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import (
    assert_equal,
    assert_identical,
    largest_difference,
    leading,
    outputs_of,
    randomise,
    randomise_new_blocks,
    split_layers,
    train_steps,
)
from library_types import taken
from torch import Tensor, nn

import splitgrow

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def timm(path: str, *args: Any, **options: Any) -> Callable[[], nn.Module]:
    return lambda: taken(f"timm.layers.{path}")(*args, **options)


MODELS = "transformers.models"


def bit(**options: Any) -> Callable[[], nn.Module]:
    path = f"{MODELS}.bit.modeling_bit.WeightStandardizedConv2d"
    return lambda: taken(path)(8, 6, 3, **options)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch norm with relu": timm("norm_act.BatchNormAct2d", 8),
    "batch norm with silu": timm("norm_act.BatchNormAct2d", 8, act_layer=nn.SiLU, inplace=False),
    "batch norm without": timm("norm_act.BatchNormAct2d", 8, apply_act=False),
    "batch norm with drop": timm("norm_act.BatchNormAct2d", 8, drop_layer=nn.Dropout),
    "group norm with relu": timm("norm_act.GroupNormAct", 8, num_groups=4),
    "group norm": timm("norm.GroupNorm", 8, num_groups=4),
}
CONVS: dict[str, Callable[[], nn.Module]] = {
    "same": timm("conv2d_same.Conv2dSame", 8, 6, 3, stride=2),
    "same with groups": timm("conv2d_same.Conv2dSame", 8, 6, 3, stride=2, groups=2, bias=False),
    "standardised": timm("std_conv.StdConv2d", 8, 6, 3, bias=True),
    "standardised with stride": timm("std_conv.StdConv2d", 8, 6, 3, stride=2),
    "standardised with groups": timm("std_conv.StdConv2d", 8, 6, 3, groups=2),
    "standardised same": timm("std_conv.StdConv2dSame", 8, 6, 3, stride=2),
    "scaled": timm("std_conv.ScaledStdConv2d", 8, 6, 3, gamma=1.7),
    "scaled with groups": timm("std_conv.ScaledStdConv2d", 8, 6, 3, groups=2, bias=False),
    "scaled same": timm("std_conv.ScaledStdConv2dSame", 8, 6, 3, stride=2),
    "bit": bit(bias=True, padding=None),
}
ROWS: dict[str, Callable[[], nn.Module]] = {
    "timm linear": timm("linear.Linear", 8, 6),
    "falcon's linear": lambda: taken("transformers.models.falcon.modeling_falcon.FalconLinear")(
        8, 6
    ),
    "transposed linear": lambda: taken("transformers.pytorch_utils.Conv1D")(6, 8),
}
ALL = {**NORMS, **CONVS, **ROWS}


def between(name: str) -> tuple[Any, tuple[Tensor, ...]]:
    """The layer, from eight channels, between two plain ones, and an input."""
    torch.manual_seed(0)
    width = 8 if name in NORMS else 6
    if name in ROWS:
        ends, shape = (nn.Linear(3, 8), nn.Linear(width, 4)), (3, 5, 3)
    else:
        ends, shape = (nn.Conv2d(3, 8, 1), nn.Conv2d(width, 4, 1)), (3, 3, 9, 9)
    model = nn.Sequential(ends[0], ALL[name](), ends[1]).double()
    x = torch.randn(shape, generator=torch.manual_seed(1), dtype=torch.float64)
    return splitgrow.growable(randomise(model).eval(), (x,)), (x,)


def grow_twice(model: Any, order: int) -> None:
    for _ in range(2):
        for layer in model.layers[:-1][::order]:
            model.expand_layer(layer.name, layer.step)


layer = pytest.mark.parametrize("name", ALL)
order = pytest.mark.parametrize("order", [1, -1], ids=["front to back", "back to front"])


@layer
def test_the_layers_around_it_and_it_itself_can_grow(name: str) -> None:
    model, _ = between(name)
    assert [layer.name for layer in model.layers] == (["0", "2"] if name in NORMS else list("012"))
    assert not any(layer.reason for layer in model.layers)


@layer
@order
def test_1_growth_leaves_the_old_outputs_as_they_were(name: str, order: int) -> None:
    model, inputs = between(name)
    before = outputs_of(model, *inputs)
    grow_twice(model, order)
    assert len(list(split_layers(model))) == 3
    assert_equal(leading(outputs_of(model, *inputs), before), before)
    randomise_new_blocks(model)  # the control
    assert largest_difference(leading(outputs_of(model, *inputs), before), before) > 1e-3


@pytest.mark.parametrize("name", NORMS)
def test_1_also_in_training_mode_when_nothing_is_frozen(name: str) -> None:
    model, inputs = between(name)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    before = model(*inputs)
    model.expand_layer("0", model.layers[0].step, freeze=False)
    assert_equal(leading(model(*inputs), before), before)


@layer
@order
def test_3_generation_0_comes_back_bit_for_bit_after_training(name: str, order: int) -> None:
    model, inputs = between(name)
    before = outputs_of(model, *inputs)
    grow_twice(model, order)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, weight_decay=1e-2)
    train_steps(model, inputs, optimizer)
    assert largest_difference(outputs_of(model, *inputs), before) > 1e-6
    with model.at(0):
        assert_identical(outputs_of(model, *inputs), before)


@layer
@order
def test_4_merged_and_fused_networks_equal_the_model(name: str, order: int) -> None:
    model, inputs = between(name)
    grow_twice(model, order)
    model.unfreeze()
    randomise_new_blocks(model)
    (x,) = (tensor.requires_grad_() for tensor in inputs)
    merged, fused = splitgrow.merge(model), splitgrow.fuse(model)
    assert not list(split_layers(merged))
    gradients = []
    for network in (model, merged, fused):
        y = network(x)
        assert_equal(y, outputs_of(model, x))
        gradients.append(torch.autograd.grad((y * y.detach().cos()).sum(), x))
    for gradient in gradients[1:]:
        assert_equal(gradient, gradients[0])
    own = {type(m).__name__ for m in fused.modules() if "torch" not in type(m).__module__}
    assert own == ({"Conv2dSame"} if "same" in name else set())


@layer
def test_4_the_first_generation_merges_and_fuses_too(name: str) -> None:
    model, inputs = between(name)
    before = outputs_of(model, *inputs)
    grow_twice(model, 1)
    randomise_new_blocks(model)
    assert_equal(outputs_of(splitgrow.merge(model, generation=0), *inputs), before)
    assert_equal(outputs_of(splitgrow.fuse(model, generation=0), *inputs), before)


@layer
def test_4_a_model_that_never_grew_fuses_too(name: str) -> None:
    model, inputs = between(name)
    assert_equal(outputs_of(splitgrow.fuse(model), *inputs), outputs_of(model, *inputs))


def test_a_convolution_that_pads_in_a_module_of_its_own_is_refused() -> None:
    path = f"{MODELS}.bit.modeling_bit.WeightStandardizedConv2d"
    conv = taken(path)(3, 6, 3, stride=2, padding="SAME")
    model: Any = nn.Sequential(conv, nn.Conv2d(6, 4, 1))
    first, second = splitgrow.growable(model, torch.randn(1, 3, 9, 9)).layers
    assert "it pads its input in a way that no plain convolution does" in first.reason
    assert second.growable


@pytest.mark.parametrize("name", ["scaled", "scaled same"])
def test_a_new_block_of_a_scaled_convolution_is_scaled_by_its_own_number_of_inputs(
    name: str,
) -> None:
    model, _ = between(name)
    model.expand_layer("0", 3)
    model.expand_layer("1", 2)
    original, *_, new = model[1]
    assert (original.in_channels, new.in_channels) == (8, 11)
    assert new.scale == pytest.approx(original.scale * (8 / 11) ** 0.5)
    assert new.gain.flatten().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", ["standardised", "scaled"])
def test_a_convolution_that_standardises_its_weight_loses_inputs_of_it(name: str) -> None:
    first, last = nn.Conv2d(3, 8, 3), nn.Conv2d(6, 2, 1)
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    net = randomise(nn.Sequential(first, nn.ReLU(), CONVS[name](), last)).double()
    wide = copy.deepcopy(net)
    model = splitgrow.growable(net, x)
    edit = model.shrink_layer("0", [1, 4])
    assert edit.moved is not None, "the weights that stay have another mean"
    kept = [0, 2, 3, 5, 6, 7]
    for layer, dim, names in ((wide[0], 0, ("weight", "bias")), (wide[2], 1, ("weight",))):
        for each in names:
            smaller = getattr(layer, each).detach().index_select(dim, torch.tensor(kept))
            setattr(layer, each, nn.Parameter(smaller))
    wide[2].in_channels = len(kept)
    assert_equal(outputs_of(model.eval(), x), outputs_of(wide.eval(), x))

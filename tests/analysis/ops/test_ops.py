"""Each op after a growing layer, in each form that users write it in."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_equal, largest_difference, leading, randomise, randomise_new_blocks
from torch import Tensor, nn
from torch.nn import functional as F

import splitgrow

Op = Callable[[Tensor], Tensor]


class Around(nn.Module):
    """A convolution of eight channels, an op, and a layer that reads what the op makes."""

    def __init__(self, op: Any) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.op = copy.deepcopy(op)
        with torch.no_grad():
            y = self.op(self.first(torch.randn(2, 3, 4, 4)))
        self.head = _head(y)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.op(self.first(x)))


def _head(y: Tensor) -> nn.Module:
    if y.dim() == 2:
        return nn.Linear(y.shape[1], 2)
    return {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[y.dim()](y.shape[1], 2, 1)


def sizes(x: Tensor) -> Tensor:
    b, c, h, w = x.size()
    return x.reshape(b, c, h * w)


def squeeze_by_size(x: Tensor) -> Tensor:
    return F.adaptive_max_pool2d(x, 1).view(x.shape[0], x.shape[1])


def halves(x: Tensor) -> Tensor:
    half = x.size(1) // 2
    return torch.cat([x[:, half:], x[:, :half]], 1)


def quarters(x: Tensor) -> Tensor:
    one, two, three, four = torch.chunk(x, 4, 1)
    return one * two + three.mul(four)


def split_by_size(x: Tensor) -> Tensor:
    left, right = x.split(x.shape[1] // 2, dim=1)
    return torch.maximum(left, right)


def split_by_sizes(x: Tensor) -> Tensor:
    left, right = torch.split(x, [x.shape[1] // 4, x.shape[1] - x.shape[1] // 4], 1)
    return torch.cat((right, left), 1)


def stacked(x: Tensor) -> Tensor:
    return torch.stack([x, x.neg()], dim=2)


def max_of_pool(x: Tensor) -> Tensor:
    values, indices = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(values, indices, 2)


def in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y += 1
    y *= x
    y.clamp_(-1, 1)
    return torch.relu_(y)


def moved_in_space(x: Tensor) -> Tensor:
    moves = torch.arange(256.0, dtype=x.dtype).reshape(1, 16, 16).expand(2, 16, 16)
    return torch.bmm(x.flatten(2), moves.sin())


def turned(x: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.unflatten(-1, (2, 2)))
    return torch.view_as_real(pairs * pairs.conj().exp()).flatten(-2)


def keep_a_dim(x: Tensor) -> Tensor:
    return x - x.mean(dim=(2, 3), keepdim=True) / (x.std(dim=(2, 3), keepdim=True) + 1)


def expanded(x: Tensor) -> Tensor:
    gate = F.adaptive_avg_pool2d(x, 1)
    return x * gate.expand(-1, -1, 4, 4) + gate.expand(x.shape)


KEEPING: dict[str, Op] = {
    "relu module": nn.ReLU(),
    "relu function": torch.relu,
    "relu method": lambda x: x.relu(),
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "gelu": F.gelu,
    "silu module": nn.SiLU(),
    "hardswish": F.hardswish,
    "softplus": F.softplus,
    "leaky relu": nn.LeakyReLU(0.2),
    "prelu with one value": nn.PReLU(),
    "sigmoid method": lambda x: x.sigmoid(),
    "exp and log": lambda x: x.abs().add(1).log().exp(),
    "in place": in_place,
    "arithmetic": lambda x: 2 * x + x**2 / 3 - x // 2,
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "numel": lambda x: x * (x.numel() > 0),
    "dropout module": nn.Dropout2d(0.5),
    "identity": nn.Identity(),
    "copies": lambda x: x.contiguous().clone().to(x.dtype).type_as(x),
    "pads space": lambda x: F.pad(x, (1, 1, 2, 0)),
    "pad module": nn.ReflectionPad2d(1),
    "zero pad": nn.ZeroPad2d((1, 0, 0, 1)),
    "max pool": nn.MaxPool2d(2),
    "F.max_pool2d": lambda x: F.max_pool2d(x, kernel_size=2, stride=1),
    "torch.max_pool2d": lambda x: torch.max_pool2d(x, 2),
    "avg pool": nn.AvgPool2d(2),
    "lp pool": nn.LPPool2d(2, 2),
    "adaptive pool": nn.AdaptiveAvgPool2d((1, 2)),
    "adaptive max pool": nn.AdaptiveMaxPool2d(2),
    "max pool with indices": max_of_pool,
    "upsample": nn.Upsample(scale_factor=2),
    "interpolate to size": lambda x: F.interpolate(x, size=(7, 5), mode="bilinear"),
    "interpolate like": lambda x: F.interpolate(F.max_pool2d(x, 2), size=x.shape[2:]),
    "mean over space": lambda x: x.mean([2, 3]),
    "mean twice": lambda x: x.mean(-1).mean(-1),
    "torch.mean": lambda x: torch.mean(x, dim=(-2, -1)),
    "sum": lambda x: x.sum(dim=(2, 3)),
    "amax": lambda x: torch.amax(x, (2, 3)),
    "max over space": lambda x: x.flatten(2).max(dim=2).values,
    "statistics": keep_a_dim,
    "flatten": lambda x: x.flatten(1),
    "flatten module": nn.Flatten(),
    "torch.flatten": lambda x: torch.flatten(x, start_dim=1, end_dim=-1),
    "flatten space": lambda x: x.flatten(start_dim=2),
    "view with -1": lambda x: x.view(x.size(0), -1),
    "view of batch": lambda x: x.view(2, -1),
    "reshape by sizes": sizes,
    "view by sizes": squeeze_by_size,
    "squeeze": lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(3 - 1),
    "unsqueeze": lambda x: x.unsqueeze(2),
    "none index": lambda x: x[:, :, None],
    "slices of space": lambda x: x[..., 1:3, ::2],
    "a window longer than space": lambda x: x[:, :, -9:, -9:9],
    "complex and back": turned,
    "one row": lambda x: x[:, :, 0],
    "select": lambda x: x.select(2, 1),
    "narrow space": lambda x: x.narrow(3, 1, 2),
    "halves": halves,
    "quarters": quarters,
    "split by size": split_by_size,
    "split by sizes": split_by_sizes,
    "glu": nn.GLU(1),
    "F.glu": lambda x: F.glu(x, dim=1),
    "cat": lambda x: torch.cat([x, x.relu(), x], dim=1),
    "concat of space": lambda x: torch.concat((x, x), -1),
    "stack": stacked,
    "permute and back": lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
    "transpose": lambda x: x.transpose(1, 2).transpose(2, 1),
    "movedim": lambda x: x.movedim(1, -1).movedim(-1, 1),
    "channels last, flat": lambda x: x.permute(0, 2, 3, 1).flatten(1),
    "channels last, by words": lambda x: torch.reshape(torch.permute(x, (0, 2, 3, 1)), (2, -1)),
    "tokens": lambda x: x.flatten(2).transpose(1, 2).softmax(dim=1).transpose(-1, -2),
    "swapaxes": lambda x: x.swapaxes(2, 3),
    "pixel shuffle": nn.PixelShuffle(2),
    "F.pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel unshuffle": nn.PixelUnshuffle(2),
    "channel shuffle": nn.ChannelShuffle(2),
    "unfold": lambda x: F.unfold(x, 3, padding=1),
    "unflatten": lambda x: x.flatten(2).unflatten(2, (4, 4)),
    "unflatten module": nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (2, 8))),
    "softmax over space": lambda x: x.flatten(2).softmax(-1),
    "normalize over space": lambda x: F.normalize(x.flatten(2), dim=2),
    "batch norm": nn.BatchNorm2d(8).eval(),
    "group norm": nn.GroupNorm(4, 8),
    "instance norm": nn.InstanceNorm2d(8, affine=True),
    "bmm over space": moved_in_space,
    "expand": expanded,
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "repeat_interleave": lambda x: torch.repeat_interleave(x, 2, dim=1),
    "zeros_like": lambda x: x + torch.zeros_like(x),
    "cumsum over space": lambda x: x.cumsum(dim=-1),
    "flip space": lambda x: x.flip(2, 3),
    "roll space": lambda x: torch.roll(x, shifts=(1, 1), dims=(2, 3)),
    "operator.add": lambda x: operator.add(x, x),
    "fold": lambda x: F.fold(F.unfold(x, 3, padding=1), (4, 4), 3, padding=1),
    "fold module": nn.Sequential(nn.Unfold(2), nn.Fold((4, 4), 2)),
    "cosine similarity over space": lambda x: F.cosine_similarity(x, x.flip(3), dim=3),
    "cosine similarity module": lambda x: nn.CosineSimilarity(dim=2)(x, x + 1),
    "gather over space": lambda x: x.gather(3, x.argsort(dim=3)),
    "index_select of space": lambda x: x.index_select(2, torch.tensor([3, 0])),
    "topk over space": lambda x: torch.topk(x, 2, dim=3).values,
    "hstack": lambda x: torch.hstack((x, x.relu())),
    "vstack": lambda x: torch.vstack((x, x.relu())).narrow(0, 0, 2),
    "dstack": lambda x: torch.dstack((x, x.relu())),
    "column_stack": lambda x: torch.column_stack((x, x.relu())),
    "logaddexp": lambda x: torch.logaddexp(x, 2 * x),
    "fmax": lambda x: torch.fmax(x, x.neg()),
    "grid_sample": lambda x: F.grid_sample(x, torch.zeros(2, 3, 3, 2).to(x), align_corners=False),
    "less and greater": lambda x: x * x.less(1.0) * torch.greater(x, -1.0),
    "absolute": torch.absolute,
    "squeeze_ and unsqueeze_": lambda x: x.amax(3, keepdim=True).squeeze_(3).unsqueeze_(2),
    "turned in place": lambda x: x.exp().transpose_(2, 3).swapaxes_(2, 3).transpose_(3, 2),
    "a part turned in place": lambda x: x.max(dim=3, keepdim=True)[0].squeeze_(3),
    "mish": F.mish,
    "adjoint": lambda x: x.adjoint().adjoint(),
    "unsafe chunks": lambda x: torch.cat(x.unsafe_chunk(2, 1)[::-1], 1),
    "unsafe split": lambda x: torch.cat(torch.unsafe_split(x, 2, dim=3)[::-1], 3),
    "mish module": nn.Mish(),
    "clamp": lambda x: x.clamp(min=-1).clamp(-0.5, 1.0).clamp_max(0.8),
    "module made in forward": lambda x: nn.Hardtanh(-1 if x is not None else 0, 2)(x),
}


@pytest.mark.parametrize("name", KEEPING)
@pytest.mark.parametrize("grow", ["first", "head"])
def test_growth_passes_the_op_exactly(name: str, grow: str) -> None:
    torch.manual_seed(0)
    model: Any = randomise(Around(KEEPING[name])).double().eval()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    splitgrow.growable(model, x)
    before = model(x)
    layer = next(layer for layer in model.layers if layer.name == grow)
    assert not layer.reason
    for _ in range(2):
        model.expand_layer(grow, layer.step)
        assert_equal(leading(model(x), before), before)
    randomise_new_blocks(model)
    assert_equal(splitgrow.merge(model)(x), model(x))
    assert_equal(splitgrow.fuse(model)(x), model(x))


def by_width(x: Tensor) -> Tensor:
    return x / math.e / x.shape[1]


def by_root(x: Tensor) -> Tensor:
    return x / x.size(1) ** 0.5


def cut(x: Tensor) -> Tensor:
    left, right = x.split([3, 5], dim=1)
    return torch.cat((right, left), 1)


def attention(x: Tensor) -> Tensor:
    y = x.flatten(2).transpose(1, 2)
    return (y @ y.transpose(1, 2)).softmax(-1)


def made_from_width(x: Tensor) -> Tensor:
    return x + torch.arange(x.shape[1])[:, None, None]


def unequal(x: Tensor) -> Tensor:
    one, two, three = x.chunk(3, dim=1)
    return torch.cat([three, two, one], 1)


FIXING: dict[str, tuple[Op, str]] = {
    "softmax": (lambda x: x.softmax(1), "softmax"),
    "softmax module": (nn.Softmax(dim=1), "Softmax"),
    "softmax 2d": (nn.Softmax2d(), "Softmax2d"),
    "normalize": (F.normalize, "normalize"),
    "norm": (lambda x: x / x.norm(dim=1, keepdim=True), "norm"),
    "local response norm": (nn.LocalResponseNorm(3), "LocalResponseNorm"),
    "layer norm": (nn.LayerNorm([8, 4, 4]), "LayerNorm"),
    "literal view": (lambda x: x.view(2, 128), "view"),
    "literal channels": (lambda x: x.view(-1, 8, 16), "view"),
    "literal slice and rest": (lambda x: torch.cat([x[:, 8 - 2 :], x[:, :6]], 1)[:, :8], "getitem"),
    "slice past the end": (lambda x: x[:, :100], "getitem"),
    "slice of the last": (lambda x: x[:, -12:], "getitem"),
    "every other channel": (lambda x: x[:, ::2], "getitem"),
    "picked channels": (lambda x: x[:, [0, 2]], "getitem"),
    "one channel": (lambda x: x[:, 7], "getitem"),
    "index_select": (lambda x: x.index_select(1, torch.tensor([1, 0])), "index_select"),
    "flip": (lambda x: x.flip(1), "flip"),
    "cumsum": (lambda x: x.cumsum(1), "cumsum"),
    "unbind": (lambda x: torch.stack(x.unbind(1)[:8], 1), "unbind"),
    "unequal chunks": (unequal, "chunk"),
    "pads channels": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), "pad"),
    "dot products": (attention, "matmul"),
    "divided by the width": (by_width, "div"),
    "divided by its root": (by_root, "pow"),
    "a tensor made from the width": (made_from_width, "arange"),
    "einsum": (lambda x: torch.einsum("bchw,bchw->bhw", x, x)[:, None], "einsum"),
    "an unknown function": (lambda x: torch.fft.fft(x, dim=1).real, "fft_fft"),
    "an unknown method": (lambda x: x.diff(dim=1), "diff"),
}


AVERAGING: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x - x.mean(1, keepdim=True),
    "max": lambda x: x * x.max(dim=1, keepdim=True)[0],
    "amin": lambda x: x + x.amin((1, 2), keepdim=True),
    "var": lambda x: x / (1 + x.var(1, correction=0, keepdim=True)),
    "layer norm": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2),
    "rms norm": lambda x: F.rms_norm(x.mT.transpose(1, 3), x.shape[1:2]).transpose(1, 3).mT,
    "by hand": lambda x: x * torch.rsqrt(x.square().mean(1, keepdim=True) + 0.1),
}


@pytest.mark.parametrize("name", AVERAGING)
def test_channels_of_which_an_average_is_taken_grow_by_copies(name: str) -> None:
    model: Any = randomise(Around(AVERAGING[name]).double().eval())
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    splitgrow.growable(model, x)
    before = model(x)
    first = model.layers[0]
    assert first.step == first.width
    model.expand_layer(first.name, first.step)
    assert_equal(model(x), before)
    randomise_new_blocks(model)
    assert not torch.allclose(model(x), before)
    assert_equal(splitgrow.merge(model)(x), model(x))


@pytest.mark.parametrize(
    "op", [lambda x: x / x.sum(1, keepdim=True), lambda x: x / x.norm(dim=1, keepdim=True)]
)
def test_control_a_sum_over_channels_is_another_one_of_copies(op: Any) -> None:
    model: Any = randomise(Around(lambda x: op(x.abs() + 1)).double().eval())
    splitgrow.growable(model, torch.randn(2, 3, 4, 4, dtype=torch.float64))
    assert not model.layers[0].growable


@pytest.mark.parametrize("name", FIXING)
def test_an_op_that_growth_cannot_pass_is_named_with_its_place(name: str) -> None:
    op, word = FIXING[name]
    model: Any = Around(op).double().eval()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    splitgrow.growable(model, x)
    first, head = model.layers
    assert not first.growable
    assert f"`{word}`" in first.reason
    assert "test_ops.py:" in first.reason
    with pytest.raises(splitgrow.FixedWidthError, match=r"`first` cannot grow"):
        model.expand_layer("first", 8)
    before = model(x)
    model.expand_layer(head.name, head.step)  # what lies elsewhere grows all the same
    assert_equal(leading(model(x), before), before)


@pytest.mark.parametrize("name", [n for n in FIXING if "literal" not in n])
def test_the_ops_that_fix_would_indeed_change_the_old_function(name: str) -> None:
    """The control: eight channels with eight more behind them give another result, or none."""
    op = FIXING[name][0]
    torch.manual_seed(0)
    x = torch.rand(2, 8, 4, 4, dtype=torch.float64)
    wider = torch.cat([x, torch.rand(2, 8, 4, 4, dtype=torch.float64)], 1)
    if isinstance(op, nn.Module):
        op = copy.deepcopy(op).double()
    before = op(x)
    try:
        after = op(wider)
    except (RuntimeError, ValueError):
        return
    overlap = after[tuple(slice(n) for n in before.shape)]
    known_to_be_harmless = {"every other channel", "picked channels", "one channel"}
    known_to_be_harmless |= {"slice past the end"}
    known_to_be_harmless |= {"index_select", "unbind", "cumsum", "an unknown method"}
    known_to_be_harmless |= {"a tensor made from the width"}
    same = overlap.shape == before.shape and largest_difference(overlap, before) <= 1e-12
    assert same == (name in known_to_be_harmless)


class FeaturesAsSpace(nn.Module):
    """Convolves over tokens, with the features of a Linear where space would be."""

    def __init__(self, over: nn.Module) -> None:
        super().__init__()
        self.features, self.over, self.head = nn.Linear(4, 6), over, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.over(self.features(x)))


@pytest.mark.parametrize(
    "over", [nn.Conv1d(5, 7, 3, padding=1), nn.BatchNorm1d(5), nn.MaxPool1d(3, 1, 1)]
)
def test_what_is_mixed_along_as_if_it_were_space_cannot_grow(over: nn.Module) -> None:
    model: Any = splitgrow.growable(FeaturesAsSpace(over), torch.randn(2, 5, 4))
    layers = {layer.name: layer for layer in model.layers}
    assert "as if it were space" in layers["features"].reason
    assert layers["head"].growable


class SpreadGate(nn.Module):
    """One channel, spread over all those of another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 1, 1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x) * self.gate(x).sigmoid())


def test_a_channel_that_is_spread_over_others_stays_one() -> None:
    model: Any = splitgrow.growable(SpreadGate(), torch.randn(2, 3, 4, 4))
    body, gate, head = model.layers
    assert (body.growable, gate.growable, head.growable) == (True, False, True)
    assert "spreads its one channel" in gate.reason


class OtherWidth(nn.Module):
    """Reshapes by the width of another layer, which happens to be the same."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.head = nn.Conv1d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).reshape(2, self.second(x).size(1), 16))


def test_a_reshape_by_the_width_of_another_layer_ties_both() -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    model: Any = splitgrow.growable(OtherWidth().double().eval(), x)
    first, second, _ = model.layers
    assert (first.growable, first.group, second.group) == (True, ("second",), ("first",))
    before = model(x)
    model.expand_layer("first", 2)
    assert_equal(model(x), before)
    randomise_new_blocks(model)
    assert_equal(splitgrow.merge(model)(x), model(x))


class TwoHeads(nn.Module):
    """Two heads side by side in one output, and one of them also on its own."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), last

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first, second = self.first(x), self.second(x)
        return torch.cat([first, second], 1), second, self.last(second)


def test_what_lies_before_other_outputs_cannot_grow_and_what_lies_last_can() -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    model: Any = TwoHeads(nn.Conv2d(4, 4, 1)).double().eval()
    splitgrow.growable(model, x)
    before = model(x)
    first, *others = model.layers
    assert "before other channels of an output" in first.reason
    for layer in others:
        model.expand_layer(layer.name, 2)
    grown = model(x)
    assert [y.shape[1] for y in grown] == [10, 6, 6]
    assert_equal(leading(grown, before), before)


def test_a_grouped_convolution_that_makes_the_output_cannot_grow() -> None:
    grouped = TwoHeads(nn.Conv2d(4, 6, 1, groups=2))
    model: Any = splitgrow.growable(grouped, torch.randn(2, 3, 4, 4))
    assert "before other channels of an output" in model.layers[2].reason

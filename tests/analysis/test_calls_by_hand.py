"""A layer grows where forward calls it by its function and its tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_equal, assert_identical, outputs_of, randomise, randomise_new_blocks
from torch import Tensor, nn
from torch.nn import functional as F

import splitgrow

X = torch.randn(3, 4, generator=torch.manual_seed(0), dtype=torch.float64)


class Three(nn.Module):
    """Three layers, of which the one in the middle is called by a function."""

    def __init__(self, call: Callable[[Any, Tensor], Tensor], *, bias: bool = True) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(5, 3)
        self.middle, self.other = nn.Linear(6, 5, bias=bias), nn.Linear(6, 5)
        self.some, self.more = nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(3))
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.call(self, self.first(x).relu()).tanh())


def twice(net: Any, h: Tensor) -> Tensor:
    return net.middle(h) + F.linear(h.sin(), net.middle.weight, net.middle.bias)


CALLS: dict[str, tuple[Callable[[Any, Tensor], Tensor], bool]] = {
    "by position": (lambda net, h: F.linear(h, net.middle.weight, net.middle.bias), True),
    "by name": (
        lambda net, h: F.linear(bias=net.middle.bias, weight=net.middle.weight, input=h),
        True,
    ),
    "without a bias": (lambda net, h: F.linear(h, net.middle.weight), False),
    "with none": (lambda net, h: F.linear(h, net.middle.weight, net.middle.bias), False),
    "and by itself": (twice, True),
    "with a bias of its own": (
        lambda net, h: F.linear(h, net.middle.weight, torch.cat([net.some, net.more])),
        False,
    ),
}

OTHERS: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "another's bias": (lambda net, h: F.linear(h, net.middle.weight, net.other.bias), "`weight`"),
    "no bias": (lambda net, h: F.linear(h, net.middle.weight), "`weight`"),
    "another weight": (lambda net, h: F.linear(h, 2 * net.middle.weight), "`weight`"),
    "its bias alone": (lambda net, h: net.other(h) + net.middle.bias, "`bias`"),
}


def made(call: Callable[[Any, Tensor], Tensor], *, bias: bool) -> Any:
    torch.manual_seed(0)
    return splitgrow.growable(randomise(Three(call, bias=bias).double()), X)


@pytest.mark.parametrize(("call", "bias"), CALLS.values(), ids=CALLS)
def test_it_grows_on_both_sides_again_and_again(
    call: Callable[[Any, Tensor], Tensor], bias: bool
) -> None:
    model = made(call, bias=bias)
    first = outputs_of(model, X)
    for n in (1, 2):
        before = outputs_of(model, X)
        model.expand({"first": n, "middle": 3})
        assert_equal(outputs_of(model, X), before)
        randomise_new_blocks(model)
        assert not torch.allclose(outputs_of(model, X), before, rtol=1e-3)
        model = splitgrow.growable(model, X)  # the grown layer is known by its tensors, too
    merged: Any = splitgrow.merge(model)
    assert_equal(outputs_of(merged, X), outputs_of(model, X))
    assert type(merged.middle) is nn.Linear
    with model.at(0):
        assert_identical(outputs_of(model, X), first)


@pytest.mark.parametrize(("call", "bias"), CALLS.values(), ids=CALLS)
def test_gradients_are_those_of_the_plain_layer(
    call: Callable[[Any, Tensor], Tensor], bias: bool
) -> None:
    model = made(call, bias=bias)
    model.expand({"first": 2, "middle": 3}, freeze=False)
    randomise_new_blocks(model)
    merged: Any = splitgrow.merge(model)
    model(X).square().sum().backward()
    merged(X).square().sum().backward()
    for one, other in ((model.middle, merged.middle), (model.first, merged.first)):
        assert_equal(one.weight.grad, other.weight.grad)


@pytest.mark.parametrize(("call", "word"), OTHERS.values(), ids=OTHERS)
def test_control_other_uses_of_its_tensors_keep_its_width(
    call: Callable[[Any, Tensor], Tensor], word: str
) -> None:
    model = made(call, bias=True)
    layer = next(each for each in model.layers if each.name == "middle")
    assert not layer.growable
    assert f"forward uses its {word} directly" in layer.reason


def asks(net: Any, h: Tensor) -> Tensor:
    weight = net.middle.weight
    if h.shape[0] > weight.shape[0] or weight.ndim != 2 or weight.size(0) < 1:
        raise ValueError("too many rows")
    return net.middle(h.to(weight.dtype).to(weight.device))


def test_a_question_for_the_shape_of_its_tensors_is_no_use_of_them() -> None:
    model = made(asks, bias=True)
    before = outputs_of(model, X)
    model.expand({"first": 2, "middle": 3})
    assert_equal(outputs_of(model, X), before)


def test_control_a_shape_that_is_written_down_by_them_keeps_the_width() -> None:
    def written(net: Any, h: Tensor) -> Tensor:
        return net.middle(h).view(3, net.middle.weight.shape[0])

    model = made(written, bias=True)
    assert not next(each for each in model.layers if each.name == "middle").growable

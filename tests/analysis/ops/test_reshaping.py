"""Reshaping with dimensions of size one, which could belong to more than one stretch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from axes import positions
from between import IMAGES, convs_between, growth_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from splitgrow.analysis.channels.channel_axes import Axis, constant
from splitgrow.analysis.channels.channel_groups import Groups
from splitgrow.analysis.ops.op import Op, Shaped
from splitgrow.analysis.ops.registry import result_of

SIZES = (1, 1, 1, 2, 3, 4)


def reshaped(groups: Groups, axes: tuple[Axis, ...], numbers: list[Any], shape: list[int]) -> Any:
    example = torch.empty(shape, device="meta")
    args = (Shaped(axes), tuple(numbers))
    return result_of(Op("reshape", "here", "reshape", args, {}, example, groups)).axes


def units_at(groups: Groups, axes: tuple[Axis, ...], index: tuple[int, ...]) -> set[Any]:
    """The units of groups that can grow at one element of a tensor."""
    found = set()
    for axis, at in zip(axes, index, strict=True):
        label = positions(groups, axis)[at][:2]
        if label[0] != "constant" and not groups.is_fixed(label[0]):
            found.add(label)
    return found


def factored(draw: Any, total: int) -> list[int]:
    """A shape of as many elements, with ones in it."""
    shape = []
    while total > 1:
        divisors = [d for d in range(2, total + 1) if total % d == 0]
        shape.append(draw(st.sampled_from(divisors)))
        total //= shape[-1]
    for _ in range(draw(st.integers(0, 3))):
        shape.insert(draw(st.integers(0, len(shape))), 1)
    return shape or [1]


def value_of(groups: Groups, number: Any) -> int:
    return number if isinstance(number, int) else groups.length(number.axis)


@given(st.data())
def test_a_reshape_says_what_becomes_of_every_element(data: Any) -> None:
    groups = Groups()
    shape = [data.draw(st.sampled_from(SIZES)) for _ in range(data.draw(st.integers(1, 4)))]
    axes = tuple(groups.new(size) if data.draw(st.booleans()) else constant(size) for size in shape)
    new = factored(data.draw, math.prod(shape))
    numbers: list[Any] = list(new)
    for at, size in enumerate(new):
        measured = [axis for axis in axes if groups.length(axis) == size]
        if measured and data.draw(st.booleans()):
            numbers[at] = groups.size(data.draw(st.sampled_from(measured)))
    if data.draw(st.booleans()):
        numbers[data.draw(st.integers(0, len(new) - 1))] = -1
    result = reshaped(groups, axes, numbers, new)
    step = data.draw(st.integers(1, 2))
    free = {run.group for axis in axes for run in groups.resolve(axis) if run.group is not None}
    groups.grow({group: step for group in free if not groups.is_fixed(group)})
    agrees_with_positions(groups, axes, numbers, result)


def agrees_with_positions(
    groups: Groups, axes: tuple[Axis, ...], numbers: list[Any], result: tuple[Axis, ...]
) -> None:
    before = [groups.length(axis) for axis in axes]
    flat = np.arange(math.prod(before)).reshape(before)
    after = flat.reshape([value_of(groups, number) for number in numbers])
    assert after.shape == tuple(groups.length(axis) for axis in result)
    for index in itertools.product(*map(range, after.shape)):
        old = np.unravel_index(after[index], before)
        mine = units_at(groups, result, index)
        assert mine == units_at(groups, axes, tuple(map(int, old)))


def test_control_an_axis_in_the_wrong_place_does_not_agree() -> None:
    groups = Groups()
    axes = (groups.new(1), groups.new(2))
    groups.grow({0: 1})
    with pytest.raises(AssertionError):
        agrees_with_positions(groups, axes, [2, 2], (axes[1], axes[0]))


ONE_CHANNEL: dict[str, Any] = {
    "view of batch and rest": lambda m, h: h.view(h.size(0), -1),
    "view of a literal batch": lambda m, h: h.view(2, -1),
    "reshape": lambda m, h: h.reshape(h.shape[0], -1),
    "view of channels": lambda m, h: h.view(h.size(0), h.size(1), -1).flatten(1),
    "view of channels and space": lambda m, h: h.view(2, h.size(1), 16).transpose(1, 2),
    "flatten": lambda m, h: h.flatten(1),
    "flatten of space": lambda m, h: h.flatten(2).transpose(1, 2),
    "view with ones in between": lambda m, h: h.view(2, 1, h.size(1), 1, 16).flatten(1),
    "view and back": lambda m, h: h.view(2, -1).view(2, -1, 4, 4),
    "view with a one behind": lambda m, h: h.view(2, -1, 1).squeeze(2),
    "permuted and viewed": lambda m, h: h.permute(0, 2, 3, 1).reshape(2, 16, -1),
    "permuted, with the channels counted": lambda m, h: h.permute(0, 2, 3, 1).reshape(
        -1, h.size(1)
    ),
    "pooled": lambda m, h: h.mean((2, 3), keepdim=True).view(h.size(0), -1),
    "pooled, with the channels counted": lambda m, h: h.mean((2, 3), keepdim=True).view(
        h.size(0), h.size(1)
    ),
    "as another": lambda m, h: h.flatten(2).view_as(h),
    "unflattened": lambda m, h: h.flatten(2).unflatten(2, (4, 4)),
}


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("looks", [False, True], ids=["without values", "on values"])
@pytest.mark.parametrize("name", ONE_CHANNEL)
def test_one_channel_grows_through_a_view_as_two_do(name: str, looks: bool, width: int) -> None:
    network = convs_between(ONE_CHANNEL[name], width=width, looks=looks)
    assert growth_of(network, IMAGES) == ""


def test_control_one_channel_that_is_squeezed_away_does_not_grow() -> None:
    def squeezed(m: Any, h: Tensor) -> Tensor:
        return h.view(2, 4, 4)

    assert growth_of(convs_between(squeezed, width=1, looks=True), IMAGES)


def all_shapes(total: int, ones: int) -> Iterator[tuple[int, ...]]:
    factors = [(total,)] + [(d, total // d) for d in range(2, total) if total % d == 0]
    for shape in factors:
        for places in itertools.combinations_with_replacement(range(len(shape) + 1), ones):
            full = list(shape)
            for place in sorted(places, reverse=True):
                full.insert(place, 1)
            yield tuple(full)


def test_one_unit_grows_wherever_a_shape_has_its_one_next_to_a_rest() -> None:
    for old in all_shapes(6, 1):
        at = old.index(1)
        for new in {shape for ones in (0, 1) for shape in all_shapes(6, ones)}:
            for rest in range(len(new)):
                groups = Groups()
                axes = tuple(groups.new(1) if d == at else constant(n) for d, n in enumerate(old))
                numbers = [-1 if d == rest else n for d, n in enumerate(new)]
                result = reshaped(groups, axes, numbers, list(new))
                outer, inner = math.prod(old[:at]), math.prod(old[at + 1 :])
                before, behind = math.prod(new[:rest]), math.prod(new[rest + 1 :])
                if outer % before == 0 and inner % behind == 0:
                    assert groups.can_grow(axes[at]), (old, numbers)
                groups.grow({0: 2} if groups.can_grow(axes[at]) else {})
                agrees_with_positions(groups, axes, numbers, result)

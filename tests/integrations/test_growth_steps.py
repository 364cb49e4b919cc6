"""Growths at given steps."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
import torch
from torch import nn

import splitgrow
from splitgrow.integrations import growth_steps


def network() -> Any:
    return splitgrow.growable(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), torch.ones(1, 2))


def test_each_growth_comes_once_and_late_ones_are_made_up_for() -> None:
    net = network()
    steps = growth_steps.GrowthSteps({2: {"0": 1}, 3: {"0": 2}, 7: {"0": 4}}, {})
    widths = []
    for step in (1, 5, 5, 7, 8):
        steps.grow(step, net, None)
        widths.append(splitgrow.handle(net).layers["0"].width)
    assert widths == [3, 6, 6, 10, 10]


def test_a_resumed_run_does_not_repeat_those_behind_it() -> None:
    net = network()
    steps = growth_steps.GrowthSteps({2: {"0": 1}, 3: {"0": 2}}, {})
    steps.begin(2)
    assert steps.due(3) == [3]
    steps.grow(3, net, None)
    assert splitgrow.handle(net).layers["0"].width == 5


def test_a_growth_that_fails_is_tried_again() -> None:
    net = network()
    steps = growth_steps.GrowthSteps({2: {"nowhere": 1}}, {})
    for _ in range(2):
        with pytest.raises(ValueError, match="nowhere"):
            steps.grow(2, net, None)


def test_a_function_gets_the_handle_which_is_a_handle_of_itself() -> None:
    seen: list[Any] = []
    growth_steps.GrowthSteps({1: lambda *given: seen.extend(given)}, {}).grow(1, network(), "it")
    assert isinstance(seen[0], splitgrow.Handle)
    assert splitgrow.handle(seen[0]) is seen[0]
    assert seen[1] == "it"


def test_its_examples_run() -> None:
    assert doctest.testmod(growth_steps) == (0, doctest.testmod(growth_steps).attempted)
    assert doctest.testmod(growth_steps).attempted > 4

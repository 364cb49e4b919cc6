"""Units taken out of a network, against the network in which nothing reads them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import CASES, Case
from helpers import MANY, assert_equal, outputs_of, randomise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import networks
from torch import Tensor, nn

from splitgrow.analysis.analyzer import Followed, analyse_runs
from splitgrow.analysis.units import Unit, UnitNumbers
from splitgrow.pruning.dead_units.dead_units import _removable
from splitgrow.pruning.dead_units.narrow import Chosen, narrow_
from splitgrow.pruning.dead_units.without_dead_units import _stop_reading_
from splitgrow.utils.example_call import ExampleCall

NETWORKS = int(50 * MANY)


def chosen_units(followed: Followed, network: nn.Module, seed: int) -> dict[int, list[int]]:
    """Random units of every group that can lose some, never all of a group."""
    generator = torch.Generator().manual_seed(seed)
    modules = dict(network.named_modules())
    gone = {}
    for group in _removable(followed.graph, modules, followed.outputs):
        width = followed.graph.groups.width(group)
        count = int(torch.randint(width, (), generator=generator))
        units = torch.randperm(width, generator=generator)[:count].tolist()
        gone |= {group: units} if units else {}
    return gone


def check(network: nn.Module, inputs: tuple[Any, ...], seed: int) -> int:
    """Takes random units out; returns the number of parameters that went."""
    followed = analyse_runs(network, ExampleCall(inputs))
    gone = chosen_units(followed, network, seed)
    masked, narrower = copy.deepcopy(network), copy.deepcopy(network)
    _stop_reading_(dict(masked.named_modules()), followed.graph, gone)
    record = narrow_(narrower, followed.graph, gone)
    assert_equal(outputs_of(narrower, *inputs), outputs_of(masked, *inputs))
    for layer in record.layers:
        # A matrix that sums over its only dimension that grows has no units.
        assert layer.width[0] >= layer.width[1] >= min(1, layer.width[0])
        names = dict(narrower.named_parameters())
        own = [p for name, p in names.items() if f"{name}.".startswith(f"{layer.name}.")]
        assert layer.parameters[1] == sum(p.numel() for p in own)
    assert record.parameters[0] - record.parameters[1] == sum(
        layer.parameters[0] - layer.parameters[1] for layer in record.layers
    )
    return record.parameters[0] - record.parameters[1]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_without_some_units_a_network_computes_as_if_nothing_read_them(case: Case) -> None:
    went = [check(randomise(case.model()), case.inputs(), seed) for seed in range(4)]
    # What an RMS norm reads keeps its units, and so does what has computed weights.
    assert any(went) != (case.name == "silent stream" or case.computed)


@settings(
    max_examples=NETWORKS, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(networks(), st.integers(0, 2**20))
def test_so_does_any_random_network(network: tuple[nn.Module, Tensor], seed: int) -> None:
    whole, x = network
    check(randomise(whole), (x,), seed)


def test_a_group_keeps_a_unit_and_a_fixed_one_keeps_all() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    graph = analyse_runs(network, ExampleCall((torch.ones(1, 2),))).graph
    (group,) = graph.growing_groups(graph.nodes["0"].outs)
    with pytest.raises(AssertionError, match="no units left"):
        narrow_(network, graph, {group: [0, 1, 2]})
    graph.groups.fix(graph.nodes["0"].outs, "it is fixed")
    with pytest.raises(AssertionError, match="fixed"):
        narrow_(network, graph, {group: [0]})
    assert [tuple(layer.weight.shape) for layer in network] == [(3, 2), (2, 3)]  # type: ignore[misc,arg-type]


def test_units_lie_on_positions_as_the_runs_say() -> None:
    network = nn.Sequential(nn.Conv1d(1, 3, 1), nn.Flatten(), nn.Linear(6, 2))
    graph = analyse_runs(network, ExampleCall((torch.ones(1, 1, 2),))).graph
    axis = graph.nodes["2"].ins
    (group,) = graph.growing_groups(axis)
    found = Chosen(graph.groups, {group: [1]}).on(axis)
    assert found.tolist() == [False, False, True, True, False, False]
    assert not Chosen(graph.groups, {}).on(axis).any()
    numbers = UnitNumbers(graph.groups)
    assert numbers.on(axis).tolist() == [1, 1, 2, 2, 3, 3]
    assert numbers.chosen(numbers.marks({Unit(group, 1)})) == {Unit(group, 1)}

"""All parameters along units are found once, whole, and with the right part of the gradient."""

from __future__ import annotations

import pytest
import torch
from cases import CASES
from helpers import assert_equal, assert_identical
from scored_models import Tied, small
from scoring import grown_at_once, loss_of, made_growable, positions, view_of

from splitgrow.growth.history_lookup import history_of
from splitgrow.layers.tensor_holder import layer_at, split_of
from splitgrow.pruning.choosing import as_request, prunable_groups
from splitgrow.pruning.criteria.unit_parameters import ParametersOfUnits


@pytest.mark.parametrize("name", ["u-net", "shuffled", "fused heads", "tagger", "windowed"])
def test_units_lie_where_the_plan_takes_them_out(name: str) -> None:
    model = grown_at_once(next(case for case in CASES if case.name == name))
    history = history_of(model)
    view = view_of(model)
    for group, (start, end) in view.units.groups.items():
        for nth in range(min(2, end - start)):
            if end - start < 2:
                continue
            request = as_request(history.graph, {group: [nth]})
            step = history.graph.multiples.get(group, (1, ""))[0]
            if step > 1:
                continue
            for item in model.plan_shrinking(request).removed:
                node = history.graph.nodes[item.name]
                for axis, gone in ((node.ins, item.ins), (node.outs, item.outs)):
                    here = (view.units.on(axis) == start + nth).nonzero().flatten().tolist()
                    assert here == positions(gone)


def test_numbers_are_those_of_the_groups_in_turn_and_others_are_left_out() -> None:
    graph = history_of(model := made_growable(CASES[2])).graph
    groups = [*prunable_groups(graph, None, ())]
    units = ParametersOfUnits(graph, history_of(model).modules, groups[1:])
    assert [*units.groups] == groups[1:]
    assert next(iter(units.groups.values()))[0] == 0
    assert units.count == sum(graph.groups.width(group) for group in groups[1:])
    first = graph.nodes[min(graph.makers(groups[0]))]
    assert units.on(first.outs).tolist() == [-1] * graph.groups.length(first.outs)
    numbers = torch.arange(units.count)
    assert torch.cat([*units.by_group(numbers).values()]).tolist() == numbers.tolist()


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: CASES[n].name)
def test_each_parameter_comes_once_for_each_dimension_along_units(number: int) -> None:
    model = made_growable(CASES[number])
    history, view = history_of(model), view_of(model)
    found = [(each.layer, each.name, each.dim) for each in view.parameters]
    assert len({*found}) == len(found) > 0
    expected = set()
    for node in history.graph.nodes.values():
        layer = split_of(layer_at(history.modules, node.name, node.use)).original
        for name, axes in split_of(layer).layer_type.tensors(layer).items():
            tensor = getattr(layer, name, None)
            buffer = name in layer._buffers
            for dim, along in axes.items() if tensor is not None and not buffer else ():
                axis = node.ins if along.side == "in" else node.outs
                if node.followed and bool((view.units.on(axis) >= 0).any()):
                    expected.add((node.name, name, dim))
    tied = {path for holders in history.graph.ties for path, _ in holders}
    assert {item for item in found if item[0] not in tied} == {
        item for item in expected if item[0] not in tied
    }


@pytest.mark.parametrize("name", ["residual", "u-net", "shuffled", "tagger"])
@pytest.mark.parametrize("freeze", [False, True])
def test_values_and_gradients_are_those_of_the_whole_layer(name: str, freeze: bool) -> None:
    case = next(case for case in CASES if case.name == name)
    model = grown_at_once(case, freeze=freeze)
    model.requires_grad_(True)
    view = view_of(model)
    loss_of(model, case.inputs()).backward()
    gradients = {id(p): p.grad for p in model.parameters() if p.grad is not None}
    for each in view.parameters:
        assert_identical(each.differentiable.detach(), each.value)
        assert float(each.counts.sum()) == each.value.numel()
        assert_equal(each.sums(each.value).sum(), each.value.sum())
        if not each.roles.isdisjoint(("makes", "reads")):
            whole = each.differentiable
            parts = each.parts
            again = torch.autograd.grad((whole * each.gradient(gradients)).sum(), parts)
            for part, own in zip(parts, again, strict=True):
                assert_equal(own, gradients[id(part)])


def test_a_weight_in_two_layers_is_in_one_place_with_the_roles_of_both() -> None:
    view = view_of(small(Tied()))
    roles = {(each.layer, each.name, each.dim): each.roles for each in view.parameters}
    assert roles == {
        ("table", "weight", 1): {"makes", "reads"},
        ("inner", "weight", 0): {"makes"},
        ("inner", "weight", 1): {"reads"},
        ("inner", "bias", 0): {"shifts"},
    }
    assert view.units.covered("reads").all()
    assert not view.units.covered("scales").any()
    assert not view.units.covered("reads", among=()).any()

"""Shared by the tests of pruning: what a criterion says of a model, and where its units lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from cases import Case
from helpers import randomise, randomise_new_blocks, tensors_of
from torch import Tensor, nn

import splitgrow
from splitgrow.growth.edit_parts import Removal
from splitgrow.growth.history_lookup import history_of
from splitgrow.pruning.choosing import as_request, prunable_groups
from splitgrow.pruning.criteria.criterion import Criterion, UnitsInView
from splitgrow.pruning.criteria.unit_parameters import ParametersOfUnits
from splitgrow.pruning.prune import key_of

Key = tuple[str, ...]


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    """A loss that reads all outputs, in different ways."""
    outputs = [t.double() for t in tensors_of(model(*batch)) if t.is_floating_point()]
    return sum((t.square().mean() + (n + 1) * t.mean() for n, t in enumerate(outputs)), 0.0)


def view_of(model: Any, batches: Sequence[Any] = (), loss: Any = loss_of) -> UnitsInView:
    """All units of a model that may go, in view of a criterion."""
    history = history_of(model)
    widths = prunable_groups(history.graph, None, None)
    units = ParametersOfUnits(history.graph, history.modules, widths)
    return UnitsInView(model, history, units, loss, batches)


def scores_of(
    model: Any, criterion: Criterion, batches: Sequence[Any] = (), loss: Any = loss_of
) -> dict[Key, Tensor]:
    """The scores of a criterion, by the names of the layers that make the units."""
    graph = history_of(model).graph
    found = criterion.scores(view_of(model, batches, loss))
    return {key_of(graph, group): own for group, own in found.items()}


def where_units_lie(model: Any) -> dict[Key, list[tuple[Removal, ...]]]:
    """For each unit the positions that go with it, by the plan that takes it out alone."""
    graph = history_of(model).graph
    return {
        key_of(graph, group): [
            model.plan_shrinking(as_request(graph, {group: [nth]})).removed for nth in range(width)
        ]
        for group, width in prunable_groups(graph, None, None).items()
        if width > 1
    }


def positions(stretches: Any) -> list[int]:
    """The positions in some stretches."""
    return [at for start, count in stretches for at in range(start, start + count)]


def made_growable(case: Case) -> Any:
    """A model of the table with values that matter, not grown."""
    return splitgrow.growable(randomise(case.model()).double(), case.inputs())


def grown_at_once(case: Case, *, freeze: bool = False) -> Any:
    """The model after one growth of all layers that can, with values that matter."""
    model = made_growable(case)
    asked, seen = {}, set[str]()
    for layer in model.layers:
        if layer.growable and layer.name not in seen:
            asked[layer.name] = layer.step
        seen.update(layer.group)
    model.expand(asked, freeze=freeze)
    randomise_new_blocks(model)
    return model


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Fails unless scores are equal up to the rounding of sums."""
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=1e-12)

"""Over the table of models: a grown model has the scores of the merged one, and can be pruned."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import CASES, Case
from helpers import outputs_of
from scoring import assert_close, grown_at_once, loss_of, made_growable, scores_of
from torch import nn

import splitgrow
from splitgrow.errors import UnsupportedLayerError
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.pruning import CRITERIA

OF_GRADIENTS = {"taylor", "fisher"}
UNSCORED = {
    "scale": {
        *("three bare convs", "shuffled", "grouped queries", "fused heads", "tokens", "deciding"),
        *("by hand", "weight norm", "tagger", "projected", "cells", "translator"),
        "several lengths",
    },
}
"""The models without a norm of channels."""
STAY_GROWN = {"bottleneck", "1-d"}
"""The models whose grouped convolutions must become plain, which closed generations forbid."""


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: CASES[n].name)
def test_a_grown_model_has_the_scores_of_the_merged_one_and_loses_units(number: int) -> None:
    case = CASES[number]
    model = grown_at_once(case, freeze=number % 2 > 0 and case.name not in STAY_GROWN)
    merged = splitgrow.growable(splitgrow.merge(copy.deepcopy(model)).eval(), case.inputs())
    assert any(isinstance(module, SplitLayer) for module in model.modules())
    batches = [case.inputs(1), case.inputs(2)]
    for name, criterion in CRITERIA.items():
        if name == "random" or (name in OF_GRADIENTS and case.computed):
            continue
        found = scores_of(model, criterion, batches)
        expected = scores_of(merged, criterion, batches)
        assert found.keys() == expected.keys()
        assert bool(found) == (case.name not in UNSCORED.get(name, ()))
        for key, scores in found.items():
            assert_close(scores, expected[key])
    if not case.computed:
        _prune_by_one(number, case, model)


def _prune_by_one(number: int, case: Case, model: nn.Module) -> None:
    """One of the criteria, in turn; prune compares the outputs with those of silenced units."""
    names = [name for name in CRITERIA if case.name not in UNSCORED.get(name, ())]
    name = names[number % len(names)]
    edit = model.prune(
        0.5,
        criterion=name,
        scope="layer",
        keep=0,
        loss=loss_of,
        batches=[case.inputs()],
        give_up=True,
        refit=False,
    )
    assert edit.criterion == name
    assert sum(item.parameters for item in edit.removed) > 0
    outputs_of(model, *case.inputs())


def test_control_other_values_have_other_scores() -> None:
    case = CASES[2]
    model, other = grown_at_once(case), grown_at_once(case)
    block = next(m for m in other.modules() if isinstance(m, SplitLayer) and len(m) > 1)[1]
    with torch.no_grad():
        block.weight.mul_(1.001)
    batches = [case.inputs()]
    for name, criterion in CRITERIA.items():
        one, two = (scores_of(m, criterion, batches) for m in (model, other))
        if name != "scale":
            assert any(not torch.equal(one[key], two[key]) for key in one)


def test_weights_that_are_computed_have_scores_by_their_values_alone() -> None:
    case = next(each for each in CASES if each.computed)
    for name in ("group", "l1", "activation", "reconstruction"):
        model = made_growable(case)
        assert model.prune(0.4, criterion=name, keep=0, batches=[case.inputs()]).removed
        outputs_of(model, *case.inputs())
    with pytest.raises(ValueError, match="'taylor' has no scores"):
        made_growable(case).prune(0.4, criterion="taylor", loss=loss_of, batches=[case.inputs()])
    with pytest.raises(UnsupportedLayerError, match="its weight is computed at each call"):
        grown_at_once(case).prune(0.5)

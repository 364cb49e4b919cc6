"""Old weights are scaled for the new width, and batch norms take the factor back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import largest_difference
from snapshots import unchanged
from torch import nn

import splitgrow
from splitgrow.errors import InexactError, SplitGrowWarning
from splitgrow.growth.edits import Edit
from splitgrow.growth.initializers.variance_transfer import VarianceTransfer

X = torch.randn(9, 2, 6, dtype=torch.float64)


def network(*, eps: float = 1e-5) -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv1d(2, 4, 3),
        nn.ReLU(),
        nn.Conv1d(4, 6, 3),
        nn.BatchNorm1d(6, eps=eps),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12, 3),
    ).double()
    net(X)
    return splitgrow.growable(net.eval(), X)


def test_old_weights_and_statistics_are_scaled_and_the_outputs_stay() -> None:
    model = network(eps=1e-12)
    wanted, old = model(X), copy.deepcopy(model)
    edit = model.expand_layer("0", 4, initializer="variance_transfer", freeze=False)
    assert edit.moved == largest_difference(model(X), wanted) < 1e-9
    assert edit.rewritten == ("2.0.weight", "2.0.bias", "3.running_mean", "3.running_var")
    assert Edit.from_json(edit.to_json()) == edit
    plain, factor = splitgrow.merge(model), 0.5**0.5
    for now, before, by in (
        (plain[2].weight[:, :4], old[2].weight, factor),
        (plain[2].bias, old[2].bias, factor),
        (plain[3].running_mean, old[3].running_mean, factor),
        (plain[3].running_var, old[3].running_var, factor**2),
        (plain[0].weight[:4], old[0].weight, 1.0),
    ):
        torch.testing.assert_close(now, before * by, rtol=1e-12, atol=1e-14)
    columns = plain[2].weight[:, 4:]
    assert torch.equal(columns[:, ::2], -columns[:, 1::2])


def test_without_a_batch_norm_behind_there_is_a_warning_and_outputs_move() -> None:
    model = network()
    wanted = model(X)
    with pytest.warns(
        SplitGrowWarning, match=r"old weights of `6`, and no batch norm right behind"
    ):
        edit = model.expand_layer("2", 6, initializer="variance_transfer", freeze=False)
    assert edit.moved == pytest.approx(largest_difference(model(X), wanted))
    assert edit.moved > 0.01


def test_a_failed_growth_puts_weights_and_statistics_back() -> None:
    class Broken(VarianceTransfer):
        exact = True

    model = network(eps=0.1)
    with unchanged(model), pytest.raises(InexactError):
        model.expand_layer("0", 4, initializer=Broken(), freeze=False)
    with unchanged(model), pytest.raises(ValueError, match="are frozen or would be"):
        model.expand_layer("0", 4, initializer="variance_transfer")

"""Further experts that are refused, and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixture_models import EXPERTS, X, growable
from torch import nn

import splitgrow
from splitgrow.errors import StructureChangedError, UnsupportedLayerError


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Written", "`1.moe` cannot have each of its 4 experts 2 times.*written into its code"),
        ("Unshared", "scale them by something else than their sum"),
        ("Sharing", "the experts of `1.moe` share norm"),
    ],
)
def test_a_mixture_that_would_change_is_refused_by_name(name: str, words: str) -> None:
    model = growable(name)
    before = model(X)
    with pytest.raises(UnsupportedLayerError, match=words):
        model.expand_experts(EXPERTS)
    assert torch.equal(model(X), before)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ((0,), ValueError, "at least 1"),
        ((2.0,), TypeError, "must be an int"),
        ((True,), TypeError, "must be an int"),
        ((4, 3), TypeError, "path of a module"),
        ((4, "3"), ValueError, "no mixture of experts '3'; there are '1.moe', '2.moe'"),
        ((6,), ValueError, "`1.moe` has 4, `2.moe` has 4; the nearest are 4 and 8"),
        ((1,), ValueError, "the nearest are 4 and 8"),
    ],
)
@pytest.mark.parametrize("method", ["expand_experts", "plan_experts"])
def test_wrong_requests_are_told(
    given: Any, error: type[Exception], words: str, method: str
) -> None:
    model = growable("Mixture")
    with pytest.raises(error, match=words):
        getattr(model, method)(*given)


@pytest.mark.parametrize(
    ("noise", "error"),
    [("1", TypeError), (True, TypeError), (-1.0, ValueError), (float("nan"), ValueError)],
)
def test_a_wrong_noise_is_told(noise: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="noise"):
        growable("Mixture").expand_experts(EXPERTS, noise=noise)


def test_a_model_without_a_mixture_says_so() -> None:
    model: Any = splitgrow.growable(nn.Sequential(nn.Linear(6, 2)), X.float())
    assert model.mixtures() == ()
    with pytest.raises(UnsupportedLayerError, match="no mixture of experts: nothing in it chooses"):
        model.expand_experts(4)


def test_a_model_without_values_says_so() -> None:
    model: Any = growable("Everything").to("meta")
    with pytest.raises(UnsupportedLayerError, match="no values"):
        model.expand_experts(4)


def test_a_model_changed_by_hand_is_refused() -> None:
    model = growable("Mixture")
    model[1].moe.experts[0] = nn.Linear(6, 6).double()
    with pytest.raises(StructureChangedError):
        model.expand_experts(EXPERTS)

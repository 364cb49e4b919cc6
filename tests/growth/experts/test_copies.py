"""Twins that start apart by values that add up to zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_equal, assert_identical
from mixture_models import EXPERTS, X, growable, plain


def downs(mixture: Any) -> torch.Tensor:
    experts = mixture.experts
    if hasattr(experts, "down"):
        return experts.down.detach()
    return torch.stack([expert.down.weight.detach() for expert in experts])


@pytest.mark.parametrize("name", ["Mixture", "Stacked"])
@pytest.mark.parametrize("times", [2, 3])
def test_differences_of_twins_add_up_to_zero(name: str, times: int) -> None:
    import splitgrow  # noqa: PLC0415

    model = growable(name)
    before = downs(model[1].moe).clone()
    model.expand_experts((times - 1) * EXPERTS, freeze=False)
    twins = downs(splitgrow.merge(model)[1].moe).view(times, *before.shape)  # type: ignore[index]
    assert_equal(twins.mean(0), before)
    assert (twins - before).abs().amin(tuple(range(1, twins.dim()))).min() >= 0
    assert (twins - before).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["Mixture", "Stacked"])
def test_frozen_experts_do_not_move(name: str) -> None:
    model = growable(name)
    old = [(p, p.detach().clone()) for p in model.parameters()]
    first = model.expand_experts(EXPERTS)
    added = [(p, p.detach().clone()) for p in model.parameters_of(first)]
    model.expand_experts(2 * EXPERTS)  # those of the first edit train, and move
    for parameter, value in old:
        assert_identical(parameter.detach(), value)
    assert any(not torch.equal(parameter, value) for parameter, value in added)
    with model.at(0):
        assert_identical(model(X), plain(name)(X))


def test_without_noise_copies_are_as_they_are() -> None:
    model = growable("Stacked")
    model.expand_experts(EXPERTS, freeze=False, noise=0.0)
    experts = model[1].moe.experts
    assert_identical(experts.inserted1.down, experts.down)


def test_a_taken_back_edit_gives_old_experts_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("as if")

    for name in ("Mixture", "Stacked"):
        model = growable(name)
        old = {n: p.detach().clone() for n, p in model.named_parameters()}
        monkeypatch.setattr("splitgrow.growth.experts.expansion.wrap_", fails)
        with pytest.raises(RuntimeError, match="as if"):
            model.expand_experts(EXPERTS, freeze=False)
        monkeypatch.undo()
        for key, value in old.items():
            assert_identical(dict(model.named_parameters())[key].detach(), value)


def test_differences_are_the_same_in_every_process() -> None:
    model = growable("Stacked")
    model.expand_experts(EXPERTS, freeze=False)
    again = growable("Stacked")
    again.expand_experts(EXPERTS, freeze=False)
    assert_identical(again[1].moe.experts.inserted1.down, model[1].moe.experts.inserted1.down)

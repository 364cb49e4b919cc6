"""Trying out a larger mixture on a copy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_identical
from mixture_models import MIXTURES, X, growable, plain
from torch import nn

import splitgrow
from splitgrow.growth.experts import rehearsal
from splitgrow.growth.experts.mixtures import capture, find_mixtures
from splitgrow.growth.experts.rehearsal import Rehearsed, rehearsed
from splitgrow.utils.example_call import example_call

GATE = [("num_experts", 4), ("top_k", 2)]
COUNTS: dict[str, list[tuple[str, float]]] = {
    **dict.fromkeys(MIXTURES, GATE),
    "Grouped": [
        ("num_experts", 4),
        ("number", 4),
        ("top_k", 2),
        ("top", 2),
        ("groups", 2),
        ("top_groups", 1),
    ],
    "Scaled": [*GATE, ("factor", 1.5)],
}
SCORES = {
    **{name: [("gate.weight", 0)] for name in MIXTURES},
    "Grouped": [("gate.weight", 0), ("gate.bias", 0)],
    "Held": [("scores", 1)],
}


def tried(model: nn.Module, times: int = 2) -> Rehearsed:
    call = example_call(X)
    mixture, _ = find_mixtures(model, call)
    calls = capture(model, call, [mixture.path])
    return rehearsed(model.get_submodule(mixture.path), mixture, calls[mixture.path], times)


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("name", MIXTURES)
def test_numbers_and_scores_are_found_by_trial(name: str, times: int) -> None:
    model = plain(name)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    found = tried(model, times)
    assert sorted((c.attribute, c.value) for c in found.counts) == sorted(COUNTS[name])
    assert [(s.name, s.dim) for s in found.scores] == SCORES[name]
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in state.items())
    assert_identical(model(X), plain(name)(X))


@pytest.mark.parametrize("name", MIXTURES)
def test_each_number_that_is_found_is_needed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with one number less no trial passes."""
    counts = tried(plain(name)).counts
    for left_out in counts:
        if left_out.value == 4 and left_out.attribute == "num_experts" and name != "Numbered":
            continue  # forward does not read it
        if name == "Grouped" and left_out.module == "":
            continue
        fewer = tuple(count for count in counts if count != left_out)
        monkeypatch.setattr(rehearsal, "_tries", lambda *_, fewer=fewer: iter([fewer]))
        with pytest.raises(splitgrow.UnsupportedLayerError):
            tried(plain(name))


def test_a_mixture_whose_values_hide_everything_is_still_tried() -> None:
    """Zeros at the end of each expert, and experts that are alike, show nothing by themselves."""
    model: Any = plain("Mixture")
    with torch.no_grad():
        for expert in (*model[1].moe.experts, *model[2].moe.experts):
            expert.down.weight.zero_()
            expert.down.bias.zero_()
            expert.up.weight.fill_(0.1)
    assert [c.attribute for c in tried(model).counts] == ["num_experts", "top_k"]


def test_a_bias_that_has_not_moved_may_have_to_stay() -> None:
    """A bias chooses otherwise among shares of half the size, but not while it is zero."""

    class Biased(MIXTURES["Mixture"]):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("bias", torch.zeros(4))

        def route(self, x: Any) -> Any:
            shares = self.gate(x).softmax(-1)
            index = (shares + self.bias).topk(self.top_k, dim=-1).indices
            weights = shares.gather(-1, index)
            return weights / weights.sum(-1, keepdim=True), index

    torch.manual_seed(0)
    model: Any = nn.Sequential(plain("Mixture")[0], Biased(), Biased()).double().eval()
    model = splitgrow.growable(model, X)
    before = model(X)
    model.expand_experts(4)
    assert (model(X) - before).abs().max() < 1e-12
    model[1].bias.copy_(torch.randn(8))
    with pytest.raises(splitgrow.UnsupportedLayerError):
        model.expand_experts(8)


def test_mixtures_alike_are_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from splitgrow.growth.experts import expert_plans  # noqa: PLC0415

    seen: list[int] = []
    own = expert_plans.rehearsed

    def counted(*args: Any) -> Any:
        seen.append(1)
        return own(*args)

    monkeypatch.setattr(expert_plans, "rehearsed", counted)
    growable("Stacked").expand_experts(4)
    assert len(seen) == 1

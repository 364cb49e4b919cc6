"""Sets of experts: their records, and one module in place of several."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_equal
from mixture_models import EXPERTS, X, growable
from torch import nn

from splitgrow.layers.expert_sets import ExpertSet, all_listed, names_of_experts

GOOD: dict[str, Any] = {
    "first": 4,
    "count": 8,
    "index": (1, "index"),
    "weights": (2, "weights"),
    "tensors": ("up",),
    "numbers": ("n",),
}


def test_a_set_is_written_and_read() -> None:
    one = ExpertSet(**GOOD)
    assert ExpertSet.read(one.written()) == one
    assert not one.listed
    assert ExpertSet.read({"first": 1, "count": 1}).listed


@pytest.mark.parametrize(
    "change",
    [
        {"first": 0},
        {"first": True},
        {"count": -1},
        {"count": 2.0},
        {"index": None},
        {"weights": (-1, "w")},
        {"weights": ("w", 1)},
        {"index": [1, "index"]},
        {"tensors": ["up"]},
        {"numbers": (1,)},
        {"more": 1},
    ],
)
def test_a_set_that_is_none_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no valid set of experts"):
        ExpertSet.read({**GOOD, **change})


@pytest.mark.parametrize("data", [None, 3, "x", [1], {"first": 1}])
def test_what_is_no_record_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="no valid set of experts"):
        ExpertSet.read(data)


def test_names_count_on() -> None:
    one = nn.ModuleDict({f"expert_{n}": nn.Identity() for n in range(9, 11)})
    assert names_of_experts(one, 2) == ["expert_11", "expert_12"]
    assert names_of_experts(nn.ModuleList([nn.Identity()]), 1) == ["1"]
    with pytest.raises(ValueError, match="end in no number: 'b'"):
        names_of_experts(nn.ModuleDict({"b": nn.Identity()}), 1)
    lists = [nn.ModuleList([nn.Identity()]), nn.ModuleList([nn.Tanh(), nn.ReLU()])]
    assert [type(m).__name__ for m in all_listed(lists).values()] == ["Identity", "Tanh", "ReLU"]


def test_a_list_with_further_experts_answers_like_one_list() -> None:
    model = growable("Mixture")
    model.expand_experts(EXPERTS)
    experts = model[1].moe.experts
    assert len(experts) == len(list(experts)) == 2 * EXPERTS
    assert experts[-1] is experts[2 * EXPERTS - 1] is list(experts)[-1]
    assert isinstance(experts[2:6], nn.ModuleList)
    assert list(experts[2:6]) == list(experts)[2:6]
    with model.at(0):
        assert len(experts) == EXPERTS
        with pytest.raises(IndexError):
            experts[EXPERTS]
    named = growable("Named")
    named.expand_experts(EXPERTS)
    experts = named[1].moe.experts
    assert list(experts) == list(experts.keys()) == [f"expert_{n}" for n in range(2 * EXPERTS)]
    assert experts["expert_7"] is list(experts.values())[-1]


def test_a_module_with_further_experts_counts_them() -> None:
    model = growable("Stacked")
    model.expand_experts(2 * EXPERTS)
    experts = model[1].moe.experts
    assert experts.num_experts == 3 * EXPERTS
    with model.at(0):
        assert experts.num_experts == EXPERTS


class _Skipping(nn.Module):
    """Leaves out the index behind its last expert, if it is told to, as modules of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self._is_expert_parallel = False
        self.weight = nn.Parameter(torch.arange(1.0, 1 + EXPERTS).view(EXPERTS, 1).double())
        self.asked: list[int] = []

    def forward(self, x: Any, index: Any, weights: Any) -> Any:
        count = len(self.weight)
        assert self._is_expert_parallel or int(index.max()) < count
        self.asked.append(int((index < count).sum()))
        padded = torch.cat([self.weight, torch.full((1, 1), torch.nan).double()])
        made = torch.where(index < count, padded[index].squeeze(-1), 0.0)
        return x * (made * weights).sum(-1, keepdim=True)


def test_a_module_that_can_skip_runs_no_experts_for_nothing() -> None:
    from mixture_models import Block, Stacked  # noqa: PLC0415

    import splitgrow  # noqa: PLC0415

    class Mixed(Stacked):
        def made(self) -> nn.Module:
            return _Skipping()

    torch.manual_seed(0)
    model: Any = splitgrow.growable(nn.Sequential(Block(Mixed)).double().eval(), X)
    before = model(X)
    model.expand_experts(EXPERTS)
    experts = model[0].moe.experts
    for part in (experts.wrapped, experts.inserted1):
        part.asked.clear()
    assert_equal(model(X), before)
    tokens = X.shape[0] * X.shape[1]
    assert experts.wrapped.asked[0] + experts.inserted1.asked[0] == 4 * tokens
    merged: Any = splitgrow.merge(model)
    assert not merged[0].moe.experts._is_expert_parallel
    assert_equal(merged(X), before)

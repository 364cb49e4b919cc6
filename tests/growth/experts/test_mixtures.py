"""Finding mixtures of experts by a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_identical
from mixture_models import CHOSEN, EXPERTS, FEATURES, MIXTURES, Block, Mixture, X, growable, plain
from torch import Tensor, nn

from splitgrow.growth.experts.mixtures import find_mixtures
from splitgrow.utils.example_call import example_call


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_are_found_in_order_with_their_numbers(name: str) -> None:
    found = growable(name).mixtures()
    assert [(m.path, m.experts) for m in found] == [
        ("1.moe", "1.moe.experts"),
        ("2.moe", "2.moe.experts"),
    ]
    assert {(m.count, m.chosen) for m in found} == {(EXPERTS, CHOSEN)}


@pytest.mark.parametrize("name", MIXTURES)
def test_looking_changes_nothing(name: str) -> None:
    model = plain(name).train()
    model[1].moe.register_forward_hook(lambda *_: None)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    held, random = [set(vars(m)) for m in model.modules()], torch.get_rng_state()
    find_mixtures(model, example_call(X))
    assert model.training
    assert [set(vars(m)) for m in model.modules()] == held
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in state.items())
    assert torch.equal(torch.get_rng_state(), random)


class Keys(nn.Module):
    """Chooses among as many positions as the next module has experts."""

    def forward(self, x: Tensor) -> Tensor:
        index = x.sum(-1).topk(2, dim=-1).indices
        return (
            x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1])).mean(1, keepdim=True) + x
        )


class Picky(nn.Module):
    """Holds as many blocks as a router chooses groups from."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(MIXTURES["Grouped"]) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_a_choice_among_positions_is_no_router() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Keys(), Block(Mixture)).double().eval()
    x = torch.randn(2, EXPERTS, FEATURES).double()  # as many positions as experts
    found = find_mixtures(model, example_call(x))
    assert [m.path for m in found] == ["1.moe"]
    assert not find_mixtures(nn.Sequential(Keys()), example_call(x))


def test_a_choice_among_groups_is_not_taken_for_one_among_blocks() -> None:
    torch.manual_seed(0)
    found = find_mixtures(Picky().double().eval(), example_call(X))
    assert [m.path for m in found] == ["blocks.0.moe", "blocks.1.moe"]


class Odd(Mixture):
    def made(self) -> nn.Module:
        return nn.ModuleList([nn.Linear(6, 6), nn.Identity(), nn.Linear(6, 6), nn.Linear(6, 6)])


def test_a_list_of_different_modules_is_no_list_of_experts() -> None:
    torch.manual_seed(0)
    assert not find_mixtures(nn.Sequential(Block(Odd)).double().eval(), example_call(X))


def test_a_mixture_is_found_with_arguments_by_name_or_position() -> None:
    model: Any = growable("Stacked")
    (one, _) = model.mixtures()
    assert (one.index, one.weights) == ((1, "index"), (2, "weights"))
    assert_identical(model(X), plain("Stacked")(X))

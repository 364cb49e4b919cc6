"""Masks on single weights: the tensors that a task sees and trains, and stored masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from splitgrow.continual.masks import (
    SCORE,
    THRESHOLD,
    no_owners,
    owned_by,
    packed,
    picked,
    seen,
    unpacked,
)


def drawn(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Own values, where they are seen, a base that is zero there, and scores on both sides."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)
    mine = torch.rand(5, 4, 3, generator=generator) < 0.4
    base = torch.randn(5, 4, 3, generator=generator, dtype=torch.float64) * ~mine
    scores = THRESHOLD + 0.02 * torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)
    return own.requires_grad_(), mine, base, scores.requires_grad_()


@pytest.mark.parametrize("picks", ["binary", "ternary"])
def test_a_task_sees_its_own_values_and_what_its_scores_pick(picks: str) -> None:
    own, mine, base, scores = drawn()
    found = seen(own, mine, base, scores, (picks, THRESHOLD))
    for index in torch.cartesian_prod(*(torch.arange(n) for n in own.shape)).tolist():
        place, score = tuple(index), float(scores.detach()[tuple(index)])
        pick = 1.0 if score > THRESHOLD else 0.0
        pick = -1.0 if picks == "ternary" and score < -THRESHOLD else pick
        expected = own.detach()[place] if mine[place] else pick * base[place]
        assert float(found.detach()[place]) == float(expected)
    assert {-1.0, 0.0, 1.0} >= {*picked(scores, picks).unique().tolist()} >= {0.0, 1.0}
    assert ((picked(scores, picks) < 0).any()) == (picks == "ternary")


def test_own_values_get_their_gradient_where_they_are_seen_and_scores_as_if_they_were_picks() -> (
    None
):
    own, mine, base, scores = drawn()
    weight = torch.randn(5, 4, 3, dtype=torch.float64)
    found = seen(own, mine, base, scores)
    (found * weight).sum().backward()
    assert torch.equal(own.grad, weight * mine)
    assert torch.equal(scores.grad, weight * base * ~mine)
    assert scores.grad.abs().sum() > 0  # also of scores that pick nothing
    assert (scores.grad[(scores < THRESHOLD) & ~mine] != 0).any()


def test_without_scores_all_of_the_base_is_seen_and_without_own_values_nothing_trains() -> None:
    own, mine, base, _ = drawn()
    assert torch.equal(seen(own, mine, base, None), torch.where(mine, own, base))
    alone = seen(None, None, base, None)
    assert torch.equal(alone, base)
    assert alone.data_ptr() != base.data_ptr()
    assert not alone.requires_grad


def test_scores_begin_above_the_threshold_so_that_all_is_picked_at_first() -> None:
    assert picked(torch.full((3,), SCORE), "binary").tolist() == [1, 1, 1]


@given(st.integers(0, 40), st.integers(0, 2**31), st.booleans())
def test_picks_are_the_same_once_they_were_packed(size: int, seed: int, ternary: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(-1 if ternary else 0, 2, (size,), generator=generator)
    found = packed(picks)
    assert torch.equal(unpacked(found, picks.shape).long(), picks)
    planes = 2 if bool((picks < 0).any()) else 1
    assert found.numel() == planes * -(-size // 8)


@pytest.mark.parametrize("shape", [(3, 2), (1, 1), (2,)])
def test_bytes_of_another_number_are_no_picks(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="are no picks"):
        unpacked(torch.zeros(shape, dtype=torch.uint8), torch.Size((9,)))


def test_the_owner_of_a_weight_takes_one_byte_and_two_from_task_256_on() -> None:
    owners = no_owners(torch.ones(4))
    first = torch.tensor([True, False, False, False])
    owners = owned_by(owners, first, 255)
    assert (owners.dtype, owners.tolist()) == (torch.uint8, [255, 0, 0, 0])
    owners = owned_by(owners, first.roll(1), 256)
    assert (owners.dtype, owners.tolist()) == (torch.int16, [255, 256, 0, 0])

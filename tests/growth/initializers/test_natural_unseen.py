"""Growth by a small batch leaves the loss on data that it has not seen as low as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from snapshots import unchanged
from torch import Tensor, nn

import splitgrow
from splitgrow.growth.initializers import best_steps, initializers, natural
from splitgrow.growth.initializers.natural import Fisher, Tiny

INEXACT = [each for each in initializers().values() if each.needs_data and not each.exact]
EACH = [*INEXACT, Tiny(project=False), Fisher(project=False)]
BATCH, TRAINING, SEEDS = 32, 1000, range(3)
SHARE = 1.1
"""The largest loss on unseen data after growth, relative to that before."""


def linear() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)
    )


def convolutions() -> nn.Module:
    """The second one has 144 inputs of new units, and sees 128 places in the batch."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


NETS: list[Callable[[], nn.Module]] = [linear, convolutions]


@cache
def digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    x = torch.tensor(found.images / 16)[:, None]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order], torch.tensor(found.target)[order]


def loss_of(model: Any, rows: slice | Tensor) -> Tensor:
    x, y = digits()
    return nn.functional.cross_entropy(model(x[rows]), y[rows])


@torch.no_grad()
def unseen(model: Any) -> float:
    """The loss on the digits that neither training nor growth has seen."""
    return float(loss_of(copy.deepcopy(model).eval(), slice(TRAINING, None)))


@cache
def trained(net: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = net().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss_of(model, torch.randint(TRAINING, (BATCH,))).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model


def start(net: Callable[[], nn.Module], seed: int) -> Any:
    return splitgrow.growable(copy.deepcopy(trained(net, seed)), digits()[0][:2])


def ratios(net: Callable[[], nn.Module], initializer: Any) -> list[float]:
    """The loss on unseen data after growth by a batch, relative to that before."""
    found = []
    for seed in SEEDS:
        for layer in (0, 1):
            model = start(net, seed)
            seen = slice(seed * BATCH, (seed + 1) * BATCH)
            before = unseen(model)
            edit = model.expand_layer(
                layer,
                16,
                initializer=initializer,
                loss=lambda model=model, seen=seen: loss_of(model, seen),
                freeze=False,
            )
            assert edit.loss[1] < 0.99 * edit.loss[0], "it does lower the loss of the batch"
            found.append(unseen(model) / before)
    return found


def without_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of any size and length, as only the loss of the batch chooses them."""
    monkeypatch.setattr(natural, "_LARGEST", 64.0)
    monkeypatch.setattr(natural, "_bounded", lambda rows, _: rows)
    monkeypatch.setattr(best_steps, "_RIDGE", 0.0)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("initializer", EACH, ids=lambda i: f"{i!r} {i.project}")
def test_the_loss_on_unseen_data_hardly_rises(
    initializer: Any, net: Callable[[], nn.Module]
) -> None:
    found = ratios(net, initializer)
    assert max(found) < SHARE
    assert sum(found) / len(found) < 1.02


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("initializer", INEXACT, ids=repr)
def test_control_without_bounds_it_rises_far(
    initializer: Any, net: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_bounds(monkeypatch)
    assert max(ratios(net, initializer)) > 2


def lengths(model: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The lengths of the rows of a layer, old and new, and of its reader's columns."""
    made, read = model[1], model[3]
    return (
        made[0].weight.norm(dim=1),
        made[1].weight.norm(dim=1),
        read[0].weight.norm(dim=0),
        read[1].weight.norm(dim=0),
    )


@pytest.mark.parametrize("bounded", [True, False])
def test_new_weights_are_no_longer_than_the_mean_of_the_old(
    bounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for a sum over the batch, whose gradient is larger; control: without the bounds."""
    if not bounded:
        without_bounds(monkeypatch)
    model = start(linear, 0)
    loss = lambda: 100 * loss_of(model, slice(16))  # noqa: E731
    model.expand_layer(0, 8, initializer="tiny", loss=loss, freeze=False)
    rows, new, columns, helpers = lengths(model)
    fits = bool((new <= rows.mean() * (1 + 1e-12)).all())
    assert (fits and bool((helpers <= columns.mean() * (1 + 1e-12)).all())) is bounded


def misled(model: Any) -> Tensor:
    """The loss of a batch whose labels are wrong."""
    x, y = digits()
    return nn.functional.cross_entropy(model(x[:BATCH]), (y[:BATCH] + 1) % 10)


@pytest.mark.parametrize("initializer", [Tiny, Fisher])
@pytest.mark.parametrize("net", NETS)
def test_held_out_data_choose_the_size(
    initializer: type[Tiny], net: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even by wrong labels, without bounds; and the edit records the loss on them."""
    without_bounds(monkeypatch)
    grown = []
    for held in (True, False):
        model = start(net, 0).eval()
        before = unseen(model)
        held_out = lambda model=model: loss_of(model, slice(TRAINING, None))  # noqa: E731
        chosen = initializer(held_out=held_out if held else None)
        loss = lambda model=model: misled(model)  # noqa: E731
        edit = model.expand_layer(0, 8, initializer=chosen, loss=loss, freeze=False)
        grown.append(unseen(model) / before)
        if held:
            assert edit.loss == pytest.approx((before, unseen(model)), rel=1e-11)
    assert grown[0] <= 1
    assert grown[1] > 2, "control: the batch alone misleads"


def test_a_grower_takes_held_out_data() -> None:
    model = start(linear, 0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    held_out = lambda: loss_of(model, slice(TRAINING, None))  # noqa: E731
    grower = splitgrow.Grower(
        model,
        optimizer,
        to=splitgrow.Factor(1.5),
        when=splitgrow.Every(1),
        init=Tiny(held_out=held_out),
        loss=lambda: loss_of(model, slice(BATCH)),
        freeze=False,
        absorb=False,
    )
    before = unseen(model)
    edit = grower.step()
    assert edit is not None
    assert edit.loss == pytest.approx((before, unseen(model)), rel=1e-11)


def test_held_out_data_must_be_a_function_that_returns_a_loss() -> None:
    with pytest.raises(TypeError, match="held_out must be a function that returns a loss, got 3"):
        Tiny(held_out=3)  # type: ignore[arg-type]
    model = start(linear, 0)
    wrong = Fisher(held_out=lambda: model(digits()[0][:4]))
    loss = lambda: loss_of(model, slice(BATCH))  # noqa: E731
    with unchanged(model), pytest.raises(TypeError, match="held_out must return a tensor of one"):
        model.expand_layer(0, 2, initializer=wrong, loss=loss)
    with unchanged(model), pytest.raises(ValueError, match="needs data, and is given no loss"):
        model.expand_layer(0, 2, initializer=Tiny(held_out=loss))


def test_held_out_data_that_change_each_time_are_told() -> None:
    model = start(linear, 0)
    turns = iter(range(10_000))

    def held_out() -> Tensor:
        return loss_of(model, slice(TRAINING, None)) * (1 + next(turns) / 10)

    with pytest.warns(splitgrow.SplitGrowWarning, match="held_out gives"):
        model.expand_layer(
            0, 2, initializer=Tiny(held_out=held_out), loss=lambda: loss_of(model, slice(BATCH))
        )

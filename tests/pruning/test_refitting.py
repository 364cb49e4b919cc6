"""Readers that are fitted have the weights of least squares, and the outputs move less."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import assert_identical, outputs_of, randomise, randomise_new_blocks
from scored_models import Tied, small
from scoring import positions
from snapshots import unchanged
from torch import Tensor, nn

import splitgrow
from splitgrow.errors import GenerationError
from splitgrow.layers.tensor_holder import split_of
from splitgrow.pruning import refitting
from splitgrow.pruning.refitting import REFIT_DAMPING


class Net(nn.Module):
    """Readers of all kinds: with and without bias, padding, groups, and behind flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.point, self.padded = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 3, padding=1)
        self.halves = nn.Conv2d(6, 4, 1, groups=2)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.flat = nn.Linear(3 * 36, 5)
        self.head = nn.Linear(5, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.point(x) + self.padded(x) + self.halves(x)
        return self.head(self.flat(self.up(x.relu()).relu().flatten(1)).relu())


def net() -> Any:
    torch.manual_seed(0)
    return splitgrow.growable(randomise(Net()).double().eval(), x(0)[:2])


def x(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(60, 2, 3, 3, generator=generator, dtype=torch.float64)


BATCHES = [x(1), x(2)]


def rows_of(model: Any, name: str) -> Tensor:
    """The rows that a layer reads, over all batches."""
    twin, seen = copy.deepcopy(model), list[Tensor]()
    module = twin.get_submodule(name)
    dim = -1 if name in {"flat", "head"} else 1
    module.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach().movedim(dim, -1).flatten(0, -2))
    )
    for batch in BATCHES:
        outputs_of(twin, batch)
    return torch.cat(seen)


def plain(model: Any, name: str) -> Any:
    return split_of(model.get_submodule(name)).composition().plain()


def best(rows: Tensor, weight: Tensor, kept: list[int], *, shifts: bool) -> tuple[Tensor, Tensor]:
    """The weights (inputs, outputs) and shifts of least squares, by torch's own solver."""
    mean = rows.mean(0) if shifts else torch.zeros(rows.shape[1]).double()
    rows = rows - mean
    ridge = (REFIT_DAMPING * rows.square().mean()) ** 0.5 * torch.eye(rows.shape[1]).double()
    data = torch.cat([rows / len(rows) ** 0.5, ridge])
    found = torch.linalg.lstsq(data[:, kept], data @ weight).solution
    return found, mean @ weight - mean[kept] @ found


READERS = {"point": True, "padded": False, "up": False, "flat": True, "head": False}
"""The readers, and whether their bias takes the means of what goes."""


@pytest.mark.parametrize("reader", READERS)
def test_readers_have_the_weights_of_least_squares(reader: str) -> None:
    model, before = net(), net()
    maker = {"point": "stem", "padded": "stem", "up": "point", "flat": "up", "head": "flat"}[reader]
    edit = model.prune(0.5, layers=[maker], refit=True, batches=BATCHES)
    gone = next(positions(item.ins) for item in edit.removed if item.name == reader)
    old, new, rows = plain(before, reader), plain(model, reader), rows_of(before, reader)
    dim = 0 if reader == "up" else 1
    weight = old.weight.detach().movedim(dim, 0).flatten(1)
    kept = [at for at in range(len(weight)) if at not in gone]
    expected, shift = best(rows, weight, kept, shifts=READERS[reader])
    found = new.weight.detach().movedim(dim, 0).flatten(1)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
    if new.bias is not None:
        places = weight.shape[1] // len(new.bias)
        moved = shift.view(-1, places).sum(1) if READERS[reader] else torch.zeros(len(new.bias))
        torch.testing.assert_close(
            new.bias.detach(), old.bias.detach() + moved, rtol=1e-8, atol=1e-9
        )
    assert not torch.allclose(found, weight[kept], rtol=1e-2)  # control: it has changed
    others, _ = best(rows, weight, kept, shifts=not READERS[reader])
    assert not torch.allclose(found, others, rtol=1e-4)


def test_outputs_move_less_and_the_edit_names_the_weights() -> None:
    moved = {}
    for refit in (False, True):
        model = net()
        edit = model.prune(0.5, scope="layer", refit=refit, batches=BATCHES)
        moved[refit] = float((outputs_of(model, x(1)) - outputs_of(net(), x(1))).square().mean())
        names = {name.partition(".")[0] for name in edit.rewritten}
        assert ("5 readers are fitted to the units that stay" in str(edit)) == refit
        assert names == ({"point", "padded", "up", "flat", "head"} if refit else set())
    assert moved[True] < 0.8 * moved[False]


def test_what_cannot_be_fitted_stays() -> None:
    model = net()
    before = plain(model, "halves").weight.detach()
    edit = model.prune(0.4, layers=["stem"], refit=True, batches=BATCHES)
    gone = next(positions(item.outs) for item in edit.removed if item.name == "stem")
    kept = [at for at in range(3) if at not in gone]
    assert_identical(plain(model, "halves").weight, before[:, kept])
    tied = small(Tied())
    values = tied.inner.weight.detach().clone(), tied.table.weight.detach().clone()
    edit = tied.prune(0.5, keep=0, refit=True, batches=[torch.randint(7, (9, 5))])
    gone = positions(edit.removed[0].outs)
    kept = [at for at in range(4) if at not in gone]
    assert_identical(tied.table.weight, values[1][:, kept])
    assert not torch.equal(tied.inner.weight, values[0][kept][:, kept])


def test_grown_readers_get_the_same_weights_as_merged_ones() -> None:
    model = net()
    model.expand({"stem": 2, "point": 2, "up": 1, "flat": 2}, freeze=False)
    randomise_new_blocks(model)
    merged = splitgrow.growable(splitgrow.merge(copy.deepcopy(model)).eval(), x(0)[:2])
    for one in (model, merged):
        one.prune(0.4, scope="layer", refit=True, batches=BATCHES)
    again = splitgrow.merge(copy.deepcopy(model))
    for name, parameter in splitgrow.merge(merged).named_parameters():
        torch.testing.assert_close(again.get_parameter(name), parameter, rtol=1e-8, atol=1e-9)


def test_reconstruction_fits_unless_told_otherwise() -> None:
    edits = [
        net().prune(0.4, criterion="reconstruction", batches=BATCHES, **options)
        for options in ({}, {"refit": False})
    ]
    assert [bool(edit.rewritten) for edit in edits] == [True, False]
    assert edits[0].removed == edits[1].removed


def test_closed_generations_are_not_refitted() -> None:
    model = net()
    model.expand_layer("stem", 2)
    with unchanged(model), pytest.raises(GenerationError, match="pass refit=False"):
        model.prune(0.1, refit=True, batches=BATCHES, give_up=True)


def test_a_failure_after_the_fit_gives_weights_their_values_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part, model = refitting.put_fits_, net()

    def interrupted(*args: Any) -> None:
        part(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr("splitgrow.pruning.prune.put_fits_", interrupted)
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        model.prune(0.4, refit=True, batches=BATCHES)

"""InputMoments of the values that layers read are those of all values that their calls get."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_equal, randomise
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import splitgrow
from splitgrow.growth import input_moments as moments_module
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.input_moments import InputMoments, input_moments
from splitgrow.utils.rollback import Undo


class Net(nn.Module):
    """Readers called once, twice, and with a packed sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv1d(2, 3, 3, padding=1), nn.Conv1d(3, 4, 1)
        self.rnn = nn.GRU(4, 3, batch_first=True)
        self.twice = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.conv(x).relu()).transpose(1, 2)
        lengths = torch.tensor([5, 4, 2])
        packed = pack_padded_sequence(x, lengths, batch_first=True)
        y = self.rnn(packed)[0].data
        return self.twice(self.twice(y).relu())


def net() -> Any:
    torch.manual_seed(0)
    return splitgrow.growable(randomise(Net()).double(), x(0))


def x(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 2, 5, generator=generator, dtype=torch.float64)


def measured(model: Any, **options: Any) -> dict[str, InputMoments]:
    history = history_of(model)
    groups = {g for node in history.graph.sized() for g in history.graph.growing_groups(node.outs)}
    with Undo() as undo, undo:
        return input_moments(undo, history, groups, lambda: [model(x(1)), model(x(2))], **options)


def inputs_of(model: Any) -> dict[str, list[Tensor]]:
    """The rows that each layer reads, by another way: a mode that sees every call."""
    seen: dict[str, list[Tensor]] = {"mix": [], "rnn": [], "twice": []}
    with torch.no_grad():
        for batch in (x(1), x(2)):
            y = model.conv(batch).relu()
            seen["mix"].append(y.transpose(1, 2).flatten(0, 1))
            y = model.mix(y).transpose(1, 2)
            packed = pack_padded_sequence(y, torch.tensor([5, 4, 2]), batch_first=True)
            seen["rnn"].append(packed.data)
            y = model.rnn(packed)[0].data
            seen["twice"].append(y)
            seen["twice"].append(model.twice(y).relu())
    return seen


@pytest.mark.parametrize("pairs", [True, False])
def test_moments_are_those_of_all_rows(pairs: bool) -> None:
    model = net()
    found = measured(model, pairs=pairs)
    assert found.keys() == {"mix", "rnn", "twice"}  # the first reads the model's input
    for name, rows in inputs_of(model).items():
        all_rows = torch.cat(rows)
        assert found[name].count == len(all_rows)
        assert_equal(found[name].mean, all_rows.mean(0))
        assert_equal(found[name].squares, all_rows.square().mean(0))
        assert_equal(found[name].zeros, (all_rows == 0).double().mean(0))
        if pairs:
            assert_equal(found[name].products, all_rows.T @ all_rows / len(all_rows))
            assert_equal(found[name].covariance, all_rows.T.cov(correction=0))


def test_control_one_batch_alone_has_other_moments() -> None:
    model = net()
    rows = inputs_of(model)["mix"][0]
    assert not torch.allclose(measured(model)["mix"].mean, rows.mean(0), rtol=1e-3)


def test_hooks_go_and_only_readers_of_the_groups_are_measured() -> None:
    model = net()
    history = history_of(model)
    groups = history.graph.growing_groups(history.graph.nodes["conv"].outs)
    with Undo() as undo, undo:
        found = input_moments(undo, history, groups, lambda: model(x(1)))
        assert found.keys() == {"mix"}
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_pairs_of_too_many_channels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments_module, "_MOST", 3)
    with pytest.raises(ValueError, match=r"`rnn` reads 4 channels, .*leave out the layers"):
        measured(net())
    assert measured(net(), pairs=False)["rnn"].count

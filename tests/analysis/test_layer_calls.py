"""Numbers of layers that forward reads, and calls with several tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_equal, outputs_of, randomise, randomise_new_blocks
from torch import Tensor, nn

import splitgrow

X = torch.randn(3, 4, generator=torch.manual_seed(0), dtype=torch.float64)


class Reading(nn.Module):
    """Two layers side by side, and a forward that reads their numbers."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)
        self.cell = nn.GRUCell(4, 6)
        vars(self)["written"] = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)  # type: ignore[no-any-return]


def after_the_call(net: Any, x: Tensor) -> Tensor:
    return net.head(net.one(x).reshape(3, net.one.out_features))  # type: ignore[no-any-return]


def before_the_call(net: Any, x: Tensor) -> Tensor:
    room = x.new_zeros(3, net.one.out_features)
    return net.head(room + net.one(x))  # type: ignore[no-any-return]


def of_a_state(net: Any, x: Tensor) -> Tensor:
    return net.head(net.cell(x, x.new_zeros(3, net.cell.hidden_size)))  # type: ignore[no-any-return]


def of_another_layer(net: Any, x: Tensor) -> Tensor:
    return net.head(net.one(x) + x.new_zeros(3, net.two.out_features) + net.two(x))  # type: ignore[no-any-return]


def growable(forward: Any) -> Any:
    torch.manual_seed(1)
    return splitgrow.growable(randomise(Reading(forward).double()), X)


FOLLOWED = {
    after_the_call: "one",
    before_the_call: "one",
    of_a_state: "cell",
    of_another_layer: "one",
}


@pytest.mark.parametrize("forward", FOLLOWED)
def test_a_number_of_a_layer_follows_its_width_also_once_it_has_grown(
    forward: Any, tmp_path: Path
) -> None:
    name, model = FOLLOWED[forward], growable(forward)
    before = outputs_of(model, X)
    model.expand_layer(name, 2)
    assert_equal(outputs_of(model, X), before)
    splitgrow.save(model, tmp_path / "model.pt")
    again = growable(forward)
    splitgrow.load(again, tmp_path / "model.pt")
    again.expand_layer(name, 3)
    assert_equal(outputs_of(again, X), before)
    randomise_new_blocks(again)
    assert_equal(outputs_of(splitgrow.merge(again), X), outputs_of(again, X))


def test_a_number_of_a_layer_that_is_not_called_stays() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(net.one(x).reshape(3, net.two.out_features))  # type: ignore[no-any-return]

    layers = {layer.name: layer for layer in growable(forward).layers}
    assert not layers["one"].growable
    assert "`out_features`" in layers["one"].reason


def test_a_number_that_never_changes_is_a_plain_one() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(4, 6, proj_size=2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            state = x.new_zeros(1, self.rnn.proj_size), x.new_zeros(1, self.rnn.hidden_size)
            return self.head(self.rnn(x, state)[0])  # type: ignore[no-any-return]

    torch.manual_seed(1)
    model: Any = splitgrow.growable(Projected().double(), X)
    before = outputs_of(model, X)
    model.expand_layer("rnn", 2)
    assert_equal(outputs_of(model, X), before)


def test_a_model_is_made_growable_under_autocast() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made: Any = splitgrow.growable(model, X.float())
        before = made(X.float())
        made.expand_layer("0", 2)
        assert made(X.float()).dtype == torch.bfloat16
        assert (made(X.float()) - before).abs().max() < 0.05
    assert type(made(X.float())) is Tensor


class OutputsOnly(nn.GRU):
    """Returns no state, as torch's own does."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0]


def test_a_form_of_a_layer_that_returns_something_else_is_fixed_with_the_reason() -> None:
    splitgrow.register_layer(OutputsOnly, like=nn.GRU)
    try:
        model = nn.Sequential(nn.Linear(4, 5), OutputsOnly(5, 3), nn.Linear(3, 2)).double()
        made: Any = splitgrow.growable(model, X)
        reasons = {layer.name: layer.reason for layer in made.layers}
    finally:
        splitgrow.unregister_layer(OutputsOnly)
    assert "something else than torch's own layer" in reasons["0"]
    assert reasons["1"]

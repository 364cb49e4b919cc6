"""Layers under torch's parametrizations: they grow, and what they compute from others stays."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES
from helpers import (
    assert_equal,
    assert_identical,
    randomise,
    randomise_new_blocks,
    split_layers,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import splitgrow
from splitgrow.layers.types import layer_type_of

weight_norm = parametrizations.weight_norm


class Scaled(nn.Module):
    """A parametrization with a parameter of its own, which torch cannot invert."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale.exp()


class Centred(nn.Module):
    """Each row at mean zero, which columns that join would change."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight - weight.mean(1, keepdim=True)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


def registered(layer: nn.Module, name: str, *made: nn.Module) -> nn.Module:
    for each in made:
        parametrize.register_parametrization(layer, name, each)
    return layer


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "weight norm by rows": lambda: weight_norm(nn.Linear(4, 4)),
    "weight norm by columns": lambda: weight_norm(nn.Linear(4, 4), dim=1),
    "weight norm over all": lambda: weight_norm(nn.Linear(4, 4), dim=None),
    "weight norm of the bias": lambda: weight_norm(nn.Linear(4, 4), "bias", dim=None),
    "without bias": lambda: weight_norm(nn.Linear(4, 4, bias=False)),
    "both": lambda: weight_norm(weight_norm(nn.Linear(4, 4)), "bias", dim=None),
    "scaled": lambda: registered(nn.Linear(4, 4), "weight", Scaled()),
    "centred": lambda: registered(nn.Linear(4, 4), "weight", Centred()),
    "two in a row": lambda: registered(nn.Linear(4, 4), "weight", Centred(), Scaled()),
}
every = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())


def around(layer: nn.Module) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), layer, nn.Tanh(), nn.Linear(4, 2))
    return randomise(net.double().eval()), torch.randn(5, 3, dtype=torch.float64)


@every
def test_inputs_and_outputs_grow_and_the_function_stays(make: Callable[[], nn.Module]) -> None:
    model, x = around(make())
    before = model(x)
    model = splitgrow.growable(model, x)
    model.expand({"0": 2, "2": 3})
    assert_equal(model(x), before)
    randomise_new_blocks(model)
    assert (model(x) - before).abs().max() > 1e-3
    with model.at(0):
        assert_identical(model(x), before)
    for mode in ("merged", "blockwise"):
        with splitgrow.execution(mode):
            assert_equal(splitgrow.merge(model)(x), model(x))
    assert type(splitgrow.merge(model)[2]) is nn.Linear
    assert_equal(splitgrow.fuse(model)(x), model(x))


@every
def test_the_gradients_are_those_that_the_plain_weight_gets_handed_on(
    make: Callable[[], nn.Module],
) -> None:
    """By the chain rule: through the parametrization, as torch differentiates it."""
    model, x = around(make())
    original = copy.deepcopy(model[2])
    model = splitgrow.growable(model, x)
    model.expand({"0": 2, "2": 3}, freeze=False)
    randomise_new_blocks(model)
    plain = splitgrow.merge(model)
    plain(x).square().sum().backward()
    handed = 0.0
    for name in ("weight", "bias"):
        if getattr(original, name) is not None:
            given = getattr(plain[2], name).grad
            part = given[:4, :4] if name == "weight" else given[:4]
            handed = handed + (getattr(original, name) * part).sum()
    handed.backward()
    for mode in ("merged", "blockwise"):
        model.zero_grad()
        with splitgrow.execution(mode):
            model(x).square().sum().backward()
        for (name, ours), theirs in zip(
            model[2][0].named_parameters(), original.parameters(), strict=True
        ):
            assert_equal({name: ours.grad}, {name: theirs.grad})


@every
def test_saved_states_go_on_with_what_the_weight_is_computed_from(
    make: Callable[[], nn.Module],
) -> None:
    model, x = around(make())
    model = splitgrow.growable(model, x)
    model.expand({"0": 2, "2": 3})
    randomise_new_blocks(model)
    fresh = splitgrow.growable(around(make())[0], x)
    fresh.load_state_dict(model.state_dict())
    assert_identical(fresh(x), model(x))
    assert fresh[2][0].parametrizations.keys() == model[2][0].parametrizations.keys()


def test_training_moves_what_the_weight_is_computed_from_and_a_frozen_past_stays() -> None:
    for freeze in (True, False):
        model, x = around(weight_norm(nn.Linear(4, 4)))
        before = model(x)
        model = splitgrow.growable(model, x)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.expand({"0": 2, "2": 3}, optimizer=optimizer, freeze=freeze)
        g, weight = model[2][0].parametrizations.weight.original0, model[2].weight.clone()
        kept = g.detach().clone()
        for _ in range(3):
            optimizer.zero_grad()
            (model(x) - 1).square().sum().backward()
            optimizer.step()
        assert torch.equal(g, kept) == freeze
        assert torch.equal(model[2].weight[:4, :4], weight[:4, :4]) == freeze
        if freeze:
            with model.at(0):
                assert_identical(model(x), before)


def test_units_that_are_copied_take_the_values_that_are_computed() -> None:
    """A stream through a norm grows by copies; a weight-normed convolution writes it."""

    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(3, 4)
            self.position = weight_norm(nn.Conv1d(4, 4, 3, padding=1, groups=2), dim=2)
            self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x + self.position(x.mT).mT.tanh()
            return self.head(self.norm(x))

    torch.manual_seed(0)
    net, x = randomise(Stream().double().eval()), torch.randn(2, 5, 3, dtype=torch.float64)
    before = net(x)
    model: Any = splitgrow.growable(net, x)
    model.expand_layer("stem", 4)
    assert_equal(model(x), before)
    assert model.position[2].weight[:, :2].abs().min() > 0
    assert_equal(splitgrow.merge(model)(x), before)


def test_net2net_writes_to_what_the_weight_is_computed_from() -> None:
    model, x = around(weight_norm(nn.Linear(4, 4)))
    before = model(x)
    model = splitgrow.growable(model, x)
    model.expand_layer("0", 3, initializer="net2net", freeze=False)
    assert_equal(model(x), before)
    assert model[2][1].weight.abs().max() > 0


def test_where_torch_cannot_invert_it_net2net_says_so_and_nothing_changes() -> None:
    model, x = around(registered(nn.Linear(4, 4), "weight", Scaled()))
    before = model(x)
    model = splitgrow.growable(model, x)
    with pytest.raises(splitgrow.SplitGrowError, match="right_inverse"):
        model.expand_layer("0", 3, initializer="net2net", freeze=False)
    assert_identical(model(x), before)
    assert not list(split_layers(model))


def test_a_grown_layers_weight_is_read_and_not_written() -> None:
    model, x = around(weight_norm(nn.Linear(4, 4)))
    model = splitgrow.growable(model, x)
    model.expand_layer("2", 2)
    assert_equal(model[2].weight[:4], model[2][0].weight)
    with torch.no_grad(), pytest.raises(splitgrow.SplitGrowError, match="computed from other"):
        model[2].weight.mul_(2)
    model[2][0].parametrizations.weight.original0.data.mul_(2)
    assert_equal(model[2].weight[:4], model[2][0].weight)


def test_a_merge_of_a_closed_generation_gives_the_parametrized_layer_back() -> None:
    model, x = around(weight_norm(nn.Linear(4, 4)))
    names = list(model.state_dict())
    before = model(x)
    model = splitgrow.growable(model, x)
    model.expand_layer("2", 2)
    first = splitgrow.merge(model, generation=0)
    assert list(first.state_dict()) == names
    assert_identical(first(x), before)
    assert all(p.requires_grad for p in first.parameters())


def test_names_of_torchs_older_weight_norm_still_load() -> None:
    model, x = around(weight_norm(nn.Linear(4, 4)))
    state = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in model.state_dict().items()
    }
    assert "2.weight_g" in state
    grown: Any = splitgrow.growable(around(weight_norm(nn.Linear(4, 4)))[0], x)
    grown.expand_layer("2", 2)
    merged = splitgrow.merge(grown, generation=0)
    merged.load_state_dict(state)
    assert_identical(merged(x), model(x))


def test_each_type_of_the_case_has_an_entry_and_none_is_made_for_states_or_norms() -> None:
    case = next(case for case in CASES if case.computed)
    layers = [m for m in case.model().modules() if parametrize.is_parametrized(m)]
    assert len(layers) == 4
    assert all(layer_type_of(layer) is not None for layer in layers)
    for layer in (
        parametrizations.spectral_norm(nn.Linear(4, 4)),
        parametrizations.orthogonal(nn.Linear(4, 4)),
        weight_norm(nn.LSTM(4, 4), "weight_hh_l0"),
        weight_norm(nn.LayerNorm(4), dim=None),
    ):
        assert layer_type_of(layer) is None


def test_control_a_wrong_column_would_be_seen() -> None:
    """The laws above hold for the values of the parametrization, not for any."""
    model, x = around(weight_norm(nn.Linear(4, 4)))
    model = splitgrow.growable(model, x)
    model.expand({"0": 2, "2": 3})
    merged = splitgrow.merge(model)
    with torch.no_grad():
        model[2][0].parametrizations.weight.original1[0, 0] += 0.1
    assert (merged(x) - model(x)).abs().max() > 1e-6

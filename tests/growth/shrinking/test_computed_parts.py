"""Layers whose weights are computed lose channels where parts of their tensors make the rest."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
import torch
from cases import CASES
from helpers import assert_equal, assert_identical, outputs_of, randomise, randomise_new_blocks
from snapshots import unchanged
from some_units import some_channels
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm
from torch.nn.utils.parametrize import register_parametrization
from torch.optim.swa_utils import AveragedModel

import splitgrow
from splitgrow.errors import FixedWidthError, UnsupportedLayerError
from splitgrow.layers.types import known_layer_type

CASE = next(case for case in CASES if case.name == "weight norm")


def grown(rounds: int) -> tuple[Any, Tensor]:
    model = randomise(CASE.model()).double()
    (x,) = CASE.inputs()
    model = splitgrow.growable(model, x)
    for _ in range(rounds):
        for layer in model.layers:
            if layer.growable:
                model.expand_layer(layer.name, layer.step, freeze=False)
    randomise_new_blocks(model)
    return model, x


def plain(model: Any, x: Tensor) -> Any:
    """The same network of stock layers, with the weights as they are now."""
    merged = splitgrow.merge(model)
    for name, module in list(merged.named_children()):
        entry = known_layer_type(module)
        twin = entry.build(module, entry.sizes(module), device="cpu", dtype=x.dtype)
        with torch.no_grad():
            for key in entry.tensors(module):
                if getattr(module, key) is not None:
                    getattr(twin, key).copy_(getattr(module, key))
        setattr(merged, name, twin)
    return splitgrow.growable(merged, x)


@pytest.mark.parametrize("rounds", [0, 2])
def test_a_weight_normed_network_shrinks_as_the_plain_one_does(rounds: int) -> None:
    model, x = grown(rounds)
    twin, done = plain(model, x), 0
    assert_equal(outputs_of(model, x), outputs_of(twin, x))
    draw = random.Random(3)
    for layer in [layer for layer in model.layers if layer.growable and layer.readers]:
        tries = (some_channels(model, layer.name, draw) for _ in range(20))
        channels = next(filter(None, tries))
        with contextlib.suppress(UnsupportedLayerError):  # too many of its first channels
            edits = [each.shrink_layer(layer.name, channels) for each in (model, twin)]
            assert edits[0].moved is not None
            assert [r.width for r in edits[0].removed] == [r.width for r in edits[1].removed]
            assert_equal(outputs_of(model, x), outputs_of(twin, x))
            done += 1
    assert done
    normed = [m for m in model.modules() if nn.utils.parametrize.is_parametrized(m, "weight")]
    assert len(normed) == 4


def test_optimizers_files_and_averages_go_along(tmp_path: Any) -> None:
    model, x = grown(0)
    average = splitgrow.follow(AveragedModel(model), model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(x).square().mean().backward()
    optimizer.step()
    average.update_parameters(model)
    rows = optimizer.state[model.stem.parametrizations.weight.original1]["exp_avg"][[0, 1, 3]]
    model.shrink_layer("stem", [0, 2], optimizer=optimizer)
    state = optimizer.state[model.stem.parametrizations.weight.original1]["exp_avg"]
    assert torch.equal(state, rows[[1, 2]])
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    average.update_parameters(model)
    splitgrow.save(model, tmp_path / "run.sg")
    fresh = splitgrow.growable(CASE.model().double(), x)
    splitgrow.load(fresh, tmp_path / "run.sg")
    assert_identical(outputs_of(fresh, x), outputs_of(model, x))


class Exp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp()

    def right_inverse(self, x: Tensor) -> Tensor:
        return x.abs().log()


class OverAll(nn.Module):
    """Each weight depends on all."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm()


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.rand(1, 4).double())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


def network(first: nn.Module, last: nn.Module) -> Any:
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return splitgrow.growable(nn.Sequential(first, nn.Tanh(), last), x), x


def made(step: nn.Module | None, *sizes: int) -> nn.Linear:
    layer = nn.Linear(*sizes).double()
    if step is not None:
        register_parametrization(layer, "weight", step)
    return layer


def test_other_parametrizations_shrink_where_parts_make_parts() -> None:
    model, x = network(made(Exp(), 4, 6), made(Exp(), 6, 2))
    weights = model[0].weight.detach().clone(), model[2].weight.detach().clone()
    model.shrink_layer("0", [1, 4])
    kept = [0, 2, 3, 5]
    assert_equal(model[0].weight.detach(), weights[0][kept])
    assert_equal(model[2].weight.detach(), weights[1][:, kept])
    assert_equal(outputs_of(splitgrow.merge(model), x), outputs_of(model, x))


@pytest.mark.parametrize(
    "layers",
    [
        lambda: (made(OverAll(), 4, 6), made(None, 6, 2)),
        lambda: (made(None, 4, 6), made(OverAll(), 6, 2)),
        lambda: (made(Masked(), 4, 6), made(None, 6, 2)),
    ],
)
def test_others_are_refused_and_nothing_changes(layers: Any) -> None:
    torch.manual_seed(0)
    model, _ = network(*layers())
    with unchanged(model), pytest.raises(UnsupportedLayerError, match="parametrization"):
        model.shrink_layer("0", [1, 4])


@pytest.mark.parametrize("step", [orthogonal, spectral_norm])
def test_layers_that_cannot_grow_for_their_parametrization_cannot_shrink(step: Any) -> None:
    model, _ = network(step(made(None, 4, 6)), made(None, 6, 2))
    with unchanged(model), pytest.raises(FixedWidthError, match="values of its own"):
        model.shrink_layer("0", [1, 4])

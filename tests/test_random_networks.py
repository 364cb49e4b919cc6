"""The laws of growth over random networks and random sequences of growths."""

from __future__ import annotations

import copy
from typing import Any

import torch
from helpers import (
    MANY,
    assert_equal,
    assert_identical,
    leading,
    outputs_of,
    randomise,
    randomise_new_blocks,
)
from hypothesis import HealthCheck, event, given, settings
from networks import growths, histories, networks
from torch import Tensor, nn

import splitgrow
from splitgrow.layers.split_layer import SplitLayer

NETWORKS = int(60 * MANY)
MIXED = int(50 * MANY)


@settings(
    max_examples=NETWORKS,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(networks(), growths())
def test_the_laws_hold_for_any_network_and_any_sequence_of_growths(
    network: tuple[nn.Module, Tensor], sequence: list[tuple[int, int, bool]]
) -> None:
    plain, x = network
    model: Any = splitgrow.growable(randomise(plain), x)
    growable = [layer.name for layer in model.layers if layer.growable]
    event(f"{10 * round(10 * len(growable) / len(model.layers))} % of the layers can grow")
    closed = [outputs_of(model, x)]
    for index, steps, closes in sequence:
        if closes and model.generation:
            closed.append(outputs_of(model, x))
            model.next_generation()
        layer = model.layers[index % len(model.layers)]
        if not layer.growable:  # the head always can
            layer = model.layers[-1]
        before = model(x)
        # The library checks some edits only: it would take back what breaks the law.
        model.expand_layer(layer.name, steps * layer.step, check=closes)
        assert model.layers[layer.index].width == layer.width + steps * layer.step
        assert_equal(leading(model(x), before), before)  # law 1
        with torch.no_grad():
            for parameter in model.generation_parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    _assert_merged_networks_equal(model, x)
    for generation, outputs in enumerate(closed):  # law 3
        with model.at(generation):
            assert_identical(outputs_of(model, x), outputs)
    _assert_single_precision_suffices(model.float(), x.float())


def _edit(model: Any, index: int, what: str, *, check: bool) -> str:
    """One edit; a width where nothing of the drawn kind is possible."""
    layer = model.layers[index % len(model.layers)]
    if what == "consolidate" and model.consolidate(check=check) is not None:
        return what
    if what == "absorb" and model.absorb(check=check) is not None:
        return what
    if what in {"identity", "residual", "gate"}:
        try:
            model.insert_layer(layer.name, what, check=check)
        except splitgrow.InsertionError:
            pass
        else:
            return what
    if what == "fade" and _fade(model, layer, check=check):
        return what
    layer = layer if layer.growable else next(one for one in model.layers if one.growable)
    model.expand_layer(layer.name, layer.step, check=check)
    return "width"


def _fade(model: Any, layer: Any, *, check: bool) -> bool:
    """Has a random layer fade in behind another, half of it; whether one fits there."""
    for make in (nn.Linear, lambda ins, outs: nn.Conv2d(ins, outs, 3, padding=1)):
        module = make(layer.width, layer.width).double()
        try:
            model.insert_layer(layer.name, "fade", module=module, check=check)
        except splitgrow.InsertionError:
            continue
        return True
    return False


def _take_fades_on(model: nn.Module) -> None:
    """A quarter further, whichever generation a fade was made in."""
    for module in model.modules():
        if isinstance(module, splitgrow.FadeIn) and not module.finished:
            module.alpha += 0.25


@settings(
    max_examples=MIXED,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(networks(), histories())
def test_the_laws_hold_for_any_sequence_of_edits_in_width_and_depth(
    network: tuple[nn.Module, Tensor], history: list[tuple[int, str, bool]]
) -> None:
    plain, x = network
    model: Any = splitgrow.growable(randomise(plain), x)
    closed = {0: outputs_of(model, x)}
    for index, what, closes in history:
        if closes and model.generation:
            closed[model.generation] = outputs_of(model, x)
            model.next_generation()
        before = model(x)
        did = _edit(model, index, what, check=closes)
        event(did)
        if did == "absorb":
            assert not any(isinstance(module, SplitLayer) for module in model.modules())
            closed = {}
        assert_equal(leading(model(x), before), before)  # law 1
        _take_fades_on(model)
        with torch.no_grad():
            for parameter in model.generation_parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    _assert_merged_networks_equal(model, x)  # laws 4 and 8
    for generation, outputs in closed.items():  # law 3
        with model.at(generation):
            assert_identical(outputs_of(model, x), outputs)


def _assert_single_precision_suffices(model: Any, x: Tensor) -> None:
    expected = model(x)
    assert_equal(splitgrow.merge(model)(x), expected)
    assert_equal(splitgrow.fuse(model)(x), expected)
    model.expand_layer(model.layers[-1].name, 1)
    layer = next(layer for layer in model.layers if layer.growable)
    model.expand_layer(layer.name, layer.step)
    assert_equal(leading(model(x), expected), expected)


def _assert_merged_networks_equal(model: Any, x: Tensor) -> None:
    expected = model(x)
    merged = splitgrow.merge(model)
    assert_equal(merged(x), expected)  # law 4
    assert_equal(splitgrow.fuse(model)(x), expected)
    model = copy.deepcopy(model)
    model.unfreeze()
    randomise_new_blocks(model)
    merged = splitgrow.merge(model)
    for network in (model, merged):
        network(x).square().sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0 if parameter.grad is None else parameter.grad)
    arranged = dict(splitgrow.merge(model).named_parameters())
    gradients = {n: p.grad for n, p in merged.named_parameters() if p.grad is not None}
    scale = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, gradient in gradients.items():  # law 8
        assert (arranged[name] - gradient).abs().max().item() <= 1e-12 * scale

"""Growth by gromo, as its tutorials and tests do it, in each of its ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.learning.rivals.gromo_networks import growing_layers
from benchmarks.learning.tasks import Batch

SCALES = (0.1, 0.3, 0.5, 1.0)
"""The factors of new units among which the loss chooses; gromo's tutorials also try 0, with which
new units would be dead for ever."""


@dataclass(frozen=True)
class Way:
    """A way of gromo to start new units.

    Attributes:
        created: The arguments of create_layer_extensions; None for a way that needs statistics.
        updates: The arguments of compute_optimal_updates.
        normalised: The name of a normalisation of new units, if any.
        convolution: gromo's class of convolutions: "restricted" or "full".
        slope: Whether ReLUs have slope 1 at 0, as GradMax supposes.
    """

    created: dict[str, Any] | None = None
    updates: dict[str, Any] = field(default_factory=dict)
    normalised: str = ""
    convolution: str = "restricted"
    slope: bool = False

    @property
    def measured(self) -> bool:
        """Whether it needs statistics of data."""
        return self.created is None


def _drawn(out: str, into: str = "", **more: Any) -> Way:
    return Way({"output_extension_init": out, "input_extension_init": into or out, **more})


_PAIR = {"neuron_pairing": "vv_z_negz"}
_TINY = {"compute_delta": False}
_GRADMAX = {
    "compute_delta": False,
    "use_covariance": False,
    "alpha_zero": True,
    "use_projection": False,
    "ignore_singular_values": True,
}
WAYS = {
    "copy_uniform": _drawn("copy_uniform"),
    "copy_normal": _drawn("copy_normal"),
    "kaiming": _drawn("kaiming"),
    "kaiming_normal": _drawn("kaiming_normal"),
    "copy_uniform, zeros": _drawn("copy_uniform", "zeros"),
    "kaiming, zeros": _drawn("kaiming", "zeros"),
    "pairing": _drawn("copy_uniform", **_PAIR),
    "kaiming, pairing": _drawn("kaiming", **_PAIR),
    "copy_uniform, default_vt": _drawn("copy_uniform", rescaling="default_vt"),
    "pairing, default_vt": _drawn("copy_uniform", **_PAIR, rescaling="default_vt"),
    "pairing, vt_constraint_old_shape": _drawn(
        "copy_uniform", **_PAIR, rescaling="vt_constraint_old_shape"
    ),
    "pairing, vt_constraint_new_shape": _drawn(
        "copy_uniform", **_PAIR, rescaling="vt_constraint_new_shape"
    ),
    "TINY": Way(updates=_TINY),
    "TINY, full": Way(updates=_TINY, convolution="full"),
    "TINY, delta": Way(),
    "TINY, equalize_extensions": Way(updates=_TINY, normalised="equalize_extensions"),
    "TINY, match_extending_layer": Way(updates=_TINY, normalised="match_extending_layer"),
    "Fisher": Way(updates={**_TINY, "use_fisher": True}),
    "Fisher, shrinkage": Way(updates={**_TINY, "use_fisher": True, "fisher_shrinkage": 0.1}),
    "Fisher, shrinkage, equalize_extensions": Way(
        updates={**_TINY, "use_fisher": True, "fisher_shrinkage": 0.1},
        normalised="equalize_extensions",
    ),
    "GradMax": Way(updates=_GRADMAX, normalised="gradmax_normalization", slope=True),
    "GradMax, full": Way(
        updates=_GRADMAX, normalised="gradmax_normalization", convolution="full", slope=True
    ),
}


def grow(model: Any, hidden: Sequence[int], way: Way, samples: Sequence[Batch]) -> None:
    """Grows a container of gromo to given hidden widths.

    Args:
        model: The container.
        hidden: The hidden widths.
        way: How.
        samples: Batches for statistics; the first of them also choose the factor.
    """
    layers = growing_layers(model)
    # Two layers in a row can't grow by the same statistics: the second one's would be outdated.
    separate = any(getattr(layer, "previous_module", None) in layers for layer in layers)
    groups = [[n] for n in range(len(layers))] if separate else [[*range(len(layers))]]
    model.eval()
    for group in groups:
        chosen = [(layers[n], hidden[n] - _width(layers[n])) for n in group]
        chosen = [(layer, units) for layer, units in chosen if units]
        if not chosen:
            continue
        model._growing_layers = [layer for layer, _ in chosen]  # noqa: SLF001 - any subset of them
        if way.created is not None:
            for layer, units in chosen:
                inputs = units * _places(layer)
                layer.create_layer_extensions(units, units, inputs, **way.created)
            model.set_scaling_factor(1.0)
        else:
            _compute(model, chosen, way, samples)
        for layer, units in chosen:
            layer.apply_change(extension_size=units)
            layer.delete_update()
    model.train()
    model.zero_grad(set_to_none=True)


def _places(layer: Any) -> int:
    """The inputs of a linear layer for each channel of a convolution in front of it."""
    before: Any = getattr(layer, "previous_module", None)
    if not hasattr(before, "out_channels") or hasattr(layer, "out_channels"):
        return 1
    places: int = layer.in_features // before.out_channels
    return places


def _width(layer: Any) -> int:
    width: int = layer.hidden_neurons if hasattr(layer, "hidden_neurons") else layer.in_neurons
    return width


def _compute(
    model: Any, chosen: Sequence[tuple[Any, int]], way: Way, samples: Sequence[Batch]
) -> None:
    """Statistics, the best new units, and their factor by a line search."""
    model.init_computation()
    for x, y in samples:
        model.zero_grad()
        F.cross_entropy(model(x), y, reduction="sum").backward()  # type: ignore[no-untyped-call]
        model.update_computation()
    for layer, units in chosen:
        # With no threshold there are as many new units as are asked for.
        limits = {"maximum_added_neurons": units, "statistical_threshold": 0.0}
        layer.compute_optimal_updates(**limits, **way.updates)
        found = layer.eigenvalues_extension
        if found is None or len(found) != units:
            message = f"{units} new units were asked for; gromo found {found.shape}"
            raise ValueError(message)
        if way.normalised:
            layer.normalize_optimal_updates(normalization_type=way.normalised)
    model.reset_computation()
    losses = {scale: _extended_loss(model, scale, samples[:2]) for scale in SCALES}
    model.set_scaling_factor(min(losses, key=lambda scale: losses[scale]))


@torch.no_grad()
def _extended_loss(model: Any, scale: float, samples: Sequence[Batch]) -> float:
    model.set_scaling_factor(scale)
    found = [float(F.cross_entropy(model.extended_forward(x), y)) for x, y in samples]
    return sum(found) / len(found)


def moved(
    optimizer: torch.optim.AdamW, before: dict[str, nn.Parameter], model: nn.Module
) -> torch.optim.AdamW:
    """A new optimizer with the moments of the old one, by name; those of new entries are zero.

    Args:
        optimizer: The optimizer of the parameters before growth.
        before: These parameters by name.
        model: The model after growth, whose new entries are behind the old ones.
    """
    group = optimizer.param_groups[0]
    new = torch.optim.AdamW(model.parameters(), lr=group["lr"], weight_decay=group["weight_decay"])
    for name, parameter in model.named_parameters():
        old = optimizer.state.get(before[name], {})
        new.state[parameter] = {key: _laid(value, parameter) for key, value in old.items()}
    return new


def _laid(value: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    if not value.shape:
        return value.clone()
    wide = torch.zeros_like(parameter)
    wide[tuple(slice(size) for size in value.shape)] = value
    return wide.detach()

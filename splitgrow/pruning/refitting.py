"""Fitting the readers of units that go: with the others they compute nearly what they did."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from splitgrow.errors import GenerationError
from splitgrow.growth.history import History
from splitgrow.growth.input_moments import InputMoments
from splitgrow.layers.composition import Composition
from splitgrow.layers.tensor_holder import split_of
from splitgrow.layers.types import known_layer_type
from splitgrow.layers.types.parametrized_layers import computed_names
from splitgrow.pruning.criteria.activations import (
    damped,
    moments_in,
    second_moments,
    takes_means,
)
from splitgrow.pruning.criteria.criterion import UnitsInView
from splitgrow.pruning.shrinking.chosen_units import Chosen
from splitgrow.utils.rollback import Undo
from splitgrow.utils.spans import regions

REFIT_DAMPING = 1e-3
"""The share of the mean second moment that is added to all of them."""


@dataclass(frozen=True, eq=False)
class ReaderFit:
    """The inputs of a layer that go, as the others predict them.

    Attributes:
        layer: The layer's name.
        gone: The positions that go.
        kept: Those that stay.
        by: The weights of the prediction: of each that goes, by those that stay.
        offset: What is added to it, as far as the layer's bias can take it.
    """

    layer: str
    gone: Tensor
    kept: Tensor
    by: Tensor
    offset: Tensor | None


def reader_fits(view: UnitsInView, units: Mapping[int, Collection[int]]) -> list[ReaderFit]:
    """How the readers of units can make up for them, by least squares over all batches.

    Layers that share a parameter with others stay as they are, and so do those whose weights
    forward uses outside of their calls: what fits here need not fit there.

    Args:
        view: The units, with the data.
        units: Those that go, by group.
    """
    graph, modules = view.history.graph, view.history.modules
    chosen, found = Chosen(graph.groups, units), []
    stay = {*graph.touched, *(path for holders in graph.ties for path, _ in holders)}
    for name, moments in moments_in(view, units).items():
        goes = chosen.on(graph.nodes[name].ins)
        fits_here = _readable(split_of(modules[name]).composition()) and not bool(goes.all())
        if fits_here and name not in stay:
            found.append(_fit(name, modules[name], goes, moments))
    return found


def _fit(name: str, layer: nn.Module, goes: Tensor, moments: InputMoments) -> ReaderFit:
    """The best prediction of some inputs by the others."""
    gone, kept = goes.nonzero().flatten(), (~goes).nonzero().flatten()
    second = second_moments(layer, moments).cpu()
    own = damped(second, REFIT_DAMPING)[kept][:, kept]
    by = torch.linalg.solve(own, second[kept][:, gone]).T  # gone x kept
    mean = moments.mean.cpu()
    return ReaderFit(
        name, gone, kept, by, mean[gone] - by @ mean[kept] if takes_means(layer) else None
    )


def _readable(composition: Composition) -> bool:
    """Whether all outputs read all inputs by weights that are there as they are."""
    entry, original = composition.layer_type, composition.original
    if entry.reads_back(original) or not entry.merging.side_by_side:
        return False
    return _reading_dim(original) is not None and not any(
        computed_names(module) for module in composition.modules
    )


def _reading_dim(module: nn.Module) -> tuple[str, int] | None:
    """The tensor that reads the inputs, and its dimension along them; None unless it is one."""
    found = [
        (name, dim)
        for name, axes in known_layer_type(module).tensors(module).items()
        for dim, along in axes.items()
        if along.reads and along.sections == 1 and along.copies == 1 and len(axes) == 2
    ]
    return found[0] if len(found) == 1 else None


def refuse_refitting(history: History) -> None:
    """Makes sure that weights may change.

    Raises:
        GenerationError: If generations are closed.
    """
    if history.generation > history.exact_from:
        raise GenerationError(
            "readers cannot be fitted to the units that stay: closed generations have their "
            "weights; pass refit=False"
        )


def put_fits_(history: History, found: Collection[ReaderFit], undo: Undo) -> None:
    """Changes the weights of readers as the fits say; those of the units that go stay."""
    for fit in found:
        composition = split_of(history.modules[fit.layer]).composition()
        wanted = _reading_dim(composition.original)
        assert wanted is not None
        name, dim = wanted
        whole = composition.value(name)
        assert whole is not None
        lost = whole.index_select(dim, fit.gone.to(whole.device)).double().movedim(dim, -1)
        more = (lost @ fit.by.to(lost)).movedim(-1, dim)
        added = torch.zeros_like(whole, dtype=torch.float64)
        added.index_copy_(dim, fit.kept.to(whole.device), more)
        _add_(composition, name, added, undo)
        if fit.offset is not None:
            shift = (lost @ fit.offset.to(lost)).reshape(len(lost), -1).sum(1)
            _add_(composition, "bias", shift, undo)


def fitted_tensors(model: nn.Module, found: Collection[ReaderFit]) -> tuple[str, ...]:
    """The names of the parameters of layers that were fitted."""
    layers = tuple(f"{fit.layer}." for fit in found)
    return tuple(name for name, _ in model.named_parameters() if name.startswith(layers))


def _add_(composition: Composition, name: str, added: Tensor, undo: Undo) -> None:
    """Adds to one of the tensors of the plain layer, in the blocks that have its parts."""
    with torch.inference_mode(mode=False), torch.no_grad():
        for index, part in composition.parts(name):
            undo.on_failure(partial(_set_, part, part.detach().clone()))
            for there, own in regions(composition.places(index, name), part.dim()):
                part.detach()[own] += added[there].to(part)


def _set_(tensor: Tensor, values: Tensor) -> None:
    with torch.inference_mode(mode=False), torch.no_grad():
        tensor.detach().copy_(values)

"""Giving the blocks of an edit their first values, and holding an initializer to its claims."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from splitgrow.analysis.channel_graph import ChannelGraph
from splitgrow.growth.edits import Edit
from splitgrow.growth.hidden_units import hidden_groups
from splitgrow.growth.initializers.initializer import Initializer
from splitgrow.growth.initializers.norms_behind import batch_norms_behind
from splitgrow.growth.prepared import PreparedEdit, frozen_layers
from splitgrow.growth.probe import Probe, probing
from splitgrow.growth.starting import set_start_values_
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.utils.module_slots import all_tensors
from splitgrow.utils.rollback import Undo, temporarily


def initialise_(initializer: Initializer, prepared: PreparedEdit, undo: Undo) -> PreparedEdit:
    """Gives the blocks that an edit adds their values.

    Args:
        initializer: The initializer.
        prepared: The edit, with its blocks made.
        undo: Restores existing values.

    Returns:
        The edit, with the existing tensors that have other values now, those from before, and what
        an initializer that is not exact has done to the loss.

    Raises:
        ValueError: If the initializer cannot do this edit, or has written to existing values
            without `needs_unfrozen`.
    """
    if initializer.needs_data and prepared.loss is None:
        raise ValueError(
            f"initializer {initializer.name!r} needs data, and is given no loss: pass "
            f"loss=closure, which runs the model and returns its loss"
        )
    prepared = replace(prepared, held_out=initializer.held_out)
    splits = {name: layer.split for name, layer in prepared.layers.items()}
    refuse_unfit(initializer, prepared.edit, prepared.graph, splits)
    layers = prepared.layers
    if initializer.needs_unfrozen:
        former = tuple((t, t.detach().clone()) for t in _changeable(prepared))
        undo.on_failure(partial(put_values_, former))
        layers = {name: replace(layer, writable=True) for name, layer in layers.items()}
        versions = _versions([tensor for tensor, _ in former])
    existing = _existing(prepared) if _may_write(initializer, prepared) else []
    before = _versions(existing)
    with torch.inference_mode(mode=False), torch.no_grad():
        initializer.apply(replace(prepared, layers=layers))
    if initializer.needs_unfrozen:
        now = _versions([tensor for tensor, _ in former])
        pairs = zip(former, versions, now, strict=True)
        prepared = replace(prepared, former=tuple(f for f, old, new in pairs if old != new))
        return _with_losses(initializer, prepared)
    after = _versions(existing)
    if after != before:
        seen = zip(existing, before, after, strict=True)
        written = {id(tensor) for tensor, first, last in seen if first != last}
        blocks = (
            (f"{path}.{index}", block)
            for path, layer in prepared.layers.items()
            for index, block in enumerate(layer.existing)
        )
        names = [
            f"{path}.{name}"
            for path, block in blocks
            for name, tensor in chain(block.named_parameters(), block.named_buffers())
            if id(tensor) in written
        ]
        raise ValueError(
            f"initializer {initializer.name!r} has written into {', '.join(names[:5])}, which "
            f"existed and cannot be put back: it must say that it needs_unfrozen"
        )
    return _with_losses(initializer, prepared)


def _with_losses(initializer: Initializer, prepared: PreparedEdit) -> PreparedEdit:
    """An edit with the loss before and after, if it can have changed and there is one."""
    if initializer.exact or prepared.loss is None:
        return prepared
    with torch.inference_mode(mode=False), torch.no_grad(), probing(prepared) as probe:
        after, before = probe.expected(), _quiet_loss(prepared, probe)
    known = math.isfinite(before) and math.isfinite(after)
    return replace(prepared, losses=(before, after) if known else None)


@temporarily
def _quiet_loss(undo: Undo, prepared: PreparedEdit, probe: Probe) -> float:
    quiet_added_(prepared, undo)
    return probe.expected()


def refuse_unfit(
    initializer: Initializer, edit: Edit, graph: ChannelGraph, layers: Mapping[str, SplitLayer]
) -> None:
    """Makes sure that an initializer can do an edit.

    Args:
        initializer: The initializer.
        edit: The edit, planned.
        graph: The channel graph.
        layers: The layers that it changes, without its blocks, by name.

    Raises:
        ValueError: If it cannot.
    """
    frozen = sorted(frozen_layers(edit, layers)) if initializer.needs_unfrozen else []
    if frozen:
        raise ValueError(
            f"initializer {initializer.name!r} changes values that exist, and those of "
            f"{', '.join(map(repr, frozen[:5]))} are frozen or would be: grow with freeze=False, "
            f"after model.unfreeze() where generations are closed"
        )
    if initializer.divides == 1:
        return
    hidden = hidden_groups(edit, graph, {name: split.original for name, split in layers.items()})
    for group in sorted(hidden):
        units = edit.growth[group]
        if units % initializer.divides:
            nodes = graph.sized()
            names = [n.name for n in nodes if graph.multiplicity(n.outs, group)]
            raise ValueError(
                f"initializer {initializer.name!r} adds units by multiples of "
                f"{initializer.divides}, and {' and '.join(map(repr, names[:5]))} would gain "
                f"{units}"
            )


def _may_write(initializer: Initializer, prepared: PreparedEdit) -> bool:
    """Whether an initializer runs code of the user's, which may write to existing values."""
    own = type(initializer).__module__.startswith(f"{__name__.partition('.')[0]}.")
    return prepared.loss is not None or not own


def _existing(prepared: PreparedEdit) -> list[Tensor]:
    """The tensors that the layers of an edit have without it."""
    layers = prepared.layers.values()
    return [tensor for layer in layers for tensor in all_tensors(*layer.existing)]


def _changeable(prepared: PreparedEdit) -> Iterator[Tensor]:
    """The tensors that an initializer may change: those, and the statistics of norms behind."""
    norms = (norm for name in prepared.layers for norm in batch_norms_behind(prepared, name))
    tensors = chain(_existing(prepared), *(norm.buffers() for norm in norms))
    yield from {id(tensor): tensor for tensor in tensors}.values()


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    """Numbers that grow whenever a tensor is written to; a tensor of inference mode has none."""
    try:
        return [tensor._version for tensor in tensors]  # noqa: SLF001
    except RuntimeError:
        return [0 if each.is_inference() else each._version for each in tensors]  # noqa: SLF001


def quiet_added_(prepared: PreparedEdit, undo: Undo) -> None:
    """Makes an edit change nothing: added blocks as `Zero` has them, old values as before."""
    new = [
        parameter
        for layer in prepared.layers.values()
        for block in layer.added.values()
        for parameter in block.parameters()
    ]
    now = [*new, *(tensor for tensor, _ in prepared.former)]
    undo.on_failure(partial(put_values_, [(tensor, tensor.detach().clone()) for tensor in now]))
    put_values_(prepared.former)
    for layer in prepared.layers.values():
        set_start_values_(layer)


@torch.no_grad()
def put_values_(values: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Gives tensors values of their shapes."""
    for tensor, value in values:
        tensor.copy_(value)

"""Giving the blocks of an edit their first values, and holding an initializer to its claims."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from splitgrow.growth.initializers.initializer import Initializer
from splitgrow.growth.prepared import PreparedEdit, PreparedLayer
from splitgrow.growth.starting import set_start_values_
from splitgrow.utils.rollback import Undo


def initialise_(initializer: Initializer, prepared: PreparedEdit, undo: Undo) -> None:
    """Gives the blocks that an edit adds their values.

    Args:
        initializer: The initializer.
        prepared: The edit, with its blocks made.
        undo: Restores existing values.

    Raises:
        ValueError: If the initializer cannot do this edit, or has written to existing values
            without `needs_unfrozen`.
    """
    _refuse(initializer, prepared)
    layers = prepared.layers
    versions: dict[str, int] = {}
    if initializer.needs_unfrozen:
        for _, tensor in _existing(prepared):
            undo.on_failure(partial(_put_back, tensor, tensor.detach().clone()))
        layers = {name: replace(layer, writable=True) for name, layer in layers.items()}
    else:
        versions = _versions(prepared)
    with torch.inference_mode(mode=False), torch.no_grad():
        initializer.apply(replace(prepared, layers=layers))
    now = _versions(prepared) if versions else {}
    written = [name for name, version in versions.items() if now[name] != version]
    if written:
        raise ValueError(
            f"initializer {initializer.name!r} has written into {', '.join(written[:5])}, which "
            f"existed and cannot be put back: it must say that it needs_unfrozen"
        )


def _refuse(initializer: Initializer, prepared: PreparedEdit) -> None:
    """Makes sure that an initializer can do an edit.

    Raises:
        ValueError: If it cannot.
    """
    if initializer.needs_data and prepared.loss is None:
        raise ValueError(f"initializer {initializer.name!r} needs data, and is given no loss")
    frozen = sorted(prepared.frozen) if initializer.needs_unfrozen else []
    if frozen:
        raise ValueError(
            f"initializer {initializer.name!r} changes values that exist, and those of "
            f"{', '.join(map(repr, frozen[:5]))} are frozen or would be: grow with freeze=False, "
            f"after model.unfreeze() where generations are closed"
        )
    for group, units in prepared.edit.growth.items():
        if units % initializer.divides:
            nodes = prepared.graph.sized()
            names = [n.name for n in nodes if prepared.graph.multiplicity(n.outs, group)]
            raise ValueError(
                f"initializer {initializer.name!r} adds units by multiples of "
                f"{initializer.divides}, and {' and '.join(map(repr, names[:5])) or 'the input'} "
                f"would gain {units}"
            )


def _existing(prepared: PreparedEdit) -> Iterator[tuple[str, Tensor]]:
    """The tensors that the layers of an edit have without it, by unique names."""
    for path, layer in prepared.layers.items():
        for index, block in enumerate(layer.existing):
            for name, tensor in chain(block.named_parameters(), block.named_buffers()):
                yield f"{path}.{index}.{name}", tensor


def _versions(prepared: PreparedEdit) -> dict[str, int]:
    """The version counters of existing tensors; tensors of inference mode have none."""
    return {
        name: 0 if tensor.is_inference() else tensor._version  # noqa: SLF001
        for name, tensor in _existing(prepared)
    }


@torch.no_grad()
def _put_back(tensor: Tensor, value: Tensor) -> None:
    tensor.copy_(value)


def quiet_added_(layers: Mapping[str, PreparedLayer], undo: Undo) -> None:
    """Makes added blocks change nothing: gives them the same values as `Zero`."""
    for layer in layers.values():
        for block in layer.added.values():
            for parameter in block.parameters():
                undo.on_failure(partial(_put_back, parameter, parameter.detach().clone()))
        set_start_values_(layer)

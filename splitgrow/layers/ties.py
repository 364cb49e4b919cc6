"""Layers that hold one Parameter go on to hold one where their blocks add the same part of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from splitgrow.errors import StructureChangedError
from splitgrow.layers.composition import Composition


def tie_blocks_(compositions: Mapping[str, Composition]) -> dict[str, frozenset[str]]:
    """Ties the last blocks of layers whose original blocks share a Parameter.

    Args:
        compositions: All layers of an edit, by path, with the blocks that it adds.

    Returns:
        By path the tensors with which a helper reads units that another layer makes: their values
        are those of these units.

    Raises:
        StructureChangedError: If an edit adds parts to one tensor that two layers divide
            differently.
    """
    led: dict[str, set[str]] = {}
    for holders in _sharing(compositions):
        parts: dict[Any, list[_Part]] = {}
        for path, name in holders:
            for part in _last_parts(path, name, compositions[path]):
                parts.setdefault(part.places, []).append(part)
        for sharing in parts.values():
            if len(sharing) != len(holders):
                raise StructureChangedError(
                    f"{' and '.join(path for path, _ in holders)} share a tensor, and do not grow "
                    f"in the same parts of it"
                )
            maker = next((part for part in sharing if not part.helps), sharing[0])
            for part in sharing:
                part.module._parameters[part.name] = maker.parameter  # noqa: SLF001
                if part.helps and not maker.helps:
                    led.setdefault(part.path, set()).add(part.name)
    return {path: frozenset(names) for path, names in led.items()}


class _Part(NamedTuple):
    """A tensor of a block of the last edit.

    Attributes:
        path: The path of the layer.
        name: The tensor's name.
        places: The part of the layer's tensor that it is.
        module: The block.
        parameter: The tensor.
        helps: Whether the block is a helper.
    """

    path: str
    name: str
    places: Any
    module: nn.Module
    parameter: nn.Parameter
    helps: bool


def _last_parts(path: str, name: str, composition: Composition) -> Iterator[_Part]:
    edit = composition.blocks[-1].edit
    for index, (block, module) in enumerate(
        zip(composition.blocks, composition.modules, strict=True)
    ):
        parameter = module._parameters.get(name)  # noqa: SLF001
        if block.edit == edit and parameter is not None:
            places = tuple(sorted(composition.places(index, name).items()))
            yield _Part(path, name, places, module, parameter, block.kind == "helper")


def _sharing(compositions: Mapping[str, Composition]) -> Iterable[list[tuple[str, str]]]:
    """The layers and tensors' names that share a Parameter."""
    found: dict[int, list[tuple[str, str]]] = {}
    for path, composition in compositions.items():
        for name in composition.layer_type.tensors(composition.original):
            tensor = composition.original._parameters.get(name)  # noqa: SLF001
            if tensor is not None:
                found.setdefault(id(tensor), []).append((path, name))
    return [holders for holders in found.values() if len(holders) > 1]


def retie_(plain: Iterable[tuple[nn.Module, nn.Module]]) -> None:
    """Gives plain layers one Parameter where the original blocks of the grown ones share one.

    Args:
        plain: Pairs of a grown layer's original block and the plain layer in its place.
    """
    first: dict[int, nn.Parameter] = {}
    for original, layer in plain:
        for name, tensor in original._parameters.items():  # noqa: SLF001
            own = layer._parameters.get(name)  # noqa: SLF001
            if tensor is None or own is None:
                continue
            known = first.setdefault(id(tensor), own)
            if known.shape == own.shape:
                layer._parameters[name] = known  # noqa: SLF001

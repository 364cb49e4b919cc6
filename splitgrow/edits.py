"""The record of one growth. It says what changes where; it holds no tensors and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

VERSION = 1

Insertions = tuple[tuple[int, int], ...]
"""Pairs of a position before the edit and the number of positions inserted there."""


@dataclass(frozen=True)
class LayerChange:
    """What an edit does to one layer.

    Attributes:
        name: The layer's module path.
        kind: The name of its stock type, such as ``Conv2d``.
        in_width: The number of input channels before and after.
        width: The number of output channels before and after.
        ins: Where new input channels land.
        outs: Where new output channels land.
        blocks: The blocks that are added, in order: "helper", "new".
        parameters: The number of parameters that they add.
        silent_ins: For each insertion of inputs, whether they are zero until they learn.
        silent_outs: For each insertion of outputs, whether they must be zero until they learn.
    """

    name: str
    kind: str
    in_width: tuple[int, int]
    width: tuple[int, int]
    ins: Insertions
    outs: Insertions
    blocks: tuple[str, ...]
    parameters: int
    silent_ins: tuple[bool, ...] = ()
    silent_outs: tuple[bool, ...] = ()


@dataclass(frozen=True)
class NumberChange:
    """What an edit does to a number that a module holds, such as a number of heads.

    Attributes:
        module: The module's path.
        attribute: The attribute's name, with an index in brackets if it is a list or tuple.
        value: The number before and after.
    """

    module: str
    attribute: str
    value: tuple[int, int]


@dataclass(frozen=True)
class JoinedBlocks:
    """What an edit that joins blocks does to one layer.

    Attributes:
        name: The layer's module path.
        edits: The edits whose blocks become those of this one.
    """

    name: str
    edits: tuple[int, ...]


@dataclass(frozen=True)
class Insertion:
    """What an edit inserts into the network.

    Attributes:
        host: The path of the module that it is next to.
        before: Whether it works on what the module reads, rather than on what comes out of it.
        kind: "identity", "residual", "gate" or "block".
        name: The path of the inserted module.
        type: What it is made of.
        width: The number of channels that pass there.
        parameters: The number of its parameters.
        options: What it was asked to be like, as far as that is plain data.
    """

    host: str
    before: bool
    kind: str
    name: str
    type: str
    width: int
    parameters: int
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        side = "in front of" if self.before else "behind"
        return (
            f"{'an' if self.kind == 'identity' else 'a'} {self.kind} {side} {self.host}, as "
            f"{self.name}: {self.type}, {self.width} channels, {self.parameters:,} parameters"
        )


@dataclass(frozen=True)
class Edit:
    """The frozen record of one growth: which layers, which axes, how many units, where they sit.

    Attributes:
        index: The number of the edit in the model's history, from 1.
        generation: The generation that its blocks belong to.
        closes: The generation that it closes first; None if it closes none.
        request: What was asked for: units by layer name.
        growth: The units that each group of channels gains, by the group's number.
        changes: What happens to each layer, in order of execution.
        numbers: What happens to numbers that modules hold.
        joined: The layers whose blocks it joins to those of one edit.
        inserted: What it inserts.
        initializer: How new blocks get their values.
    """

    index: int
    generation: int
    closes: int | None
    request: Mapping[str, int] = field(hash=False)
    growth: Mapping[int, int] = field(hash=False)
    changes: tuple[LayerChange, ...]
    numbers: tuple[NumberChange, ...] = ()
    joined: tuple[JoinedBlocks, ...] = ()
    inserted: tuple[Insertion, ...] = ()
    initializer: str = "zero"
    version: int = field(default=VERSION)

    def __post_init__(self) -> None:
        for name in ("request", "growth"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __reduce__(self) -> tuple[Any, ...]:
        return _edit_from_fields, (self._fields(),)

    def _fields(self) -> dict[str, Any]:
        names = ("index", "generation", "closes", "initializer", "version", *_LISTS)
        fields = {name: getattr(self, name) for name in names}
        return {**fields, "request": dict(self.request), "growth": dict(self.growth)}

    @property
    def parameters(self) -> int:
        """The number of parameters that the edit adds."""
        grown = sum(change.parameters for change in self.changes)
        return grown + sum(item.parameters for item in self.inserted)

    @property
    def layers(self) -> tuple[str, ...]:
        """The modules that it gives blocks, or something inserted."""
        names = (*(change.name for change in self.changes), *(item.name for item in self.joined))
        return (*names, *(item.host for item in self.inserted))

    def to_json(self) -> str:
        """The edit as JSON."""
        fields = self._fields()
        for name in _LISTS:
            fields[name] = [asdict(change) for change in fields[name]]
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> Edit:
        """An edit from its JSON.

        Raises:
            ValueError: If the text is of another version, or not an edit.
        """
        try:
            fields = json.loads(text)
            if fields["version"] != VERSION:
                raise ValueError(f"it is of version {fields['version']}")
            for name, read in _LISTS.items():
                fields[name] = tuple(read(item) for item in fields[name])
            growth = {int(group): units for group, units in fields.pop("growth").items()}
            return cls(growth=growth, **fields)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(
                f"not an edit of version {VERSION}: {type(error).__name__}: {error}"
            ) from None

    def __str__(self) -> str:
        closes = "" if self.closes is None else f", closes generation {self.closes}"
        head = f"Edit {self.index} (generation {self.generation}{closes})"
        if self.joined:
            edits = len({edit for layer in self.joined for edit in layer.edits})
            return f"{head}: joins what {edits} edits added to {len(self.joined)} layers"
        if self.inserted:
            return "\n".join(f"{head}: inserts {item}" for item in self.inserted)
        asked = ", ".join(f"{name} +{units}" for name, units in self.request.items())
        return "\n".join((f"{head}: {asked}", *self._lines()))

    def _lines(self) -> list[str]:
        lines = [f"adds {self.parameters:,} parameters to {len(self.changes)} layers"]
        table = [("layer", "type", "inputs", "units", "blocks", "parameters")]
        for change in self.changes:
            table.append(
                (
                    change.name,
                    change.kind,
                    _arrow(change.in_width),
                    _arrow(change.width),
                    " + ".join(change.blocks),
                    f"+{change.parameters:,}",
                )
            )
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        for row in table:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append("  " + "  ".join(cells).rstrip())
        for number in self.numbers:
            path = f"{number.module}.{number.attribute}".removeprefix(".")
            lines.append(f"  {path}: {_arrow(number.value)}")
        return lines


def _arrow(sizes: tuple[int, int]) -> str:
    return f"{sizes[0]} -> {sizes[1]}" if sizes[0] != sizes[1] else str(sizes[0])


def _edit_from_fields(fields: dict[str, Any]) -> Edit:
    return Edit(**fields)


def _number_from_json(fields: dict[str, Any]) -> NumberChange:
    before, after = fields["value"]
    return NumberChange(**{**fields, "value": (before, after)})


def _change_from_json(fields: dict[str, Any]) -> LayerChange:
    fields = dict(fields)
    for name in ("in_width", "width", "silent_ins", "silent_outs", "blocks"):
        fields[name] = tuple(fields[name])
    for name in ("ins", "outs"):
        fields[name] = tuple((position, count) for position, count in fields[name])
    return LayerChange(**fields)


def _joined_from_json(fields: dict[str, Any]) -> JoinedBlocks:
    return JoinedBlocks(fields["name"], tuple(fields["edits"]))


def _insertion_from_json(fields: dict[str, Any]) -> Insertion:
    return Insertion(**fields)


_LISTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "changes": _change_from_json,
    "numbers": _number_from_json,
    "joined": _joined_from_json,
    "inserted": _insertion_from_json,
}
"""The fields of an edit that are lists of records, and how each record is read from JSON."""

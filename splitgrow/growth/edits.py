"""The record of one growth: each change and its place. It holds no tensors, changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from splitgrow.growth.edit_parts import (
    InputChange,
    Insertion,
    JoinedBlocks,
    LayerChange,
    NumberChange,
    Removal,
)
from splitgrow.growth.edit_words import (
    UNITS,
    WAYS_IN_WORDS,
    number_in_words,
    rows_of_changes,
    rows_of_removals,
)
from splitgrow.growth.removing.record import LayerRemoval
from splitgrow.utils.json_records import read_record, written
from splitgrow.utils.text_tables import Rows, Tabular

EDIT_VERSION = 2

_MAPPINGS = ("request", "growth", "ways", "folded")


@dataclass(frozen=True, repr=False)
class Edit(Tabular):
    """The frozen record of one change: the layers, the axes, the number of units, their places.

    That is a growth, an insertion, a shrink, or a join of blocks. `print` shows it as a table.

    Attributes:
        index: The number of the edit in the model's history, from 1.
        generation: The generation that its blocks belong to.
        closes: The generation that it closes first; None if it closes none.
        request: The requested units by layer name; negative ones are taken out.
        growth: The units that each group of channels gains, by the group's number, or loses.
        changes: The change of each layer, in order of execution.
        numbers: The changes of numbers that modules hold.
        joined: The layers with blocks that it joins to those of one edit.
        inserted: The layers that it inserts.
        inputs: The changes of the model's inputs.
        initializer: The initializer of the new blocks, by name.
        ways: For groups that a norm over all channels reads, the way in which they grow: "zero",
            "average" or "duplicate".
        moved: How far an initializer that is not exact, or a loss, has moved the outputs on the
            example inputs, relative to the largest; None if it has not, or none were compared.
        loss: The loss before and after, if the initializer is not exact and was given one; of a
            random loss the mean of a few runs. It is the held-out loss if the initializer has one.
        rewritten: The names of existing tensors to which its initializer, `folded`, or a fit to the
            units that stay gave other values.
        absorbed: The paths of the layers and tensors that it makes plain.
        removed: The channels that layers lose.
        gives_up: The closed generations that can no longer be recovered, since they lose units.
        criterion: The criterion that chose the units that go, by name.
        macs: The multiply-adds of a forward pass for one sample before and after, where pruning
            could count them.
        folded: By layer the number of its inputs that went and had the same value for every input
            of the model. Its bias holds their part.
        removed_layers: The layers that it takes out.
        version: The version of the form in which `to_json` writes it.
        parameters: The number of parameters that it adds.
        layers: The modules to which it adds blocks, or next to which it inserts a layer.

    Example:
        >>> import torch, splitgrow
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))
        >>> edit = net.expand_layer("0", 2)
        >>> dict(edit.request), edit.generation, edit.parameters
        ({'0': 2}, 1, 8)
        >>> splitgrow.Edit.from_json(edit.to_json()) == edit
        True
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
    inputs: tuple[InputChange, ...] = ()
    initializer: str = "zero"
    ways: Mapping[int, str] = field(default_factory=dict, hash=False)
    moved: float | None = None
    loss: tuple[float, float] | None = None
    rewritten: tuple[str, ...] = ()
    absorbed: tuple[str, ...] = ()
    removed: tuple[Removal, ...] = ()
    gives_up: tuple[int, ...] = ()
    criterion: str = ""
    macs: tuple[int, int] | None = None
    folded: Mapping[str, int] = field(default_factory=dict, hash=False)
    removed_layers: tuple[LayerRemoval, ...] = ()
    version: int = field(default=EDIT_VERSION)

    def __post_init__(self) -> None:
        for name in _MAPPINGS:
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __reduce__(self) -> tuple[Any, ...]:
        return _edit_from_fields, (self._fields(),)

    def _fields(self) -> dict[str, Any]:
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**own, **{name: dict(own[name]) for name in _MAPPINGS}}

    @property
    def parameters(self) -> int:
        """The number of parameters that the edit adds."""
        grown = sum(change.parameters for change in self.changes)
        return grown + sum(item.parameters for item in self.inserted)

    @property
    def layers(self) -> tuple[str, ...]:
        """The modules to which it adds blocks, or next to which it inserts a layer."""
        return (*(change.name for change in self.changes), *self._other_layers())

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the modules that have its blocks or insertions."""
        return (*(change.path for change in self.changes), *self._other_layers())

    def _other_layers(self) -> Iterator[str]:
        yield from (item.name for item in self.joined)
        yield from (item.host for item in self.inserted)
        yield from self.absorbed
        yield from (item.name for item in self.removed)
        yield from (item.name for item in self.removed_layers)

    def to_json(self) -> str:
        """The edit as JSON."""
        return json.dumps(written(self))

    @classmethod
    def from_json(cls, text: str) -> Edit:
        """An edit from its JSON.

        Raises:
            ValueError: If the text is of another version, or not an edit.
        """
        try:
            return cls.from_data(json.loads(text))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"not an edit of version {EDIT_VERSION}: {type(error).__name__}: {error}"
            ) from None

    @classmethod
    def from_data(cls, data: object, where: str = "edit") -> Edit:
        """An edit from parsed JSON.

        Raises:
            ValueError: If it is of another version, or a value is of another type or unknown.
        """
        version = data.get("version") if isinstance(data, dict) else None
        if version != EDIT_VERSION:
            raise ValueError(f"{where} is of version {version!r}, not {EDIT_VERSION}")
        edit = read_record(cls, data, where)
        unknown = sorted({*edit.ways.values()} - WAYS_IN_WORDS.keys())
        if unknown:
            known = ", ".join(WAYS_IN_WORDS)
            raise ValueError(f"{where}.ways has {', '.join(unknown)}, not {known}")
        return edit

    def _head(self) -> str:
        """What it does, in a line or two."""
        closes = "" if self.closes is None else f", closes generation {self.closes}"
        head = f"Edit {self.index} (generation {self.generation}{closes})"
        if self.joined:
            edits = len({edit for layer in self.joined for edit in layer.edits})
            return f"{head}: joins what {edits} edits added to {len(self.joined)} layers"
        if self.absorbed:
            count = len(self.absorbed)
            return f"{head}: makes {count} layer{'s' if count > 1 else ''} plain"
        if self.removed_layers:
            return f"{head}: {'; '.join(map(str, self.removed_layers))}"
        if self.inserted and not self.changes:
            return "\n".join(f"{head}: inserts {item}" for item in self.inserted)
        asked = ", ".join(f"{name} {units:+}" for name, units in self.request.items())
        if self.removed:
            gone = sum(item.parameters for item in self.removed)
            return f"{head}: {asked}\ntakes {gone:,} parameters from {len(self.removed)} layers"
        count = len(self.changes) + len(self.inserted)
        return f"{head}: {asked}\nadds {self.parameters:,} parameters to {count} layers"

    def _rows(self) -> Rows:
        """Its table, the head first; empty if it changes no width."""
        if self.removed:
            return rows_of_removals(self.removed)
        return rows_of_changes(self.changes) if self.changes else []

    def _bars(self) -> dict[int, list[tuple[int, int]]]:
        return {UNITS: [item.width for item in self.removed or self.changes]}

    def _notes(self) -> list[str]:
        """What it says below its table."""
        if self.joined or self.absorbed or (self.inserted and not self.changes):
            return []
        notes = [WAYS_IN_WORDS[way] for way in sorted({*self.ways.values()})]
        notes += [number_in_words(number) for number in self.numbers]
        if self.criterion:
            notes.append(f"criterion {self.criterion!r} chose them")
        if self.macs is not None:
            notes.append("multiply-adds for one sample: {:,} -> {:,}".format(*self.macs))
        for name, count in self.folded.items():
            notes.append(f"the bias of {name} holds {count} constant{'s' if count > 1 else ''}")
        if self.removed and self.rewritten and not self.folded:
            layers = {name.rpartition(".")[0] for name in self.rewritten}
            notes.append(f"{len(layers)} readers are fitted to the units that stay")
        if self.moved is not None:
            notes.append(self._moved_in_words(self.moved))
        if self.loss is not None:
            notes.append("the loss went from {:.4g} to {:.4g}".format(*self.loss))
        notes += [f"generation {number} can no longer be recovered" for number in self.gives_up]
        return [*notes, *map(str, self.inserted)]

    def _moved_in_words(self, moved: float) -> str:
        if self.removed or self.removed_layers:
            return f"the outputs moved by {moved:.1%} of the largest"
        return f"initializer {self.initializer!r} moved the outputs by {moved:.1%} of the largest"


def _edit_from_fields(fields: dict[str, Any]) -> Edit:
    return Edit(**fields)

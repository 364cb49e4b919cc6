"""The record of one growth: each change and its place. It holds no tensors, changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from splitgrow.growth.removing.record import LayerRemoval
from splitgrow.layers.tensor_holder import blocks_path
from splitgrow.layers.types import TensorUse
from splitgrow.utils.json_records import read_record, written
from splitgrow.utils.text_tables import aligned

EDIT_VERSION = 2

_MAPPINGS = ("request", "growth", "ways", "folded")
Insertions = tuple[tuple[int, int], ...]
"""Pairs of a position before the edit and the number of positions inserted there."""


@dataclass(frozen=True)
class LayerChange:
    """The change of one layer in an edit.

    Attributes:
        name: The layer's module path.
        kind: The name of its stock layer type, such as ``Conv2d``.
        in_width: The number of input channels before and after.
        width: The number of output channels before and after.
        ins: The places of new input channels.
        outs: The places of new output channels.
        blocks: The added blocks, in order: "helper", "new".
        parameters: The number of parameters that they add.
        start_ins: For each insertion of inputs, the values that they have until they learn: "free",
            "zero", "mean" or "copy".
        start_outs: For each insertion of outputs, the values that they must have.
        join: How the outputs join in a statistic that all share: "", "dilutes" or "shares".
        use: For a parameter or buffer of a module, how it lies along channels; None for a module.
    """

    name: str
    kind: str
    in_width: tuple[int, int]
    width: tuple[int, int]
    ins: Insertions
    outs: Insertions
    blocks: tuple[str, ...]
    parameters: int
    start_ins: tuple[str, ...] = ()
    start_outs: tuple[str, ...] = ()
    join: str = ""
    use: TensorUse | None = None

    @property
    def path(self) -> str:
        """The path of the module that has the blocks."""
        return self.name if self.use is None else blocks_path(self.name)


@dataclass(frozen=True)
class NumberChange:
    """The change of a number that a module holds, such as a number of heads.

    Attributes:
        module: The module's path.
        attribute: The attribute's name, with an index in brackets if it is a list or tuple.
        value: The number before and after. A float is a factor that experts share.
    """

    module: str
    attribute: str
    value: tuple[int | float, int | float]


@dataclass(frozen=True)
class InputChange:
    """The change of an input of the model.

    Attributes:
        name: The name of forward's argument.
        dim: The dimension of its channels.
        width: The number of channels before and after.
    """

    name: str
    dim: int
    width: tuple[int, int]


@dataclass(frozen=True)
class JoinedBlocks:
    """The change of one layer in an edit that joins blocks.

    Attributes:
        name: The layer's module path.
        edits: The edits whose blocks become those of this one.
    """

    name: str
    edits: tuple[int, ...]


@dataclass(frozen=True)
class Insertion:
    """A layer that an edit inserts into the network.

    Attributes:
        host: The path of the module next to it.
        before: Whether it works on the module's input, rather than on its output.
        kind: "identity", "residual", "gate", "block", "stack", "interpolate", "fade" or
            "replacement"; or "experts" for further experts of a mixture.
        name: The path of the inserted module.
        type: The types of its layers.
        width: The number of channels of its input, or of the experts.
        parameters: The number of its parameters.
        options: The options of the request, as far as they are plain data; "moved" is how far a
            kind that is not exact has moved the outputs, relative to the largest.
        tensor_result: Whether the module next to it returns one tensor, rather than several.
        recipe: The data from which it can be made again: see `splitgrow.growth.insertion.recipes`.
    """

    host: str
    before: bool
    kind: str
    name: str
    type: str
    width: int
    parameters: int
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    tensor_result: bool = True
    recipe: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        if self.kind == "experts":
            return (
                f"{self.width} experts beside those of {self.host}, as {self.name}: {self.type}, "
                f"{self.parameters:,} parameters"
            )
        side = "in front of" if self.before else "behind"
        moved = self.options.get("moved")
        change = "" if moved is None else f"; the outputs moved by {moved:.1%} of the largest"
        return (
            f"{'an' if self.kind == 'identity' else 'a'} {self.kind} {side} {self.host}, as "
            f"{self.name}: {self.type}, {self.width} channels, {self.parameters:,} parameters"
            f"{change}"
        )


@dataclass(frozen=True)
class Removal:
    """The channels that one layer loses in an edit.

    Attributes:
        name: The layer's module path.
        kind: The name of its stock layer type.
        in_width: The number of input channels before and after.
        width: The number of output channels before and after.
        ins: The input channels that go, as stretches of a position before the edit and a length.
        outs: The output channels that go.
        parameters: The number of parameters that the layer loses.
        use: For a parameter or buffer of a module, how it lies along channels; None for a module.
    """

    name: str
    kind: str
    in_width: tuple[int, int]
    width: tuple[int, int]
    ins: Insertions
    outs: Insertions
    parameters: int
    use: TensorUse | None = None

    @property
    def path(self) -> str:
        """The path of the module that has its blocks, if it has grown."""
        return self.name if self.use is None else blocks_path(self.name)


@dataclass(frozen=True)
class Edit:
    """The frozen record of one growth: the layers, the axes, the number of units, their places.

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
        unknown = sorted({*edit.ways.values()} - _WAYS.keys())
        if unknown:
            raise ValueError(f"{where}.ways has {', '.join(unknown)}, not {', '.join(_WAYS)}")
        return edit

    def __str__(self) -> str:
        closes = "" if self.closes is None else f", closes generation {self.closes}"
        head = f"Edit {self.index} (generation {self.generation}{closes})"
        if self.joined:
            edits = len({edit for layer in self.joined for edit in layer.edits})
            return f"{head}: joins what {edits} edits added to {len(self.joined)} layers"
        if self.absorbed:
            count = len(self.absorbed)
            return f"{head}: makes {count} layer{'s' if count > 1 else ''} plain"
        if self.removed_layers:
            gone = "; ".join(map(str, self.removed_layers))
            return "\n".join((f"{head}: {gone}", *self._lines_of_loss()))
        if self.inserted and not self.changes:
            return "\n".join(f"{head}: inserts {item}" for item in self.inserted)
        asked = ", ".join(f"{name} {units:+}" for name, units in self.request.items())
        if self.removed:
            return "\n".join((f"{head}: {asked}", *self._lines_of_removal()))
        inserted = (f"  {item}" for item in self.inserted)
        return "\n".join((f"{head}: {asked}", *self._lines(), *inserted))

    def _lines_of_removal(self) -> list[str]:
        gone = sum(item.parameters for item in self.removed)
        lines = [f"takes {gone:,} parameters from {len(self.removed)} layers"]
        table = [("layer", "type", "inputs", "units", "parameters")]
        for item in self.removed:
            sizes = _arrow(item.in_width), _arrow(item.width)
            table.append((item.name, item.kind, *sizes, f"-{item.parameters:,}"))
        lines += [*aligned(table), *self._lines_of_numbers()]
        if self.criterion:
            lines.append(f"  criterion {self.criterion!r} chose them")
        if self.macs is not None:
            lines.append("  multiply-adds for one sample: {:,} -> {:,}".format(*self.macs))
        for name, count in self.folded.items():
            lines.append(f"  the bias of {name} holds {count} constant{'s' if count > 1 else ''}")
        if self.rewritten and not self.folded:
            layers = {name.rpartition(".")[0] for name in self.rewritten}
            lines.append(f"  {len(layers)} readers are fitted to the units that stay")
        return [*lines, *self._lines_of_loss()]

    def _lines_of_loss(self) -> Iterator[str]:
        if self.moved is not None:
            yield f"  the outputs moved by {self.moved:.1%} of the largest"
        for generation in self.gives_up:
            yield f"  generation {generation} can no longer be recovered"

    def _lines_of_numbers(self) -> Iterator[str]:
        for number in self.numbers:
            path = f"{number.module}.{number.attribute}".removeprefix(".")
            yield f"  {path}: {_arrow(number.value)}"

    def _lines(self) -> list[str]:
        count = len(self.changes) + len(self.inserted)
        lines = [f"adds {self.parameters:,} parameters to {count} layers"]
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
        lines += aligned(table)
        for way in sorted(set(self.ways.values())):
            lines.append(f"  {_WAYS[way]}")
        lines += self._lines_of_numbers()
        if self.moved is not None:
            lines.append(
                f"  initializer {self.initializer!r} moved the outputs by {self.moved:.1%} of the "
                f"largest"
            )
        if self.loss is not None:
            lines.append("  the loss went from {:.4g} to {:.4g}".format(*self.loss))
        return lines


_WAYS = {
    "zero": "new channels of the stream are zero at birth",
    "average": "new channels of the stream have the mean of the old ones at birth",
    "duplicate": "new channels of the stream have the values of the old ones in turn at birth",
}


def _arrow(sizes: tuple[float, float]) -> str:
    return f"{sizes[0]} -> {sizes[1]}" if sizes[0] != sizes[1] else str(sizes[0])


def _edit_from_fields(fields: dict[str, Any]) -> Edit:
    return Edit(**fields)

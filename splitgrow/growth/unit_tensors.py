"""The tensors of an edit along units: whole, and the parts of them that its new blocks have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from splitgrow.analysis.units import Place, Unit
from splitgrow.growth.prepared import PreparedEdit, PreparedLayer
from splitgrow.layers.types import Along, Start, TensorBlock
from splitgrow.utils.spans import take


@dataclass(frozen=True, eq=False)
class UnitTensor:
    """A tensor of the plain layer that a layer of an edit becomes.

    Attributes:
        layer: The layer.
        key: The tensor's name.
        places: The units along its dimensions, but not the rows of a table.
    """

    layer: PreparedLayer
    key: str
    places: Mapping[int, Sequence[Place]]

    @property
    def axes(self) -> Mapping[int, Along]:
        """Its dimensions along channels."""
        return self.layer.tensors[self.key]

    @property
    def reads(self) -> int | None:
        """The dimension with the weights for the units that the layer reads; None if none has."""
        return None if self.layer.layer_type.looks_up else self.layer.reading_dim(self.key)

    @property
    def makes(self) -> int | None:
        """The dimension with a row for each unit that the layer makes; None if none has."""
        # A diagonal transposed convolution's one dimension counts as that of inputs.
        diagonal = self.layer.layer_type.diagonal(self.layer.original)
        dims = (dim for dim, along in self.axes.items() if diagonal or not along.reads)
        return next(dims, None)

    @property
    def weighs(self) -> bool:
        """Whether it has a row of weights for each unit, rather than a few numbers of its own."""
        original = self.layer.original
        if isinstance(original, TensorBlock):
            return original.use.role == "weighs" and self.makes is not None
        numbers = getattr(original, self.key, None)
        return self.makes is not None and isinstance(numbers, Tensor) and numbers.dim() > 1

    def value(self) -> Tensor | None:
        """Its values, as a tensor of its own; None if the layer has none, or none with values."""
        whole = self.layer.value(self.key)
        if whole is None or whole.is_meta or not whole.is_floating_point():
            return None
        return whole

    def old(self, whole: Tensor) -> Tensor:
        """The part that existed before the edit."""
        composition = self.layer.composition
        before = composition.blocks[-1].edit.__gt__
        for dim, along in self.axes.items():
            whole = take(whole, dim, composition.layout(along).spans(before))
        return whole

    def born(self, dim: int, device: torch.device) -> Tensor:
        """Which positions of a dimension the edit adds, as bools."""
        composition = self.layer.composition
        layout = composition.layout(self.axes[dim])
        marks = torch.zeros(layout.length, dtype=torch.bool)
        for start, length in layout.spans(composition.blocks[-1].edit.__eq__):
            marks[start : start + length] = True
        return marks.to(device)

    def at(self, dim: int, units: Mapping[Unit, object], like: Tensor) -> Tensor:
        """The positions of some units along a dimension, as an index."""
        found = [n for n, (unit, _) in enumerate(self.places[dim]) if unit in units]
        return torch.tensor(found, dtype=torch.long, device=like.device)

    def fill_(self, whole: Tensor) -> None:
        """Gives the new blocks their parts of it."""
        replace(self.layer, writable=False).fill_(self.key, whole)

    def size(self, dim: int) -> float:
        """The mean norm of its rows along a dimension, as it was before the edit."""
        whole = self.layer.value(self.key)
        assert whole is not None
        rows = self.old(whole).movedim(dim, 0).flatten(1)
        return float(rows.double().norm(dim=1).mean()) if rows.numel() else 0.0


@dataclass(frozen=True, eq=False)
class UnitWeights:
    """The part of a tensor that a new block has, as a matrix with a row for each unit.

    Attributes:
        of: The whole tensor.
        role: The block's role: "new" or "helper".
        dim: The tensor's dimension along the units.
        size: The mean norm of the rows of the layer as it was.
    """

    of: UnitTensor
    role: str
    dim: int
    size: float

    @property
    def layer(self) -> PreparedLayer:
        """The layer, prepared."""
        return self.of.layer

    @property
    def key(self) -> str:
        """The name of the tensor."""
        return self.of.key

    @property
    def block(self) -> nn.Module:
        """The block."""
        found: nn.Module = self.layer.added[self.role]
        return found

    @property
    def tensor(self) -> Tensor:
        """The block's tensor."""
        found: Tensor = getattr(self.block, self.key)
        return found

    @property
    def rows(self) -> Tensor:
        """Its values: units x all that each reads."""
        return self.as_rows(self.tensor.detach())

    @property
    def by_inputs(self) -> UnitWeights:
        """The same with a row for each channel that the block reads."""
        assert self.of.reads is not None
        return replace(self, dim=self.of.reads)

    def as_rows(self, tensor: Tensor) -> Tensor:
        """A tensor of the weights' shape as a matrix with a row for each unit."""
        return tensor.movedim(self.dim, 0).flatten(1)

    def as_tensor(self, rows: Tensor) -> Tensor:
        """A matrix with a row for each unit as a tensor of the weights' shape."""
        moved = self.tensor.movedim(self.dim, 0)
        return rows.reshape(moved.shape).movedim(0, self.dim)

    def set_(self, tensor: Tensor) -> None:
        """Sets its values."""
        with torch.no_grad():
            self.tensor.copy_(tensor)

    def part_from_new_inputs_(self) -> None:
        """Sets to zero the weights of new units for inputs that are new as well."""
        dim = self.of.reads
        if dim is not None and self.role == "new":
            with torch.no_grad():
                born = self.of.born(dim, self.tensor.device).nonzero().flatten()
                self.tensor.index_fill_(dim, born, 0)

    def homes_of_inputs(self) -> list[int | str]:
        """The groups of the units that it reads, for each position of its reading dimension."""
        dim, layer = self.of.reads, self.layer
        assert dim is not None
        index = len(layer.existing) + list(layer.added).index(self.role)
        spans = layer.composition.places(index, self.key)[dim]
        units = self.of.places[dim]
        return [units[n][0].home for start, count in spans for n in range(start, start + count)]


def unit_tensors(prepared: PreparedEdit) -> Iterator[UnitTensor]:
    """The tensors of an edit's layers along channels; one that layers share comes once."""
    seen: set[tuple[int, int | None]] = set()
    for name, layer in prepared.layers.items():
        for key, places in prepared.places(name).items():
            if layer.layer_type.looks_up:
                axes = layer.tensors[key]
                places = {dim: each for dim, each in places.items() if axes[dim].side == "out"}
            found = UnitTensor(layer, key, places)
            parameter = vars(layer.original).get("_parameters", {}).get(key)
            mark = id(parameter), found.reads
            if parameter is None or mark not in seen:
                seen.add(mark)
                yield found


def unit_weights(prepared: PreparedEdit, role: str) -> list[UnitWeights]:
    """The weights of an edit's new blocks, or of its helpers, that may have any values.

    Those of units that must be zeros, means or copies of others are left out, and so are helpers
    that read such units.

    Args:
        prepared: The edit.
        role: "new" or "helper".
    """
    found = []
    for name, layer in prepared.layers.items():
        block = layer.added.get(role)
        if block is None or {*layer.starts(role)} != {Start.FREE} or layer.layer_type.looks_up:
            continue
        for key, places in prepared.places(name).items():
            whole = UnitTensor(layer, key, places)
            dim, led = whole.makes, role == "helper" and key in layer.led
            if dim is None or whole.reads is None or led:
                continue
            if isinstance(getattr(block, key, None), Tensor):
                found.append(UnitWeights(whole, role, dim, whole.size(dim)))
    return found

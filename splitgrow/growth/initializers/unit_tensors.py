"""The tensors of an edit, whole, and where its new units lie on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from splitgrow.analysis.units import Place, Unit
from splitgrow.growth.prepared import PreparedEdit, PreparedLayer
from splitgrow.layers.types import Along, TensorBlock
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

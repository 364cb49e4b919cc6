"""Channels that go, in the oracle: which parts of which tensors stay, and under which names."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from machine.oracle import Axes, Cell, Mirror, Part, Values

Gone = Mapping[str, Collection[int]]
"""The channels that go, by the root of their axis."""


@dataclass
class Taken:
    """The network before and after some channels went.

    Attributes:
        before: The network before.
        after: The network after.
        changed: The layers that lose channels.
        absorbed: Those of them that become plain first, since their first part loses all channels.
        parts: The numbers of the parts that stay, by layer; none of one that becomes plain.
        rows: The output channels that stay, by layer.
        cells: The input channels that stay, by layer.
    """

    before: Mirror
    after: Mirror
    changed: set[str] = field(default_factory=set)
    absorbed: set[str] = field(default_factory=set)
    parts: dict[str, list[int]] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)
    cells: dict[str, list[Cell]] = field(default_factory=dict)

    def names(self) -> dict[str, str]:
        """The present paths of the parts that stay, by their former ones."""
        found = {}
        for path, kept in self.parts.items():
            old = self.before.layers[path].names(path)
            new = self.after.layers[path].names(path)
            found.update({old[n]: name for n, name in zip(kept, new, strict=True)})
        return found

    def tensors(self, values: Values) -> dict[str, Tensor]:
        """The parts that stay of tensors that lie as the network's, by their present names.

        A layer that becomes plain has numbers that are none where a value is missing.
        """
        names = self.names()
        owners = {
            name: (path, part)
            for path, layer in self.before.layers.items()
            for name, part in zip(layer.names(path), layer.parts, strict=True)
        }
        made: dict[str, Tensor] = {}
        for name, value in values.items():
            owner, _, key = name.rpartition(".")
            if owner not in owners:
                made[name] = value
                continue
            path, part = owners[owner]
            if path in self.absorbed:
                if value.dim():
                    self._collect(made, path, part, key, value)
            elif owner in names:
                made[f"{names[owner]}.{key}"] = self._kept(path, part, value)
        return {
            name: self._kept(path, self._whole(path), value)
            if (path := name.rpartition(".")[0]) in self.absorbed
            else value
            for name, value in made.items()
        }

    def _kept(self, path: str, part: Part, value: Tensor) -> Tensor:
        """The channels that stay of a part."""
        if not value.dim():
            return value
        rows = [n for n, row in enumerate(part.rows) if row in self.rows[path]]
        value = value[rows]
        if value.dim() > 1:
            value = value[:, [n for n, cell in enumerate(part.cols) if cell in self.cells[path]]]
        return value

    def _whole(self, path: str) -> Part:
        layer = self.before.layers[path]
        cells = () if layer.norm else self.before.cells(self.before.axes(), path)
        return Part(0, tuple(range(layer.width)), cells)

    def _collect(
        self, made: dict[str, Tensor], path: str, part: Part, key: str, value: Tensor
    ) -> None:
        """Puts a part's tensor in its place in the plain layer's."""
        whole = self._whole(path)
        shape = (len(whole.rows), len(whole.cols), *value.shape[2:])[: max(value.dim(), 1)]
        found = made.setdefault(f"{path}.{key}", value.new_full(shape, torch.nan))
        rows = torch.tensor(part.rows)
        if value.dim() == 1:
            found[rows] = value
        else:
            cols = torch.tensor([whole.cols.index(cell) for cell in part.cols])
            found[rows[:, None], cols[None]] = value


def take_out(mirror: Mirror, gone: Gone) -> Taken:
    """Takes channels out of a network, which stays as it is itself."""
    taken = Taken(mirror, copy.deepcopy(mirror))
    axes = mirror.axes()
    stay = {
        axis: [n for n in range(mirror.width_of(axis)) if n not in gone.get(axes.root(axis), ())]
        for axis in (*mirror.layers, "x")
    }
    taken.after.width = len(stay["x"])
    for path in mirror.layers:
        _from_layer(taken, path, axes, stay)
    return taken


def _from_layer(taken: Taken, path: str, axes: Axes, stay: Mapping[str, list[int]]) -> None:
    layer = taken.after.layers[path]
    all_cells = () if layer.norm else taken.before.cells(axes, path)
    ins = {
        (n, old): (n, new)
        for n, axis in enumerate(() if layer.norm else axes.ins[path])
        for new, old in enumerate(stay[axis])
    }
    outs = {old: new for new, old in enumerate(stay[path])}
    taken.rows[path], taken.cells[path] = [*outs], [*ins]
    if len(outs) < layer.width or len(ins) < len(all_cells):
        taken.changed.add(path)
    moved = [_moved(part, outs, ins) for part in layer.parts]
    stays = [bool(part.rows) and (layer.norm or bool(part.cols)) for part in moved]
    if not stays[0]:
        taken.absorbed.add(path)
        whole = Part(0, tuple(range(layer.width)), all_cells, layer.parts[0].held)
        layer.parts, layer.split = [_moved(whole, outs, ins)], False
    else:
        taken.parts[path] = [n for n, own in enumerate(stays) if own]
        layer.parts = [moved[n] for n in taken.parts[path]]
    layer.width = len(outs)


def _moved(part: Part, outs: Mapping[int, int], ins: Mapping[Cell, Cell]) -> Part:
    rows = tuple(outs[row] for row in part.rows if row in outs)
    return Part(part.edit, rows, tuple(ins[c] for c in part.cols if c in ins), part.held)


def strengths(mirror: Mirror, values: Values, path: str) -> Tensor:
    """The sum of squares of all weights that make or read each channel of a layer."""
    axes = mirror.axes()
    root, found = axes.root(path), torch.zeros(mirror.layers[path].width, dtype=torch.float64)
    for name, layer in mirror.layers.items():
        if layer.norm:
            continue
        squares = mirror.whole(name, values)[0].double().square().flatten(2).sum(2) if (
            values[f"{layer.names(name)[0]}.weight"].dim() > 2
        ) else mirror.whole(name, values)[0].double().square()  # fmt: skip
        if axes.root(name) == root:
            found += squares.sum(1)
        for n, (group, channel) in enumerate(mirror.cells(axes, name)):
            if axes.root(axes.ins[name][group]) == root:
                found[channel] += squares[:, n].sum()
    return found

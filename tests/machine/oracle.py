"""The oracle: the network as plain tensors, put together here from where each parameter belongs.

It knows the models of `machine.nets`, that channels join at the end of their axis, and that a layer
gains a helper (its old outputs, of new inputs) and a new block (its new outputs, of all inputs). It
takes nothing from the library but the tensors by their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from machine.nets import Block

Values = Mapping[str, Tensor]
Cell = tuple[int, int]
"""A place on an input axis: the number of the axis that is joined there, and the place on it."""


@dataclass(frozen=True)
class Part:
    """A block of a layer: its output channels and, unless it is of a norm, its input channels."""

    edit: int
    rows: tuple[int, ...]
    cols: tuple[Cell, ...] = ()
    held: bool = False


@dataclass
class Layer:
    """A layer; once it has grown its parts have numbers, even if one is left."""

    norm: bool
    parts: list[Part]
    width: int
    split: bool = False

    def names(self, path: str) -> list[str]:
        return [f"{path}.{i}" for i in range(len(self.parts))] if self.split else [path]


@dataclass(frozen=True)
class Inserted:
    host: str
    before: bool
    kind: str
    name: str


class Axes:
    """Runs the network on names of axes instead of tensors: which are the same, who reads which."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}
        self.ins: dict[str, tuple[str, ...]] = {}

    def root(self, axis: str) -> str:
        while self.parent.setdefault(axis, axis) != axis:
            axis = self.parent[axis]
        return axis

    def tie(self, one: Sequence[str], other: Sequence[str]) -> Sequence[str]:
        for a, b in zip(one, other, strict=True):
            self.parent[self.root(a)] = self.root(b)
        return one

    def layer(self, path: str, x: Any) -> Any:
        self.ins[path] = tuple(x)
        self.root(path)
        return (path,)

    def norm(self, path: str, x: Any) -> Any:
        self.ins[path] = tuple(x)
        return self.tie((path,), x)

    def act(self, _: str, x: Any) -> Any:
        return x

    def mix(self, _: str, x: Any, y: Any) -> Any:
        return self.tie(x, y)

    add = mul = lambda self, x, y: self.tie(x, y)

    def cat(self, x: Any, y: Any) -> Any:
        return (*x, *y)

    def pooled(self, x: Any) -> Any:
        return x


class Tensors:
    """Runs it on tensors."""

    def __init__(self, mirror: Mirror, values: Values, *, training: bool = False) -> None:
        self.mirror, self.values, self.training = mirror, values, training
        self.moved: dict[str, Tensor] = {}

    def layer(self, path: str, x: Tensor) -> Tensor:
        weight, bias = self.mirror.whole(path, self.values)
        if weight.dim() == 2:
            return F.linear(x, weight, bias)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def norm(self, path: str, x: Tensor) -> Tensor:
        layer, values = self.mirror.layers[path], self.values
        shape = (1, -1, *[1] * (x.dim() - 2))
        made = []
        for name, part in zip(layer.names(path), layer.parts, strict=True):
            own = x[:, list(part.rows)]
            mean, var = values[f"{name}.running_mean"], values[f"{name}.running_var"]
            if self.training and not part.held:
                dims = [d for d in range(x.dim()) if d != 1]
                mean, var = own.mean(dims), own.var(dims, unbiased=False)
                count = own.numel() / own.shape[1]
                unbiased = var.detach() * count / (count - 1)
                for key, new in (("running_mean", mean.detach()), ("running_var", unbiased)):
                    old = values[f"{name}.{key}"].detach()
                    self.moved[f"{name}.{key}"] = 0.9 * old + 0.1 * new
            scaled = (own - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
            weight, bias = values[f"{name}.weight"], values[f"{name}.bias"]
            made.append(scaled * weight.view(shape) + bias.view(shape))
        rows = [row for part in layer.parts for row in part.rows]
        return torch.cat(made, 1)[:, [rows.index(row) for row in range(layer.width)]]

    def act(self, kind: str, x: Tensor) -> Tensor:
        return {"relu": torch.relu, "tanh": torch.tanh, "nothing": lambda x: x}[kind](x)

    def mix(self, path: str, x: Tensor, y: Tensor) -> Tensor:
        share = self.values[f"{path}.share"].to(x.dtype)
        return (1 - share) * x + share * y

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def mul(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y

    def cat(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, y], 1)

    def pooled(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.dim() == 4 else x


@dataclass
class Mirror:
    """The network's form: its layers, and what was inserted where.

    Attributes:
        kinds: The rule of each module by path: "layer", "norm", "relu", "tanh", "nothing", "block",
            or the names of a sequence's children.
        layers: The layers and norms by path.
        inserted: The insertions, the newest first.
        width: The number of input channels.
    """

    kinds: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    inserted: list[Inserted] = field(default_factory=list)
    width: int = 2

    @classmethod
    def of(cls, net: nn.Module) -> Mirror:
        mirror = cls()
        for name, module in net.named_children():
            mirror.learn(name, module)
        mirror.begin(0)
        return mirror

    def learn(self, path: str, module: nn.Module) -> None:
        """Takes the form of a module that is made of torch's layers."""
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d)):
            norm = not isinstance(module, (nn.Linear, nn.Conv2d))
            self.kinds[path] = "norm" if norm else "layer"
            self.layers[path] = Layer(norm, [], module.weight.shape[0])
            return
        plain = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Identity: "nothing"}
        if type(module) in plain:
            self.kinds[path] = plain[type(module)]
            return
        assert isinstance(module, (Block, nn.Sequential)), type(module)
        children = dict(module.named_children())
        self.kinds[path] = "block" if isinstance(module, Block) else tuple(children)
        for name, child in children.items():
            self.learn(f"{path}.{name}", child)

    def begin(self, edit: int) -> None:
        """Gives the layers that have none yet their first part."""
        axes = self.axes()
        for path, layer in self.layers.items():
            if not layer.parts:
                rows = tuple(range(layer.width))
                cols = () if layer.norm else self.cells(axes, path)
                layer.parts.append(Part(edit, rows, cols))

    def axes(self) -> Axes:
        axes = Axes()
        self.run(("x",), axes)
        return axes

    def width_of(self, axis: str) -> int:
        return self.width if axis == "x" else self.layers[axis].width

    def cells(self, axes: Axes, path: str) -> tuple[Cell, ...]:
        return tuple(
            (n, i) for n, axis in enumerate(axes.ins[path]) for i in range(self.width_of(axis))
        )

    # -- running -----------------------------------------------------------------------------

    def run(self, x: Any, ops: Any) -> Any:
        h = x
        for path in ("stem", "norm", "act", "block"):
            h = self.call(path, h, ops)
        side = self.call("tanh", self.call("side", h, ops), ops)
        return self.call("head", ops.pooled(ops.cat(h, side)), ops)

    def call(self, path: str, x: Any, ops: Any) -> Any:
        own = [item for item in self.inserted if item.host == path]
        for item in reversed([item for item in own if item.before]):
            x = self._insert(item, x, x, ops)
        y = self._core(path, x, ops)
        for item in own:
            if not item.before:
                y = self._insert(item, y, x, ops)
        return y

    def _core(self, path: str, x: Any, ops: Any) -> Any:
        kind = self.kinds[path]
        if kind == "layer":
            return ops.layer(path, x)
        if kind == "norm":
            return ops.norm(path, x)
        if isinstance(kind, str) and kind != "block":
            return ops.act(kind, x)
        y = x
        for name in ("norm", "first", "act", "last") if kind == "block" else kind:
            y = self.call(f"{path}.{name}", y, ops)
        return ops.add(x, y) if kind == "block" else y

    def _insert(self, item: Inserted, y: Any, x: Any, ops: Any) -> Any:
        rules: dict[str, Callable[[], Any]] = {
            "identity": lambda: self.call(item.name, y, ops),
            "block": lambda: self.call(item.name, y, ops),
            "residual": lambda: ops.add(y, self.call(item.name, y, ops)),
            "gate": lambda: ops.mul(y, self.call(item.name, y, ops)),
            "fade": lambda: ops.mix(item.name, y, self.call(f"{item.name}.new", y, ops)),
            "replacement": lambda: ops.mix(
                item.name, y, self.call(f"{item.name}.new.module", x, ops)
            ),
        }
        return rules[item.kind]()

    def outputs(self, values: Values, x: Tensor) -> Tensor:
        made: Tensor = self.run(x, Tensors(self, values))
        return made

    # -- parameters --------------------------------------------------------------------------

    def whole(self, path: str, values: Values) -> tuple[Tensor, Tensor]:
        """The weight and the bias of the plain layer."""
        layer = self.layers[path]
        cells = self.cells(self.axes(), path)
        first = values[f"{layer.names(path)[0]}.weight"]
        weight = first.new_zeros(layer.width, len(cells), *first.shape[2:])
        bias = first.new_zeros(layer.width)
        for name, part in zip(layer.names(path), layer.parts, strict=True):
            rows = torch.tensor(part.rows)
            cols = torch.tensor([cells.index(cell) for cell in part.cols])
            weight = weight.index_put((rows[:, None], cols[None]), values[f"{name}.weight"])
            if f"{name}.bias" in values:
                bias = bias.index_put((rows,), values[f"{name}.bias"])
        return weight, bias

    def wholes(self, values: Values) -> dict[str, tuple[Tensor, ...]]:
        """Every layer's plain tensors."""
        made: dict[str, tuple[Tensor, ...]] = {}
        for path, layer in self.layers.items():
            made[path] = self.stats(path, values) if layer.norm else self.whole(path, values)
        return made

    def stats(self, path: str, values: Values) -> tuple[Tensor, ...]:
        layer = self.layers[path]
        rows = [row for part in layer.parts for row in part.rows]
        order = [rows.index(row) for row in range(layer.width)]
        keys = ("weight", "bias", "running_mean", "running_var")
        names = layer.names(path)
        return tuple(torch.cat([values[f"{n}.{key}"] for n in names])[order] for key in keys)

    # -- edits -------------------------------------------------------------------------------

    def grow(self, request: Mapping[str, int], edit: int) -> set[str]:
        """Widens axes ("x" is the input), with all that is tied to them; the layers that change."""
        axes = self.axes()
        gains: dict[str, int] = {}
        for path, n in request.items():
            gains[axes.root(path)] = max(n, gains.get(axes.root(path), 0))
        old = {path: self.cells(axes, path) for path in self.layers}
        before = {path: layer.width for path, layer in self.layers.items()}
        for path, layer in self.layers.items():
            layer.width += gains.get(axes.root(path), 0)
        self.width += gains.get(axes.root("x"), 0)
        changed = set()
        for path, layer in self.layers.items():
            known = set(old[path])
            cells = () if layer.norm else self.cells(axes, path)
            new = tuple(cell for cell in cells if cell not in known)
            parts = []
            if new:
                parts.append(Part(edit, tuple(range(before[path])), new))
            if layer.width > before[path]:
                parts.append(Part(edit, tuple(range(before[path], layer.width)), cells))
            layer.parts += parts
            if parts:
                layer.split = True
                changed.add(path)
        return changed

    def insert(self, item: Inserted, module: nn.Module, edit: int) -> None:
        path = item.name
        if item.kind in {"fade", "replacement"}:
            path = f"{path}.new" if item.kind == "fade" else f"{path}.new.module"
            module = module.get_submodule(path.removeprefix(f"{item.name}."))
        self.learn(path, module)
        self.inserted.insert(0, item)
        self.begin(edit)

    def join(self, path: str, edits: Iterable[int], edit: int) -> None:
        """Joins the parts of some edits to a helper and a new one."""
        layer, joined = self.layers[path], set(edits)
        kept = [part for part in layer.parts if part.edit not in joined]
        rows = {row for part in kept for row in part.rows}
        cols = {cell for part in kept for cell in part.cols}
        cells = () if layer.norm else self.cells(self.axes(), path)
        new = tuple(cell for cell in cells if cell not in cols)
        if new:
            kept.append(Part(edit, tuple(sorted(rows)), new))
        outs = tuple(row for row in range(layer.width) if row not in rows)
        if outs:
            kept.append(Part(edit, outs, cells))
        layer.parts = kept

    def hold(self, *, held: bool) -> None:
        """Norms keep their statistics from here on, or let them move again."""
        for layer in self.layers.values():
            layer.parts = [Part(p.edit, p.rows, p.cols, held) for p in layer.parts]

    @property
    def fades(self) -> list[str]:
        return [i.name for i in self.inserted if i.kind in {"fade", "replacement"}]

"""Random small networks, drawn by Hypothesis: many layer types, joined in many ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

SPACE = 4
"""Height and width of every map; ops that change it change it back."""

Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass(frozen=True)
class Step:
    """One op of a network: what it does, to which earlier maps, with which layer."""

    op: str
    sources: tuple[int, ...]
    layer: str = ""
    detail: int = 0


class RandomNetwork(nn.Module):
    """Runs drawn steps; each adds maps that later steps may read, and a head reads the last."""

    def __init__(self, steps: list[Step], layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.steps = steps
        self.layers_by_name = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for step in self.steps:
            layer = self.layers_by_name[step.layer] if step.layer else None
            operands = [maps[source] for source in step.sources]
            maps.extend(OPS[step.op](operands, layer, step.detail))
        return maps[-1]


def _apply(maps: list[Tensor], layer: Any, detail: int) -> list[Tensor]:
    return [layer(maps[0])]


def _activate(maps: list[Tensor], layer: Any, detail: int) -> list[Tensor]:
    forms = (torch.tanh, F.gelu, lambda x: x.relu(), nn.ReLU(), lambda x: x * 0.5 + 1)
    return [forms[detail % len(forms)](maps[0])]


def _add(maps: list[Tensor], layer: Any, detail: int) -> list[Tensor]:
    left, right = maps
    return [(left + right, torch.sub(left, right), left.mul(right))[detail % 3]]


def _gate(maps: list[Tensor], layer: Any, detail: int) -> list[Tensor]:
    return [maps[0] * torch.sigmoid(layer(F.adaptive_avg_pool2d(maps[0], 1)))]


def _cat(maps: list[Tensor], layer: Any, detail: int) -> list[Tensor]:
    return [torch.cat(maps, dim=1)]


def _chunk(maps: list[Tensor], layer: Any, detail: int) -> list[Tensor]:
    left, right = maps[0].chunk(2, dim=1)
    return [left, right]


def _slice(maps: list[Tensor], layer: Any, detail: int) -> list[Tensor]:
    return [maps[0][:, :detail], maps[0][:, detail:]]


def _interleave(maps: list[Tensor], layer: Any, detail: int) -> list[Tensor]:
    b, c, h, w = maps[0].shape
    return [maps[0].view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)]


def _shuffle(maps: list[Tensor], layer: Any, detail: int) -> list[Tensor]:
    return [F.avg_pool2d(F.pixel_shuffle(maps[0], 2), 2)]


def _unshuffle(maps: list[Tensor], layer: Any, detail: int) -> list[Tensor]:
    return [F.pixel_unshuffle(F.interpolate(maps[0], scale_factor=2), 2)]


def _channels_last(maps: list[Tensor], layer: Any, detail: int) -> list[Tensor]:
    return [layer(maps[0].permute(0, 2, 3, 1)).movedim(-1, 1)]


def _mix(maps: list[Tensor], layer: Any, detail: int) -> list[Tensor]:
    return [maps[0].softmax(dim=1)]


def _pool_head(maps: list[Tensor], layer: Any, detail: int) -> list[Tensor]:
    return [layer(maps[0].mean((-1, -2)))]


def _flat_head(maps: list[Tensor], layer: Any, detail: int) -> list[Tensor]:
    return [layer(maps[0].flatten(1))]


def _last_flat_head(maps: list[Tensor], layer: Any, detail: int) -> list[Tensor]:
    return [layer(maps[0].permute(0, 2, 3, 1).reshape(maps[0].size(0), -1))]


OPS = {
    "apply": _apply,
    "activate": _activate,
    "add": _add,
    "gate": _gate,
    "cat": _cat,
    "chunk": _chunk,
    "slice": _slice,
    "interleave": _interleave,
    "shuffle": _shuffle,
    "unshuffle": _unshuffle,
    "channels last": _channels_last,
    "mix": _mix,
    "pool head": _pool_head,
    "flat head": _flat_head,
    "flat head, channels last": _last_flat_head,
}


class _Builder:
    """Draws steps whose channels fit, so that every network runs."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.steps: list[Step] = []
        self.layers: dict[str, nn.Module] = {}
        self.widths = [draw(st.integers(1, 3))]
        self.inputs = self.widths[0]

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def add(self, op: str, sources: list[int], widths: list[int], **fields: Any) -> None:
        self.steps.append(Step(op, tuple(sources), **fields))
        self.widths.extend(widths)

    def layer(self, module: nn.Module) -> str:
        name = f"{type(module).__name__.lower()}{len(self.layers)}"
        self.layers[name] = module
        return name

    def source(self) -> int:
        # Mostly the latest map, so that networks are deep; else any.
        latest = len(self.widths) - 1
        return latest if self.draw(st.booleans()) else self.draw(st.integers(0, latest))

    def conv(self) -> None:
        source = self.source()
        width = self.widths[source]
        groups = self.pick(*[g for g in (1, 1, 2, 3, width) if width % g == 0])
        outs = groups * self.pick(1, 2, 3)
        transposed = self.draw(st.booleans())
        kernel = self.pick(1, 3)
        options = {"kernel_size": kernel, "groups": groups, "bias": self.draw(st.booleans())}
        options["dilation"] = self.pick(1, 2)
        options["padding"] = (kernel // 2) * options["dilation"]
        if not transposed:
            modes = ("zeros", "circular", "replicate", "reflect")
            options["padding_mode"] = self.pick(*modes)
        make = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.add("apply", [source], [outs], layer=self.layer(make(width, outs, **options)))

    def again(self) -> None:
        """Calls a layer once more, where it fits."""
        source = self.source()
        fits = [
            (name, module.out_channels)
            for name, module in self.layers.items()
            if isinstance(module, nn.Conv2d) and module.in_channels == self.widths[source]
            # A gate's convolution also fits, but squeezes.
        ]
        if fits:
            name, outs = self.pick(*fits)
            self.add("apply", [source], [outs], layer=name)
        else:
            self.conv()

    def norm(self) -> None:
        source = self.source()
        width = self.widths[source]
        groups = self.pick(*[g for g in (1, 2, 3) if width % g == 0])
        affine = self.draw(st.booleans())
        norms = (
            nn.BatchNorm2d(width, affine=affine, track_running_stats=self.pick(True, True, False)),
            nn.GroupNorm(groups, width, affine=affine),
            nn.InstanceNorm2d(width, affine=affine),
            nn.PReLU(width),
        )
        self.add("apply", [source], [width], layer=self.layer(self.pick(*norms)))

    def activate(self) -> None:
        source = self.source()
        self.add("activate", [source], [self.widths[source]], detail=self.pick(0, 1, 2, 3, 4))

    def join(self) -> None:
        one, other = self.source(), self.draw(st.integers(0, len(self.widths) - 1))
        if self.widths[one] == self.widths[other]:
            detail = self.pick(0, 1, 2)
            self.add("add", [one, other], [self.widths[one]], detail=detail)
        elif self.widths[one] + self.widths[other] <= 24:
            self.add("cat", [one, other], [self.widths[one] + self.widths[other]])
        else:
            self.activate()

    def gate(self) -> None:
        source = self.source()
        width = self.widths[source]
        name = self.layer(nn.Conv2d(width, width, 1))
        self.add("gate", [source], [width], layer=name)

    def take_apart(self) -> None:
        source = self.source()
        width = self.widths[source]
        if width % 2 == 0:
            op = self.pick("chunk", "interleave", "slice")
            widths = [width] if op == "interleave" else [width // 2] * 2
            self.add(op, [source], widths, detail=width // 2)
        else:
            self.norm()

    def reshape(self) -> None:
        source = self.source()
        width = self.widths[source]
        if width % 4 == 0:
            self.add("shuffle", [source], [width // 4])
        elif width <= 4:
            self.add("unshuffle", [source], [width * 4])
        else:
            self.activate()

    def channels_last(self) -> None:
        source = self.source()
        outs = self.pick(2, 4, 6)
        name = self.layer(nn.Linear(self.widths[source], outs))
        self.add("channels last", [source], [outs], layer=name)

    def mix(self) -> None:
        source = self.source()
        self.add("mix", [source], [self.widths[source]])

    def head(self) -> None:
        source = len(self.widths) - 1
        op = self.pick("pool head", "flat head", "flat head, channels last")
        features = self.widths[source] * (1 if op == "pool head" else SPACE**2)
        self.add(op, [source], [3], layer=self.layer(nn.Linear(features, 3)))


@st.composite
def networks(draw: Draw) -> tuple[nn.Module, Tensor]:
    """A random network and an input for it, in float64."""
    builder = _Builder(draw)
    torch.manual_seed(draw(st.integers(0, 2**16)))
    builder.conv()
    common = (builder.conv, builder.conv, builder.norm, builder.activate, builder.join)
    rare = (
        builder.again,
        builder.gate,
        builder.take_apart,
        builder.reshape,
        builder.channels_last,
        builder.join,
        builder.mix,
    )
    for _ in range(draw(st.integers(2, 9))):
        builder.pick(*common, *rare)()
    builder.head()
    model = RandomNetwork(builder.steps, builder.layers).double().eval()
    return model, torch.randn(2, builder.inputs, SPACE, SPACE, dtype=torch.float64)


@st.composite
def growths(draw: Draw) -> list[tuple[int, int, bool]]:
    """A sequence of growths: which of the growable layers, by how many steps, close before it?"""
    growth = st.tuples(st.integers(0, 99), st.integers(1, 2), st.booleans())
    return draw(st.lists(growth, min_size=1, max_size=6))


def histories() -> st.SearchStrategy[list[tuple[int, str, bool]]]:
    """Edits of several kinds: which layer, what is done to it, whether a generation ends before."""
    kinds = ("width", "width", "identity", "residual", "gate", "fade", "consolidate", "absorb")
    edit = st.tuples(st.integers(0, 40), st.sampled_from(kinds), st.booleans())
    return st.lists(edit, min_size=1, max_size=5)

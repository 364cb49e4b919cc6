"""Subclasses of layers that compute as their base does, found by trying and not by their name.

Libraries subclass Linear, Embedding and convolutions: to scale what is looked up, to pad in another
way, to write the same product differently. Such a layer can grow as its base does if it works on
blocks: some of its units are those of a layer with their weights alone, and its outputs for two
parts of its inputs add up to those for all. Whether they do is tried on a few random tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from splitgrow.layers.types.alike import Alike
from splitgrow.layers.types.layer_type import Along, LayerType, Stock
from splitgrow.layers.types.registry import LAYER_TYPES
from splitgrow.utils.own_thread import in_own_thread

_PLAIN = (int, float, str, bool, tuple, type(None))
_SIZES = frozenset(
    [
        "training",
        "in_features",
        "out_features",
        "in_channels",
        "out_channels",
        "num_embeddings",
        "embedding_dim",
        "padding_idx",
    ]
)
_EXACT = 1e-9
_INS, _OUTS = 4, 6
"""The numbers of inputs and units of the layers that are tried."""


class BlockLayer(Alike):
    """A subclass that works on blocks as its base does, and may hold numbers of its own."""

    def kept(self, module: Stock) -> frozenset[str]:
        """Its numbers: buffers of one element."""
        own = vars(module)["_buffers"].items()
        return super().kept(module) | {n for n, t in own if t is not None and t.numel() == 1}

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        """A copy of the module with tensors of other sizes, and its own numbers."""
        built = super().build(module, sizes, **options)
        for name in self.kept(module):
            number = vars(module)["_buffers"].get(name)
            if number is not None:
                device = options.get("device", number.device)
                built.register_buffer(name, number.detach().clone().to(device))
        vars(built)["_non_persistent_buffers_set"] = set(
            vars(module)["_non_persistent_buffers_set"]
        )
        return built


_Verdicts = dict[Any, LayerType | None]
_FOUND: WeakKeyDictionary[type[nn.Module], _Verdicts] = WeakKeyDictionary()
"""The verdicts on classes, by the settings of a module and the shapes of its buffers."""


def structural_layer(module: Stock) -> LayerType | None:
    """The entry for a subclass that works on blocks as its base does; None for any other module."""
    base = next((b for b in type(module).__mro__[1:] if b in LAYER_TYPES), None)
    if base is None or not LAYER_TYPES[base].sized or vars(module).get("_modules"):
        return None
    if "Parametrized" in type(module).__name__ or "forward" in vars(module):
        return None
    settings = {k: v for k, v in vars(module).items() if isinstance(v, _PLAIN) and k not in _SIZES}
    buffers = vars(module).get("_buffers", {}).items()
    shapes = {k: tuple(t.shape) for k, t in buffers if t is not None}
    key = repr((sorted(settings.items()), sorted(shapes.items())))
    verdicts = _FOUND.setdefault(type(module), {})
    if key not in verdicts:
        entry = BlockLayer(LAYER_TYPES[base], (type(module),))
        works = in_own_thread(lambda: _works_on_blocks(entry, module))
        verdicts[key] = entry if works else None
    return verdicts[key]


def _works_on_blocks(entry: BlockLayer, module: Stock) -> bool:
    try:
        return _tried(entry, module)
    except Exception:  # noqa: BLE001 - a layer that computes otherwise may fail in any way
        return False


def _tried(entry: BlockLayer, module: Stock) -> bool:
    known = entry.tensors(module)
    if entry.sections(module) > 1 or entry.diagonal(module) or not known:
        return False
    if any(
        t is not None and k not in known and k not in entry.kept(module)
        for store in ("_parameters", "_buffers")
        for k, t in vars(module)[store].items()
    ):
        return False
    generator = torch.Generator().manual_seed(0)
    whole = _filled(entry, module, generator)
    x = _input(entry, whole, generator)
    y = whole.forward(x)
    if not isinstance(y, Tensor) or y.dtype != torch.float64 or not y.isfinite().all():
        return False
    dim = entry.channel_dim(module)
    some = _part(entry, whole, {"out": slice(0, 2)}).forward(x)
    same = _close(some, y.narrow(dim, 0, 2))
    if entry.reads_channels:
        parts = [(slice(0, 1), True), (slice(1, _INS), False)]
        made = [
            _part(entry, whole, {"in": span}, bias=bias).forward(
                x.narrow(dim, span.start, span.stop - span.start)
            )
            for span, bias in parts
        ]
        return same and _close(made[0] + made[1], y) and not _close(made[0], y)
    other = _filled(entry, module, generator)
    for name in known:
        setattr(other, name, nn.Parameter(3 * getattr(whole, name).detach()))
    rows = _part(entry, whole, {"in": slice(0, _INS - 1)})
    return same and _close(rows.forward(x), y) and _close(other.forward(x), 3 * y)


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() < _EXACT)


def _filled(entry: BlockLayer, module: Stock, generator: torch.Generator) -> Stock:
    """A small layer of the module's class with random values."""
    # The row of a padding may lie beyond those of a small table.
    options: dict[str, Any] = {} if entry.reads_channels else {"padding_idx": None}
    options |= {"device": "cpu", "dtype": torch.float64}
    built: Stock = entry.build(module, (_INS, _OUTS), **options)
    for name in entry.tensors(module):
        tensor = vars(built)["_parameters"].get(name)
        if tensor is not None:
            value = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            setattr(built, name, nn.Parameter(value))
    return built.eval()


def _input(entry: BlockLayer, layer: Stock, generator: torch.Generator) -> Tensor:
    if not entry.reads_channels:
        return torch.tensor([[0, 2, 1], [1, 1, 2]])  # the last row is left out
    space = -1 - entry.channel_dim(layer)
    kernel = getattr(layer, "kernel_size", ())
    dilation = getattr(layer, "dilation", ())
    sizes = [max(7, 2 * k * d + 1) for k, d in zip(kernel, dilation, strict=True)]
    shape = (2, _INS, *sizes) if space else (2, 3, _INS)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _part(
    entry: BlockLayer, whole: Stock, spans: Mapping[str, slice], *, bias: bool = True
) -> Stock:
    """A layer with a part of another's weights."""
    inputs, units = entry.sizes(whole)
    counts = {"in": inputs, "out": units}
    counts |= {side: span.stop - span.start for side, span in spans.items()}
    has_bias = vars(whole)["_parameters"].get("bias") is not None
    options: dict[str, Any] = {} if bias or not has_bias else {"bias": False}
    built: Stock = entry.build(whole, (counts["in"], counts["out"]), device="cpu", **options)
    for name, axes in entry.tensors(whole).items():
        if vars(built)["_parameters"].get(name) is None:
            continue
        value = getattr(whole, name).detach()
        for dim, along in axes.items():
            value = value.narrow(dim, *_span(along, spans, value.shape[dim]))
        setattr(built, name, nn.Parameter(value.clone()))
    return built.eval()


def _span(along: Along, spans: Mapping[str, slice], length: int) -> tuple[int, int]:
    span = spans.get(along.side, slice(0, length))
    return span.start, span.stop - span.start

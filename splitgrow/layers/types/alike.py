"""Layers that are forms of a known type: with the same tensors, or computing the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from torch import nn

from splitgrow.layers.kernels import Kernel
from splitgrow.layers.types.layer_type import (
    LayerType,
    Merging,
    Norm,
    Signature,
    Stock,
    TensorAxes,
)
from splitgrow.layers.types.start_values import Start


class Alike(LayerType):
    """A subclass of a known layer type that has the same tensors with the same meaning.

    A block is made as a copy of the module with tensors and numbers of other sizes; the class's
    constructor is not called.
    """

    def __init__(self, base: LayerType, layers: tuple[type[nn.Module] | str, ...] = ()) -> None:
        self.base, self.layers = base, layers
        self.sized, self.mixes = base.sized, base.mixes
        self.reads_channels, self.looks_up = base.reads_channels, base.looks_up
        self.shifts, self.compiles = base.shifts, base.compiles

    def channel_dim(self, module: Stock) -> int:
        """As its base has it."""
        return self.base.channel_dim(module)

    def sizes(self, module: Stock) -> tuple[int, int]:
        """As its base has it."""
        return self.base.sizes(module)

    def tensors(self, module: Stock) -> Mapping[str, TensorAxes]:
        """As its base has it."""
        return self.base.tensors(module)

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        """A copy of the module with tensors and numbers of other sizes."""
        plain = self.base.build(module, sizes, **options)
        built: nn.Module = object.__new__(type(module))
        built.__dict__.update(module.__dict__)
        built.__dict__.update(plain.__dict__)
        for name, child in module.named_children():
            built.add_module(name, copy.deepcopy(child))
        return built

    def as_base(self, module: Stock) -> nn.Module:
        """A layer of the base type with the module's own tensors."""
        plain = self.base.build(module, self.sizes(module), device="meta")
        for name, _ in (*plain.named_parameters(), *plain.named_buffers()):
            setattr(plain, name, getattr(module, name))
        return plain.train(module.training)

    def bundle(self, module: Stock) -> int:
        """As its base has it."""
        return self.base.bundle(module)

    def diagonal(self, module: Stock) -> bool:
        """As its base has it."""
        return self.base.diagonal(module)

    def side_of(self, module: Stock, number: str) -> Literal["in", "out", ""] | None:
        """As its base has it."""
        return self.base.side_of(module, number)

    def input_of(self, x: Any) -> Any:
        """As its base has it."""
        return self.base.input_of(x)

    def signature(self, module: Stock) -> Signature | None:
        """As its base has it."""
        return self.base.signature(module)

    def answers(self, layer: Any) -> Mapping[str, Callable[[], Any]]:
        """As its base has it."""
        return self.base.answers(layer)

    def covers(self, module: Stock) -> bool:
        """As its base has it."""
        return self.base.covers(module)

    @cached_property
    def merging(self) -> Merging:
        """As its base has it, with blocks of its own type."""
        return replace(self.base.merging, build=self.build)

    def starts(self, module: Stock) -> Mapping[Start, Start]:
        """As its base has it."""
        return self.base.starts(module)

    def runs_as_one(self, module: Stock) -> bool:
        """As its base has it."""
        return self.base.runs_as_one(module)

    def norm(self, module: Stock) -> Norm | None:
        """As its base has it, without a batch norm's single pass."""
        found = self.base.norm(module)
        return found and replace(found, batch=False)

    def limits(self, module: Stock) -> str:
        """As its base has it."""
        return self.base.limits(module)


class Same(Alike):
    """A subclass that computes the same as its base, so the base can stand for it."""

    def output_shape(self, module: Stock, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """As its base has it."""
        return self.base.output_shape(module, shape)

    def result_shapes(
        self, module: Stock, shape: tuple[int, ...], states: Sequence[tuple[int, ...]]
    ) -> list[tuple[int, ...]] | None:
        """As its base has it."""
        return self.base.result_shapes(module, shape, states)

    def kernel(self, module: Stock) -> Kernel | None:
        """As its base has it."""
        return self.base.kernel(module)

    def norm(self, module: Stock) -> Norm | None:
        """As its base has it."""
        return self.base.norm(module)

    def stock_parts(self, module: Stock) -> list[nn.Module]:
        """One layer of the base type, with the same tensors."""
        return [self.as_base(module)]

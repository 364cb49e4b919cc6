"""Running a grown convolution or Linear in code that torch's compiler makes.

Compiled code joins the blocks' tensors anew in every call, since a tensor that is kept could be
guarded only by numbers that change. Its gradients are those of the trained parts alone, by ops
that the compiler follows. All that depends on the layer's structure alone is a constant of the
code, and the code goes with it: growth makes a new object, and no size becomes a symbol.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from splitgrow.layers.blockwise import BlockStep, Blockwise, run_apart
from splitgrow.layers.compiled_code import derives_once
from splitgrow.layers.composition import Composition
from splitgrow.layers.hooks import has_run_hooks
from splitgrow.layers.joins import JoinStep, joined_parts
from splitgrow.layers.kernels import Kernel
from splitgrow.layers.merging_costs import LARGEST_MERGED, bytes_of, rows_worth_copying
from splitgrow.layers.partial_product import Trained, partial_product, trained_part


@dataclass(frozen=True)
class _Form:
    """Whatever of a layer is constant as long as its blocks stay as they are.

    Attributes:
        few: The size of an input from which on they run as one.
        weight: How the blocks' weights are joined.
        bias: How their biases are.
        steps: How the blocks run by themselves.
    """

    few: float
    weight: tuple[JoinStep, ...]
    bias: tuple[JoinStep, ...]
    steps: tuple[BlockStep, ...]


class Compiled:
    """A layer that multiplies with a weight, in compiled code.

    Args:
        composition: Its blocks that are shown.
        kernel: Its arithmetic.
    """

    def __init__(self, composition: Composition, kernel: Kernel) -> None:
        self._composition, self._kernel = composition, kernel

    # The compiler runs these once, and its code holds for this object only.
    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def _form(self) -> _Form:
        composition = self._composition
        rows = rows_worth_copying(
            composition, sum(w.numel() for _, w in composition.parts("weight"))
        )
        if bytes_of(composition) > LARGEST_MERGED or any(map(has_run_hooks, composition.modules)):
            rows = math.inf
        reads = composition.sizes[0] if composition.layer_type.reads_channels else 1
        weight, bias = (
            composition.joins(name, [index for index, _ in parts]) if parts else ()
            for name in ("weight", "bias")
            for parts in [composition.parts(name)]
        )
        return _Form(rows * reads, weight, bias, Blockwise(composition).steps)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def _trained(self, flags: tuple[bool, ...]) -> Trained | None:
        """The part that trains; None if there is none, or all of it is to be computed."""
        composition = self._composition
        parts = dict(composition.parts("weight"))
        shapes = [(block, tuple(parts[block].shape)) for block, own in enumerate(flags) if own]
        trained = trained_part(composition, shapes)
        return None if trained is None or trained.gradients.worth >= 1 else trained

    def run(self, x: Tensor) -> Tensor:
        """The layer's output."""
        form, modules, kernel = self._form(), self._composition.modules, self._kernel
        if x.numel() < form.few:
            return run_apart(form.steps, kernel.channel_dim, modules, x)
        value = self._composition.merging.value
        weights: list[Any] = [value(module, "weight") for module in modules]
        biases: list[Any] = [module.bias for module in modules if module.bias is not None]
        weight, bias = joined_parts(weights, form.weight), None
        if biases:
            bias = joined_parts(biases, form.bias)
        x = kernel.prepared(x)
        trained = None
        whole = _is_transformed() or weight.is_complex() or not derives_once()
        if torch.is_grad_enabled() and not whole:
            flags = []
            for each in weights:
                flags.append(each.requires_grad)
            trained = self._trained(tuple(flags))
        if trained is None:
            return kernel.output(x, weight, bias)
        return partial_product(kernel, trained, x, weight, bias, weights)


def compiled_form(composition: Composition) -> Compiled | None:
    """How a layer runs in compiled code; None if it has no way of its own there."""
    kernel = composition.layer_type.kernel(composition.original)
    if kernel is None or len(composition.modules) == 1:
        return None
    return Compiled(composition, kernel)


def _is_transformed() -> bool:
    return torch._C._are_functorch_transforms_active()  # noqa: SLF001

"""Running a grown layer as the one plain layer that it equals."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from splitgrow.layers.composition import Composition
from splitgrow.layers.merged_batchnorm import merged_batch_norm, moves_of
from splitgrow.layers.merged_matmul import MergedMatmul
from splitgrow.layers.partial_product import ComputedProduct
from splitgrow.layers.weight_assembly import Assembly
from splitgrow.layers.weight_views import Own, Unfit, make_dense_
from splitgrow.utils.eager import is_eager


class Merged:
    """A grown layer that runs as one plain layer.

    Args:
        composition: The layer's blocks and layouts.
        own: The blocks' own tensors, to keep the assembled tensors from call to call; None to keep
            none.

    Attributes:
        traceable: Whether `run_traced` can run it.
    """

    def __init__(self, composition: Composition, own: Own | None) -> None:
        self._composition = composition
        self._own = own
        self._kernel = composition.layer_type.kernel(composition.original)
        self.traceable = self._kernel is not None or composition.merging.joint

    @cached_property
    def assembly(self) -> Assembly:
        """The layer's assembled tensors."""
        return Assembly(self._composition, self._own)

    @cached_property
    def _multiplied(self) -> MergedMatmul | ComputedProduct | None:
        if self._kernel is None:
            return None
        if self._composition.merging.keeps_weight:
            return MergedMatmul(self.assembly, self._kernel)
        return ComputedProduct(self._composition, self._kernel)

    def leave(self) -> None:
        """Gives every block its own storage again."""
        if "assembly" in vars(self):
            self.assembly.leave()
            return
        for module in self._composition.modules:
            make_dense_(module)

    def run(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, float | None]:
        """The layer's output, and the share of the weight's gradient that is computed backward.

        The share is None where torch's own autograd computes the gradient, or none is computed.

        Raises:
            Unfit: If these blocks, as they are now, cannot run as one.
        """
        if self._multiplied is not None and not args and not kwargs:
            return self._multiplied.run(x)
        composition, original = self._composition, self._composition.original
        norm = composition.layer_type.norm(original)
        if norm is not None and norm.batch:
            return norm.finished(merged_batch_norm(self.assembly, x)), None
        moves = any(moves_of(composition))
        keeps_statistics = norm is not None and getattr(original, "running_mean", None) is not None
        if (moves and keeps_statistics) or not composition.layer_type.runs_as_one(original):
            raise Unfit
        if not composition.merging.side_by_side:
            return self.run_traced(x, *args, **kwargs), None
        assembly = self.assembly
        if composition.merging.joint:
            tensors = assembly.all_differentiable()
        else:
            values = assembly.values().items()
            tensors = {name: assembly.differentiable(name, value) for name, value in values}
        return composition.holding(tensors, training=moves)(x, *args, **kwargs), None

    def run_traced(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output by ops that torch's compiler and transforms know, nothing kept."""
        composition = self._composition
        if self._kernel is not None and not args and not kwargs:
            unseen = is_eager(x) and not torch.is_grad_enabled()
            with torch._C.DisableTorchFunction() if unseen else nullcontext():  # noqa: SLF001
                weight, bias = composition.assembled("weight"), composition.assembled("bias")
            assert weight is not None
            return self._kernel.output(self._kernel.prepared(x), weight, bias)
        tensors = {name: composition.assembled(name) for name in composition.names}
        training = any(moves_of(composition))
        output: Tensor = composition.holding(tensors, training=training)(x, *args, **kwargs)
        return output

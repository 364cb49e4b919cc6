"""Running a grown layer as the one plain layer that it equals."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import Tensor

from splitgrow.layers.composition import Composition
from splitgrow.layers.merged_batchnorm import moves_of, normalised
from splitgrow.layers.merged_matmul import Multiplied
from splitgrow.layers.weight_assembly import Assembly
from splitgrow.layers.weight_views import Own, Unfit, make_dense_


class Merged:
    """One grown layer, run as one.

    Args:
        composition: What the layer is made of.
        own: Which tensors are the blocks' own, for what is put together to be kept from call to
            call; None if it is not.
    """

    def __init__(self, composition: Composition, own: Own | None) -> None:
        self._composition = composition
        self._own = own
        self._kernel = composition.kind.kernel(composition.original)

    @cached_property
    def assembly(self) -> Assembly:
        """The layer's tensors put together."""
        return Assembly(self._composition, self._own)

    @cached_property
    def _multiplied(self) -> Multiplied | None:
        return Multiplied(self.assembly, self._kernel) if self._kernel is not None else None

    def leave(self) -> None:
        """Gives every block storage of its own again."""
        if "assembly" in vars(self):
            self.assembly.leave()
            return
        for module in self._composition.modules:
            make_dense_(module)

    @property
    def computed(self) -> float | None:
        """Which share of the weight's gradient the last call will compute, if it does that here."""
        gradients = self._multiplied.gradients if self._multiplied is not None else None
        return gradients.worth if gradients is not None else None

    def run(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output.

        Raises:
            Unfit: If these blocks, as they are now, cannot run as one.
        """
        kind, original = self._composition.kind, self._composition.original
        if self._multiplied is not None:
            if not args and not kwargs:
                return self._multiplied.run(x)
            self._multiplied.gradients = None
        if kind.batch_norm(original):
            return kind.finished(original, normalised(self.assembly, x))
        moves = any(moves_of(self._composition))
        if (moves and kind.keeps_statistics(original)) or not kind.runs_as_one(original):
            raise Unfit
        tensors: dict[str, Tensor | None] = {}
        if kind.side_by_side:
            for name, value in self.assembly.values().items():
                tensors[name] = self.assembly.differentiable(name, value)
        else:
            tensors = {name: self._composition.assembled(name) for name in self.assembly.names}
        output: Tensor = self.assembly.plain(tensors, training=moves)(x, *args, **kwargs)
        return output

    @property
    def traceable(self) -> bool:
        """Whether `run_traced` can run it."""
        return self._kernel is not None or self._composition.kind.couples

    def run_traced(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output by ops that torch's compiler and transforms know, nothing kept."""
        composition = self._composition
        if self._kernel is not None and not args and not kwargs:
            weight, bias = composition.assembled("weight"), composition.assembled("bias")
            assert weight is not None
            return self._kernel.output(self._kernel.prepared(x), weight, bias)
        tensors = {name: composition.assembled(name) for name in self.assembly.names}
        output: Tensor = self.assembly.plain(tensors, training=False)(x, *args, **kwargs)
        return output

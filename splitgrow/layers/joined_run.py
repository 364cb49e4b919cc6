"""Running a small grown layer in which everything trains: its blocks' tensors joined at each call.

Of a small layer, most of a step's time is not arithmetic but the calls around it. Where everything
trains there is no gradient to spare, and torch's own concatenation takes the fewest calls, in its
gradient as well. It keeps nothing from call to call, so there is little to check. Without gradients
a very small layer runs so whatever trains.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from splitgrow.layers.composition import Composition
from splitgrow.layers.execution import execution_mode, keeps
from splitgrow.layers.freezing import hold_statistics
from splitgrow.layers.joins import joined_parts
from splitgrow.layers.kernels import Kernel
from splitgrow.layers.types import Norm
from splitgrow.layers.weight_assembly import Assembly
from splitgrow.layers.weight_views import Own, Unfit
from splitgrow.utils.eager import is_eager

_MOST_COPIED = 2**20
"""Elements: copying more, again and again, costs more than the calls that it saves."""
_MOST_COPIED_FROZEN = 20_000
"""The same without gradients where not everything trains, as the rest need not be copied then. So
few are always put together, by `Runner` as well: a closed generation stays exact."""
_MOST_BLOCKS = 32
"""More take as many calls that way as any other, and long to prepare after each growth."""


class Concatenation:
    """One of the plain layer's parameters, made from those of the blocks.

    Attributes:
        copied: The number of elements that its concatenations copy, one after the other.

    Args:
        composition: The layer's blocks and layouts.
        name: The parameter's name.
    """

    def __init__(self, composition: Composition, name: str) -> None:
        self._name = name
        every = [module._parameters for module in composition.modules]  # noqa: SLF001
        having = [index for index, owner in enumerate(every) if owner.get(name) is not None]
        self._owners = [every[index] for index in having]
        self._lacking = [owner for index, owner in enumerate(every) if index not in having]
        self._steps = composition.joins(name, having) if having else ()
        sizes, done = [owner[name].numel() for owner in self._owners], 1  # type: ignore[union-attr]
        self.copied = 0
        for step in self._steps:
            done += step.added
            self.copied += sum(sizes[:done])

    def parts(self, *, training: bool) -> list[Tensor] | None:
        """The blocks' parameters; None if some are no parameters of the expected kind.

        Args:
            training: Whether all have to train, and to have storage of their own. A part of a
                larger tensor would reach the optimizer, which may take it for contiguous.
        """
        name = self._name
        found: list[Tensor] = []
        for owner in self._owners:
            part = owner.get(name)
            if type(part) is not nn.Parameter:
                return None
            if training and not (part.requires_grad and part.is_contiguous()):
                return None
            found.append(part)
        for owner in self._lacking:
            if owner.get(name) is not None:
                return None
        return found

    def of(self, parts: list[Tensor]) -> Tensor | None:
        """The parameter; None if the layer has none."""
        return joined_parts(parts, self._steps) if parts else None


class JoinedRun(ABC):
    """A small grown layer that runs as one while everything in it trains.

    Attributes:
        is_small: Whether joining costs little.

    Args:
        composition: The layer's blocks and layouts.
    """

    def __init__(self, composition: Composition) -> None:
        self._modules = composition.modules
        self._weight = Concatenation(composition, "weight")
        self._bias = Concatenation(composition, "bias")
        self._shapes = set[torch.Size]()
        copied = self._weight.copied + self._bias.copied
        self.is_small, self._is_tiny = copied <= _MOST_COPIED, copied <= _MOST_COPIED_FROZEN

    def allows(self, x: Tensor) -> bool:
        """Whether it can run so; if it can, inputs of this shape run so from now on."""
        if self._parts() is None:
            return False
        self._shapes.add(x.shape)
        return True

    def _parts(self) -> tuple[list[Tensor], list[Tensor]] | None:
        training = not self._is_tiny or torch.is_grad_enabled()
        weights = self._weight.parts(training=training)
        biases = self._bias.parts(training=training)
        return None if weights is None or biases is None else (weights, biases)

    def run(self, x: Tensor) -> Tensor | None:
        """The layer's output; None if it has to run in another way."""
        if not is_eager(x) or x.is_nested or x.shape not in self._shapes:
            return None
        if execution_mode() != "auto" or not keeps():
            return None
        for module in self._modules:
            if module._forward_hooks or module._backward_hooks or module._backward_pre_hooks:  # noqa: SLF001
                return None
            before = module._forward_pre_hooks  # noqa: SLF001
            if before and any(hook is not hold_statistics for hook in before.values()):
                return None
        parts = self._parts()
        return None if parts is None else self._output(x, *parts)

    @abstractmethod
    def _output(self, x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor | None: ...


class JoinedProduct(JoinedRun):
    """A layer that multiplies with a weight."""

    def __init__(self, composition: Composition, kernel: Kernel) -> None:
        super().__init__(composition)
        self._kernel = kernel

    def _output(self, x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
        kernel, weight = self._kernel, self._weight.of(weights)
        assert weight is not None
        return kernel.output(kernel.prepared(x), weight, self._bias.of(biases))


class JoinedBatchNorm(JoinedRun):
    """A batch norm."""

    def __init__(self, composition: Composition, norm: Norm, own: Own) -> None:
        super().__init__(composition)
        self._norm = norm
        self._statistics = Assembly(composition, own, ("running_mean", "running_var"))

    def _output(self, x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor | None:
        modules: tuple[Any, ...] = self._modules
        first = modules[0]
        momentum = first.momentum
        moves = first.training and not first._forward_pre_hooks  # noqa: SLF001 - that hold it
        for module in modules:
            moved = module.training and not module._forward_pre_hooks  # noqa: SLF001
            if moved != moves or module.momentum != momentum:
                return None
        statistics = self._statistics
        try:
            statistics.look()
            whole = statistics.values()
        except Unfit:
            return None
        mean, var = whole.get("running_mean"), whole.get("running_var")
        if mean is None or momentum is None:
            return None
        weight, bias = self._weight.of(weights), self._bias.of(biases)
        y = F.batch_norm(x, mean, var, weight, bias, moves, momentum, first.eps)
        if moves:
            statistics.write_back("running_mean")
            statistics.write_back("running_var")
            counters = [module.num_batches_tracked for module in modules]
            torch._foreach_add_(counters, 1)
        return self._norm.finished(y)


def joined_run(composition: Composition, own: Own | None) -> JoinedRun | None:
    """The layer as it runs while everything in it trains; None if it has no such way.

    Args:
        composition: The layer's blocks and layouts.
        own: The blocks' own tensors; None if nothing may be kept.
    """
    entry, original = composition.layer_type, composition.original
    if not 1 < len(composition.modules) <= _MOST_BLOCKS or not composition.merging.side_by_side:
        return None
    kernel, norm = entry.kernel(original), entry.norm(original)
    run: JoinedRun | None = None
    if kernel is not None:
        run = JoinedProduct(composition, kernel)
    elif norm is not None and norm.batch and own is not None:
        run = JoinedBatchNorm(composition, norm, own)
    return run if run is not None and run.is_small else None

"""How one grown layer runs: which way is the faster for the call at hand, and running it so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from splitgrow import blockwise
from splitgrow.composition import Composition
from splitgrow.execution import Mode
from splitgrow.generations import hold_statistics
from splitgrow.merged import Merged
from splitgrow.whole import Unfit

LARGEST = 128 * 2**20
"""Bytes of a weight: "auto" puts no larger one together, which would take as much memory again."""
_JOINING = 1.0
"""Elements of a weight that are copied in the time in which one of an output is joined."""
_PER_BLOCK = 20_000
"""Elements: what the calls that one more block takes cost by themselves, against copying."""
_UNFIT = "its blocks do not run as one in this state"
_WHY = {"merged": 'asked for by execution("merged")', "auto": "it is the faster way"}
_WHY["blockwise"] = "its channels share a statistic"


@dataclass(frozen=True, slots=True)
class Ran:
    """How a grown layer was executed.

    Attributes:
        way: "merged": as one plain layer; "blockwise": block by block.
        gradient: The share of the weight's gradient that the backward pass computes; None where
            torch's own autograd does.
        reason: Why it was not the other way.
    """

    way: Literal["merged", "blockwise"]
    gradient: float | None
    reason: str


class Runner:
    """A grown layer's blocks and what is kept from call to call.

    Attributes:
        view: The edit that is shown; None for all.
        modules: All blocks, also those that are not shown.
        ran: How the last call was executed.
    """

    def __init__(
        self, composition: Composition, view: int | None, modules: tuple[nn.Module, ...]
    ) -> None:
        self.view, self.modules = view, modules
        self.ran: Ran | None = None
        self._composition = composition
        self._steps = blockwise.steps_of(composition)
        self._reasons: dict[Any, str] = {}
        self._merged = Merged(composition, keep=view is None)
        self._bytes = _bytes_of(composition)

    def run(self, mode: Mode, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output."""
        against = self._against_merging(mode, x)
        traced = not against and not _is_eager(x)
        if traced and self._merged.traceable:
            self.ran = Ran("merged", None, "it is being traced")
            return self._merged.run_traced(x, *args, **kwargs)
        against = "it is being traced" if traced else against
        if not against:
            try:
                output = self._merged.run(x, *args, **kwargs)
            except Unfit:
                against = _UNFIT
            else:
                self.ran = Ran("merged", self._merged.computed, _WHY[mode])
                return output
        self.ran = Ran("blockwise", None, against)
        composition = self._composition
        if self.view is None:
            self._merged.assembly.leave()
        else:
            composition = composition.dense()
        return blockwise.run(composition, self._steps, x, *args, **kwargs)

    def _against_merging(self, mode: Mode, x: Tensor) -> str:
        """Why not to run as one layer; empty if nothing speaks against it."""
        if len(self._composition.modules) == 1:
            return "it has one block"
        if self._composition.kind.couples:
            return ""
        if mode == "blockwise":
            return 'asked for by execution("blockwise")'
        if any(_is_hooked(module) for module in self._composition.modules):
            return "its blocks have hooks, which would not run"
        try:
            self._merged.assembly.look()
        except Unfit:
            return _UNFIT
        if mode == "merged":
            return ""
        key = self._merged.assembly.flags, x.shape
        if key not in self._reasons:
            self._reasons[key] = self._slower(x)
        return self._reasons[key]

    def _slower(self, x: Tensor) -> str:
        """Why putting the layer together would be slower; empty if it is faster."""
        if self._bytes > LARGEST:
            return "it is too large to be put together"
        composition = self._composition
        more = len(composition.modules) - 1
        ins, outs = composition.sizes
        rows = x.numel() // ins if composition.kind.reads_channels else x.numel()
        copied = self._merged.assembly.copied
        if copied > more * (_JOINING * rows * outs + _PER_BLOCK):
            return f"putting it together would copy {copied:,} elements for {rows:,} rows"
        return ""


def _bytes_of(composition: Composition) -> int:
    """How large the largest tensor of the plain layer is."""
    names = composition.kind.tensors(composition.original)
    found = [(composition.kind.value(composition.original, name), name) for name in names]
    return max(
        (
            math.prod(composition.shape(name)) * value.element_size()
            for value, name in found
            if value is not None
        ),
        default=0,
    )


def _is_hooked(module: nn.Module) -> bool:
    own = vars(module)
    if own["_forward_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
        return True
    hooks = own["_forward_pre_hooks"]
    return bool(hooks) and any(hook is not hold_statistics for hook in hooks.values())


def _is_eager(x: Tensor) -> bool:
    """Whether a call computes with plain tensors, as against being traced or transformed."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, nn.Parameter)
        and not x.is_meta
        and not torch._C._are_functorch_transforms_active()  # noqa: SLF001
        and forward_ad._current_level < 0  # noqa: SLF001
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )

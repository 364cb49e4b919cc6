"""Running one grown layer in the way that is faster for the call at hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from splitgrow.errors import UnsupportedLayerError
from splitgrow.layers.blockwise import Blockwise
from splitgrow.layers.compiled import compiled_form
from splitgrow.layers.compiled_code import COMPILES, note_function
from splitgrow.layers.composition import Composition
from splitgrow.layers.execution import Mode, execution_mode, keeps
from splitgrow.layers.freezing import hold_statistics
from splitgrow.layers.joined_run import JoinedRun, joined_run
from splitgrow.layers.merged import Merged
from splitgrow.layers.merging_costs import LARGEST_MERGED, bytes_of, rows_worth_copying
from splitgrow.layers.weight_views import Own, Unfit
from splitgrow.utils.eager import is_eager

_UNFIT = "its blocks do not run as one in this state"
_WHY = {"merged": 'asked for by execution("merged")', "auto": "it is the faster way"}
_WHY["blockwise"] = "its blocks can only run as one"


@dataclass(frozen=True, slots=True)
class LayerRun:
    """How a grown layer ran in its last call.

    Attributes:
        way: "merged": as one plain layer; "blockwise": block by block.
        gradient: The share of the weight's gradient that the backward pass computes; None where
            torch's own autograd computes it.
        reason: Why it did not run the other way.
    """

    way: Literal["merged", "blockwise"]
    gradient: float | None
    reason: str


_JOINED = LayerRun("merged", 1.0, _WHY["auto"])
"""Of `JoinedRun`, made once: a call has little time for more."""


class Runner:
    """A grown layer's blocks and the state that is kept from call to call.

    Attributes:
        view: The edit that is shown; None for all.
        modules: All blocks, also those that are not shown.
        own: The tensors that belong to them.
        composition: The blocks that are shown.
        ran: How the last call was executed.

    Args:
        composition: The layer's blocks and layouts.
        view: The edit that is shown; None for all.
        own: The blocks' own tensors, in case others stand in for them now.
    """

    def __init__(self, composition: Composition, view: int | None, own: Own | None = None) -> None:
        self.view, self.modules = view, composition.modules
        self.own = Own(composition.modules) if own is None else own
        self.ran: LayerRun | None = None
        self.composition = composition if view is None else composition.until(view)
        _ = self.composition.template  # while it can be made
        entry, original = composition.layer_type, composition.original
        self._channel_dim = entry.channel_dim(original) if entry.reads_channels else None
        self._input_of = entry.input_of
        self._uncompiled: Callable[..., Tensor] | None = None
        # As torch's compiler treats the plain layer, or as an older one can treat any grown layer.
        if not (entry.compiles and COMPILES):
            self._uncompiled = torch.compiler.disable(self._run)  # type: ignore[no-untyped-call]
        self._reasons: dict[Any, str] = {}
        self._merged = Merged(self.composition, self.own if view is None else None)
        self._bytes = bytes_of(self.composition)
        self._compiled = compiled_form(self.composition)
        self._views: dict[int | None, Runner] = {}

    def at(self, view: int | None, whole: Composition) -> Runner:
        """The layer as of an edit, the same object each time, for which compiled code holds.

        Args:
            view: The edit; None for all.
            whole: All blocks and layouts.
        """
        if view == self.view:
            return self
        found = self._views.get(view)
        if found is None or found.modules != whole.modules:
            found = self._views[view] = Runner(whole, view, self.own)
        return found

    @cached_property
    def _blockwise(self) -> Blockwise:
        return Blockwise(self.composition)

    @cached_property
    def _elements(self) -> int:
        """The number of elements of the plain layer."""
        composition = self.composition
        names = composition.layer_type.tensors(composition.original)
        held = [n for n in names if composition.merging.value(composition.original, n) is not None]
        return sum(math.prod(composition.shape(name)) for name in held)

    @cached_property
    def _joined(self) -> JoinedRun | None:
        """The way for a small layer in which everything trains; None if it has none."""
        return joined_run(self.composition, self.own if self.view is None else None)

    def run(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, in the mode that is chosen.

        Raises:
            UnsupportedLayerError: If torch.fx traces it.
        """
        if not torch.compiler.is_compiling():
            joined: JoinedRun | None = vars(self).get("_joined")  # made by an eager call
            if joined is not None and not args and not kwargs:
                output = joined.run(x)
                if output is not None:
                    self.ran = _JOINED
                    return output
            return self._run(x, *args, **kwargs)
        if self._uncompiled is not None:
            return self._uncompiled(x, *args, **kwargs)
        if torch.compiler.is_dynamo_compiling():  # and not torch.export without it
            note_function()
            compiled = self._compiled
            if compiled is not None and not args and not kwargs:
                return compiled.run(x)
        return self._run_keeping_nothing(x, *args, **kwargs)

    def _run(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        read = self._input_of(x)
        eager = is_eager(read)
        if not self._fits(read, eager=eager):  # the plain layer raises its own error
            plain = self.composition.plain().train(self.modules[-1].training)
            return plain(x, *args, **kwargs)  # type: ignore[no-any-return]
        if not keeps():
            return self._run_keeping_nothing(x, *args, **kwargs)
        output = self._run_joined(x) if eager and not args and not kwargs else None
        return self._run_in_mode(eager, x, *args, **kwargs) if output is None else output

    def _run_in_mode(self, eager: bool, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: FBT001
        mode, against = execution_mode(), "it is being traced"
        if eager or self._merged.traceable:
            against = self._against_merging(mode, self._input_of(x))
        if not against and not eager:
            self.ran = LayerRun("merged", None, "it is being traced")
            return self._merged.run_traced(x, *args, **kwargs)
        if not against:
            try:
                output, share = self._merged.run(x, *args, **kwargs)
            except Unfit:
                if self.composition.merging.joint:
                    self.ran = LayerRun("merged", None, _WHY["blockwise"])
                    return self._merged.run_traced(x, *args, **kwargs)
                against = _UNFIT
            else:
                self.ran = LayerRun("merged", share, _WHY[mode])
                return output
        self.ran = LayerRun("blockwise", None, against)
        composition = self.composition
        if eager and self.view is None:
            self._merged.leave()
        elif eager:
            composition = composition.dense()
        return self._blockwise.run(composition.modules, x, *args, **kwargs)

    def _run_joined(self, x: Tensor) -> Tensor | None:
        """As `JoinedRun.run`, for an input of a shape that is new to it."""
        joined = self._joined
        if joined is None or execution_mode() != "auto" or not joined.allows(x):
            return None
        if torch.is_grad_enabled():
            self._merged.leave()
        output = joined.run(x)
        if output is not None:
            self.ran = _JOINED
        return output

    def _run_keeping_nothing(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output in a run that must leave no trace, or while torch compiles.

        It ignores the mode and moves no tensor.
        """
        if self._merged.traceable and not self._apart(self._input_of(x)):
            return self._merged.run_traced(x, *args, **kwargs)
        return self._blockwise.run(self.composition.modules, x, *args, **kwargs)

    def _fits(self, x: object, *, eager: bool) -> bool:
        """Whether an input has the layer's number of channels on its channel dimension.

        Raises:
            UnsupportedLayerError: If torch.fx traces it.
        """
        if isinstance(x, fx.Proxy):
            raise UnsupportedLayerError(
                f"torch.fx cannot trace a {type(self.composition.original).__name__} that "
                f"splitgrow has grown; make the model plain first, with splitgrow.merge, or have "
                f"its calls stay as they are (a Tracer whose is_leaf_module is true for it)"
            )
        if not isinstance(x, Tensor):
            return False
        if self._channel_dim is None or x.is_nested or not eager:
            return True
        shape, dim = x.shape, self._channel_dim
        return -len(shape) <= dim < len(shape) and shape[dim] == self.composition.sizes[0]

    def _apart(self, x: Tensor) -> bool:
        """Whether to run the blocks by themselves where each call would assemble the layer."""
        if self.composition.merging.joint:
            return len(self.composition.modules) == 1
        if self._bytes > LARGEST_MERGED:
            return True
        if torch.compiler.is_compiling():
            return False
        return any_hooked(self.modules) or self._costs_more(self._elements, x)

    def _against_merging(self, mode: Mode, x: Tensor) -> str:
        """Why not to run as one layer; empty if nothing speaks against it."""
        if len(self.composition.modules) == 1:
            return "it has one block"
        if self.composition.merging.joint:
            return ""
        if mode == "blockwise":
            return 'asked for by execution("blockwise")'
        if any_hooked(self.composition.modules):
            return "its blocks have hooks, which would not run"
        try:
            self._merged.assembly.look()
        except Unfit:
            return _UNFIT
        if mode == "merged" or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return ""  # while torch.jit traces, sizes are no numbers
        key = self._merged.assembly.flags, x.shape
        if key not in self._reasons:
            self._reasons[key] = self._slower(x)
        return self._reasons[key]

    def _slower(self, x: Tensor) -> str:
        """Why assembling the layer would be slower; empty if it is faster."""
        if self._bytes > LARGEST_MERGED:
            return "it is too large to be put together"
        copied = self._merged.assembly.copied
        if self._costs_more(copied, x):
            rows = self._rows(x)
            return f"putting it together would copy {copied:,} elements for {rows:,} rows"
        return ""

    def _rows(self, x: Tensor) -> int:
        composition = self.composition
        reads = composition.layer_type.reads_channels
        return x.numel() // composition.sizes[0] if reads else x.numel()

    def _costs_more(self, copied: int, x: Tensor) -> bool:
        """Whether copying so many elements takes longer than joining the blocks' outputs."""
        return self._rows(x) < rows_worth_copying(self.composition, copied)


_forward_hooks_of = attrgetter("_forward_hooks", "_forward_pre_hooks")
_backward_hooks_of = attrgetter("_backward_hooks", "_backward_pre_hooks")


def any_hooked(modules: Sequence[nn.Module]) -> bool:
    """Whether one of some blocks has hooks that would run if it is called itself."""
    if torch.compiler.is_compiling():
        return any(map(is_hooked, modules))
    stores = (_forward_hooks_of, _backward_hooks_of)[: 1 + torch.is_grad_enabled()]
    some = any([any(map(any, map(hooks_of, modules))) for hooks_of in stores])  # noqa: C419
    return some and any(map(is_hooked, modules))


def is_hooked(module: nn.Module) -> bool:
    """Whether a block has hooks of its own, which run only if it is called itself."""
    own = vars(module)
    if own["_forward_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
        return True
    hooks = own["_forward_pre_hooks"]
    return bool(hooks) and any(hook is not hold_statistics for hook in hooks.values())

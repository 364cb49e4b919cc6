"""Traces a run of a model's forward: each op, each tensor, each number of a shape."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import TensorWeakRef

from splitgrow.analysis.bare_runs import Remembered, result_without_values
from splitgrow.analysis.calls_by_hand import ByHand
from splitgrow.analysis.channels.tracked_int import Tracked
from splitgrow.analysis.created_tensors import CreatedTensors
from splitgrow.analysis.leaf_modules import (
    LEAF_NUMBERS,
    Wider,
    as_if_resized,
    is_leaf,
    resized,
    run_in_evaluation,
    run_without_values,
    shallow,
)
from splitgrow.analysis.ops import is_in_place_name
from splitgrow.analysis.ops.targets import HANDS_OUT_MEMORY, target_of
from splitgrow.analysis.shape_shortcuts import result_of_leaf, result_of_op, without_values
from splitgrow.analysis.stand_ins import (
    Copies,
    HeldCopy,
    Modules,
    clone,
    otherwise_reached,
    refuse_without_memory,
)
from splitgrow.analysis.trace import Ref, Source, Step, mapped, untracked
from splitgrow.analysis.written_out import written_out
from splitgrow.layers.split_layer import stock
from splitgrow.layers.tensor_holder import SplitTensor, tensor_path
from splitgrow.utils.output_tensors import OpaqueError, tensors_in
from splitgrow.utils.source_lines import place_of_caller


class TraceRecorder(TorchFunctionMode):
    """Traces every op that runs while it is active."""

    def __init__(self, wider: Wider | None = None) -> None:
        super().__init__()
        self._wider = wider or Wider()
        self.steps: list[Step] = []
        self.owners: dict[int, str] = {}
        """The paths of the model's own tensors."""
        self.copies = Copies(self.owners, clone)
        self._known: dict[int, tuple[TensorWeakRef, Ref]] = {}
        self.inside = ""
        """The path of the leaf module that is running."""
        self._active = True
        self.hashable: frozenset[str] = frozenset()
        """The lines where tracked numbers are hashed; from there on they are mere values."""
        self.refused = ""
        """The last line where a hash of one was asked for and refused."""
        self.created = CreatedTensors()
        """The tensors that were made in a run on real values."""
        self.leaves: Container[nn.Module] = ()
        """The modules that are traced as one op."""
        self.standing_in = False
        """Whether look-alikes are to stand for the leaf modules."""
        self.stand_ins: dict[nn.Module, nn.Module] = {}
        """The look-alike of each leaf module, where growth could replace it."""
        self.strays: dict[str, str] = {}
        """Why leaf modules cannot grow that forward reached past their look-alikes."""
        self.assigned: tuple[tuple[str, str], ...] = ()
        """The paths at which forward put modules of its own, with the likeness of these."""
        self.unfit: dict[str, str] = {}
        """Why tensors of modules cannot grow, by their paths."""
        self._memory: dict[int, str] = {}
        self._remembered: Remembered = {}
        self._by_hand = ByHand(self.owners)

    # -- before and after ------------------------------------------------------------------------

    def know(self, modules: Modules) -> None:
        """Learns the paths of the model's tensors, and the modules that are traced as one op."""
        self.leaves = {module for name, module in modules if name and is_leaf(module)}
        for name, module in modules:
            for store in (module._parameters, module._buffers):  # noqa: SLF001
                for key, tensor in store.items():
                    if tensor is not None:
                        self.owners.setdefault(id(tensor), f"{name}.{key}".removeprefix("."))

    def given(self, inputs: Mapping[str, Tensor]) -> None:
        """Traces the inputs, by their names, as the first steps."""
        for name, tensor in inputs.items():
            self._note(tensor, self._add("input", Source.INPUT, (name,), {}, tensor))

    def copy_of(self, copied: Callable[[Tensor], Tensor], path: str, tensor: Tensor) -> Tensor:
        """A copy of a module's tensor for forward, at the width that it is to have.

        Args:
            copied: Makes a copy.
            path: The tensor's path.
            tensor: The tensor.
        """
        made = copied(self._wider.tensor(path, tensor))
        self.owners[id(made)] = path
        if made.layout is torch.strided:
            self._memory[made.untyped_storage()._cdata] = path  # noqa: SLF001
        return made

    def prepare(self, modules: Modules, copied: Callable[[Tensor], Tensor]) -> None:
        """Puts itself between the model and its leaf modules, and tracks every number it holds.

        The attributes of the model must be restored afterwards.

        Args:
            modules: The model's modules.
            copied: Makes a copy of a tensor.
        """
        below_a_leaf: set[nn.Module] = set()
        written = written_out(module for _, module in modules)
        for name, module in modules:
            if module in below_a_leaf:
                continue
            if module in self.leaves:
                if module._modules:  # noqa: SLF001
                    below_a_leaf.update(module.modules())
                if isinstance(module, SplitTensor):
                    self._show_tensor(name, module, copied)
                    continue
                as_it_was = shallow(module)
                sizes = self._wider.sizes.get(name)
                shown = as_it_was if sizes is None else as_if_resized(as_it_was, sizes)
                forward = self._recorded_forward(name, as_it_was, shown)
                self._by_hand.layers[name] = module, forward
                if self.standing_in:
                    stand_in = self.stand_ins[module] = shallow(module)
                    self._by_hand.show_own_(name, stand_in, self.copies)
                    self._show(name, shown, stand_in, forward, ())
                    forward = self._strays_forward(name, forward)
                self._show(name, shown, module, forward, (True,) if self.standing_in else ())
            else:
                own = module.__dict__
                if module in written:
                    own["forward"] = written[module]
                for key, value in list(own.items()):
                    if type(value) in (int, list, tuple):
                        own[key] = self._tracked_attribute(name, key, value)

    def _show(self, name: str, shown: nn.Module, module: Any, forward: Any, stray: Any) -> None:
        """Makes a leaf module, or its look-alike, report its calls and the uses of its numbers."""
        own = module.__dict__
        own["forward"] = forward
        for key in LEAF_NUMBERS & vars(stock(module)).keys():
            value = getattr(shown, key)
            if type(value) is int:
                own[key] = Tracked.of(value, self, (name, key, *stray))

    def _show_tensor(
        self, name: str, split: SplitTensor, copied: Callable[[Tensor], Tensor]
    ) -> None:
        """Makes a grown tensor look like one that its module holds."""
        value = split.composition().value("value")
        assert value is not None
        made = self.copy_of(copied, tensor_path(name), value)
        split.__dict__["forward"] = lambda: made

    def _strays_forward(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if not self.inside:
                self._stray(name)
            return forward(*args, **kwargs)

        return run

    def _stray(self, name: str) -> None:
        self.strays.setdefault(name, otherwise_reached(name, place_of_caller()))

    def _recorded_forward(
        self, name: str, module: nn.Module, shown: nn.Module
    ) -> Callable[..., Any]:
        kind = type(module)

        def run(*args: Any, **kwargs: Any) -> Any:
            if kwargs or len(args) != 1 or type(args[0]) is not FakeTensor:
                args, kwargs = untracked(args), untracked(kwargs)
                refuse_without_memory(*args)
            if self.inside:  # a leaf within a leaf
                return module.forward(*args, **kwargs)
            if getattr(module, "inplace", False):
                self._note_write(*args[:1])
            self.inside = name
            result = None if kwargs else result_of_leaf(shown, args)
            if result is None and shown is not module:
                result = run_without_values(resized(module, self._wider.sizes[name]), args, kwargs)
            elif result is None:
                result = run_in_evaluation(module, args, kwargs)
            self.inside = ""
            return self._record(kind.__name__, kind, args, kwargs, result, name)

        return run

    def _tracked_attribute(self, name: str, key: str, value: Any) -> Any:
        numbers = self._wider.numbers
        if type(value) is int:
            value = numbers.get((name, key), value)
            return Tracked.of(value, self, (name, key)) if value > 0 else value
        if not value or any(type(item) is not int for item in value):
            return value
        items = []
        for index, item in enumerate(value):
            origin = (name, f"{key}[{index}]")
            item = numbers.get(origin, item)
            items.append(Tracked.of(item, self, origin) if item > 0 else item)
        return type(value)(items)

    def finish(self, output: Any, held: Iterable[HeldCopy]) -> None:
        """Traces the output of the model, and forgets all tensors.

        Args:
            output: The output.
            held: The copies of modules' tensors as they were before the run.
        """
        for copy in held:
            if copy.store.get(copy.key) is not copy.tensor:
                self.unfit.setdefault(copy.path, "which forward replaces")
        for path in self.copies.reached:
            reason = "which forward reaches otherwise than by its module's attribute"
            self.unfit.setdefault(path, reason)
        try:
            tensors = [self._ref(tensor) for tensor in tensors_in(output)]
            self._add("output", Source.OUTPUT, (tensors,), {}, None)
        except OpaqueError:
            self._add("output", Source.UNSEEN, ("",), {}, None)
        self._active = False
        self._known = {}

    # -- in between ------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        if self.inside:
            return func(*args, **kwargs)
        called = self._by_hand.called(args, kwargs) if func is F.linear else None
        if called is not None:
            with self:
                return called()
        args, kwargs = mapped(args, self.copies.of), mapped(kwargs, self.copies.of)
        name, target, seen = target_of(func, args)
        if name in HANDS_OUT_MEMORY and args and isinstance(args[0], FakeTensor):
            raise RuntimeError(f"`{name}` hands out memory, and a fake tensor has none")
        if is_in_place_name(getattr(func, "__name__", "")) or target is setattr:
            self._note_write(*args[:1])
        if kwargs.get("out") is not None:
            self._note_write(kwargs["out"])
        plain, named = untracked(args), untracked(kwargs)
        result = result_of_op(name, target, plain, named)
        if result is None and target is not None:
            result = result_without_values(func, target, plain, named, self._remembered)
        if result is None:
            turned = plain[0] if is_in_place_name(str(target)) and plain else None
            before = getattr(turned, "shape", None)
            result = func(*plain, **named)
            if isinstance(turned, FakeTensor) and turned.shape != before:
                self._keep_shape(turned, before)
        if target is None:
            return result
        recorded = self._record(name, target, seen, kwargs, result)
        # These must return no subclass of int: Python would turn it into an int anyhow.
        return result if name in ("int", "index", "len") else recorded

    def whole_of(self, first: nn.Module, key: str, assembled: Callable[[], Any]) -> Any:
        """A tensor of a grown layer, as forward reads it; how it is assembled does not count.

        Args:
            first: The layer's original block.
            key: The tensor's name.
            assembled: Makes it.
        """
        inside, self.inside = self.inside, self.inside or key
        whole = assembled()
        self.inside = inside
        self._by_hand.note(first, key, whole)
        return whole

    def _note_write(self, *targets: Any) -> None:
        """Notes the tensors of modules into which an op writes."""
        for tensor in pytree.tree_leaves(targets):
            if not isinstance(tensor, Tensor):
                continue
            with torch._C.DisableTorchFunction(), suppress(RuntimeError):  # noqa: SLF001
                # A tensor that torch.func wraps has no storage, and raises.
                path = self._memory.get(tensor.untyped_storage()._cdata)  # noqa: SLF001
                if path is not None:
                    place = place_of_caller()
                    self.unfit.setdefault(path, f"into which forward writes, at {place}")

    def _keep_shape(self, tensor: FakeTensor, shape: Any) -> None:
        """Keeps the former shape of a tensor that is turned in place, in the step that made it."""
        ref = self.known(tensor)
        if ref is not None:
            step, shown = self.steps[ref.step], without_values(tensor, shape)
            example = mapped(step.example, lambda leaf: shown if leaf is tensor else leaf)
            self.steps[ref.step] = replace(step, example=example)

    def number(self, target: Any, args: tuple[Any, ...], value: Any, name: str = "") -> Any:
        """Traces a computation with tracked numbers.

        Raises:
            TypeError: If a number is to be hashed where that is not allowed.
        """
        if not self._active or self.inside:
            return value
        if name == "hash" and (line := place_of_caller()) not in self.hashable:
            self.refused = line
            raise TypeError("unhashable type: a number that is tracked")
        return self._record(name or target.__name__, target, args, {}, value)

    def _record(
        self, name: str, target: Any, args: Any, kwargs: Any, result: Any, module: str | None = None
    ) -> Any:
        refs, named = mapped(args, self._ref), mapped(kwargs, self._ref)
        return self._note(result, self._add(name, target, refs, named, result, module))

    def _add(
        self, name: str, target: Any, args: Any, kwargs: Any, result: Any, module: str | None = None
    ) -> Ref:
        example = result
        if type(result) not in (FakeTensor, int):
            inside, self.inside = self.inside, self.inside or name
            example = pytree.tree_map(_shape_only, result, is_leaf=_is_packed)
            self.inside = inside
        place = place_of_caller()
        self.steps.append(Step(name, target, tuple(args), kwargs, example, place, module))
        return Ref(len(self.steps) - 1)

    def _note(self, value: Any, ref: Ref) -> Any:
        """Remembers the step of each tensor of a result, and returns its numbers tracked."""
        if isinstance(value, Tensor):
            self._known[id(value)] = (TensorWeakRef(value), ref)
        elif type(value) is int:
            return Tracked.of(value, self, ref)
        elif isinstance(value, (tuple, list)):
            parts = [
                self._note(part, Ref(ref.step, (*ref.path, i))) for i, part in enumerate(value)
            ]
            if isinstance(value, torch.Size):
                return torch.Size(parts)
        return value

    def known(self, leaf: Any) -> Ref | None:
        """The reference to a tensor in the trace; None if it is no tensor, or not in the trace."""
        found = self._known.get(id(leaf))
        return found[1] if found is not None and found[0]() is leaf else None

    def _ref(self, leaf: Any) -> Any:
        """The reference that stands for a value in the trace."""
        if isinstance(leaf, Tracked):
            if leaf.keeper is not self:
                return int.__int__(leaf)
            if not isinstance(leaf.origin, Ref):
                name, key, *stray = leaf.origin
                if stray:
                    self._stray(name)
                value = int.__int__(leaf)
                leaf.origin = self._add("attribute", Source.NUMBER, (name, key), {}, value)
            return leaf.origin
        if not isinstance(leaf, Tensor):
            return leaf
        known = self.known(leaf)
        if known is not None:
            return known
        path = self.owners.get(id(leaf), "")
        unseen = not path and (isinstance(leaf, FakeTensor) or leaf in self.created)
        source = Source.UNSEEN if unseen else Source.TENSOR
        self._note(leaf, self._add("tensor", source, (path,), {}, leaf))
        return self._known[id(leaf)][1]


def _is_packed(value: Any) -> bool:
    return isinstance(value, PackedSequence)


def _shape_only(value: Any) -> Any:
    if _is_packed(value):  # it cannot be made of tensors on other devices
        return tuple(_shape_only(part) for part in value)
    if not isinstance(value, Tensor) or isinstance(value, FakeTensor):
        return value
    return value.detach().to("meta")

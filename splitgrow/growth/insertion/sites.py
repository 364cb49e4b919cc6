"""The places for insertions: the boundaries of modules, found in a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from splitgrow.analysis.leaf_modules import is_leaf
from splitgrow.analysis.ops import facts_of
from splitgrow.analysis.ops.facts import ValueRange
from splitgrow.analysis.trace import Ref, Step, at_path, refs_in, refs_of
from splitgrow.analysis.trace_recorder import TraceRecorder
from splitgrow.analysis.tracer import trace_model
from splitgrow.errors import InsertionError
from splitgrow.growth.insertion.value_ranges import value_ranges
from splitgrow.layers.insertion_wrapper import InsertionWrapper
from splitgrow.layers.split_layer import SplitLayer, stock
from splitgrow.layers.tensor_holder import SplitTensor
from splitgrow.layers.types import layer_type_of
from splitgrow.utils.example_call import ExampleCall

_NORMS = ("BatchNorm", "InstanceNorm", "GroupNorm", "LayerNorm", "RMSNorm", "LocalResponseNorm")


@dataclass(frozen=True)
class Call:
    """One call of a module in a trace.

    Attributes:
        path: The module's path.
        given: Its first argument in the trace; None if that is not a tensor.
        result: The tensor that it returns in the trace; None if there is none.
        tuple_of: The number of items of its result; None if it is a tensor.
    """

    path: str
    given: Ref | None
    result: Ref | None
    tuple_of: int | None


@dataclass(frozen=True)
class Site:
    """A place for an insertion.

    Attributes:
        host: The path of the module next to it.
        before: Whether it lies before the module, rather than behind it.
        example: The tensor at that place; only its shape counts.
        dim: The dimension of its channels.
        bounds: The tensor's value range.
        unit: The modules and functions that made it, from the layer on: a norm, an activation.
    """

    host: str
    before: bool
    example: Tensor
    dim: int
    bounds: ValueRange
    unit: tuple[str, ...]

    @property
    def width(self) -> int:
        """The number of channels."""
        return int(self.example.shape[self.dim])


class _CallTracer(TraceRecorder):
    """Traces the calls of all modules as well as the ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def prepare(self, modules: Any, copied: Any) -> None:
        """Wraps the forward of every module."""
        super().prepare(modules, copied)
        grown = tuple(f"{name}." for name, module in modules if isinstance(module, SplitLayer))
        for name, module in modules:  # blocks are no places, and shapes are read from them
            apart = isinstance(module, (InsertionWrapper, SplitTensor)) or name.startswith(grown)
            if name and not apart:
                own = self.stand_ins.get(module, module).__dict__
                forward = own.get("forward") or module.forward
                own["forward"] = self._noted_forward(name, forward)

    def _noted_forward(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return forward(*args, **kwargs)
            given = self.known(args[0] if args else next(iter(kwargs.values()), None))
            result = forward(*args, **kwargs)
            several = isinstance(result, (tuple, list))
            made = self.known(result[0] if several and result else result)
            self.calls.append(Call(name, given, made, len(result) if several else None))
            return result

        return run


class Sites:
    """The places for insertions in a model.

    Args:
        model: The model. It is not changed.
        inputs: The example call.
    """

    def __init__(self, model: nn.Module, inputs: ExampleCall) -> None:
        trace = trace_model(model, inputs, training=False, make=_CallTracer)
        recorder = trace.recorder
        assert isinstance(recorder, _CallTracer)
        self.steps: Sequence[Step] = trace.steps
        self.calls = recorder.calls
        self.strays = recorder.strays
        self.modules: Mapping[str, nn.Module] = dict(model.named_modules())
        self._bounds = value_ranges(self.steps, self.modules)
        self._readers: dict[Ref, list[int]] = {}
        for index, step in enumerate(self.steps):
            for ref in refs_of(step):
                self._readers.setdefault(ref, []).append(index)

    def behind(self, path: str) -> Site:
        """The place behind a module: behind a layer's norm and activation, if it has them.

        If no module starts or ends there, since the activation and its reader are functions, it is
        the place behind the last module before: the layer itself, or its norm.

        Raises:
            InsertionError: If it is not called exactly once, or returns no tensor.
        """
        call = self.call_of(path)
        if call.result is None:
            raise InsertionError(f"`{path}` does not pass on a tensor that could be followed")
        if layer_type_of(stock(self.modules[path])) is None or not is_leaf(self.modules[path]):
            return self._site(path, before=False, value=call.result, unit=(path,))
        value, unit = self._end_of_unit(call.result, path)
        for other in self.calls:  # a module comes before those that hold it
            if other.result == value and self._count(other.path) == 1:
                return self._site(other.path, before=False, value=value, unit=unit)
        reader = self._only_reader(value)
        if reader is not None:
            return self._site(reader, before=True, value=value, unit=unit)
        host, value, unit = self._last_module(path, call.result)
        return self._site(host, before=False, value=value, unit=unit)

    def between(self, path: str, reader: str) -> Site:
        """The place between a layer and one module that reads it.

        Raises:
            InsertionError: If the module is not called exactly once, or reads another value.
        """
        made, given = self.call_of(path).result, self.call_of(reader).given
        if made is None:
            raise InsertionError(f"`{path}` does not pass on a tensor that could be followed")
        between = self._steps_between(made, given) if given is not None else None
        if given is None or between is None:
            raise InsertionError(
                f"`{reader}` does not read what comes out of `{path}` as its first argument, with "
                f"nothing but functions and modules without channels of their own between them"
            )
        names = [step.module or step.name for step in between]
        return self._site(reader, before=True, value=given, unit=(path, *names))

    def _steps_between(self, made: Ref, given: Ref) -> list[Step] | None:
        """The steps that lead from one value to another, other than layers; None if none do."""
        leads, needed = {made.step}, {given.step}
        span = range(made.step + 1, given.step + 1)
        for index in span:
            step = self.steps[index]
            read = {ref.step for ref in refs_of(step)}
            if read & leads and not self._is_layer(step.module):
                leads.add(index)
        if given.step not in leads:
            return None
        for index in span[::-1]:
            step = self.steps[index]
            if index in needed & leads:
                refs = refs_of(step)
                needed.update(ref.step for ref in refs)
        return [self.steps[index] for index in span if index in needed & leads]

    def _last_module(self, path: str, value: Ref) -> tuple[str, Ref, tuple[str, ...]]:
        """The last module of a layer's unit, its result, and the unit up to there."""
        unit: tuple[str, ...] = (path,)
        found = (path, value, unit)
        while (following := self._following(value)) is not None:
            value, name = following
            unit = (*unit, name)
            if name in self.modules and self._count(name) == 1:
                found = (name, value, unit)
            if not self._is_norm(name):
                break
        return found

    def width_of(self, path: str) -> int:
        """The number of channels of a module's output.

        Raises:
            InsertionError: If it is not called exactly once.
        """
        result = self.call_of(path).result
        assert result is not None
        example = self.example_of(result)
        return int(example.shape[self._channel_dim(result, example)])

    def _count(self, path: str) -> int:
        return sum(call.path == path for call in self.calls)

    def call_of(self, path: str) -> Call:
        """The only call of a module.

        Raises:
            InsertionError: If it is not called exactly once.
        """
        calls = [call for call in self.calls if call.path == path]
        if path in self.strays:
            raise InsertionError(f"`{path}`: {self.strays[path]}")
        if len(calls) != 1:
            raise InsertionError(
                f"`{path}` is called {len(calls)} times in a forward pass, and what is inserted at "
                f"a module works at every call; name one that is called once"
            )
        return calls[0]

    def _end_of_unit(self, value: Ref, path: str) -> tuple[Ref, tuple[str, ...]]:
        """The result of a layer's norm and activation, if nothing else reads the earlier values."""
        unit: tuple[str, ...] = (path,)
        while (following := self._following(value)) is not None:
            value, name = following
            unit = (*unit, name)
            if not self._is_norm(name):
                break
        return value, unit

    def _following(self, value: Ref) -> tuple[Ref, str] | None:
        """The norm or activation that alone reads a value, with its result."""
        readers = self._readers.get(value, [])
        if len(readers) != 1:
            return None
        index = readers[0]
        step = self.steps[index]
        name = step.module or step.name
        if self._is_norm(name) or facts_of(step.target).activation:
            return Ref(index), name
        return None

    def _is_layer(self, path: str | None) -> bool:
        """Whether the module at that path has channels of its own, and is no norm."""
        if path is None or self._is_norm(path):
            return False
        return layer_type_of(stock(self.modules[path])) is not None

    def _is_norm(self, name: str) -> bool:
        module = self.modules.get(name)
        return module is not None and any(n in type(stock(module)).__name__ for n in _NORMS)

    def _only_reader(self, value: Ref) -> str | None:
        """The module that alone reads a value, as its first argument, and is called once."""
        readers = [self.steps[index] for index in self._readers.get(value, [])]
        paths = {step.module for step in readers}
        if len(readers) != 1 or None in paths:
            return None
        (path,) = paths
        found = [call for call in self.calls if call.path == path and call.given == value]
        return path if len(found) == 1 and self._count(str(path)) == 1 else None

    def _site(self, host: str, *, before: bool, value: Ref, unit: tuple[str, ...]) -> Site:
        example = self.example_of(value)
        dim = self._channel_dim(value, example)
        return Site(host, before, example, dim, self._bounds[value.step], unit)

    def example_of(self, value: Ref) -> Tensor:
        """A tensor of the trace; only its shape counts."""
        example = at_path(self.steps[value.step].example, value.path)
        assert isinstance(example, Tensor)
        return example

    def _channel_dim(self, value: Ref, example: Tensor) -> int:
        """The dimension on which the next layer, or else the last one, has the channels."""
        dims = example.dim()
        if dims == 2:
            return 1
        for ref in (*self._from(value, self._next), *self._from(value, self._last)):
            step = self.steps[ref.step]
            if step.module is None:
                continue
            layer = stock(self.modules[step.module])
            entry, seen = layer_type_of(layer), step.example
            if entry is not None and isinstance(seen, Tensor) and seen.dim() == dims:
                return entry.channel_dim(layer) % dims
        return 1 if dims > 3 else dims - 1

    def _from(self, value: Ref, onward: Callable[[Ref], list[Ref]]) -> Iterator[Ref]:
        """Results computed from a value, or from which it is computed, the nearest first."""
        pending, seen = [value], {value}
        while pending:
            ref = pending.pop(0)
            yield ref
            for other in onward(ref):
                if other not in seen:
                    seen.add(other)
                    pending.append(other)

    def _next(self, ref: Ref) -> list[Ref]:
        readers = self._readers.get(ref, [])
        return [Ref(index) for index in readers if not self._turns(index)]

    def _last(self, ref: Ref) -> list[Ref]:
        step = self.steps[ref.step]
        return [] if self._turns(ref.step) else list(refs_in(step.args))

    def _turns(self, index: int) -> bool:
        """Whether a step may move channels to another dimension."""
        return facts_of(self.steps[index].target).turns

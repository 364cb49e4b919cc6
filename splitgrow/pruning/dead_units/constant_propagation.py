"""Constants followed through a trace: the input channels of each layer that no input can change.

The table of ops tells how each op changes values; the result of an op without an entry is unknown.
An op that may write into shared memory makes the tensors there unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from splitgrow.analysis.channels.channel_axes import Axis
from splitgrow.analysis.channels.channel_groups import Groups
from splitgrow.analysis.ops import Arithmetic, Facts, Shaped, Values, facts_of
from splitgrow.analysis.trace import Ref, Source, Step, at_path, mapped, refs_of
from splitgrow.layers.freezing import hold_statistics
from splitgrow.layers.types import LayerType, layer_type_of
from splitgrow.pruning.dead_units.aliasing import Key, Memory, is_torchs, written_by
from splitgrow.pruning.dead_units.constants import Known, known_or_none, made_by, same


def constants_read(
    modules: Mapping[str, nn.Module], groups: Groups, steps: Sequence[Step], values: Sequence[Any]
) -> dict[str, Known | None]:
    """The constants among each layer's input channels, equal in all of its calls.

    Args:
        modules: The network's modules by path.
        groups: The store of groups.
        steps: A trace in evaluation mode.
        values: The values that the rules computed for each step.

    Returns:
        An entry for each layer that the run calls, by path; None if nothing is known.
    """
    walk = _Walk(modules, groups, steps, values)
    for index in range(len(steps)):
        walk.follow(index)
    return walk.read


class _Walk:
    """The constants found so far in a trace, and the tensors that may share memory."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        groups: Groups,
        steps: Sequence[Step],
        values: Sequence[Any],
    ) -> None:
        self.modules, self.groups, self.steps, self.values = modules, groups, steps, values
        self.read: dict[str, Known | None] = {}
        self.facts: dict[Key, Known] = {}
        self.memory = Memory()

    def follow(self, index: int) -> None:
        """Follows one step of the trace."""
        step = self.steps[index]
        if isinstance(step.target, Source):
            return
        operands = [(ref.step, ref.path) for ref in refs_of(step) if self._is_tensor(ref)]
        results = {(index, path): example for path, example in _parts(step.example)}
        module = None if step.module is None else self.modules[step.module]
        entry = layer_type_of(module) if module is not None else None
        if entry is not None and module is not None:
            made = self._layer(step, module, entry)
            if not is_torchs(type(module)):  # it may write into its inputs
                self._forget(operands)
                self.memory.relate([*operands, *results])
            self.facts.update({key: made for key in results if made is not None})
            return
        written = written_by(step, module, operands)
        made_of: list[Known | None] = [None] * len(results)
        if is_torchs(step.target) and all(e.is_floating_point() for e in results.values()):
            made_of = self._made(index, written=bool(written))
        self._forget(written)
        for key, made in zip(results, made_of, strict=True):
            if made is not None:
                self.facts[key] = made
        if written:
            self.memory.relate([*written, *results])
        elif not (is_torchs(step.target) and facts_of(step.target).fresh):
            self.memory.relate([*operands, *results])

    # -- layers ----------------------------------------------------------------------------------

    def _layer(self, step: Step, module: nn.Module, entry: LayerType) -> Known | None:
        ndim = step.example.dim() if isinstance(step.example, Tensor) else 0
        dim = entry.channel_dim(module)
        dim = dim if dim < 0 else dim - ndim
        given = self._fact(step.args[0]) if step.args and entry.reads_channels else None
        if runs_hooks(module) or given is None or given.dim != dim:
            given = None
        name = str(step.module)
        self.read[name] = same(self.read[name], given) if name in self.read else given
        return made_by(module, given, dim) if ndim and not runs_hooks(module) else None

    # -- other ops -------------------------------------------------------------------------------

    def _made(self, index: int, *, written: bool) -> list[Known | None]:
        """The constants in each tensor that an op returns."""
        step = self.steps[index]
        facts = facts_of(step.target)
        parts = list(_parts(step.example))
        nothing: list[Known | None] = [None] * len(parts)
        module = None if step.module is None else self.modules[step.module]
        if "out" in step.kwargs or (module is not None and runs_hooks(module)):
            return nothing
        if facts.values is Values.MOVED:
            return nothing if written else self._moved(index)
        if len(parts) != 1 or parts[0][0] != ():
            return nothing
        if facts.values is Values.POINTWISE:
            return [self._pointwise(step, facts.arithmetic)]
        return nothing if written else [self._whole(index, facts, module)]

    def _whole(self, index: int, facts: Facts, module: nn.Module | None) -> Known | None:
        """The constants in the result of an op on whole channels."""
        step = self.steps[index]
        if facts.values is Values.PRODUCT:
            return self._product(index, [_argument(step, *factor) for factor in facts.factors])
        given = self._fact(step.args[0]) if step.args else None
        if given is None:
            return None
        if facts.values is Values.KEPT:
            return None if facts.drawn and not _is_off(step, module) else given
        values = _values_of_padding(step, given) if step.target is F.pad else facts.values
        if values is Values.POOLED:
            return self._over_space(index, given)
        zeros = values is Values.SUMMED
        return self._over_space(index, given.where(given.zero)) if zeros else None

    def _pointwise(self, step: Step, arithmetic: Arithmetic | None) -> Known | None:
        refs = [ref for ref in refs_of(step) if self._is_tensor(ref)]
        facts = [self._fact(ref) for ref in refs]
        known = [fact for fact in facts if fact is not None]
        if not known or any(fact.dim != known[0].dim for fact in known):
            return None
        length = int(step.example.shape[known[0].dim])
        if any(len(fact.values) != length for fact in known):
            return None
        zeros = None
        if arithmetic is Arithmetic.MULTIPLIES:
            zero = torch.stack([fact.zero for fact in known]).any(0)
            zeros = known_or_none(known[0].dim, torch.zeros(length).double(), zero)
        divides = arithmetic is Arithmetic.DIVIDES
        if len(known) < len(facts) or (divides and (len(facts) > 1 or step.kwargs)):
            return zeros
        operand = {
            (ref.step, ref.path): fact.as_operand() for ref, fact in zip(refs, known, strict=True)
        }
        values = self._called(step, lambda ref: operand[ref.step, ref.path].clone())
        values = values.double().flatten()
        everywhere = torch.stack([fact.known for fact in known]).all(0)
        if zeros is not None:  # zero times an unknown value
            everywhere, values = everywhere | zeros.known, torch.where(zeros.known, 0.0, values)
        return known_or_none(known[0].dim, values, everywhere)

    def _product(self, index: int, factors: Sequence[Any]) -> Known | None:
        """The zeros of a product: a factor is zero there, along a dimension that is not summed."""
        for factor in factors:
            given = self._fact(factor)
            found = self._over_space(index, given and given.where(given.zero), factor)
            if found is not None:
                return found
        return None

    def _over_space(self, index: int, given: Known | None, ref: Any = None) -> Known | None:
        """The same constants, maybe on another dimension."""
        if given is None:
            return None
        before = self._axes(self.steps[index].args[0] if ref is None else ref)[given.dim]
        dim = self._channel_dim(self.values[index])
        if dim is None:
            return None
        after = self.groups.resolve(self.values[index].axes[dim])
        same_axis = self.groups.resolve(before) == after
        return Known(dim, given.values, given.known) if same_axis else None

    def _moved(self, index: int) -> list[Known | None]:
        """Values and known flags at full shape, moved in the way that the op moves them."""
        step = self.steps[index]
        paths = [path for path, _ in _parts(step.example)]
        refs = [ref for ref in refs_of(step) if self._is_tensor(ref)]
        retyped = any(isinstance(leaf, torch.dtype) for leaf in step.args)
        if retyped or all(self._fact(ref) is None for ref in refs):
            return [None] * len(paths)
        values = self._called(step, lambda ref: self._laid_out(ref, known=False))
        known = self._called(step, lambda ref: self._laid_out(ref, known=True))
        found: list[Known | None] = []
        for path in paths:
            dim = self._channel_dim(at_path(self.values[index], path))
            if dim is None or not at_path(values, path).numel():
                found.append(None)
                continue
            numbers = at_path(values, path).movedim(dim, 0).flatten(1)
            alike = at_path(known, path).movedim(dim, 0).flatten(1).all(1)
            alike = alike & (numbers == numbers[:, :1]).all(1)
            found.append(known_or_none(dim, numbers[:, 0].clone(), alike))
        return found

    def _laid_out(self, ref: Ref, *, known: bool) -> Tensor:
        shape, fact = self._example(ref).shape, self._fact(ref)
        if fact is None:
            empty = torch.zeros((), dtype=torch.bool) if known else torch.zeros(()).double()
            return empty.expand(shape).contiguous()
        row = fact.known if known else fact.values
        return row.reshape(-1, *[1] * (-fact.dim - 1)).expand(shape).contiguous()

    def _called(self, step: Step, tensor: Callable[[Ref], Tensor]) -> Any:
        """The result of the op on other tensors."""

        def given(leaf: Any) -> Any:
            if not isinstance(leaf, Ref):
                return leaf
            return tensor(leaf) if self._is_tensor(leaf) else self._example(leaf)

        args, kwargs = mapped(step.args, given), mapped(step.kwargs, given)
        with torch.no_grad():
            if step.module is not None:
                return self.modules[step.module].forward(*args, **kwargs)
            if isinstance(step.target, str):
                return getattr(args[0], step.target)(*args[1:], **kwargs)
            return step.target(*args, **kwargs)

    def _forget(self, keys: Sequence[Key]) -> None:
        """Drops the constants of tensors, and of all tensors that may lie in the same memory."""
        for key in keys:
            for relative in self.memory.relatives(key):
                self.facts.pop(relative, None)

    # -- lookups ---------------------------------------------------------------------------------

    def _example(self, ref: Ref) -> Any:
        return at_path(self.steps[ref.step].example, ref.path)

    def _is_tensor(self, ref: Ref) -> bool:
        return isinstance(self._example(ref), Tensor)

    def _fact(self, leaf: Any) -> Known | None:
        return self.facts.get((leaf.step, leaf.path)) if isinstance(leaf, Ref) else None

    def _axes(self, ref: Ref) -> tuple[Axis, ...]:
        shaped = at_path(self.values[ref.step], ref.path)
        return tuple(shaped.axes)

    def _channel_dim(self, shaped: Any) -> int | None:
        """The only dimension, counted from the end, whose units can grow; None if not just one."""
        if not isinstance(shaped, Shaped):
            return None
        dims = [i for i, axis in enumerate(shaped.axes) if self.groups.can_grow(axis)]
        return dims[0] - len(shaped.axes) if len(dims) == 1 else None


def runs_hooks(module: nn.Module) -> bool:
    """Whether a module, or one inside, has hooks that could change its inputs or outputs."""
    return any(map(has_forward_hooks, module.modules()))


def hooked_unseen(modules: Mapping[str, nn.Module], steps: Sequence[Step]) -> list[str]:
    """The modules with such hooks, which a trace runs without, that it does not have as one op."""
    called = {step.module for step in steps}
    return [name for name, m in modules.items() if has_forward_hooks(m) and name not in called]


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether a module itself has such hooks; holding a norm's statistics changes nothing here."""
    before = module._forward_pre_hooks.values()  # noqa: SLF001
    return bool(module._forward_hooks) or any(hook is not hold_statistics for hook in before)  # noqa: SLF001


def _argument(step: Step, index: int, name: str) -> Any:
    return step.kwargs.get(name, step.args[index] if len(step.args) > index else None)


def _is_off(step: Step, module: nn.Module | None) -> bool:
    """Whether a dropout does nothing in evaluation mode."""
    if module is not None:
        return True
    return step.kwargs.get("training", step.args[2] if len(step.args) > 2 else True) is False


def _values_of_padding(step: Step, given: Known) -> Values:
    """The effect of `F.pad` on known values."""
    amounts, value = _argument(step, 1, "pad"), _argument(step, 3, "value")
    mode = _argument(step, 2, "mode") or "constant"
    if not isinstance(amounts, (tuple, list)) or len(amounts) // 2 >= -given.dim:
        return Values.UNKNOWN  # it pads channels
    if mode != "constant":
        return Values.POOLED  # it repeats existing values
    return Values.SUMMED if value in {None, 0} else Values.UNKNOWN


def _parts(example: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """The tensors of a result, each with the indices that lead to it."""
    if isinstance(example, Tensor):
        yield path, example
    elif isinstance(example, (tuple, list)):
        for index, part in enumerate(example):
            yield from _parts(part, (*path, index))

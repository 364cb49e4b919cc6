"""Constants followed through a recorded run: what each layer is known to read, whatever the input.

An op is either in one of the tables here, or nothing is known of what it makes. What might write
into tensors that others share takes away what was known of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.axes import Axis
from splitgrow.constants import Known, known_or_none, made_by, same
from splitgrow.groups import Groups
from splitgrow.kinds import kind_of
from splitgrow.kinds.registry import LayerKind
from splitgrow.removal import is_in_place_name
from splitgrow.rules import Shaped, rule_of
from splitgrow.steps import Ref, Source, Step, mapped, refs_in

_POINTWISE_NAMES = """
    relu relu6 elu selu celu leakyrelu gelu silu mish hardswish hardsigmoid hardtanh softplus
    softsign sigmoid logsigmoid tanh tanhshrink abs neg negative square clamp clip
    clampmin clampmax add radd iadd sub subtract rsub isub mul rmul imul multiply
"""
POINTWISE = frozenset(_POINTWISE_NAMES.split())
"""What is computed position by position, and for like numbers gives like numbers, give or take
rounding: nothing that jumps, and nothing that blows rounding up."""

_PRODUCTS = frozenset(("mul", "rmul", "imul", "multiply"))
_DIVISIONS = frozenset(("div", "divide", "truedivide", "truediv", "itruediv", "idiv"))

_PASSED_ON_NAMES = """
    identity dropout1d dropout2d dropout3d dropout alphadropout featurealphadropout contiguous clone
    detach float double half bfloat16 cpu cuda to type typeas
"""
_PASSED_ON = frozenset(_PASSED_ON_NAMES.split())
"""What gives the values that it gets; dropouts only where they are told not to train."""

_MOVES_NAMES = """
    flatten ravel view reshape permute transpose swapaxes swapdims movedim moveaxis t squeeze
    unsqueeze expand broadcastto repeat tile cat concat concatenate stack chunk split tensorsplit
    narrow select getitem unflatten pixelshuffle pixelunshuffle channelshuffle repeatinterleave
"""
_MOVES = frozenset(_MOVES_NAMES.split())
"""What only moves values to other places."""

_DIMS = ("1d", "2d", "3d")
_OVER_SPACE = frozenset(
    [
        *("mean", "amax", "amin", "interpolate", "upsample"),
        *("upsamplingnearest2d", "upsamplingbilinear2d"),
        *(f"{name}{d}" for d in _DIMS for name in ("maxpool", "adaptivemaxpool")),
        *(f"{name}{d}" for d in _DIMS for name in ("adaptiveavgpool", "reflectionpad")),
        *(f"{name}{d}" for d in _DIMS for name in ("replicationpad", "circularpad")),
    ]
)
"""What makes of a channel that is the same everywhere one with that same number."""

_ZEROS_OVER_SPACE = frozenset(
    ["sum", *(f"{name}{d}" for d in _DIMS for name in ("avgpool", "zeropad", "lppool"))]
)
"""What makes of a channel of zeros one of zeros; of another number it may make another one."""

_FRESH = POINTWISE | _DIVISIONS | {"cat", "concat", "concatenate", "stack"}
"""What makes a tensor in memory of its own."""

_Key = tuple[int, tuple[Any, ...]]


def constants_read(
    modules: Mapping[str, nn.Module], groups: Groups, steps: Sequence[Step], values: Sequence[Any]
) -> dict[str, Known | None]:
    """What is known of each layer's input channels, in all of its calls alike.

    Args:
        modules: The network's modules by path.
        groups: The store of groups.
        steps: A run in evaluation mode.
        values: What the rules made of each step.

    Returns:
        An entry for each layer that the run calls, by path; None if nothing is known.
    """
    walk = _Walk(modules, groups, steps, values)
    for index in range(len(steps)):
        walk.follow(index)
    return walk.read


class _Walk:
    """What is known of the tensors of a run so far, and which of them may share memory."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        groups: Groups,
        steps: Sequence[Step],
        values: Sequence[Any],
    ) -> None:
        self.modules, self.groups, self.steps, self.values = modules, groups, steps, values
        self.read: dict[str, Known | None] = {}
        self.facts: dict[_Key, Known] = {}
        self.relatives: dict[_Key, set[_Key]] = {}

    def follow(self, index: int) -> None:
        """Takes one step."""
        step = self.steps[index]
        if isinstance(step.target, Source):
            return
        operands = list(self._operands(step))
        results = {(index, path): example for path, example in _parts(step.example)}
        module = None if step.module is None else self.modules[step.module]
        kind = kind_of(module) if module is not None else None
        if kind is not None and module is not None:
            made = self._layer(step, module, kind)
            if not _is_torchs(type(module)):  # who knows what it does to what it is given
                self._forget(operands)
                self._relate([*operands, *results])
            self.facts.update({key: made for key in results if made is not None})
            return
        written = self._written(step, operands)
        made_of: list[Known | None] = [None] * len(results)
        if _is_torchs(step.target) and all(e.is_floating_point() for e in results.values()):
            made_of = self._made(index, written=bool(written))
        self._forget(written)
        for key, made in zip(results, made_of, strict=True):
            if made is not None:
                self.facts[key] = made
        if written:
            self._relate([*written, *results])
        elif not (_is_torchs(step.target) and _plain_name(step.name) in _FRESH):
            self._relate([*operands, *results])

    # -- layers ----------------------------------------------------------------------------------

    def _layer(self, step: Step, module: nn.Module, kind: LayerKind) -> Known | None:
        ndim = step.example.dim() if isinstance(step.example, Tensor) else 0
        dim = kind.channel_dim(module)
        dim = dim if dim < 0 else dim - ndim
        given = self._fact(step.args[0]) if step.args and kind.reads_channels else None
        if has_hooks(module) or given is None or given.dim != dim:
            given = None
        name = str(step.module)
        self.read[name] = same(self.read[name], given) if name in self.read else given
        return made_by(module, given, dim) if ndim and not has_hooks(module) else None

    # -- other ops -------------------------------------------------------------------------------

    def _made(self, index: int, *, written: bool) -> list[Known | None]:
        """What is known of each tensor that an op results in."""
        step = self.steps[index]
        name = _plain_name(step.name)
        parts = list(_parts(step.example))
        nothing: list[Known | None] = [None] * len(parts)
        module = None if step.module is None else self.modules[step.module]
        if "out" in step.kwargs or (module is not None and has_hooks(module)):
            return nothing
        if name in _MOVES:
            return nothing if written else self._moved(index)
        if len(parts) != 1 or parts[0][0] != ():
            return nothing
        if name in POINTWISE or name in _DIVISIONS:
            return [self._pointwise(step, name)]
        given = self._fact(step.args[0]) if step.args else None
        if given is None or written:
            return nothing
        if name in _PASSED_ON:
            return [given if not name.endswith("dropout") or _is_off(step, module) else None]
        if name in _OVER_SPACE or name == "prelu":
            return [self._over_space(index, given) if name != "prelu" else given.where(given.zero)]
        if name in _ZEROS_OVER_SPACE or (name == "pad" and _pads_space_with_zeros(step, given)):
            return [self._over_space(index, given.where(given.zero))]
        return nothing

    def _pointwise(self, step: Step, name: str) -> Known | None:
        refs = [ref for ref in _refs(step) if self._is_tensor(ref)]
        facts = [self._fact(ref) for ref in refs]
        known = [fact for fact in facts if fact is not None]
        if not known or any(fact.dim != known[0].dim for fact in known):
            return None
        length = int(step.example.shape[known[0].dim])
        if any(len(fact.values) != length for fact in known):
            return None
        zeros = None
        if name in _PRODUCTS:
            zero = torch.stack([fact.zero for fact in known]).any(0)
            zeros = known_or_none(known[0].dim, torch.zeros(length).double(), zero)
        if len(known) < len(facts) or (name in _DIVISIONS and len(facts) > 1):
            return zeros
        operand = {
            (ref.step, ref.path): fact.as_operand() for ref, fact in zip(refs, known, strict=True)
        }
        values = self._called(step, lambda ref: operand[ref.step, ref.path].clone())
        values = values.double().flatten()
        everywhere = torch.stack([fact.known for fact in known]).all(0)
        if zeros is not None:  # a product of zero with what is not known
            everywhere, values = everywhere | zeros.known, torch.where(zeros.known, 0.0, values)
        return known_or_none(known[0].dim, values, everywhere)

    def _over_space(self, index: int, given: Known | None) -> Known | None:
        """The same channels, maybe on another dimension."""
        if given is None:
            return None
        ref = self.steps[index].args[0]
        before = self._axes(ref)[given.dim]
        dim = self._channel_dim(self.values[index])
        if dim is None:
            return None
        after = self.groups.resolve(self.values[index].axes[dim])
        same_axis = self.groups.resolve(before) == after
        return Known(dim, given.values, given.known) if same_axis else None

    def _moved(self, index: int) -> list[Known | None]:
        """Values and whether they are known, laid out in full and moved as the op moves them."""
        step = self.steps[index]
        paths = [path for path, _ in _parts(step.example)]
        refs = [ref for ref in _refs(step) if self._is_tensor(ref)]
        retyped = any(isinstance(leaf, torch.dtype) for leaf in step.args)
        if retyped or all(self._fact(ref) is None for ref in refs):
            return [None] * len(paths)
        values = self._called(step, lambda ref: self._laid_out(ref, known=False))
        known = self._called(step, lambda ref: self._laid_out(ref, known=True))
        found: list[Known | None] = []
        for path in paths:
            dim = self._channel_dim(_at(self.values[index], path))
            if dim is None:
                found.append(None)
                continue
            numbers = _at(values, path).movedim(dim, 0).flatten(1)
            alike = _at(known, path).movedim(dim, 0).flatten(1).all(1)
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
        """What an op makes of other tensors."""

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

    # -- what is where ---------------------------------------------------------------------------

    def _example(self, ref: Ref) -> Any:
        return _at(self.steps[ref.step].example, ref.path)

    def _is_tensor(self, ref: Ref) -> bool:
        return isinstance(self._example(ref), Tensor)

    def _fact(self, leaf: Any) -> Known | None:
        return self.facts.get((leaf.step, leaf.path)) if isinstance(leaf, Ref) else None

    def _axes(self, ref: Ref) -> tuple[Axis, ...]:
        shaped = _at(self.values[ref.step], ref.path)
        return tuple(shaped.axes)

    def _channel_dim(self, shaped: Any) -> int | None:
        """The one dimension, counted from the end, on which units lie that are free to go."""
        if not isinstance(shaped, Shaped):
            return None
        dims = [i for i, axis in enumerate(shaped.axes) if self.groups.can_grow(axis)]
        return dims[0] - len(shaped.axes) if len(dims) == 1 else None

    # -- memory ----------------------------------------------------------------------------------

    def _operands(self, step: Step) -> Iterator[_Key]:
        for ref in _refs(step):
            if self._is_tensor(ref):
                yield ref.step, ref.path

    def _written(self, step: Step, operands: Sequence[_Key]) -> Sequence[_Key]:
        """The operands that an op may write into."""
        module = None if step.module is None else self.modules[step.module]
        target = type(module) if module is not None else step.target
        if not _is_torchs(target) or rule_of(target) is None or "out" in step.kwargs:
            return operands
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        in_place = is_in_place_name(name) or bool(getattr(module, "inplace", False))
        in_place = in_place or bool(step.kwargs.get("inplace"))
        if getattr(target, "__module__", "") == "torch.nn.functional":
            in_place = in_place or any(value is True for value in step.args[1:])  # by position
        return operands[:1] if in_place else ()

    def _forget(self, keys: Iterable[_Key]) -> None:
        """Takes back what was known of tensors, and of all that may lie in the same memory."""
        for key in keys:
            for relative in self._family(key):
                self.facts.pop(relative, None)

    def _family(self, key: _Key) -> set[_Key]:
        return self.relatives.setdefault(key, {key})

    def _relate(self, keys: Sequence[_Key]) -> None:
        """States that tensors may lie in the same memory."""
        family: set[_Key] = set()
        for key in keys:
            family |= self._family(key)
        self.relatives.update(dict.fromkeys(family, family))


def has_hooks(module: nn.Module) -> bool:
    """Whether a module, or one inside, has hooks that could change what it reads or makes."""
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())  # noqa: SLF001


def _is_torchs(target: Any) -> bool:
    """Whether a target is torch's own, and so does what its name says."""
    if isinstance(target, str):
        return True
    origin = str(getattr(target, "__module__", None) or "torch")  # builtin functions have none
    return origin.partition(".")[0] in {"torch", "_operator"}


def _plain_name(name: str) -> str:
    return name.replace("_", "").lower()


def _is_off(step: Step, module: nn.Module | None) -> bool:
    """Whether a dropout does nothing in evaluation mode."""
    if module is not None:
        return True
    return step.kwargs.get("training", step.args[2] if len(step.args) > 2 else True) is False


def _pads_space_with_zeros(step: Step, given: Known) -> bool:
    amounts = step.args[1] if len(step.args) > 1 else step.kwargs.get("pad")
    mode = step.kwargs.get("mode", step.args[2] if len(step.args) > 2 else "constant")
    value = step.kwargs.get("value", step.args[3] if len(step.args) > 3 else None)
    behind = isinstance(amounts, (tuple, list)) and len(amounts) // 2 < -given.dim
    return behind and (mode != "constant" or value in (None, 0))


def _at(value: Any, path: Sequence[Any]) -> Any:
    for index in path:
        value = value[index]
    return value


def _parts(example: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """The tensors of a result, each with the indices that lead to it."""
    if isinstance(example, Tensor):
        yield path, example
    elif isinstance(example, (tuple, list)):
        for index, part in enumerate(example):
            yield from _parts(part, (*path, index))


def _refs(step: Step) -> Iterator[Ref]:
    """What stands for tensors and numbers among an op's arguments."""
    return refs_in((step.args, tuple(step.kwargs.values())))

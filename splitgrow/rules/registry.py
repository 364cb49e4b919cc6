"""What an op does to channel axes: one rule for each kind of op, found by the op's target.

A rule gets an `Op` and returns the axes of its result. It states what must hold of the axes through
`Op.groups`; it never looks at a graph, a tracer or a layer. To teach splitgrow an op, write a rule
and register it for the module types, functions and method names that run it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from splitgrow.axes import Axis, Size, constant
from splitgrow.groups import Groups
from splitgrow.remainders import Remainders
from splitgrow.silence import Silence


@dataclass(frozen=True)
class Shaped:
    """A tensor on its way through the network: one axis for each of its dimensions."""

    axes: tuple[Axis, ...]


class Unknown(Exception):  # noqa: N818 - raised by a rule to say that it cannot tell
    """The rule cannot say what happens to the channels: they become fixed, for this reason."""


@dataclass(frozen=True)
class Choice:
    """Where several numbers could follow a dimension, and one was taken to.

    Attributes:
        place: The line of the user's source.
        count: How many there were.
        rest: Which of them is the -1, if there is one.
        taken: The axis of the one that was taken.
    """

    place: str
    count: int
    rest: int | None
    taken: Axis


STRICT = False
"""Whether what a rule runs into is raised, instead of fixing what it was given; for tests."""

_OTHER_NAMES = {
    "dim": ("axis",),
    "dims": ("dim", "axis"),
    "keepdim": ("keepdims",),
    "input": ("x", "a", "x1", "self", "tensor"),
    "other": ("x2", "mat2", "vec2", "tensor2"),
    "size": ("sizes", "shape"),
    "shape": ("size",),
    "tensors": ("arrays",),
}
"""Other names under which torch takes an argument, numpy's above all."""


@dataclass(frozen=True)
class Op:
    """One op of a traced network, as its rule sees it.

    Attributes:
        name: What the user would call it: ``add``, ``Conv2d``.
        place: The line of the user's source that runs it.
        target: The function, the module's type or the method's name.
        args: Positional arguments; tensors are `Shaped`, numbers from shapes are `Size`.
        kwargs: Named arguments, likewise.
        example: An example result, of fake tensors and plain numbers.
        groups: The store to state in what must hold.
        module: The module, if the op is a module call.
        preferred: Which of several numbers that could follow a dimension is taken to, by place;
            otherwise the outermost.
        choices: Where there was such a choice.
        silence: Where zeros are needed and where they do not stay.
        remainders: Which remainders of divisions must stay.
    """

    name: str
    place: str
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    example: Any
    groups: Groups
    module: nn.Module | None = field(default=None)
    preferred: Mapping[str, int] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    silence: Silence | None = None
    remainders: Remainders | None = None

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """An argument given by position or by name; of a module, one of its attributes.

        Torch takes many by several names, such as ``dim`` and ``axis``, and so does this.
        """
        if self.module is not None and index > 0:
            return getattr(self.module, name, default)
        if index < len(self.args):
            return self.args[index]
        names = (name, *_OTHER_NAMES.get(name, ()))
        return next((self.kwargs[key] for key in names if key in self.kwargs), default)

    def several(self, index: int, name: str) -> Sequence[Any]:
        """Numbers given as one tuple, as one number, or each by itself from a position on."""
        first = self.argument(index, name)
        if isinstance(first, (tuple, list)):
            return first
        if isinstance(first, Shaped):
            raise Unknown("is given a tensor where numbers were expected")
        return () if first is None else (first, *self.args[index + 1 :])

    def tensor(self, index: int, name: str) -> Shaped:
        """An argument that must be a tensor."""
        tensor = self.argument(index, name)
        if not isinstance(tensor, Shaped):
            raise Unknown("is given something else than a tensor")
        return tensor

    @property
    def x(self) -> Shaped:
        """The first argument, which must be a tensor."""
        return self.tensor(0, "input")

    def reason(self, text: str) -> str:
        """A reason for fixing an axis, naming the op and its place: "`add` at model.py:12 ..."."""
        return f"`{self.name}` at {self.place} {text}"

    def shaped(self) -> Iterator[Shaped]:
        """All tensors among the arguments."""
        return shaped_in((self.args, self.kwargs))

    def sizes(self) -> Iterator[Size]:
        """All numbers among the arguments that come from shapes."""
        return (leaf for leaf in leaves_of((self.args, self.kwargs)) if isinstance(leaf, Size))

    def fix(self, axis: Axis, text: str) -> None:
        """Fixes an axis, for a reason that names the op."""
        self.groups.fix(axis, self.reason(text))

    def fix_all(self, text: str, *, but: Sequence[Shaped] = ()) -> None:
        """Fixes all tensors among the arguments, but for some."""
        for shaped in self.shaped():
            if not any(shaped is other for other in but):
                for axis in shaped.axes:
                    self.fix(axis, text)

    def plain(self, value: Any) -> Any:
        """A value whose numbers are plain ones; those that could have grown no longer can."""
        if isinstance(value, Size):
            self.groups.fix_size(value, self.reason("uses the number as it is"))
            return value.value
        if isinstance(value, (tuple, list)):
            return type(value)(self.plain(item) for item in value)
        if isinstance(value, dict):
            return {key: self.plain(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(self.plain(value.start), self.plain(value.stop), self.plain(value.step))
        return value

    def hear(self, result: Any) -> None:
        """States that channels of the result are not zero where those of the operands are."""
        if self.silence is None:
            return
        for shaped in shaped_in(result):
            for axis in shaped.axes:
                reason = self.reason("makes something else than zeros of zeros")
                self.silence.hear(axis, reason)

    def constants(self, text: str) -> Any:
        """A result like the example's whose tensors have no channels that could grow."""
        reason = self.reason(text)
        return pytree.tree_map(lambda leaf: constant_like(leaf, reason), self.example)

    def given_up(self, axes: Iterable[Axis], length: int) -> Axis:
        """A constant axis made of others, which remembers why those are fixed."""
        reasons = (reason for axis in axes for reason in self.groups.reasons(axis))
        return constant(length, next(reasons, ""))


def constant_like(example: Any, reason: str) -> Any:
    """A tensor with constant axes of the example's shape; anything but a tensor as it is."""
    if isinstance(example, Tensor):
        return Shaped(tuple(constant(int(size), reason) for size in example.shape))
    return example


def shaped_in(value: Any) -> Iterator[Shaped]:
    """All tensors in nested values."""
    return (leaf for leaf in leaves_of(value) if isinstance(leaf, Shaped))


def leaves_of(value: Any) -> Iterator[Any]:
    """What pytree finds in nested values, without its detours in the common cases."""
    if isinstance(value, _LEAVES):
        yield value
    elif type(value) in (tuple, list, dict):
        for item in value.values() if type(value) is dict else value:
            yield from leaves_of(item)
    else:
        yield from pytree.tree_leaves(value, is_leaf=_is_value)


_LEAVES = (Shaped, Size, Tensor, int, float, str)


def _is_value(node: Any) -> bool:
    return isinstance(node, (Shaped, Size))


Rule = Callable[[Op], Any]

_RULES: dict[Any, Rule] = {}
_SIZED: set[Rule] = set()
_KEEPS_ZEROS: set[Rule] = set()


def register_op(
    *targets: Any, follows_sizes: bool = False, keeps_zeros: bool = False
) -> Callable[[Rule], Rule]:
    """Registers a rule for module types, functions, method names, or functions by dotted name.

    Args:
        targets: What the op is found by: a torch function, the name of a tensor's method, or a
            module type, which is then not looked into. A dotted name stands for a function or
            module type of a library that need not be installed.
        follows_sizes: Whether the rule says what becomes of numbers that follow a width, which it
            is then given as `Size`. Other rules are given plain numbers, which can then not grow.
        keeps_zeros: Whether channels that are zero before the op are zero after it, or the rule
            says by `Op.hear` where not. An RMS norm over all channels asks for that.

    Raises:
        ValueError: If one of the targets has a rule already.

    Example:
        >>> import torch, splitgrow
        >>> @splitgrow.register_op(torch.special.i0)
        ... def bessel(op):
        ...     return op.x  # each value by itself, so the axes are as they were
        >>> class Net(torch.nn.Sequential):
        ...     def forward(self, x):
        ...         return self[1](torch.special.i0(self[0](x)))
        >>> net = Net(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        >>> splitgrow.growable(net, torch.ones(1, 2)).layers[0].growable
        True
    """

    def register(rule: Rule) -> Rule:
        for target in dict.fromkeys(targets):  # torch has some functions by two names
            if target in _RULES and _RULES[target] is not rule:
                raise ValueError(f"{target!r} has a rule already: {_RULES[target].__name__}")
            _RULES[target] = rule
        if follows_sizes:
            _SIZED.add(rule)
        if keeps_zeros:
            _KEEPS_ZEROS.add(rule)
        return rule

    return register


def rule_of(target: Any) -> Rule | None:
    """The rule for a target, or None."""
    if target in _RULES:
        return _RULES[target]
    if isinstance(target, type) and issubclass(target, tuple):
        return _named_tuple
    name = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
    return _RULES.get(name)


def _named_tuple(op: Op) -> Any:
    """The making of a named tuple: its fields as they are."""
    return (*op.args, *op.kwargs.values())


def result_of(op: Op) -> Any:
    """What an op makes of its axes: by its rule, or by fixing them where there is none.

    The rule's answer is held against the example: a rule that does not explain the result's shape
    is not believed.
    """
    rule = rule_of(op.target)
    if rule is None and not _could_grow(op):
        # What lies off the way of every channel need not be understood.
        return pytree.tree_map(lambda leaf: constant_like(leaf, _known_reason(op)), op.example)
    try:
        if rule is None:
            raise Unknown("is not an op that splitgrow knows")
        result = _answer(rule, op)
    except Unknown as unknown:
        return _given_up(op, str(unknown))
    except MemoryError:
        raise
    except Exception as error:
        if STRICT:
            raise
        return _given_up(op, f"is not followed: its rule ends in {type(error).__name__}: {error}")
    if rule not in _KEEPS_ZEROS:
        op.hear(result)
    return result


def _given_up(op: Op, text: str) -> Any:
    fix_arguments(op, text)
    return op.constants(text)


def _answer(rule: Rule, op: Op) -> Any:
    """What a rule says of an op, held against the example.

    A result that is written into a tensor of the user's is that tensor, and must grow as it does.
    """
    out = op.kwargs.get("out")
    if out is not None:
        op = replace(op, kwargs={key: item for key, item in op.kwargs.items() if key != "out"})
    if rule not in _SIZED and any(op.sizes()):
        op = replace(op, args=op.plain(op.args), kwargs=op.plain(op.kwargs))
    result = rule(op)
    if not _explains(result, op):
        raise Unknown("changes shapes in a way that its rule does not explain")
    for written, made in zip(shaped_in(out), shaped_in(result), strict=False):
        if list(map(op.groups.length, written.axes)) != list(map(op.groups.length, made.axes)):
            raise Unknown("writes into a tensor of another shape")
        for axis, other in zip(written.axes, made.axes, strict=True):
            op.groups.tie(axis, other, op.reason("writes it into a tensor that does not grow"))
    return result


def _could_grow(op: Op) -> bool:
    axes = (axis for shaped in op.shaped() for axis in shaped.axes)
    return any(map(op.groups.can_grow, axes)) or any(map(op.groups.slope, op.sizes()))


def _known_reason(op: Op) -> str:
    axes = (axis for shaped in op.shaped() for axis in shaped.axes)
    return next((reason for axis in axes for reason in op.groups.reasons(axis)), "")


def fix_arguments(op: Op, text: str) -> None:
    """Fixes every axis and number that an op is given."""
    for shaped in op.shaped():
        for axis in shaped.axes:
            op.fix(axis, text)
    for size in op.sizes():
        op.groups.fix_size(size, op.reason(text))


def _explains(result: Any, op: Op) -> bool:
    if isinstance(op.example, (tuple, list)) != isinstance(result, (tuple, list)):
        return False
    # Leaves only: a tuple for a torch.Size or a named tuple is as good.
    examples, results = list(leaves_of(op.example)), list(leaves_of(result))
    if len(examples) != len(results):
        return False
    for example, answer in zip(examples, results, strict=True):
        if isinstance(example, Tensor) != isinstance(answer, Shaped):
            return False
        if isinstance(answer, Shaped):
            lengths = tuple(op.groups.length(axis) for axis in answer.axes)
            if lengths != tuple(example.shape):
                return False
        elif isinstance(answer, Size) and answer.value != example:
            return False
    return True


def as_size(number: Any) -> Size:
    """A number of a shape, whether written down or taken from a tensor."""
    if isinstance(number, Size):
        return number
    if isinstance(number, int) and not isinstance(number, bool):
        return Size(number)
    raise Unknown(f"is given {number!r} where a whole number was expected")


def each(names: str, *owners: Any) -> list[Any]:
    """The functions of these names that the owners have."""
    found = [
        getattr(owner, name) for owner in owners for name in names.split() if hasattr(owner, name)
    ]
    return list({id(function): function for function in found}.values())

"""The one table of ops: the rule of each for channel axes, and its facts.

A rule gets an `Op` and returns the axes of its result. It states constraints on the axes through
`Op.groups`; it never looks at a graph, a tracer or a layer. To teach splitgrow an op, write a rule
and enter it with the op's name and `Facts`; all other code reads them from here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from splitgrow.analysis.channels.channel_axes import Run, Size
from splitgrow.analysis.ops.checks import check_rule, check_targets, rule_name
from splitgrow.analysis.ops.facts import UNKNOWN, Facts
from splitgrow.analysis.ops.forms import forms
from splitgrow.analysis.ops.op import Op, Shaped, Unknown, constant_like, leaves_of, shaped_in
from splitgrow.errors import SplitGrowError

STRICT = False
"""Whether an error in a rule is raised, instead of fixing the rule's arguments; for tests."""

Rule = Callable[[Op], Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """The rule and the facts of an op.

    Attributes:
        rule: Its effect on axes.
        facts: Its other properties.
        follows_sizes: Whether the rule follows numbers that follow a width.
        built_in: Whether it is splitgrow's own.
    """

    rule: Rule
    facts: Facts = UNKNOWN
    follows_sizes: bool = False
    built_in: bool = False


OPS: dict[Any, Entry] = {}
"""The entries, by target: a function, a module's type, a method's name, or a dotted name."""


def entry(
    names: str, facts: Facts = UNKNOWN, *targets: Any, follows_sizes: bool = False
) -> Callable[[Rule], Rule]:
    """Enters one of splitgrow's own ops in all its forms.

    Args:
        names: Names with blanks between them, as `forms` takes them.
        facts: Their properties besides the rule.
        targets: Other targets.
        follows_sizes: As in `register_op`.
    """

    def register(rule: Rule) -> Rule:
        _enter((*forms(names), *targets), Entry(rule, facts, follows_sizes, built_in=True))
        return rule

    return register


def _enter(targets: tuple[Any, ...], made: Entry) -> None:
    for target in targets:  # torch has some functions by two names
        if target in OPS and OPS[target] != made:
            raise ValueError(f"{target!r} has a rule already: {rule_name(OPS[target].rule)}")
    OPS.update(dict.fromkeys(targets, made))


def register_op(
    *targets: Any, follows_sizes: bool = False, keeps_zeros: bool = False
) -> Callable[[Rule], Rule]:
    """Registers a rule for module types, functions, method names, or functions by dotted name.

    A rule takes an `Op` (in `splitgrow.typing`): one call of the op. ``op.x`` has the axes of its
    first tensor, ``op.args`` and ``op.kwargs`` are its arguments. The rule returns the axes of the
    result, and says through ``op.groups`` which of them must have equal widths.

    Args:
        targets: The op's keys: a torch function, the name of a tensor's method, or a module type,
            which is then not looked into. A dotted name stands for a function or module type of a
            library that need not be installed.
        follows_sizes: Whether the rule follows numbers that follow a width: it then gets these as
            `Size`. Other rules get plain numbers, which then cannot grow.
        keeps_zeros: Whether channels that are zero before the op are zero after it, or the rule
            calls `Op.not_zero` where they are not. An RMS norm over all channels needs that.

    Raises:
        TypeError: If a target is none of these, or the rule no function of one argument.
        ValueError: If there is no target, one of them has a rule already, or names no method of
            tensors.

    `unregister_op` takes it back.

    Example:
        >>> import torch, splitgrow
        >>> @splitgrow.register_op(torch.special.airy_ai)
        ... def airy(op):
        ...     return op.x  # each value by itself, so the axes are as they were
        >>> class Net(torch.nn.Sequential):
        ...     def forward(self, x):
        ...         return self[1](torch.special.airy_ai(self[0](x)))
        >>> net = Net(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        >>> splitgrow.growable(net, torch.ones(1, 2)).layers[0].growable
        True
    """
    check_targets(targets)

    def register(rule: Rule) -> Rule:
        check_rule(rule)
        _enter(targets, Entry(rule, Facts(zero=keeps_zeros), follows_sizes))
        return rule

    return register


def unregister_op(*targets: Any) -> None:
    """Removes rules that `register_op` was given: models are analysed without them afterwards.

    Args:
        targets: As they were given to `register_op`.

    Raises:
        ValueError: If there is no target, or one has no rule, or one of splitgrow's own; none is
            removed then.

    Example:
        >>> import torch, splitgrow
        >>> rule = splitgrow.register_op(torch.special.bessel_y1)(lambda op: op.x)
        >>> splitgrow.unregister_op(torch.special.bessel_y1)
    """
    if not targets:
        raise ValueError("unregister_op needs the targets that register_op was given")
    for target in targets:
        if target not in OPS:
            raise ValueError(f"{target!r} has no rule")
        if OPS[target].built_in:
            raise ValueError(f"{target!r} has one of splitgrow's own rules")
    for target in {*targets}:
        del OPS[target]


def entry_of(target: Any) -> Entry | None:
    """The entry of the op with a target, or None."""
    try:
        if target in OPS:
            return OPS[target]
    except TypeError:  # a function that is not hashable
        return None
    if _writes_into_its_own(target):
        return OPS.get(target[:-1])
    if isinstance(target, type) and issubclass(target, tuple):
        return _NAMED_TUPLE
    name = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
    return OPS.get(name)


def facts_of(target: Any) -> Facts:
    """The facts of the op with a target; of an unknown op none."""
    known = entry_of(target)
    return known.facts if known is not None else UNKNOWN


def _writes_into_its_own(target: Any) -> bool:
    return isinstance(target, str) and target.endswith("_") and not target.endswith("__")


def _named_tuple(op: Op) -> Any:
    """The making of a named tuple: its fields as they are."""
    return (*op.args, *op.kwargs.values())


_NAMED_TUPLE = Entry(_named_tuple, built_in=True)


def result_of(op: Op) -> Any:
    """The result of an op in axes: by its rule, or with all axes fixed where there is none.

    The rule's answer is compared with the example: the answer counts only if it explains the
    result's shape.
    """
    known = entry_of(op.target)
    if known is None and not _could_grow(op):
        # An op off the way of every channel needs no rule.
        return pytree.tree_map(lambda leaf: constant_like(leaf, _known_reason(op)), op.example)
    try:
        if known is None:
            raise Unknown("is not an op that splitgrow knows")
        result = _answer(known, op)
    except Unknown as unknown:
        return _given_up(op, str(unknown))
    except (MemoryError, SplitGrowError):
        raise
    except Exception as error:
        if STRICT:
            raise
        return _given_up(op, f"is not followed: its rule ends in {type(error).__name__}: {error}")
    if not known.facts.zero:
        op.not_zero(result)
    return result


def _asked(rule: Rule, op: Op) -> Any:
    """The answer of a user's rule.

    Raises:
        SplitGrowError: If it fails, or its answer is not axes.
    """
    what = f"the rule `{rule_name(rule)}` of `{op.name}` at {op.place}"
    remedy = (
        "mend it, or take it back by splitgrow.unregister_op; a rule that cannot tell raises "
        "splitgrow.analysis.ops.Unknown"
    )
    try:
        result = rule(op)
    except (Unknown, SplitGrowError):
        raise
    except Exception as error:
        raise SplitGrowError(
            f"{what} failed with {type(error).__name__}: {error}; {remedy}"
        ) from error
    for shaped in shaped_in(result):
        if not _is_axes(shaped.axes):
            raise SplitGrowError(f"{what} answered with the axes {shaped.axes!r:.60}; {remedy}")
    if isinstance(op.example, Tensor) and not isinstance(result, Shaped):
        raise SplitGrowError(
            f"{what} answered with {result!r:.60} where the op gives a tensor, of which a rule "
            f"returns the axes as Shaped; {remedy}"
        )
    return result


def _is_axes(axes: Any) -> bool:
    return isinstance(axes, tuple) and all(
        isinstance(axis, tuple) and all(isinstance(run, Run) for run in axis) for axis in axes
    )


def _given_up(op: Op, text: str) -> Any:
    fix_arguments(op, text)
    return op.constants(text)


def _answer(known: Entry, op: Op) -> Any:
    """The answer of a rule for an op, compared with the example.

    A result that is written into a tensor of the user is that tensor, and must grow as it does.
    """
    out = op.kwargs.get("out")
    if out is not None:
        op = replace(op, kwargs={key: item for key, item in op.kwargs.items() if key != "out"})
    if not known.follows_sizes and any(op.sizes()):
        op = replace(op, args=op.plain(op.args), kwargs=op.plain(op.kwargs))
    result = known.rule(op) if known.built_in else _asked(known.rule, op)
    if not _explains(result, op):
        raise Unknown("changes shapes in a way that its rule does not explain")
    if out is None and _writes_into_its_own(op.target):
        out = op.x
    for written, made in zip(shaped_in(out), shaped_in(result), strict=False):
        if list(map(op.groups.length, written.axes)) != list(map(op.groups.length, made.axes)):
            if out is op.x:  # such as `squeeze_`, which turns the tensor itself
                continue
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

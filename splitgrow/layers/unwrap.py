"""Plain modules in place of wrappers with insertions, and of fades that are over."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import fx, nn

from splitgrow.layers.expert_sets import join_sets_
from splitgrow.layers.fade import FadeIn
from splitgrow.layers.hooks import carry_hooks_, has_hooks
from splitgrow.layers.insertion_wrapper import ORIGINAL, Inserted, InsertionWrapper
from splitgrow.utils.rollback import Undo


def unwrap_(root: nn.Module, view: int | None, *, end_fades: bool) -> nn.Module:
    """Puts plain modules in place of all wrappers in a module that nobody else holds.

    Args:
        root: The module.
        view: The edit after which it is shown; None for today.
        end_fades: Whether to leave only the path that counts of an inserted fade that is over or
            has not begun.

    Returns:
        The module, or the one in its place.
    """
    wrappers = [module for module in root.modules() if isinstance(module, InsertionWrapper)]
    for wrapper in reversed(wrappers):  # inner ones first
        _join_experts_(wrapper, view)
        holders = list(_holders(root, wrapper))
        by_position = bool(holders) and all(type(module) is nn.Sequential for module, _ in holders)
        plain = _plain(_Wrapped(wrapper, view, by_position=by_position), end_fades=end_fades)
        _put(holders, plain)
        root = plain if root is wrapper else root
    return root


def end_own_fades_(root: nn.Module, undo: Undo) -> bool:
    """Replaces every fade that is over by its new path, also the user's own fades.

    Fades with hooks on a module that would go stay.

    Returns:
        Whether there was one.
    """
    found = False
    for fade in [module for module in root.modules() if type(module) is FadeIn]:
        holders = list(_holders(root, fade))
        hooked = has_hooks(fade) or any(map(has_hooks, fade.old.modules()))
        if holders and counting(fade) is fade.new and not hooked:
            found = True
            for holder, name in holders:
                undo.on_failure(partial(holder._modules.__setitem__, name, fade))  # noqa: SLF001
            _put(holders, fade.new)
    return found


def counting(fade: FadeIn) -> nn.Module | None:
    """The path that alone counts; None if both do, or if that cannot be told."""
    if fade.share.is_meta:
        return None
    return {0.0: fade.old, 1.0: fade.new}.get(fade.alpha)


def _holders(root: nn.Module, held: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for module in root.modules():
        for name, child in module._modules.items():  # noqa: SLF001
            if child is held:
                yield module, name


def _join_experts_(wrapper: InsertionWrapper, view: int | None) -> None:
    """Gives the module in a wrapper the further experts that are seen after an edit."""
    sets = wrapper.sets(view)
    if sets:
        join_sets_(wrapper.wrapped, sets)
    others = tuple(item for item in wrapper.inserted if item.experts is None)
    if len(others) < len(wrapper.inserted):
        wrapper.set_inserted({item.name: wrapper.part(item.name) for item in others}, others)


def _put(holders: Sequence[tuple[nn.Module, str]], module: nn.Module) -> None:
    for holder, name in holders:
        holder._modules[name] = module  # noqa: SLF001


@dataclass(frozen=True)
class _Part:
    """An insertion with its module."""

    item: Inserted
    module: nn.Module


@dataclass
class _Way:
    """Modules that run one after the other: parts, a module, further parts."""

    before: list[_Part]
    core: nn.Module
    behind: list[_Part]


@dataclass(frozen=True)
class _Wrapped:
    """A wrapper as it is shown after an edit.

    Attributes:
        wrapper: The wrapper.
        view: The edit.
        by_position: Whether only containers call it; these name no argument.
    """

    wrapper: InsertionWrapper
    view: int | None
    by_position: bool

    def way(self, *, end_fades: bool, replaced: bool) -> _Way:
        """The modules to run.

        Args:
            end_fades: Whether fades that are over, or have not begun, are left out.
            replaced: Whether a replacement of the module may stand for it.
        """
        way = _Way([], self.wrapper.wrapped, [])
        for before, parts in ((True, way.before), (False, way.behind)):
            for item in self.wrapper.seen(before=before, view=self.view):
                module = self.wrapper.part(item.name)
                path = counting(module) if end_fades and type(module) is FadeIn else None
                if path is None or item.form not in {"chain", "beside"}:
                    parts.append(_Part(item, module))
                elif item.form == "chain":
                    parts.extend([] if path is module.old else [_Part(item, path)])
                elif path is module.new and replaced:
                    # It reads the module's own input, so nothing needs the parts before it.
                    way.core = path.module  # type: ignore[assignment]
                    parts.clear()
                elif path is module.new:
                    parts.append(_Part(item, module))
        return way


def _plain(wrapped: _Wrapped, *, end_fades: bool) -> nn.Module:
    wrapper = wrapped.wrapper
    way = wrapped.way(end_fades=end_fades, replaced=not wrapper.answers)
    plain: nn.Module | None = way.core
    if way.before or way.behind:
        plain = _joined(wrapped, way)
    if plain is None:
        way = wrapped.way(end_fades=end_fades, replaced=False)
        plain = _kept(wrapper, way) if way.before or way.behind else way.core
    carry_hooks_(wrapper, plain)
    return plain


def _joined(wrapped: _Wrapped, way: _Way) -> nn.Module | None:
    """A way as one plain module; None if no such module can be called as the wrapper is."""
    wrapper = wrapped.wrapper
    arguments = arguments_of(wrapper.wrapped)
    if not wrapper.tensor_result or wrapper.answers or not arguments:
        return None
    if any(argument.kind in _OPEN for argument in arguments):
        return None
    parts = (*way.before, *way.behind)
    chain = {"chain"} if len(arguments) > 1 else {"chain", "block"}
    named_alike = wrapped.by_position or arguments[0].name == "input"
    if len(arguments) == 1 and named_alike and all(part.item.form in chain for part in parts):
        modules = [
            *(layer for part in way.before for layer in _layers(part.module)),
            way.core,
            *(layer for part in way.behind for layer in _layers(part.module)),
        ]
        plain: nn.Module = nn.Sequential(*modules)
    elif all(_is_literal(argument.default) for argument in arguments):
        plain = _as_graph(wrapper.wrapped, way, arguments)
    else:
        return None
    plain.training = wrapper.training
    return plain


_OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
"""Arguments that take any number of values."""


def arguments_of(module: nn.Module) -> list[inspect.Parameter]:
    """The arguments of a module; none if they are unknown, as for compiled code."""
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return []


def _layers(part: nn.Module) -> list[nn.Module]:
    return list(part) if type(part) is nn.Sequential and not has_hooks(part) else [part]


def _is_literal(value: object) -> bool:
    """Whether a default can be written into the code of a graph."""
    if isinstance(value, (tuple, list)):
        return all(map(_is_literal, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is inspect.Parameter.empty or type(value) in (type(None), bool, int, str)


def _as_graph(
    wrapped: nn.Module, way: _Way, arguments: Sequence[inspect.Parameter]
) -> fx.GraphModule:
    """A way as a torch.fx.GraphModule, with the arguments of the wrapped module."""
    root = nn.Module()
    root.add_module(ORIGINAL, way.core)
    for part in (*way.before, *way.behind):
        root.add_module(part.item.name, part.module)
    graph = fx.Graph()
    given = {}
    for argument in arguments:
        empty = argument.default is inspect.Parameter.empty
        default = {} if empty else {"default_value": argument.default}
        given[argument.name] = graph.placeholder(argument.name, **default)
    first = arguments[0].name

    def called(name: str, module: nn.Module, x: fx.Node, *before: fx.Node) -> fx.Node:
        args, kwargs = _passed(module, arguments, {**given, first: x})
        return graph.call_module(name, (*before, *args), kwargs)

    def made(part: _Part, x: fx.Node, read: fx.Node | None) -> fx.Node:
        name, form = part.item.name, part.item.form
        if form == "block":
            return called(name, wrapped, x)
        if form == "beside" and read is not None:
            # A fade from the replaced module, whose result comes first, to its replacement.
            return called(name, part.module.new.module, read, x)  # type: ignore[union-attr, arg-type]
        result = graph.call_module(name, (x,))
        if form in {"residual", "gate"}:
            how = operator.add if form == "residual" else operator.mul
            result = graph.call_function(how, (x, result))
        return result

    x = given[first]
    for part in way.before:
        x = made(part, x, None)
    read, x = x, called(ORIGINAL, way.core, x)  # the parts beside it read the same
    for part in way.behind:
        x = made(part, x, read)
    graph.output(x)
    return fx.GraphModule(root, graph, class_name=type(wrapped).__name__)


def _passed(
    module: nn.Module, arguments: Sequence[inspect.Parameter], given: dict[str, fx.Node]
) -> tuple[tuple[fx.Node, ...], dict[str, Any]]:
    """The arguments for a call to a module that may not know all those of the wrapper.

    A call never passed on an argument that it does not know: it would not have run.
    """
    known = arguments_of(module)
    names = {argument.name for argument in known if argument.kind is not argument.POSITIONAL_ONLY}
    first, *others = arguments
    if any(argument.kind in _OPEN for argument in known):
        names.update(argument.name for argument in others)
    if all(other.name in names for other in others if other.default is other.empty):
        kwargs = {other.name: given[other.name] for other in others if other.name in names}
        return (given[first.name],), kwargs
    room = sum(argument.kind is not argument.KEYWORD_ONLY for argument in known)
    return tuple(given[argument.name] for argument in arguments[:room]), {}


def _kept(wrapper: InsertionWrapper, way: _Way) -> nn.Module:
    """A wrapper with the parts that are left, around the same module."""
    same = InsertionWrapper(way.core)
    same.tensor_result, same.answers = wrapper.tensor_result, wrapper.answers
    same.training = wrapper.training
    parts = {part.item.name: part for part in (*way.before, *way.behind)}
    shown = tuple(item for item in wrapper.inserted if item.name in parts)
    same.set_inserted({item.name: parts[item.name].module for item in shown}, shown)
    return same

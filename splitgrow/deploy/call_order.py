"""Whether forward's source hands a layer's output to one norm and to nothing else, at every call.

A trace shows one run. Where forward decides, another run may leave the norm out, or read the
layer's output elsewhere. So the function that calls the two must show that no run does so:

    y = self.norm(self.layer(x))        or        y = self.layer(x); y = self.norm(y)

with both calls in the same branch. An ``if`` that asks for attributes of the module alone decides
the same at every call, so it counts as no branch.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import CodeType
from typing import Any, TypeAlias

from torch import nn

from splitgrow.deploy.method_source import (
    Function,
    Mention,
    assigned_by,
    function_of,
    methods_of,
    names_in,
)


def refusal_of_order(code: CodeType, owner: nn.Module, layer: nn.Module, norm: nn.Module) -> str:
    """Why a function might do anything else than hand a layer's output to a norm; empty if not.

    Args:
        code: The function's.
        owner: The module whose method it is.
        layer: The layer, or a container that ends with it, which the function calls.
        norm: The norm, or a container that begins with it.
    """
    function = function_of(code)
    if function is None:
        return f"the source of `{code.co_name}`, which calls it, cannot be read"
    calls: list[ast.Call] = []
    for module, role in ((layer, "its layer"), (norm, "it")):
        mentioned = [each for each in function.mentions(owner) if each.module is module]
        found = [each.call for each in mentioned if each.call is not None]
        if len(found) != 1:
            return f"`{code.co_name}` does not call {role} in one place, by its name"
        reading = _Reading(function, owner)
        if not all(reading.is_harmless(each, is_norm=module is norm) for each in mentioned):
            return f"`{code.co_name}` also reads {role}, besides calling it"
        calls.extend(found)
    return _Order(function, owner, *calls).refusal()


_PLAIN = frozenset(("dtype", "device", "shape"))
_NUMBERS_OF_LAYERS = frozenset(
    (
        *("in_channels", "out_channels", "in_features", "out_features", "kernel_size"),
        *("stride", "padding", "dilation", "groups", "padding_mode"),
    )
)


class _Reading:
    """Tells the mentions of a module that stay true when its norm is folded.

    Args:
        function: The function.
        owner: The module whose method it is.
    """

    def __init__(self, function: Function, owner: nn.Module) -> None:
        self._function, self._static = function, _Static(function, owner)
        self._globals = vars(sys.modules.get(type(owner).__module__, sys))

    def is_harmless(self, mention: Mention, *, is_norm: bool) -> bool:
        """Whether a mention calls the module, asks if it is there, or reads a layer's numbers."""
        if mention.call is not None:
            return True
        if not mention.rest:
            tested = self._static.is_tested(mention.node)
            return tested or (not is_norm and self._is_given_for_its_numbers(mention.node))
        return not is_norm and _are_numbers(mention.rest)

    def _is_given_for_its_numbers(self, node: ast.expr) -> bool:
        """Whether a layer is handed to a function that reads its numbers only."""
        call, _ = self._function.parents[node]
        if not isinstance(call, ast.Call) or node not in call.args:
            return False
        given = self._globals.get(call.func.id) if isinstance(call.func, ast.Name) else None
        code = getattr(given, "__code__", None)
        function = function_of(code) if isinstance(code, CodeType) else None
        if function is None or call.args.index(node) >= len(function.tree.args.args):
            return False
        name = function.tree.args.args[call.args.index(node)].arg
        uses = [each for each in ast.walk(function.tree) if _is_name(each, name)]
        parents = [function.parents[each][0] for each in uses]
        return all(isinstance(up, ast.Attribute) and _are_numbers((up.attr,)) for up in parents)


def _are_numbers(rest: tuple[str, ...]) -> bool:
    """Whether attributes of a layer are none that folding a norm changes."""
    kept = rest[:1] == ("weight",) and rest[1:2] and rest[1] in _PLAIN
    return bool(kept) or rest[0] in _NUMBERS_OF_LAYERS


class _Static:
    """Tells the tests of a function that give the same at every call.

    Args:
        function: The function.
        owner: The module whose method it is.
    """

    def __init__(self, function: Function, owner: nn.Module) -> None:
        self._function = function
        cls: Any = type(owner)
        self._assigned = assigned_by(cls)

    def is_tested(self, node: ast.AST) -> bool:
        """Whether a node is a part of such a test."""
        path = self._function.path_to(node)
        return any(
            isinstance(around, (ast.If, ast.IfExp)) and field == "test" and self.is_test(around)
            for around, field in path
        )

    def is_test(self, branch: ast.If | ast.IfExp) -> bool:
        """Whether a branch is the same at every call."""
        return all(map(self._stays, ast.walk(branch.test)))

    def _stays(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Call):
            return isinstance(node.func, ast.Name) and node.func.id in _ASKING
        if isinstance(node, ast.Name):
            return node.id not in self._function.locals
        if isinstance(node, ast.Attribute):
            return node.attr not in self._assigned
        return isinstance(node, _OF_TESTS)


_ASKING = frozenset(("isinstance", "hasattr", "getattr", "len"))
_OF_TESTS = (
    ast.Constant,
    ast.Compare,
    ast.BoolOp,
    ast.UnaryOp,
    ast.Tuple,
    ast.boolop,
    ast.unaryop,
    ast.cmpop,
    ast.expr_context,
)
_SIMPLE = (
    *(ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr, ast.Return, ast.With, ast.withitem),
    *(ast.Call, ast.Attribute, ast.Subscript, ast.BinOp, ast.UnaryOp, ast.Starred, ast.keyword),
    *(ast.Tuple, ast.List, ast.Dict),
)
"""Nodes that run all that is in them, once."""


class _Order:
    """Two calls in a function, the first of which is to make all that the second reads."""

    def __init__(
        self, function: Function, owner: nn.Module, first: ast.Call, second: ast.Call
    ) -> None:
        self._function, self._static = function, _Static(function, owner)
        self._first, self._second = first, second

    def refusal(self) -> str:
        """Why it may be otherwise; empty if it may not."""
        name = self._function.name
        if self._branches(self._first) != self._branches(self._second):
            return f"`{name}` decides whether it calls the layer and the norm"
        if len(self._second.args) != 1 or self._second.keywords:
            return f"`{name}` calls it with several arguments"
        given = self._second.args[0]
        if given is self._first:
            return ""
        if not isinstance(given, ast.Name):
            return f"`{name}` hands it something else than the layer's output"
        return self._by_name(given)

    def _by_name(self, given: ast.Name) -> str:
        name = self._function.name
        assign, field = self._function.parents[self._first]
        target = assign.targets if isinstance(assign, ast.Assign) else ()
        if field != "value" or len(target) != 1 or not _is_name(target[0], given.id):
            return f"`{name}` hands it something else than the layer's output"
        start, end = _end(self._first), _start(self._second)
        names = (n for n in ast.walk(self._function.tree) if isinstance(n, ast.Name))
        mentions = [name for name in names if name.id == given.id]
        again = self._is_assigned_again(given.id)
        for node in ast.walk(self._function.tree):
            leaves = isinstance(node, _JUMPS) and node is not self._statement()
            if leaves and start <= _start(node) < end:
                return f"`{name}` may leave before it calls the norm"
        for node in mentions:
            within = self._is_within(node)
            if within and isinstance(node.ctx, ast.Store):
                continue  # it is assigned when all of the statement has run
            between = start <= _start(node) < end
            after = _start(node) >= end and node is not given
            if between or (after and (not again or within)):
                return f"`{name}` uses the layer's output for something else, too"
        loops = (isinstance(around, _LOOPS) for around, _ in self._branches(self._first))
        if not again and any(loops):
            return f"`{name}` keeps the layer's output"
        return ""

    def _statement(self) -> ast.AST:
        """The statement of the second call."""
        path = self._function.path_to(self._second)
        return next(node for node, _ in path if isinstance(node, ast.stmt))

    def _is_assigned_again(self, name: str) -> bool:
        """Whether the name stands for something else once the second call is done."""
        statement = self._statement()
        if isinstance(statement, ast.Return):
            return True
        if not isinstance(statement, ast.Assign):
            return False
        return any(_is_name(target, name) for target in statement.targets)

    def _is_within(self, node: ast.AST) -> bool:
        """Whether a node lies in the statement of the second call."""
        statement = self._statement()
        return any(around is statement for around, _ in self._function.path_to(node))

    def _branches(self, node: ast.AST) -> list[tuple[ast.AST, str]]:
        """The parts of the function, around a node, that a call may leave out or repeat."""
        return [
            (around, field)
            for around, field in self._function.path_to(node)
            if around is not self._function.tree
            and not isinstance(around, _SIMPLE)
            and not (isinstance(around, (ast.If, ast.IfExp)) and self._static.is_test(around))
        ]


_LOOPS = (ast.For, ast.While, ast.comprehension)
_JUMPS = (ast.Return, ast.Break, ast.Continue, ast.Yield, ast.YieldFrom)


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _start(node: Any) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _end(node: Any) -> tuple[int, int]:
    return node.end_lineno, node.end_col_offset


def looped_container(code: CodeType, owner: nn.Module, item: nn.Module) -> nn.Module | None:
    """The container of an item that a function goes through; None if it does more with it.

    It goes through it as ``for part in self.parts: x = part(x)``.
    """
    function = function_of(code)
    if function is None:
        return None
    mentioned = list(function.mentions(owner))
    for mention in mentioned:
        container = mention.module
        loop, field = function.parents[mention.node]
        inside = any(child is item for child in container._modules.values())  # noqa: SLF001
        if inside and not mention.rest and field == "iter" and _passes_through(loop):
            others = sum(each.module is container for each in mentioned)
            return container if others == 1 else None
    return None


def _passes_through(loop: ast.AST) -> bool:
    """Whether a loop hands one value through all items."""
    if not isinstance(loop, ast.For) or loop.orelse or len(loop.body) != 1:
        return False
    body = loop.body[0]
    if not isinstance(body, ast.Assign) or not isinstance(body.value, ast.Call):
        return False
    call, targets = body.value, body.targets
    if len(targets) != 1 or len(call.args) != 1 or call.keywords:
        return False
    value, item = targets[0], loop.target
    if not isinstance(value, ast.Name) or not isinstance(item, ast.Name) or value.id == item.id:
        return False
    return _is_name(call.func, item.id) and _is_name(call.args[0], value.id)


Caller: TypeAlias = tuple[CodeType, nn.Module]


def other_callers(
    modules: Iterable[nn.Module], callers: Mapping[nn.Module, Caller | None]
) -> dict[nn.Module, list[Caller]]:
    """The methods that call some modules besides those that called them in the trace.

    Args:
        modules: All modules of the model.
        callers: The modules, each with the function that called it, and the module whose method it
            is; None where a container called it.
    """
    owners = list(modules)
    names = {name for m in owners for name, child in m.named_children() if child in callers}
    found: dict[nn.Module, list[Caller]] = {}
    for owner in owners:
        cls: Any = type(owner)
        for code in _naming(cls, frozenset(names)):
            function = function_of(code)
            for mention in function.mentions(owner) if function is not None else ():
                known = mention.module in callers and mention.call is not None
                if known and callers[mention.module] != (code, owner):
                    found.setdefault(mention.module, []).append((code, owner))
    return found


@lru_cache(maxsize=1024)
def _naming(cls: Any, names: frozenset[str]) -> tuple[CodeType, ...]:
    """The methods of a class that use one of some names."""
    return tuple(code for code in methods_of(cls) if names & names_in(code))

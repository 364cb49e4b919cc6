"""The source of a module's methods, as trees, and the modules that they name."""

from __future__ import annotations

import ast
import dis
import inspect
from collections.abc import Iterator
from functools import lru_cache
from textwrap import dedent, indent
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from torch import nn


class Mention(NamedTuple):
    """A chain of attributes in a function: ``self.norm``, ``self.layer.weight.dtype``.

    Attributes:
        node: The whole chain.
        module: The module that it leads to.
        rest: The further attributes, which are no modules.
        call: The call of that module, if it is one.
    """

    node: ast.expr
    module: nn.Module
    rest: tuple[str, ...]
    call: ast.Call | None


class Function:
    """The source of one function, as a tree.

    Args:
        code: Its code.
        tree: Its definition.
    """

    def __init__(self, code: CodeType, tree: ast.FunctionDef) -> None:
        self.tree, self.name = tree, code.co_name
        self.own = code.co_varnames[0] if code.co_argcount else ""
        self.locals = {*code.co_varnames, *code.co_cellvars, *code.co_freevars} - {self.own}
        self.parents = {
            child: (parent, field)
            for parent in ast.walk(tree)
            for field, value in ast.iter_fields(parent)
            for child in (value if isinstance(value, list) else [value])
            if isinstance(child, ast.AST)
        }
        self._chains = [
            (node, names)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Attribute, ast.Subscript))
            and (names := self._names(node))
            and not self._continues(node)
        ]

    def mentions(self, owner: nn.Module) -> Iterator[Mention]:
        """The modules that the function names, if it is a method of this module's."""
        for node, names in self._chains:
            module, rest = owner, list(names)
            while rest and (child := module._modules.get(rest[0])) is not None:  # noqa: SLF001
                module = child
                del rest[0]
            parent, field = self.parents[node]
            call = parent if isinstance(parent, ast.Call) and field == "func" else None
            if module is not owner:
                yield Mention(node, module, tuple(rest), None if rest else call)

    def path_to(self, node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
        """The nodes around a node, from the inside out, each with the field that leads to it."""
        while node is not self.tree:
            node, field = self.parents[node]
            yield node, field

    def _names(self, node: ast.AST) -> tuple[str, ...]:
        """The names of a chain that begins with the function's own module; none if it does not."""
        found: list[str] = []
        while True:
            if isinstance(node, ast.Attribute):
                found.append(node.attr)
                node = node.value
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                found.append(str(node.slice.value))
                node = node.value
            else:
                break
        own = isinstance(node, ast.Name) and node.id == self.own and bool(self.own)
        return tuple(reversed(found)) if own else ()

    def _continues(self, node: ast.AST) -> bool:
        parent, field = self.parents[node]
        return (
            field == "value"
            and isinstance(parent, (ast.Attribute, ast.Subscript))
            and bool(self._names(parent))
        )


@lru_cache(maxsize=1024)
def function_of(code: CodeType) -> Function | None:
    """The source of a function; None if it cannot be read, or is not that of this code."""
    try:
        lines, _ = inspect.getsourcelines(code)
        text = "".join(lines)
        try:
            tree = ast.parse(dedent(text))
        except IndentationError:
            tree = ast.parse("if True:\n" + indent(text, " "))
    except (OSError, TypeError, SyntaxError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            given = node.args
            names = tuple(a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs))
            count = code.co_argcount + code.co_kwonlyargcount
            return Function(code, node) if names == code.co_varnames[:count] else None
    return None


def methods_of(cls: type[nn.Module]) -> Iterator[CodeType]:
    """The code of a class's own methods, other than those that make it.

    A method that a subclass overrides counts where a method that asks for `super` has its name.
    """
    seen: set[str] = {"__init__"}
    asked: set[str] = set()
    for base in cls.__mro__:
        if base.__module__.startswith("torch.nn.modules."):
            continue
        own = vars(base).items()
        methods = {name: code for name, value in own if (code := _code_of(value)) is not None}
        found = [code for name, code in methods.items() if name not in seen or name in asked]
        yield from found
        for code in found:
            names = names_in(code)
            asked.update(names if "super" in names else ())
        seen.update(methods)
        asked.discard("__init__")


def _code_of(value: Any) -> CodeType | None:
    """The code of a method; None if it is something else."""
    value = getattr(value, "fget", None) or getattr(value, "__func__", value)
    method = inspect.unwrap(value) if callable(value) else value
    return method.__code__ if isinstance(method, FunctionType) else None


@lru_cache(maxsize=1024)
def names_in(code: CodeType) -> frozenset[str]:
    """The names of attributes and globals in a function, and in the functions within it."""
    inner = (names_in(each) for each in code.co_consts if isinstance(each, CodeType))
    return frozenset(code.co_names).union(*inner)


@lru_cache(maxsize=1024)
def assigned_by(cls: Any) -> frozenset[str]:
    """The names of attributes that a class's methods assign."""
    codes = [*methods_of(cls)]
    for code in codes:  # it grows on the way
        codes.extend(each for each in code.co_consts if isinstance(each, CodeType))
    found = (each for code in codes for each in dis.get_instructions(code))
    return frozenset(str(each.argval) for each in found if each.opname == "STORE_ATTR")

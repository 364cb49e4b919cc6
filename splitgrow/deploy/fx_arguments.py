"""The arguments of a graph: those of the model's forward, in the form of the example call.

A graph always does the same. So arguments by which forward may decide have the values of the
example call: None, flags, texts, defaults, and how many items containers have, by which names. The
graph compares them at each call, and refuses others.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import Parameter
from keyword import iskeyword
from typing import Any

import torch
from torch import fx, nn

from splitgrow.errors import TraceError
from splitgrow.utils.example_call import ExampleCall

_CHOICES = (bool, str, type(None))
"""Types of arguments by which forward decides."""
_CONSTANTS = (
    *_CHOICES,
    int,
    float,
    complex,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)
"""Types of defaults that a graph can compare."""


@dataclass(frozen=True)
class GraphArgument:
    """An argument of the graph.

    Attributes:
        name: Its name.
        value: Its value in the example call, or its default.
        keyword: Its keyword in calls of forward; empty where it is passed by position.
        default: A tuple of its default, empty if it has none.
        given: Whether the example call gives it.
        needed: Whether the default stands only for a missing argument, since defaults come before.
    """

    name: str
    value: Any
    keyword: str
    default: tuple[Any, ...]
    given: bool = True
    needed: bool = False


def graph_arguments(model: nn.Module, call: ExampleCall) -> list[GraphArgument]:
    """The arguments of a model's graph, in order.

    Raises:
        ValueError: If the call does not fit the model's forward.
        TraceError: If a keyword is no name in Python.
    """
    those = list(_given(model, call))
    by_place: set[Any] = {Parameter.POSITIONAL_ONLY, Parameter.VAR_POSITIONAL}
    if any(parameter.kind is Parameter.VAR_POSITIONAL for parameter, _, _, _ in those):
        by_place.add(Parameter.POSITIONAL_OR_KEYWORD)  # else one before may be left out
    found, defaults = list[GraphArgument](), False
    # A positional argument may have the name of one of **kwargs.
    names = {name for one, name, _, _ in those if one.kind is Parameter.VAR_KEYWORD}
    for parameter, name, value, given in those:
        keyword = "" if parameter.kind in by_place else name
        if not name.isidentifier() or iskeyword(name):
            raise TraceError(f"torch.fx has no argument of the name {name!r}")
        while name in names and parameter.kind is not Parameter.VAR_KEYWORD:
            name += "_"
        names.add(name)
        several = parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        own = not several and parameter.default is not Parameter.empty
        needed = defaults and not own
        defaults = defaults or own
        default = (parameter.default,) if own else (None,) if needed else ()
        found.append(GraphArgument(name, value, keyword, default, given, needed))
    return found


def _given(model: nn.Module, call: ExampleCall) -> Iterator[tuple[Parameter, str, Any, bool]]:
    """Forward's parameters with the name, the value and whether it is given, for each argument."""
    bound = call.bound(model)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is Parameter.VAR_POSITIONAL:
            for index, value in enumerate(bound.arguments.get(name, ())):
                yield parameter, f"{name}_{index}", value, True
        elif parameter.kind is Parameter.VAR_KEYWORD:
            for keyword, value in bound.arguments.get(name, {}).items():
                yield parameter, keyword, value, True
        elif name in bound.arguments:
            yield parameter, name, bound.arguments[name], True
        elif _is_constant(parameter.default):
            yield parameter, name, parameter.default, False


def _is_constant(value: Any) -> bool:
    """Whether a graph can tell the value from others; a default that it cannot is left out."""
    if type(value) in (tuple, list):
        return all(map(_is_constant, value))
    return type(value) in _CONSTANTS and bool(value == value)


def with_placeholders(
    tracer: fx.Tracer, forward: Callable[..., Any], arguments: list[GraphArgument]
) -> tuple[Callable[..., Any], list[Any]]:
    """The function that torch.fx is to trace, and its arguments."""
    proxies = [tracer.create_proxy("placeholder", a.name, a.default, {}) for a in arguments]

    def run(root: nn.Module, *values: fx.Proxy) -> Any:
        return _run(tracer, forward, arguments, root, *values)

    run.__annotations__ = {}  # torch.fx would write the type of what is returned into its code
    return run, [tracer.root, *proxies]


def _run(
    tracer: fx.Tracer,
    forward: Callable[..., Any],
    arguments: list[GraphArgument],
    root: nn.Module,
    *proxies: fx.Proxy,
) -> Any:
    args, kwargs = list[Any](), dict[str, Any]()
    for argument, proxy in zip(arguments, proxies, strict=True):
        shown = _Shown(tracer, argument.name)
        if argument.needed and argument.value is not None:
            shown.refuse(shown.op(operator.ne, proxy, None), "is missing")
        if not argument.given:  # forward has the default itself
            shown.fixed(proxy, argument.value)
        elif argument.keyword:
            kwargs[argument.keyword] = shown.of(proxy, argument.value)
        else:
            args.append(shown.of(proxy, argument.value))
    return forward(root, *args, **kwargs)


class _Shown:
    """An argument as forward sees it: proxies where values differ from call to call.

    The ops are those that torch.fx can trace again, as it does when it unpickles a graph.
    """

    def __init__(self, tracer: fx.Tracer, name: str) -> None:
        self._tracer, self._name = tracer, name

    def of(self, proxy: Any, value: Any) -> Any:
        """The argument with the containers of the example call."""
        if type(value) in _CHOICES:
            return self.fixed(proxy, value)
        if type(value) in (list, tuple):
            more = proxy[len(value) :] == type(value)()
            self.refuse(more, f"has another length than {len(value)}")
            return type(value)(self.of(proxy[i], item) for i, item in enumerate(value))
        if type(value) is dict and all(type(key) is str for key in value):
            more = proxy.keys() - list(value)
            self.refuse(more.isdisjoint(proxy.keys()), f"has other keys than {', '.join(value)}")
            return {key: self.of(proxy[key], item) for key, item in value.items()}
        return proxy

    def fixed(self, proxy: Any, value: Any) -> Any:
        """The value of the example call itself."""
        self.refuse(self.op(operator.eq, proxy, value), f"is not {value!r}")
        return value

    def op(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._tracer.create_proxy("call_function", function, args, {})

    def refuse(self, allowed: Any, how: str) -> None:
        """Lets the graph refuse what it was not made for."""
        torch._assert(  # type: ignore[no-untyped-call]  # noqa: SLF001
            allowed, f"{self._name} {how}, which this graph was made for; make one for such a call"
        )

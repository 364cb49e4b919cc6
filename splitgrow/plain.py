"""Plain copies of modules: stock layers in place of grown ones, nothing else of splitgrow."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from splitgrow.deepened import ORIGINAL, Deepened, Inserted
from splitgrow.split import SplitLayer


def plain_copy(
    module: nn.Module,
    view: int | None,
    memo: dict[int, Any],
    finish: Callable[[SplitLayer, nn.Module], None] | None = None,
    stock_of: Callable[[SplitLayer, int | None], nn.Module] = SplitLayer.plain,
) -> nn.Module:
    """A copy of a module in which everything that has grown is plain.

    Args:
        module: Any module.
        view: The edit after which it is copied; None for today.
        memo: As of `copy.deepcopy`; in the end it has the copy of every part by the part's id.
        finish: What else is to be done with the stock layer of each grown one.
        stock_of: Makes the stock layer of a grown one.
    """
    deepened = []
    for part in module.modules():
        if isinstance(part, SplitLayer):
            memo[id(part)] = stock_of(part, view)
            if finish is not None:
                finish(part, memo[id(part)])
        elif isinstance(part, Deepened):
            deepened.append(part)
    for part in reversed(deepened):  # what lies within comes first
        memo[id(part)] = _plain(part, view, memo)
    return copy.deepcopy(module, memo)


def _plain(deepened: Deepened, view: int | None, memo: dict[int, Any]) -> nn.Module:
    before = deepened.seen(before=True, view=view)
    behind = deepened.seen(before=False, view=view)
    wrapped = copy.deepcopy(deepened.wrapped, memo)
    if not before and not behind:
        return wrapped
    modules = {
        item.name: copy.deepcopy(deepened.part(item.name), memo) for item in (*before, *behind)
    }
    known = deepened.tensor_result and not deepened.answers
    arguments = _plain_arguments(wrapped) if known else None
    chain = all(item.form == "chain" for item in (*before, *behind))
    if chain and arguments is not None and len(arguments) == 1:
        parts = [*(modules[i.name] for i in before), wrapped, *(modules[i.name] for i in behind)]
        return nn.Sequential(*(layer for part in parts for layer in _layers(part, wrapped)))
    if arguments is not None:
        plain = _as_graph(wrapped, modules, arguments, (before, behind))
        return plain.train(deepened.training)
    same = Deepened(wrapped)
    same.tensor_result, same.answers = deepened.tensor_result, deepened.answers
    shown = tuple(item for item in deepened.inserted if item.name in modules)
    same.set_inserted({item.name: modules[item.name] for item in shown}, shown)
    return same


def _layers(part: nn.Module, wrapped: nn.Module) -> list[nn.Module]:
    return list(part) if type(part) is nn.Sequential and part is not wrapped else [part]


def _plain_arguments(module: nn.Module) -> list[inspect.Parameter] | None:
    """The arguments of a module, unless it takes any number of them."""
    arguments = list(inspect.signature(module.forward).parameters.values())
    open_kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return None if any(a.kind in open_kinds for a in arguments) else arguments


def _as_graph(
    wrapped: nn.Module,
    modules: dict[str, nn.Module],
    arguments: list[inspect.Parameter],
    seen: tuple[list[Inserted], list[Inserted]],
) -> nn.Module:
    """What was inserted and the module as a torch.fx.GraphModule."""
    root = nn.Module()
    root.add_module(ORIGINAL, wrapped)
    for name, module in modules.items():
        root.add_module(name, module)
    graph = fx.Graph()
    given = []
    for argument in arguments:
        empty = argument.default is inspect.Parameter.empty
        default = {} if empty else {"default_value": argument.default}
        given.append(graph.placeholder(argument.name, **default))
    x, others = given[0], given[1:]

    def made(item: Inserted, x: fx.Node) -> fx.Node:
        more = {"block": others, "beside": given}.get(item.form, [])
        result = graph.call_module(item.name, (x, *more))
        if item.form in {"residual", "gate"}:
            how = operator.add if item.form == "residual" else operator.mul
            result = graph.call_function(how, (x, result))
        return result

    for item in seen[0]:
        x = made(item, x)
    x = graph.call_module(ORIGINAL, (x, *others))
    for item in seen[1]:
        x = made(item, x)
    graph.output(x)
    return fx.GraphModule(root, graph, class_name=type(wrapped).__name__)

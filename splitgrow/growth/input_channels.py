"""Growing the channels of a model's input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from splitgrow.analysis.channel_graph import ChannelGraph
from splitgrow.analysis.channels.channel_axes import Axis, groups_of
from splitgrow.analysis.named_numbers import numbers_of_input
from splitgrow.analysis.single_runs import analyse_with_free_input
from splitgrow.errors import FixedWidthError
from splitgrow.growth.apply import carry_out_, held_to
from splitgrow.growth.edit_check import before_edit
from splitgrow.growth.edit_parts import InputChange, NumberChange
from splitgrow.growth.edits import Edit
from splitgrow.growth.growth_options import GrowthOptions
from splitgrow.growth.history import History, check_structure, keep_, structure
from splitgrow.growth.planning import plan_changes, plan_numbers
from splitgrow.growth.value_trials import analyse_again
from splitgrow.growth.ways import find_ways
from splitgrow.utils.example_call import ExampleCall
from splitgrow.utils.rollback import Undo


def expand_input_(  # noqa: PLR0913
    undo: Undo,
    model: nn.Module,
    history: History,
    n: int,
    *,
    name: str | None,
    freeze: bool,
    options: GrowthOptions,
    optimizer: list[Optimizer],
) -> Edit:
    """Adds channels to an input.

    Raises:
        TypeError: If n is not an int.
        ValueError: If n is not positive.
    """
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n (={n!r}) must be an int, the number of channels to add")
    if n < 1:
        raise ValueError(f"n (={n}) must be at least 1: inputs only grow")
    check_structure(model, history)
    before = before_edit(model, history, check=options.check)
    name = _named(history.inputs.tensors(model), name)
    graph, axes = analyse_with_free_input(model, history.inputs, name)
    dim = _channel_dim(graph, axes, name)
    growth = _growth(graph, axes[dim], name, n)
    ways = find_ways(graph, growth, options.initializer.way)
    keep_(history, undo)
    history.graph = graph
    generation, closes = history.next_edit(freeze=freeze)
    edit = Edit(
        index=len(history.edits) + 1,
        generation=generation,
        closes=closes,
        request={f"input {name}": n},
        growth=growth,
        changes=plan_changes(graph, history.modules, growth, ways),
        ways=ways,
        numbers=_numbers(graph, growth, model, _change(graph, axes[dim], name, dim, n)),
        inputs=(_change(graph, axes[dim], name, dim, n),),
    )
    prepared = carry_out_(undo, model, history, edit, options, optimizer)
    edit = prepared.edit
    history.narrower = (*history.narrower, (edit.index, history.inputs))
    history.inputs = widened(model, history.inputs, edit.inputs)
    history.graph = analyse_again(model, history.inputs, history.broken, history.graph)
    history.modules = structure(model)
    return held_to(before, prepared, history, options.initializer)


def _named(tensors: Mapping[str, Tensor], name: str | None) -> str:
    """The name of the input to grow.

    Raises:
        TypeError: If the name is no text.
        ValueError: If there is no such input.
    """
    if not tensors:
        raise ValueError("the example inputs hold no tensor that could grow")
    if name is None:
        return next(iter(tensors))
    if not isinstance(name, str):
        raise TypeError(f"name must be the name of an argument of forward, got {name!r}")
    if name not in tensors:
        raise ValueError(f"no input {name!r} that is a tensor; there are {', '.join(tensors)}")
    return name


def _channel_dim(graph: ChannelGraph, axes: tuple[Axis, ...], name: str) -> int:
    """The dimension of an input on which layers read channels.

    Raises:
        FixedWidthError: If no layer reads it.
    """
    for node in graph.nodes.values():
        read = set(groups_of(graph.groups.resolve(node.ins)))
        for dim, axis in enumerate(axes):
            if read & set(groups_of(graph.groups.resolve(axis))):
                return dim
    reasons = "; ".join(reason for axis in axes for reason in graph.groups.reasons(axis))
    raise FixedWidthError(f"no layer reads channels of the input `{name}`: {reasons or 'none'}")


def _growth(graph: ChannelGraph, axis: Axis, name: str, n: int) -> dict[int, int]:
    """The units that the groups on an axis gain so that it gains n positions at its end.

    Raises:
        FixedWidthError: If they cannot.
        ValueError: If n does not fit.
    """
    growing = graph.growing_groups(axis)
    runs = graph.groups.resolve(axis)
    if not growing or runs[-1].group != growing[0]:
        reasons = "; ".join(graph.groups.reasons(axis)) or "its channels are of a constant number"
        raise FixedWidthError(f"the input `{name}` cannot grow: {reasons}")
    step = graph.multiplicity(axis, growing[0])
    if n % step:
        raise ValueError(f"n (={n}) does not fit the input `{name}`: it grows in steps of {step}")
    return {growing[0]: n // step}


def _change(graph: ChannelGraph, axis: Axis, name: str, dim: int, n: int) -> InputChange:
    width = graph.groups.length(axis)
    return InputChange(name, dim, (width, width + n))


def _numbers(
    graph: ChannelGraph, growth: Mapping[int, int], model: nn.Module, change: InputChange
) -> tuple[NumberChange, ...]:
    """The changes of numbers that modules hold, those that others ask the model for as well."""
    known = plan_numbers(graph, growth)
    there = {(number.module, number.attribute) for number in known}
    asked = [one for one in numbers_of_input({"": model}, change.width[0]) if one not in there]
    return (*known, *(NumberChange(path, attribute, change.width) for path, attribute in asked))


def widened(model: nn.Module, inputs: ExampleCall, changes: Iterable[InputChange]) -> ExampleCall:
    """The example inputs with more channels: copies of the existing ones, from the first."""
    for change in changes:
        x, (before, after) = inputs.tensors(model)[change.name], change.width
        again = torch.arange(after - before, device=x.device) % before
        wider = torch.cat([x, x.index_select(change.dim, again)], change.dim)
        inputs = inputs.map(partial(_replaced, x, wider))
    return inputs


def _replaced(old: Tensor, new: Tensor, tensor: Tensor) -> Tensor:
    return new if tensor is old else tensor

"""Making a plain network smaller while it computes the same: its dead units are removed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.analysis.analyzer import Followed, analyse_runs, try_evaluation
from splitgrow.analysis.channel_graph import ChannelGraph
from splitgrow.analysis.channels.channel_axes import Run
from splitgrow.analysis.ops.op import shaped_in
from splitgrow.analysis.trace import at_path, refs_of
from splitgrow.analysis.trial_runs import narrowing_breaks
from splitgrow.analysis.units import along_tensors
from splitgrow.analysis.unsupported_models import refuse_unsupported
from splitgrow.errors import UnsupportedModelError
from splitgrow.growth.history_lookup import HISTORY
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.layers.tensor_holder import layer_at
from splitgrow.layers.types import LayerType, Stock, layer_type_of
from splitgrow.pruning.dead_units.constant_propagation import (
    constants_read,
    hooked_unseen,
    runs_hooks,
)
from splitgrow.pruning.dead_units.constants import Known
from splitgrow.pruning.dead_units.dead_units import dead_units, made_up_for
from splitgrow.pruning.dead_units.narrow import Narrowing, count_parameters, narrow_
from splitgrow.pruning.dead_units.weight_connections import contributed, has_weights
from splitgrow.pruning.shrinking.chosen_units import Chosen, UnitsByGroup
from splitgrow.utils.example_call import ExampleCall, ExampleInputs, example_call
from splitgrow.utils.preserve import ignore_warnings_, keep_modes_, keep_random_states_
from splitgrow.utils.rollback import Undo, temporarily


def without_dead_units(
    network: nn.Module,
    example_inputs: ExampleInputs = (),
    example_kwargs: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, Narrowing]:
    """A copy of a plain network without its dead units.

    In evaluation mode it computes the same, for all inputs on which every value on the way is
    finite. It removes two sorts of units, as often as there are any: units that nothing reads by a
    nonzero weight, and units whose value is the same for every input, if their readers can do
    without. A reader can always do without a zero. It can do without another constant only if it
    adds that to its bias: a Linear, or a convolution that does not pad with zeros, with a bias.

    Module paths, classes and flags stay the same; the layers are narrower. Every width keeps at
    least one unit; if that unit is dead, nothing reads it any more. Everything that `growable`
    finds fixed stays, and so do units on which all channels of a norm depend, units that the
    network returns, and units near a module with forward hooks. A network whose forward decides by
    values loses no units, since other inputs may take another path.

    Args:
        network: Any module of plain layers that `growable` would take.
        example_inputs: As in `splitgrow.growable`.
        example_kwargs: As in `splitgrow.growable`.

    Returns:
        The copy, and the record of the changes to its layers.

    Raises:
        TypeError: If the arguments are of other types.
        ValueError: If the network does not run on the example inputs.
        TraceError: If its forward cannot be followed.
        UnsupportedModelError: If it is growable or has grown, or is wrapped, compiled, scripted,
            uninitialised or without values.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> _ = nn.init.zeros_(net[2].weight[:, 1:2].detach())
        >>> smaller, record = without_dead_units(net, torch.ones(1, 2))
        >>> print(record)
        13 -> 9 parameters, 2 layers narrower
          layer  type    inputs  units   parameters
          0      Linear  2       3 -> 2  9 -> 6
          2      Linear  3 -> 2  1       4 -> 3
        >>> smaller[0]
        Linear(in_features=2, out_features=2, bias=True)
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}")
    inputs = example_call(example_inputs, example_kwargs)
    _refuse(network)
    return _smaller(network, inputs)


@temporarily
def _smaller(undo: Undo, network: nn.Module, inputs: ExampleCall) -> tuple[nn.Module, Narrowing]:
    keep_modes_(undo)
    keep_random_states_(network.modules(), undo)
    ignore_warnings_()  # growable gave the same warnings
    smaller = copy.deepcopy(network)
    return smaller, _shrink_(smaller, inputs)


def _refuse(network: nn.Module) -> None:
    refuse_unsupported(network)
    grown = [name for name, m in network.named_modules() if isinstance(m, SplitLayer)]
    if HISTORY in vars(network) or grown:
        which = f": {', '.join(grown)}" if grown else ""
        raise UnsupportedModelError(
            f"the network is growable or has grown{which}; merge it first (splitgrow.merge)"
        )
    tensors = (*network.named_parameters(), *network.named_buffers())
    without = [name for name, tensor in tensors if tensor.is_meta]
    if without:
        raise UnsupportedModelError(
            f"{', '.join(without)} on the meta device: there are no values to tell by"
        )


def _shrink_(network: nn.Module, inputs: ExampleCall) -> Narrowing:
    followed = analyse_runs(network, inputs)
    try_evaluation(network, inputs, followed)
    modules = dict(network.named_modules())
    steps = [step for run in followed.trials for step in run.steps]
    unseen = hooked_unseen(modules, steps)
    refusal = ""
    if followed.decides:
        refusal = "forward decides by values, and other inputs may lead it elsewhere"
    elif unseen:
        refusal = f"`{unseen[0]}` has forward hooks, which may change what passes"
    if refusal:
        return Narrowing((), (), (count_parameters(network),) * 2, refusal)
    _fix_what_hooks_touch(followed, modules)
    run = followed.trials[0]
    read = constants_read(modules, followed.graph.groups, run.steps, run.values)
    groups = followed.graph.groups
    while True:
        dead = dead_units(followed.graph, modules, followed.outputs, read)
        # If all of a group is dead, the first unit stays, and nothing reads it any more.
        idle = {group: [0] for group, units in dead.items() if len(units) == groups.width(group)}
        gone = {group: units[len(idle.get(group, ())) :] for group, units in dead.items()}
        gone = {group: units for group, units in gone.items() if units}
        counts = {group: len(units) for group, units in gone.items()}
        broken = narrowing_breaks(network, inputs, followed.trials, counts)
        if not broken:
            break
        for group, reason in broken.items():
            groups.fix((Run(group, 1),), reason)
    if gone:
        _absorb_(modules, followed.graph, read, dead)
        _stop_reading_(modules, followed.graph, idle)
    return narrow_(network, followed.graph, gone)


def _fix_what_hooks_touch(followed: Followed, modules: Mapping[str, nn.Module]) -> None:
    """Fixes the inputs and outputs of modules with hooks: a trace runs without the hooks."""
    for run in followed.trials:
        for step, value in zip(run.steps, run.values, strict=True):
            if step.module is None or not runs_hooks(modules[step.module]):
                continue
            read = [at_path(run.values[ref.step], ref.path) for ref in refs_of(step)]
            for shaped in shaped_in((value, read)):
                for axis in shaped.axes:
                    followed.graph.groups.fix(axis, f"`{step.module}` has forward hooks")


def _absorb_(
    modules: Mapping[str, nn.Module],
    graph: ChannelGraph,
    read: Mapping[str, Known | None],
    dead: UnitsByGroup,
) -> None:
    """Adds to the biases the constants that dead units contributed to outputs."""
    units = Chosen(graph.groups, dead)
    for node in graph.nodes.values():
        module: Stock = layer_at(modules, node.name, node.use)
        entry, known = layer_type_of(module), read.get(node.name)
        if known is None or entry is None or not has_weights(entry, module):
            continue
        goes = units.on(node.ins)
        chosen = goes & known.known & (known.values != 0) & made_up_for(module, known)
        if bool(chosen.any()):
            _add_to_bias_(entry, module, torch.where(chosen, known.values, 0.0))


def _stop_reading_(
    modules: Mapping[str, nn.Module], graph: ChannelGraph, idle: UnitsByGroup
) -> None:
    """Sets the weights to zero that read dead units which stay.

    The inputs of such a unit may be gone, so that its value is another one.
    """
    units = Chosen(graph.groups, idle)
    for node in graph.nodes.values():
        module: Stock = layer_at(modules, node.name, node.use)
        entry = layer_type_of(module)
        if entry is None or not node.followed or not has_weights(entry, module):
            continue
        axes = entry.tensors(module)
        unread = along_tensors(module, units.on(node.ins), units.on(node.outs))
        for name, along in unread.items():
            for dim, chosen in along.items():
                if axes[name][dim].reads and bool(chosen.any()):
                    tensor: Tensor = getattr(module, name)
                    with torch.no_grad():
                        tensor.index_fill_(dim, chosen.nonzero().flatten().to(tensor.device), 0)


def _add_to_bias_(entry: LayerType, module: Stock, numbers: Tensor) -> None:
    with torch.no_grad():
        module.bias.copy_(module.bias.double() + contributed(entry, module, numbers))

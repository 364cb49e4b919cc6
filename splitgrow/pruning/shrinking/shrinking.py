"""Taking units out of a model: the edit is planned, then applied, all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from splitgrow.analysis.channel_graph import ChannelGraph
from splitgrow.analysis.output_comparison import (
    NotRunnableError,
    compared,
    fitting,
    outputs_of,
)
from splitgrow.errors import InexactError, UnsupportedLayerError
from splitgrow.growth.absorption import absorb_these_, absorbable
from splitgrow.growth.edit_check import Unchanged, before_edit, outputs_after
from splitgrow.growth.edit_parts import Removal
from splitgrow.growth.edits import Edit
from splitgrow.growth.history import History, check_structure, keep_, structure
from splitgrow.growth.module_numbers import change_
from splitgrow.growth.optimizer_merge import JointParameter, plan_replacing, replace_
from splitgrow.growth.optimizers import leave_
from splitgrow.growth.planning import find_node
from splitgrow.growth.shrinking.narrowing import (
    SmallerLayer,
    narrowed,
    put_narrowed_,
    smaller_parameters,
)
from splitgrow.growth.value_trials import analyse_again
from splitgrow.layers.tensor_holder import layer_at, split_of
from splitgrow.layers.types import known_layer_type
from splitgrow.layers.types.parametrized_layers import computed_names
from splitgrow.pruning.giving_up import born_at, let_go_, lost_generations, refuse_loss
from splitgrow.pruning.shrinking.chosen_units import (
    Chosen,
    UnitsByGroup,
    numbers_without,
    removals_of,
    requested_units,
)
from splitgrow.pruning.shrinking.folding import Folding, fold_, plan_folding
from splitgrow.pruning.shrinking.silencing import read_nothing_
from splitgrow.utils.rollback import Undo, temporarily


def plan_shrinking(
    _undo: Undo,
    model: nn.Module,
    history: History,
    request: Mapping[int | str, int | Sequence[int]],
    *,
    round_to: int,
    give_up: bool,
) -> Edit:
    """The edit that takes channels out of layers, not applied.

    Args:
        _undo: Not needed.
        model: The model.
        history: Its history.
        request: By layers the output channels that go, or how many.
        round_to: The number of which widths that stay are multiples.
        give_up: Whether closed generations may lose units.

    Raises:
        GenerationError: If they would, and may not.
    """
    check_structure(model, history)
    units = requested_units(history.graph, history.modules, request, round_to)
    names = {find_node(history.graph, layer).name for layer in request}
    edit, _ = _planned(history, units, names, give_up=give_up)
    return plan_folding(model, history, units, edit.gives_up).noted(edit)


def _planned(
    history: History, units: UnitsByGroup, names: Container[str], *, give_up: bool
) -> tuple[Edit, list[SmallerLayer]]:
    graph, modules = history.graph, history.modules
    chosen = Chosen(graph.groups, units)
    layers = [narrowed(modules, removal) for removal in removals_of(graph, chosen)]
    seen: set[int] = set()
    layers = [
        replace(item, removal=replace(item.removal, parameters=_lost(item, seen)))
        for item in layers
    ]
    removals = [layer.removal for layer in layers]
    lost = _given_up(history, layers)
    refuse_loss(lost, "units", ", or take out newer units", give_up=give_up)
    edit = Edit(
        len(history.edits) + 1,
        history.generation,
        None,
        {r.name: r.width[1] - r.width[0] for r in removals if r.name in names},
        {group: -len(own) for group, own in units.items()},
        (),
        numbers_without(graph, chosen),
        removed=tuple(removals),
        gives_up=lost,
    )
    return edit, layers


def _lost(layer: SmallerLayer, seen: set[int]) -> int:
    """The number of parameters that a layer loses.

    Args:
        layer: The layer.
        seen: The parameters that count in other layers, by id; those of this one join them.
    """
    elsewhere = {id(p) for p in layer.split.parameters()} & seen
    seen |= {id(p) for p in layer.split.parameters()}
    before = sum(p.numel() for p in layer.split.parameters() if id(p) not in elsewhere)
    if layer.plain_first:
        sizes = layer.layouts[0].length, layer.layouts[1].length
        plain = layer.split.layer_type.build(layer.split.original, sizes, device="meta")
        first = dict(layer.split.original.named_parameters())
        return before - sum(
            p.numel() for key, p in plain.named_parameters() if id(first.get(key)) not in elsewhere
        )
    after = 0
    for block in layer.blocks:
        smaller = {item.name: item for item in block.tensors}
        for name, parameter in block.module.named_parameters():
            shape = list(parameter.shape)
            for dim, positions in smaller[name].kept.items() if name in smaller else ():
                shape[dim] = len(positions)
            after += torch.Size(shape).numel() if id(parameter) not in elsewhere else 0
    return before - after


def _given_up(history: History, layers: Iterable[SmallerLayer]) -> tuple[int, ...]:
    """The closed generations that units belong to which go."""
    births: set[int] = set()
    for layer in layers:
        own = layer.split.ins.births_at(layer.removal.ins)
        own |= layer.split.outs.births_at(layer.removal.outs)
        first = born_at(history, layer.removal.path)
        births |= {max(birth, first) for birth in own}  # a layer is no older than its insertion
    return lost_generations(history, min(births, default=0))


def take_out_(  # noqa: PLR0913
    undo: Undo,
    model: nn.Module,
    history: History,
    request: Mapping[int | str, int | Sequence[int]],
    *,
    round_to: int,
    give_up: bool,
    optimizer: list[Optimizer],
    check: bool,
    prepare: Callable[[], None] | None = None,
) -> Edit:
    """Takes channels out of layers.

    `prepare` changes weights that stay, before the channels go.
    """
    check_structure(model, history)
    units = requested_units(history.graph, history.modules, request, round_to)
    names = {find_node(history.graph, layer).name for layer in request}
    edit, layers = _planned(history, units, names, give_up=give_up)
    before = before_edit(model, history, check=check)
    first = [layer.removal for layer in layers if layer.plain_first]
    if first:
        _make_plain_(undo, model, history, first, optimizer)
        edit, layers = _planned(history, units, names, give_up=give_up)
    if prepare is not None:
        prepare()
        folding = Folding()  # they make up for constants as well
    else:
        folding = plan_folding(model, history, units, edit.gives_up)
    edit = folding.noted(edit)
    fold_(folding, undo)
    stays = _staying(history.graph, units)
    silent = _without(model, history, units) if before is not None else None
    with torch.inference_mode(mode=False), torch.no_grad():
        parameters = smaller_parameters(layers)
    replacing = plan_replacing(optimizer, parameters)
    keep_(history, undo)
    there = {id(parameter): parameter for parameter in model.parameters()}
    with torch.inference_mode(mode=False), torch.no_grad():
        put_narrowed_(history.modules, layers, parameters, undo)
    for number in edit.numbers:
        change_(history.modules[number.module], number.attribute, number.value[1], undo)
    replace_(replacing, undo)
    leave_(optimizer, _gone(there, model), undo)
    edit = replace(edit, rewritten=_rewritten(model, folding, parameters))
    history.graph = replace(history.graph, groups=history.graph.groups.grown(edit.growth))
    history.modules = structure(model)
    history.edits = [*history.edits, edit]
    let_go_(model, history, edit)
    if any(layer.new_kind for layer in layers):
        history.graph = analyse_again(model, history.inputs, history.broken, history.graph)
    if before is not None:
        edit = _held_to(edit, model, history, before, silent, stays, exact=folding.exact)
        history.edits = [*history.edits[:-1], edit]
    return edit


def _gone(there: Mapping[int, nn.Parameter], model: nn.Module) -> list[nn.Parameter]:
    """The parameters that a model no longer has."""
    here = {id(parameter) for parameter in model.parameters()}
    return [parameter for key, parameter in there.items() if key not in here]


def _rewritten(
    model: nn.Module, folding: Folding, smaller: Iterable[JointParameter]
) -> tuple[str, ...]:
    """The present names of the biases that have taken over constants."""
    others = {id(joint.older[0]): id(joint.parameter) for joint in smaller}
    changed = {id(bias) for fold in folding.folds for bias, _ in fold.biases}
    changed = {others.get(key, key) for key in changed}
    return tuple(name for name, p in model.named_parameters() if id(p) in changed)


def _make_plain_(
    undo: Undo,
    model: nn.Module,
    history: History,
    layers: Sequence[Removal],
    optimizer: list[Optimizer],
) -> None:
    """Makes grown layers plain whose original blocks cannot do without the channels that go.

    Raises:
        UnsupportedLayerError: If one cannot become plain, or generations are closed, which that
            would set free.
    """
    grown, stay = absorbable(model, [layer.path for layer in layers])
    missing = [layer.name for layer in layers if layer.path not in grown]
    if missing or history.generation > 0:
        name = missing[0] if missing else layers[0].name
        reason = stay.get(name, "generations are closed, and `absorb` would set them free")
        raise UnsupportedLayerError(
            f"`{name}` would lose too many of the channels that it had before it grew, on which "
            f"its blocks build, and cannot become one plain layer: {reason}"
        )
    absorb_these_(undo, model, history, grown, optimizer, check=False)


# -- the check -------------------------------------------------------------------------------------


def _staying(graph: ChannelGraph, units: UnitsByGroup) -> list[list[Tensor]]:
    """For each output of the model the positions that stay along each of its dimensions."""
    chosen = Chosen(graph.groups, units)
    return [[(~chosen.on(axis)).nonzero().flatten() for axis in axes] for axes in graph.outputs]


def _part(tensors: Sequence[Tensor], stays: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Outputs from before, without the channels that go."""
    found = []
    for number, tensor in enumerate(tensors):
        for dim, positions in enumerate(stays[number]) if number < len(stays) else ():
            if tensor.dim() == len(stays[number]) and len(positions) < tensor.shape[dim]:
                tensor = tensor.index_select(dim, positions.to(tensor.device))
        found.append(tensor)
    return found


@temporarily
def _without(
    undo: Undo, model: nn.Module, history: History, units: UnitsByGroup
) -> list[Tensor] | None:
    """The outputs when no layer reads the units; None where that is another function.

    So it is where a norm over all channels, or a function, reads them, and where a layer that
    standardises its weight does: the mean of the weights that stay is another one.
    """
    graph, modules = history.graph, history.modules
    if not graph.ways.keys().isdisjoint(units):
        return None
    chosen = Chosen(graph.groups, units)
    with torch.inference_mode(mode=False), torch.no_grad():
        for node in graph.nodes.values():
            marks = chosen.on(node.ins), chosen.on(node.outs)
            if not node.followed or not (bool(marks[0].any()) or bool(marks[1].any())):
                continue
            layer = layer_at(modules, node.name, node.use)
            if bool(marks[0].any()) and _standardises(layer):
                return None
            read_nothing_(layer, marks, undo)
    try:
        return outputs_of(model, fitting(model, history.inputs), touched=graph.touched)
    except NotRunnableError:
        return None


def _standardises(layer: nn.Module) -> bool:
    """Whether a layer makes its weight of a parameter at each call, without a parametrization."""
    original = split_of(layer).original
    return known_layer_type(original).merging.computes_weight and not computed_names(original)


def _held_to(
    edit: Edit,
    model: nn.Module,
    history: History,
    before: Unchanged,
    silent: Sequence[Tensor] | None,
    stays: Sequence[Sequence[Tensor]],
    *,
    exact: bool,
) -> Edit:
    """Makes sure that a model without some units computes as if nothing read them.

    Args:
        edit: The edit.
        model: The model.
        history: Its history.
        before: Its results before.
        silent: Its outputs when nothing read the units; None where that is another function.
        stays: The parts of the outputs that stay.
        exact: Whether it has to compute the same as before, since constants were all that it lost.

    Returns:
        The edit, with the measured change of the outputs.

    Raises:
        InexactError: If it does not, or no longer runs.
    """
    run = partial(outputs_of, model, fitting(model, history.inputs), touched=history.graph.touched)
    now = outputs_after(run, history, _WAY_OUT)
    if silent is not None:
        found = compared(now, _part(silent, stays), lambda: run(noisy=True))
        if not found.same:
            raise InexactError(
                f"it would change more than what the units contribute, by {found.difference:.1e} "
                f"of the largest output, where {found.tolerance:.0e} is rounding; {_WAY_OUT}"
            )
    found = compared(now, _part(before.outputs, stays), lambda: run(noisy=True))
    if exact and not found.same:
        raise InexactError(
            f"it would change what the model computes, by {found.difference:.1e} of the largest "
            f"output, where {found.tolerance:.0e} is rounding, though only constants go; {_WAY_OUT}"
        )
    return replace(edit, moved=None if found.same else found.difference)


_WAY_OUT = (
    "it was taken back. If the model was changed since it was analysed (a hook, a module's "
    "attribute), splitgrow.growable(model, example_inputs) finds out what can still change; "
    "`check=False` does it all the same"
)

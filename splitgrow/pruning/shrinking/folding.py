"""Constants that go with units: the biases of the layers that read them take over their part.

A unit is constant if it has the same value for every input. Without it, a layer that reads it
computes the same if its bias takes over the value times the weights. A bias that closed generations
show stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from splitgrow.analysis.channel_graph import LayerNode
from splitgrow.analysis.output_comparison import has_values
from splitgrow.analysis.single_runs import run_in_evaluation
from splitgrow.analysis.units import UnitNumbers
from splitgrow.errors import TraceError
from splitgrow.growth.edits import Edit
from splitgrow.growth.history import History
from splitgrow.layers.hooks import STORES
from splitgrow.layers.insertion_wrapper import InsertionWrapper
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.layers.tensor_holder import layer_at, split_of
from splitgrow.layers.types import layer_type_of
from splitgrow.layers.types.parametrized_layers import computed_names
from splitgrow.layers.types.start_values import UNCHANGED
from splitgrow.pruning.dead_units.constant_propagation import (
    constants_read,
    has_forward_hooks,
    hooked_unseen,
)
from splitgrow.pruning.dead_units.constants import Known, may_make, passes_constants
from splitgrow.pruning.dead_units.weight_connections import contributed, has_weights, sections
from splitgrow.pruning.giving_up import born_at
from splitgrow.pruning.shrinking.chosen_units import Chosen, UnitsByGroup
from splitgrow.utils.preserve import ignore_warnings_, keep_modes_, keep_random_states_
from splitgrow.utils.rollback import Undo, temporarily
from splitgrow.utils.spans import regions


@dataclass(frozen=True)
class Fold:
    """The part of constants that a layer's bias takes over.

    Attributes:
        name: The layer's module path.
        count: The number of the constants.
        biases: Its biases, one for each block that has one, and the numbers that they gain.
        whole: Whether the layer computes the same without the units, all of which are made up for.
    """

    name: str
    count: int
    biases: tuple[tuple[nn.Parameter, Tensor], ...]
    whole: bool


@dataclass(frozen=True)
class Folding:
    """The parts of constants that biases take over in an edit.

    Attributes:
        folds: Those of each layer that has any.
        exact: Whether the edit then changes no output, as far as weights and constants tell, and
            there are any.
    """

    folds: tuple[Fold, ...] = ()
    exact: bool = False

    def noted(self, edit: Edit) -> Edit:
        """An edit with the numbers of constants."""
        return replace(edit, folded={fold.name: fold.count for fold in self.folds})


_NOTHING = Folding()


def plan_folding(
    model: nn.Module, history: History, units: UnitsByGroup, gives_up: Collection[int]
) -> Folding:
    """The parts of constants that biases can take over when units go.

    The model is followed only if weights tell that one of the units may be constant.

    Args:
        model: The model.
        history: Its history.
        units: The units.
        gives_up: The closed generations that need not be shown any more.
    """
    if not has_values(model, history.inputs):
        return _NOTHING
    layers = _Layers(history)
    if not _may_be_constant(history, layers, units):
        return _NOTHING
    read = _constants_read(model, history, layers)
    if not any(read.values()):
        return _NOTHING
    open_since = _open_since(history, gives_up)
    chosen, folds, exact = Chosen(history.graph.groups, units), [], True
    shared = _shared(model)
    for node in history.graph.nodes.values():
        goes = chosen.on(node.ins), chosen.on(node.outs)
        if node.followed and node.use is None and bool(goes[0].any()):
            known = read.get(node.name)
            fold = _fold(history, node, layers[node], (goes, known), (open_since, shared))
            exact = exact and fold.whole
            folds += [fold] if fold.biases else []
    exact = exact and bool(folds) and history.graph.ways.keys().isdisjoint(units)
    return Folding(tuple(folds), exact)


def fold_(folding: Folding, undo: Undo) -> None:
    """Has biases take over constants, in place."""
    with torch.inference_mode(mode=False), torch.no_grad():
        for fold in folding.folds:
            for bias, gained in fold.biases:
                before = bias.detach().clone()
                undo.on_failure(partial(_give_back_, bias, before))
                own = bias.detach()
                own.copy_(own.double() + gained.to(own.device))


def _give_back_(tensor: Tensor, values: Tensor) -> None:
    with torch.inference_mode(mode=False), torch.no_grad():
        tensor.detach().copy_(values)


# -- constants -------------------------------------------------------------------------------------


class _Layers:
    """Layers as stock ones: the plain forms of those that have grown, made when they are needed."""

    def __init__(self, history: History) -> None:
        self._modules = history.modules

    def __getitem__(self, node: LayerNode) -> nn.Module:
        return _stock_of(layer_at(self._modules, node.name, node.use))

    def all(self) -> Mapping[str, nn.Module]:
        """The modules of the model by path, in stock form."""
        return {path: _stock_of(module) for path, module in self._modules.items()}


def _stock_of(layer: nn.Module) -> nn.Module:
    """A layer in stock form, with the hooks of the layer."""
    if not isinstance(layer, SplitLayer):
        return layer
    plain = layer.plain()
    vars(plain).update({name: vars(layer)[name] for name in STORES})
    return plain


def _may_be_constant(history: History, layers: _Layers, units: UnitsByGroup) -> bool:
    """Whether one of some units may be constant: it reads nothing, or only such units."""
    groups, nodes = history.graph.groups, history.graph.nodes.values()
    followed = [node for node in nodes if node.followed and node.use is None]
    numbers = UnitNumbers(groups)
    places = {node.name: (numbers.on(node.ins), numbers.on(node.outs)) for node in followed}
    known = torch.zeros(len(numbers.order), dtype=torch.bool)
    count = -1
    while count != int(known.sum()):
        first, count = count < 0, int(known.sum())
        for node in followed:
            ins, outs = places[node.name]
            made = may_make(layers[node], known[ins])
            if len(made) == len(outs):
                known[outs[made]] = True
                known[0] = False  # the makers of these are not known
        if first and not bool(known.any()):
            return False
    gone = {(group, nth) for group, own in units.items() for nth in own}
    return not gone.isdisjoint(numbers.chosen(known))


@temporarily
def _constants_read(
    undo: Undo, model: nn.Module, history: History, layers: _Layers
) -> Mapping[str, Known | None]:
    """The constants that each layer reads, by path; none where forward cannot be followed."""
    keep_modes_(undo)
    keep_random_states_(model.modules(), undo)
    ignore_warnings_()
    try:
        run = run_in_evaluation(model, history.inputs, history.graph)
    except (TraceError, ValueError):
        return {}
    wrappers = (m for m in model.modules() if isinstance(m, InsertionWrapper))
    if run is None or any(map(has_forward_hooks, wrappers)):
        return {}
    if hooked_unseen(history.modules, run.steps):
        return {}
    return constants_read(layers.all(), run.graph.groups, run.steps, run.values)


# -- biases ----------------------------------------------------------------------------------------


def _open_since(history: History, gives_up: Collection[int]) -> int:
    """The number of the first edit whose blocks no closed generation shows."""
    known = {generation for edit in history.edits for generation in edit.gives_up} | {*gives_up}
    closed = range(history.exact_from, history.generation)
    return max((history.last_edit(g) + 1 for g in closed if g not in known), default=0)


def _shared(model: nn.Module) -> set[int]:
    """The ids of parameters that several modules have."""
    seen: set[int] = set()
    shared: set[int] = set()
    for module in model.modules():
        for parameter in module._parameters.values():  # noqa: SLF001
            if parameter is not None:
                (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


def _fold(
    history: History,
    node: LayerNode,
    stock: nn.Module,
    gone: tuple[tuple[Tensor, Tensor], Known | None],
    fixed: tuple[int, set[int]],
) -> Fold:
    """The part that a layer's bias takes over.

    Args:
        history: The model's history.
        node: The layer.
        stock: Its stock form.
        gone: The marks of the inputs and outputs that go, and the constants that it reads.
        fixed: The first edit whose blocks may change, and the ids of parameters that may not.
    """
    (goes, outs), known = gone
    entry = layer_type_of(stock)
    if entry is None or not has_weights(entry, stock):
        return Fold(node.name, 0, (), whole=entry is not None and entry.diagonal(stock))
    own = torch.zeros(len(goes), dtype=torch.bool)
    values = torch.zeros(len(goes), dtype=torch.float64)
    if known is not None:
        own = goes & known.known & (known.zero | passes_constants(stock))
        values = torch.where(own, known.values, 0.0)
    rows = torch.zeros(entry.sizes(stock)[1], dtype=torch.bool)
    biases = []
    count = int((values != 0).sum())
    if count and node.name not in history.graph.touched:
        gained = contributed(entry, stock, values).cpu()
        for bias, spans in _open_biases(history, node, fixed):
            part = torch.cat([gained[there] for there, _ in spans])
            rows[torch.cat([torch.arange(len(rows))[there] for there, _ in spans])] = True
            if bool((part != 0).any()):
                biases.append((bias, part))
    left = False  # whether an output that stays reads a unit that goes and is not made up for
    for section in sections(entry, stock):
        of_ins = slice(section.ins, section.ins + section.weight.shape[1])
        of_outs = slice(section.outs, section.outs + section.weight.shape[0])
        reads = (section.weight != 0).any(-1).cpu() & ~outs[of_outs, None]
        made_up = own[of_ins] & ((values[of_ins] == 0) | rows[of_outs, None])
        missing = outs[of_ins] if section.back else goes[of_ins] & ~made_up
        left = left or bool((reads & missing).any())
    return Fold(node.name, count if biases else 0, tuple(biases), whole=not left)


def _open_biases(
    history: History, node: LayerNode, fixed: tuple[int, set[int]]
) -> Iterator[tuple[nn.Parameter, list[tuple[slice, slice]]]]:
    """The biases of a layer's blocks that may change, with their places in the layer's bias."""
    since, shared = fixed
    layer = history.modules[node.name]
    composition = split_of(layer).composition()
    first = born_at(history, node.path)
    if "bias" not in composition.layer_type.tensors(composition.original):
        return
    for index, block in enumerate(composition.modules):
        bias = getattr(block, "bias", None)
        born = max(first, composition.blocks[index].edit)
        if not isinstance(bias, nn.Parameter) or born < since or id(bias) in shared:
            continue
        if "bias" in computed_names(block) or composition.carry(index) != UNCHANGED:
            continue
        places = regions(composition.places(index, "bias"), 1)
        yield bias, [(there, own) for (there,), (own,) in places]

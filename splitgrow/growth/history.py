"""The history of a growable model, and checks that the model still agrees with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

from torch import Tensor, nn

from splitgrow.analysis.channel_graph import ChannelGraph, LayerNode
from splitgrow.errors import GenerationError, SplitGrowError, StructureChangedError
from splitgrow.growth.copies import Kin
from splitgrow.growth.edits import Edit
from splitgrow.growth.module_numbers import change_, held_number, numbers_at
from splitgrow.layers.composition import Composition
from splitgrow.layers.fade import FadeIn
from splitgrow.layers.freezing import Owned, show_as_trained_
from splitgrow.layers.insertion_wrapper import InsertionWrapper
from splitgrow.layers.module_state import BUFFERS, State, show_
from splitgrow.layers.split_layer import SplitLayer, stock
from splitgrow.layers.tensor_holder import blocks_path, layer_at
from splitgrow.layers.types import LayerType, known_layer_type
from splitgrow.utils.assigned_modules import Paths, changes_between, paths_in
from splitgrow.utils.example_call import ExampleCall
from splitgrow.utils.inert_children import outer_modules
from splitgrow.utils.model_lock import ModelLock
from splitgrow.utils.module_slots import all_tensors
from splitgrow.utils.rollback import Undo


@dataclass
class History:
    """All that splitgrow knows of a model: its graph, its edits and its generations.

    Attributes:
        graph: The channel graph.
        inputs: The example inputs.
        modules: The modules by path, every path of each, as they were after the last edit.
        edits: The edits so far.
        generation: The open generation.
        exact_from: The first generation whose closed state can still be recovered.
        narrower: The earlier example inputs, each with the edit up to which they fit.
        frozen: The parameters that closing generations froze, as (module, name): a parameter
            object may be replaced, by ``load_state_dict(assign=True)`` for one.
        shares: The fades' alpha when a generation was closed, by generation.
        states: The modules' state when a generation was closed, by generation.
        viewing: Whether an earlier generation is being shown.
        model_lock: The lock by which one thread has the model to itself.
        broken: The layers whose growth was found to change the model's function, and why.
        loading: Whether a state_dict is being loaded whose journal was replayed already.
        kin: The model's deep copies, and the averages that follow it.
    """

    graph: ChannelGraph
    inputs: ExampleCall
    modules: dict[str, nn.Module]
    edits: list[Edit] = field(default_factory=list)
    generation: int = 0
    exact_from: int = 0
    frozen: dict[int, list[Owned]] = field(default_factory=dict)
    viewing: bool = False
    shares: dict[int, list[tuple[FadeIn, float]]] = field(default_factory=dict)
    states: dict[int, list[State]] = field(default_factory=dict)
    narrower: tuple[tuple[int, ExampleCall], ...] = ()
    model_lock: ModelLock = field(default_factory=ModelLock)
    broken: Mapping[str, str] = field(default_factory=dict)
    loading: bool = False
    kin: Kin = field(default_factory=Kin)

    def inputs_at(self, view: int | None) -> ExampleCall:
        """Example inputs for the model as it was after an edit; None: as it is now."""
        fitting = (inputs for edit, inputs in self.narrower if view is not None and view < edit)
        return next(fitting, self.inputs)

    def frozen_parameters(self) -> Iterator[Owned]:
        """All parameters that closing generations froze."""
        return chain.from_iterable(self.frozen.values())

    def next_edit(self, *, freeze: bool) -> tuple[int, int | None]:
        """The generation of the next edit, and the one that it closes first, if any."""
        return (1, 0) if freeze and self.generation == 0 else (self.generation, None)

    def last_edit(self, generation: int) -> int:
        """The number of the last edit of a generation or of those before it; 0 if none."""
        return max((e.index for e in self.edits if e.generation <= generation), default=0)

    def view_of(self, generation: int | None) -> int | None:
        """The edit up to which a generation's blocks are seen; None for all of them.

        Raises:
            TypeError: If `generation` is not an int.
            ValueError: If there is no such generation.
            GenerationError: If it was closed but can no longer be recovered.
        """
        if generation is None:
            return None
        if isinstance(generation, bool) or not isinstance(generation, int):
            raise TypeError(f"generation must be an int, got {generation!r}")
        if not 0 <= generation <= self.generation:
            raise ValueError(f"no generation {generation}: the open one is {self.generation}")
        given_up = next((e.index for e in self.edits if generation in e.gives_up), None)
        if given_up is not None:
            raise GenerationError(
                f"generation {generation} is no longer exact: edit {given_up} has taken units of "
                f"it out"
            )
        if generation < self.exact_from:
            absorbed = [e.index for e in self.edits if e.absorbed and e.generation > generation]
            reason = (
                f"edit {absorbed[-1]} (`absorb`) has made its blocks parts of plain layers"
                if absorbed
                else "`unfreeze` or a change by hand has set its parameters free"
            )
            raise GenerationError(
                f"generation {generation} is no longer exact: {reason} since it was closed"
            )
        return None if generation == self.generation else self.last_edit(generation)

    def refuse_while_viewing(self, what: str) -> None:
        """Makes sure that the whole network is being shown.

        Raises:
            SplitGrowError: If an earlier generation is shown.
        """
        if self.viewing:
            raise SplitGrowError(f"cannot {what} inside `with model.at(...)`: leave it first")


def structure(model: nn.Module) -> dict[str, nn.Module]:
    """All modules of a model by path, every path of each."""
    return paths_in(model)


def changed_modules(now: Paths, history: History) -> list[str]:
    """The paths of modules that were added, removed or replaced, where that counts."""
    graph = history.graph
    followed = {node.path for node in graph.nodes.values() if node.followed}
    return changes_between(history.modules, now, graph.assigned, followed)


def check_structure(model: nn.Module, history: History) -> None:
    """Makes sure that the model is still the one that was analysed.

    Raises:
        StructureChangedError: If modules were added, removed or replaced, or a layer's tensors have
            other shapes. Modules that forward makes anew at each call do not count.
    """
    now = structure(model)
    changed = changed_modules(now, history)
    groups = history.graph.groups
    for node in history.graph.nodes.values():
        module = _module_now(now, node)
        if module is None and node.use is not None:
            changed.append(node.name)
        if module is None or not node.followed or node.path in changed:
            continue
        entry = known_layer_type(stock(module))
        if isinstance(module, SplitLayer):
            changed.extend(_misshapen_blocks(node.name, module.composition()))
        else:
            sizes = groups.length(node.ins), groups.length(node.outs)
            changed.extend(_misshapen(node.name, module, entry, sizes))
    for number in history.graph.numbers if not history.viewing else ():
        held = held_number(now[number.module], number.attribute) if number.module in now else None
        if held != groups.length(number.axis) and number.module not in changed:
            changed.append(f"{number.module}.{number.attribute}".removeprefix("."))
    if changed:
        raise StructureChangedError(
            f"the model has changed since it was analysed ({', '.join(sorted(changed)[:5])}); call "
            f"splitgrow.growable(model, example_inputs) again"
        )


def _module_now(now: Mapping[str, nn.Module], node: LayerNode) -> nn.Module | None:
    """The layer of a node; None if there is none any more."""
    try:
        return layer_at(now, node.name, node.use)
    except KeyError:
        return None


def edits_of_tensors(model: nn.Module, edits: Iterable[Edit], since: int = 0) -> dict[int, int]:
    """For each parameter and buffer that an edit made, by its id, the number of the edit.

    Args:
        model: The model.
        edits: Its edits.
        since: The last edit that does not count.
    """
    found: dict[int, int] = {}
    # A layer within an insertion comes after it, with its blocks.
    for module in outer_modules(model):
        if isinstance(module, InsertionWrapper):
            for item in module.inserted:
                if item.edit > since:
                    found.update((id(t), item.edit) for t in all_tensors(module.part(item.name)))
        elif isinstance(module, SplitLayer):
            for block, purpose in zip(module, module.blocks, strict=True):
                if purpose.edit > since:
                    found.update((id(t), purpose.edit) for t in all_tensors(block))
    absorbed = {name: e.index for e in edits if e.index > since for name in e.absorbed}
    modules = structure(model) if absorbed else {}
    for name, index in absorbed.items():
        found.update((id(tensor), index) for tensor in _plain_tensors(modules, name))
    return found


def _plain_tensors(modules: Mapping[str, nn.Module], name: str) -> Iterator[Tensor]:
    """The tensors of a layer or of a module's tensor, without those of blocks added since."""
    module = modules.get(name, modules.get(blocks_path(name)))
    if module is not None:
        yield from all_tensors(stock(module))
        return
    parent, _, key = name.rpartition(".")
    tensor = getattr(modules.get(parent), key, None)
    if isinstance(tensor, Tensor):
        yield tensor


def added_since(
    model: nn.Module, history: History, edit: int, now: Sequence[nn.Parameter]
) -> list[nn.Parameter]:
    """The parameters that the edits after one have made, in the model's order.

    A layer that lost channels has others, too.

    Args:
        model: The model.
        history: Its history.
        edit: The number of the edit.
        now: All of its parameters.
    """
    added = edits_of_tensors(model, history.edits, edit)
    shrunk = [item for each in history.edits[edit:] for item in each.removed]
    paths = {path for item in shrunk for path in (item.path, item.name)}
    for name, parameter in model.named_parameters(remove_duplicate=False) if paths else ():
        if name in paths or any(name.startswith(f"{path}.") for path in paths):
            added[id(parameter)] = len(history.edits)
    found = [(p, key) for p, key in zip(now, map(id, now), strict=True) if key in added]
    return [p for p, key in found if added[key] > edit]


def grown_elsewhere(model: nn.Module, edits: Iterable[Edit]) -> list[str]:
    """The modules that have grown by other edits than these, as part of another model."""
    known = {(name, edit.index) for edit in edits for name in edit.paths}
    paths: dict[SplitLayer | InsertionWrapper, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, (SplitLayer, InsertionWrapper)):
            paths.setdefault(module, []).append(path)
    return [
        names[0]
        for module, names in paths.items()
        if not all(any((name, edit) in known for name in names) for edit in _edits_of(module))
    ]


def _edits_of(module: SplitLayer | InsertionWrapper) -> list[int]:
    if isinstance(module, InsertionWrapper):
        return [item.edit for item in module.inserted]
    return [block.edit for block in module.blocks if block.kind != "original"]


def _misshapen(
    name: str, layer: nn.Module, entry: LayerType, sizes: tuple[int, int]
) -> Iterator[str]:
    """The tensors of a stock layer whose shapes do not fit its sizes."""
    for key, axes in entry.tensors(layer).items():
        tensor = getattr(layer, key)
        for dim, along in axes.items():
            if tensor is not None and tensor.shape[dim] != along.length(sizes):
                yield f"{name}.{key}"


def _misshapen_blocks(name: str, composition: Composition) -> Iterator[str]:
    """The tensors of a grown layer's blocks that do not fit their places."""
    for key in composition.layer_type.tensors(composition.original):
        if composition.merging.computes_weight:
            values = ((n, getattr(b, key, None)) for n, b in enumerate(composition.modules))
            parts = [(index, value) for index, value in values if value is not None]
        else:
            parts = composition.parts(key)
        shapes = [(index, tensor.shape) for index, tensor in parts]
        for dim, lengths in composition.lengths(key).items():
            if [shape[dim] for _, shape in shapes] != [lengths[index] for index, _ in shapes]:
                wrong = (index for index, shape in shapes if shape[dim] != lengths[index])
                yield from (f"{name}.{index}.{key}" for index in wrong)


def keep_(history: History, undo: Undo) -> None:
    """Restores the history on failure. Its lists are replaced from here on, never changed."""
    undo.keep(vars(history))


def note_grown_tensors_(history: History, edit: Edit) -> None:
    """Notes that modules' tensors have become blocks, where closed generations know them.

    The caller keeps the history. Its lists are replaced.
    """
    moved: dict[tuple[int, str], nn.Module] = {}
    for change in edit.changes:
        if change.use is not None:
            parent, _, key = change.name.rpartition(".")
            holder = history.modules[parent]
            split = holder._modules[blocks_path(key)]  # noqa: SLF001
            assert isinstance(split, SplitLayer)
            moved[id(holder), key] = split.original
    if not moved:
        return
    history.frozen = {
        generation: [
            (moved[id(module), name], "value") if (id(module), name) in moved else (module, name)
            for module, name in owned
        ]
        for generation, owned in history.frozen.items()
    }
    history.states = {
        generation: [part for state in states for part in _parted(state, moved)]
        for generation, states in history.states.items()
    }


def _parted(state: State, moved: Mapping[tuple[int, str], nn.Module]) -> Iterator[State]:
    """A module's state, and those of its tensors that have become blocks."""
    buffers = dict(state.values.get(BUFFERS, {}))
    for key in [key for key in buffers if (id(state.module), key) in moved]:
        if buffers[key] is not None:
            yield State(moved[id(state.module), key], {BUFFERS: {"value": buffers[key]}})
        buffers[key] = None
    yield State(state.module, {**state.values, BUFFERS: buffers} if buffers else state.values)


def show_edit_(model: nn.Module, history: History, view: int | None, undo: Undo) -> None:
    """Shows blocks, insertions and numbers as they were after an edit; None for all."""
    for module in model.modules():
        if isinstance(module, SplitLayer):
            module.show_(view, undo)
        elif isinstance(module, InsertionWrapper):
            undo.on_failure(partial(setattr, module, "view", module.view))
            module.view = view
    for (name, attribute), number in numbers_at(history.edits, view).items():
        holder = history.modules.get(name)  # None if it was taken out
        if holder is not None and held_number(holder, attribute) is not None:
            change_(holder, attribute, number, undo)


def view_(model: nn.Module, history: History, generation: int, undo: Undo) -> None:
    """Shows a model as it was when a generation was closed, until that is taken back.

    Raises:
        TypeError: If `generation` is not an int.
        ValueError: If there is no such generation.
        GenerationError: If it is no longer exact.
        StructureChangedError: If the model was changed by hand since it was closed.
    """
    view = history.view_of(generation)
    if view is not None:
        check_structure(model, history)
    undo.on_failure(partial(setattr, history, "viewing", history.viewing))
    history.viewing = True
    show_edit_(model, history, view, undo)
    for fade, alpha in history.shares.get(generation, ()) if view is not None else ():
        undo.on_failure(partial(setattr, fade, "alpha", fade.alpha))
        fade.alpha = alpha
    if view is not None and generation in history.states:
        show_(model, history.states[generation], undo)
    show_as_trained_(history.frozen.get(generation, ()), undo)

"""Inserting layers into a network that still computes the same: planned, then applied."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from splitgrow.analysis.channel_graph import ChannelGraph
from splitgrow.analysis.unsupported_layers import stray_references
from splitgrow.errors import InsertionError, SplitGrowWarning, TraceError
from splitgrow.growth.apply import close_generation_
from splitgrow.growth.edit_check import before_edit
from splitgrow.growth.edit_parts import Insertion
from splitgrow.growth.edits import Edit
from splitgrow.growth.history import History, check_structure, keep_, structure
from splitgrow.growth.insertion.block_copies import announce_, block_for, captured
from splitgrow.growth.insertion.builders import (
    Builder,
    keeps_shape,
    last_layer,
    replacement,
    tried,
    zeroed,
)
from splitgrow.growth.insertion.joining import new_parameters
from splitgrow.growth.insertion.placing import wrap_
from splitgrow.growth.insertion.recipes import recipe_of
from splitgrow.growth.insertion.request import COPIES, INEXACT, After, AnyAfter, Wanted
from splitgrow.growth.insertion.sites import Site, Sites
from splitgrow.growth.optimizers import NewParameter, join_, plan_joining
from splitgrow.growth.planning import find_node
from splitgrow.growth.rates import Rates
from splitgrow.growth.value_trials import analyse_again
from splitgrow.layers.fade import FadeIn
from splitgrow.layers.insertion_wrapper import InsertionWrapper, note_questions_, note_runs_
from splitgrow.utils.closest_names import did_you_mean
from splitgrow.utils.example_call import ExampleCall
from splitgrow.utils.rollback import Undo, temporarily
from splitgrow.utils.source_lines import levels_to_caller


@dataclass(frozen=True)
class _Piece:
    """One insertion of an edit, planned.

    Attributes:
        insertion: Its record.
        host: The module next to it.
        module: The module to insert.
        prepare: The step before it is put in place.
        originals: The module that a part of it is a copy of, by the part's id.
    """

    insertion: Insertion
    host: nn.Module
    module: nn.Module
    prepare: Callable[[Undo], None]
    originals: Mapping[int, nn.Module]


@dataclass(frozen=True)
class _Planned:
    edit: Edit
    pieces: tuple[_Piece, ...]


def plan_insertion(
    undo: Undo, model: nn.Module, history: History, after: AnyAfter, wanted: Wanted, *, freeze: bool
) -> Edit:
    """The edit for an insertion, not applied."""
    edit = _plan(model, history, after, wanted, freeze=freeze).edit
    undo.take_back()  # random numbers that were drawn
    return edit


def insert_(  # noqa: PLR0913
    undo: Undo,
    model: nn.Module,
    history: History,
    after: AnyAfter,
    wanted: Wanted,
    *,
    freeze: bool,
    optimizer: list[Optimizer],
    rates: Rates,
    check: bool,
) -> Edit:
    """Inserts a module, or one at each of several places."""
    planned = _plan(model, history, after, wanted, freeze=freeze)
    edit = planned.edit
    before = before_edit(model, history, check=check)
    new = [each for piece in planned.pieces for each in _new_parameters(model, history, piece)]
    joining = plan_joining(optimizer, new, edit.generation, rates)
    keep_(history, undo)
    if edit.closes is not None:
        close_generation_(model, history, undo)
    wrappers = {}
    for piece in planned.pieces:
        piece.prepare(undo)
        insertion = piece.insertion
        wrapper = wrap_(model, piece.host, piece.module, (edit.index, insertion), undo)
        wrappers[insertion.host] = wrapper
    join_(joining, undo)
    history.graph, asked, ran = analysed_anew(model, history, ", ".join(wrappers))
    for host, wrapper in wrappers.items():
        _refuse_unseen(host, seen=id(wrapper) in ran)
    tell_wrappers_(model, asked, undo)
    history.modules = structure(model)
    history.generation = edit.generation
    history.edits = [*history.edits, edit]
    if before is not None and wanted.kind in INEXACT:
        edit = _measured(edit, before.moved(model, history))
        history.edits = [*history.edits[:-1], edit]
    elif before is not None:
        before.check(model, history)
    return edit


def _new_parameters(model: nn.Module, history: History, piece: _Piece) -> Iterator[NewParameter]:
    beside = (piece.host, history.modules[piece.insertion.options["after"]])
    return new_parameters(model, piece.module, piece.insertion, beside, piece.originals)


def _measured(edit: Edit, moved: float) -> Edit:
    """An edit that changes what the model computes, with how far, which a warning tells."""
    first = edit.inserted[0]
    hosts = ", ".join(f"`{insertion.host}`" for insertion in edit.inserted)
    warnings.warn(
        f"kind={first.kind!r} changes what the model computes: with a copy of {hosts} its outputs "
        f'on the example inputs moved by {moved:.1%} of the largest. kind="block" leaves them as '
        f"they are",
        SplitGrowWarning,
        stacklevel=levels_to_caller(),
    )
    known = (replace(i, options={**i.options, "moved": moved}) for i in edit.inserted)
    return replace(edit, inserted=tuple(known))


def _plan(
    model: nn.Module, history: History, after: AnyAfter, wanted: Wanted, *, freeze: bool
) -> _Planned:
    check_structure(model, history)
    wanted.check()
    places = after if isinstance(after, list) else [after]
    if not places:
        raise ValueError("`after` names no place")
    if wanted.module is not None and len(places) > 1:
        raise ValueError("one module cannot be inserted at several places: insert one at each")
    sites = Sites(model, history.inputs)
    index, tried = len(history.edits) + 1, set[Any]()
    pieces = [_piece(model, history, sites, (place, index), wanted, tried) for place in places]
    order = list(history.modules)
    pieces.sort(key=lambda piece: order.index(piece.insertion.host))
    hosts = [piece.insertion.host for piece in pieces]
    twice = next((host for host in hosts if hosts.count(host) > 1), None)
    if twice is not None:
        raise ValueError(f"two of the places are at `{twice}`: insert there one after the other")
    generation, closes = history.next_edit(freeze=freeze)
    inserted = tuple(piece.insertion for piece in pieces)
    edit = Edit(index, generation, closes, {}, {}, (), inserted=inserted)
    return _Planned(edit, tuple(pieces))


def _piece(
    model: nn.Module,
    history: History,
    sites: Sites,
    place: tuple[After, int],
    wanted: Wanted,
    tried: set[Any],
) -> _Piece:
    """The insertion at one place.

    Args:
        model: The model.
        history: Its history.
        sites: Its places.
        place: The place, and the number of the edit.
        wanted: The request.
        tried: The kinds of blocks whose copies have been tried out, and are not again.
    """
    after, index = place
    originals: Mapping[int, nn.Module] = {}
    if wanted.kind in COPIES:
        path = _module_path(history, after)
        call = sites.call_of(path)
        host, before, unit = path, False, path
        module: nn.Module
        module, originals = block_for(wanted.kind, model, path, sites, history.inputs, tried)
        width, tensor_result = sites.width_of(path), call.tuple_of is None
        recipe: dict[str, Any] = {"copy": path}
        # Once a generation is closed, of which this is no part.
        prepare: Callable[[Undo], None] = partial(announce_, module, model, history.modules[path])
    elif wanted.kind == "replacement":
        host = unit = _module_path(history, after)
        before, prepare = False, _nothing
        module = _replacement(model, sites, host, history.inputs, wanted.module)
        width, tensor_result = sites.width_of(host), True
        recipe = recipe_of(cast(nn.Module, wanted.module), given=True)
    else:
        site = _site(sites, history, after)
        module, prepare, recipe = _made(model, sites, site, wanted)
        host, before, unit, width = site.host, site.before, site.unit[0], site.width
        tensor_result = sites.call_of(host).tuple_of is None
    _refuse_stray(model, host, history.modules[host])
    insertion = Insertion(
        host=host,
        before=before,
        kind=wanted.kind,
        name=f"{host}.inserted{index}",
        type=_described(module),
        width=width,
        parameters=sum(p.numel() for p in module.parameters()),
        options={"after": unit, **wanted.options},
        tensor_result=tensor_result,
        recipe=recipe,
    )
    return _Piece(insertion, history.modules[host], module, prepare, originals)


def tell_wrappers_(model: nn.Module, asked: Container[int], undo: Undo) -> None:
    """Notes in wrappers whether forward reads attributes of their modules."""
    for module in model.modules():
        if isinstance(module, InsertionWrapper):
            undo.on_failure(partial(setattr, module, "answers", module.answers))
            module.answers = id(module) in asked


def _nothing(_: Undo) -> None:
    """Does nothing, for insertions that need no step before they are put in place."""


def _site(sites: Sites, history: History, after: After) -> Site:
    if isinstance(after, tuple):
        if len(after) != 2:
            raise ValueError(f"an edge is (layer, module that reads it), got {after!r}")
        return sites.between(_module_path(history, after[0]), _module_path(history, after[1]))
    return sites.behind(_module_path(history, after))


def _module_path(history: History, after: object) -> str:
    """The path of a module, by its path or a layer's index.

    Raises:
        TypeError: If `after` is neither.
        ValueError: If there is no such module.
    """
    if isinstance(after, int) and not isinstance(after, bool):
        return find_node(history.graph, after).name
    if not isinstance(after, str):
        raise TypeError(f"`after` is a layer's index, a module's path or an edge, got {after!r}")
    if after in history.modules and after:
        return history.graph.aliases.get(after, after)
    hint = did_you_mean(after, filter(None, history.modules), "see named_modules()")
    raise ValueError(f"no module {after!r}; {hint}")


def _replacement(
    model: nn.Module,
    sites: Sites,
    path: str,
    inputs: ExampleCall,
    module: nn.Module | None,
) -> nn.Module:
    """A fade from one module to another with the same input.

    Raises:
        InsertionError: If their outputs have different shapes.
    """
    assert module is not None
    _refuse_known(model, module)
    call = sites.call_of(path)
    if call.result is None or call.tuple_of is not None:
        raise InsertionError(f"`{path}` does not give one tensor, so that nothing could replace it")
    shape = tuple(sites.example_of(call.result).shape)
    args, kwargs = captured(model, sites.modules[path], inputs)
    made = tried(module, args, kwargs)
    if not isinstance(made, Tensor) or made.shape != shape:
        other = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise InsertionError(f"`{path}` makes {shape}, what is to replace it makes {other}")
    return replacement(module)


def _refuse_known(model: nn.Module, module: nn.Module) -> None:
    if any(part is module for part in model.modules()):
        raise ValueError("the module that is to be inserted is part of the model already")


def _made(
    model: nn.Module, sites: Sites, site: Site, wanted: Wanted
) -> tuple[nn.Module, Callable[[Undo], None], dict[str, Any]]:
    """The module to insert, the step before it is put in place, and its recipe.

    Raises:
        ValueError: If the given module is part of the model already.
    """
    like = _like(model, sites, site)
    if wanted.module is not None:
        _refuse_known(model, wanted.module)
        recipe = recipe_of(wanted.module, given=True)
        with torch.no_grad():
            example = torch.randn(site.example.shape, device=like.device, dtype=like.dtype)
            if wanted.kind == "fade":
                keeps_shape(wanted.module, example)
                return FadeIn(nn.Identity(), wanted.module), _nothing, recipe
            name = last_layer(wanted.module, example)
        return wanted.module, partial(_zero_, wanted.module.get_submodule(name)), recipe
    builder = Builder(
        site,
        sites.modules,
        like,
        kernel_size=wanted.kernel_size,
        activation=wanted.activation,
    )
    makers: dict[str, Callable[[], nn.Module]] = {
        "identity": builder.identity,
        "residual": partial(builder.residual, wanted.form),
        "gate": builder.gate,
    }
    with torch.inference_mode(mode=False):
        made = makers[wanted.kind]()
    return made.train(model.training), _nothing, recipe_of(made, builder.copied)


def _zero_(layer: nn.Module, undo: Undo) -> None:
    before = {name: p.detach().clone() for name, p in layer.named_parameters(recurse=False)}

    @torch.no_grad()
    def take_back() -> None:
        for name, value in before.items():
            getattr(layer, name).copy_(value)

    undo.on_failure(take_back)
    zeroed(layer)


def _like(model: nn.Module, sites: Sites, site: Site) -> Tensor:
    """A tensor with the device and dtype for the new module: the nearest parameter."""
    near = (sites.modules[path] for path in (site.unit[0], site.host))
    own = (p for module in (*near, model) for p in module.parameters() if p.is_floating_point())
    return next(own, torch.empty(0))


def _described(module: nn.Module) -> str:
    """The types of the layers in it, in order."""
    parts = [m for m in module.modules() if not any(True for _ in m.children())]
    names = [type(part).__name__ for part in parts]
    return " + ".join(names) if len(names) < 8 else f"{type(module).__name__} of {len(names)} parts"


@temporarily
def analysed_anew(
    undo: Undo, model: nn.Module, history: History, host: str
) -> tuple[ChannelGraph, set[int], set[int]]:
    """The channel graph of a model with a new insertion.

    Args:
        undo: Takes back that wrappers are watched.
        model: The model.
        history: Its history.
        host: The module at which something was inserted.

    Also the ids of wrappers: those that answer for attributes of their modules, and those that run.

    Raises:
        InsertionError: If the model no longer runs.
    """
    asked, ran = note_questions_(undo), note_runs_(undo)
    try:
        return analyse_again(model, history.inputs, history.broken, history.graph), asked, ran
    except (ValueError, TraceError) as error:
        raise InsertionError(
            f"with what is inserted at `{host}`, the model no longer runs: {error}"
        ) from error


def _refuse_unseen(host: str, *, seen: bool) -> None:
    if not seen:
        raise InsertionError(
            f"forward reaches `{host}` otherwise than by that name (through a closure, a tuple or "
            f"another object that holds it), so that what is inserted would not run"
        )


def _refuse_stray(model: nn.Module, host: str, module: nn.Module) -> None:
    known = {id(module)}
    for holder, attribute, _ in stray_references(structure(model), known):
        raise InsertionError(
            f"`{holder or 'the model'}` also holds `{host}` in a tuple or set in the attribute "
            f"`{attribute}`, where what is inserted would not be seen; use a list there"
        )

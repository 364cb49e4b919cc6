"""Making every grown layer plain again, in place, with its optimizers' state.

A network that has grown as far as it shall needs its blocks no longer. With one parameter for each
tensor it trains as one that was made so wide.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.optim import Optimizer

from splitgrow.errors import SplitGrowWarning, UnsupportedModelError
from splitgrow.growth.apply import unfreeze_all_
from splitgrow.growth.edit_check import before_edit
from splitgrow.growth.edits import Edit
from splitgrow.growth.history import History, check_structure, structure
from splitgrow.growth.optimizer_merge import JointParameter, plan_replacing, replace_
from splitgrow.layers.freezing import parameters_in
from splitgrow.layers.hooks import named_paths, refuse_own_hooks
from splitgrow.layers.plain_again import Whole, plain_values, put_plain_, wholes_of, why_it_stays
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.layers.tensor_holder import SplitTensor, tensor_path
from splitgrow.utils.module_slots import holders_in
from splitgrow.utils.rollback import Undo
from splitgrow.utils.same_parameters import in_the_place_of_
from splitgrow.utils.source_lines import levels_to_caller


@dataclass(frozen=True)
class Absorbed:
    """A grown layer with its plain form, made but not yet put in place.

    Attributes:
        path: The path of the grown layer.
        split: That layer.
        plain: A stock layer with its tensors and widths.
        parameters: The stock layer's parameters, with those that they replace.
    """

    path: str
    split: SplitLayer
    plain: nn.Module
    parameters: list[JointParameter]

    @property
    def name(self) -> str:
        """The path of the plain layer or tensor."""
        return plain_path(self.path, self.split)


def plain_path(path: str, split: SplitLayer) -> str:
    """The path of a grown layer's plain form."""
    return tensor_path(path) if isinstance(split, SplitTensor) else path


def absorb_(
    undo: Undo, model: nn.Module, history: History, *, optimizer: list[Optimizer], check: bool
) -> Edit | None:
    """Makes every grown layer plain.

    Returns:
        The edit; None if no layer could become plain.
    """
    check_structure(model, history)
    grown, stay = _sorted_out(model)
    if grown:
        edit = absorb_these_(undo, model, history, grown, optimizer, check=check)
    if stay:
        named = [f"`{path}`: {reason}" for path, reason in stay.items()]
        more = f"; and {len(named) - 5} more" if len(named) > 5 else ""
        warnings.warn(
            f"{len(named)} grown layer{'s keep their' if len(named) > 1 else ' keeps its'} blocks "
            f"({'; '.join(named[:5])}{more})",
            SplitGrowWarning,
            stacklevel=levels_to_caller(),
        )
    return edit if grown else None


def absorb_these_(
    undo: Undo,
    model: nn.Module,
    history: History,
    grown: Mapping[str, SplitLayer],
    optimizer: list[Optimizer],
    *,
    check: bool,
) -> Edit:
    """Makes these grown layers plain; all generations are free then."""
    freed = {id(parameter) for parameter in parameters_in(history.frozen_parameters())}
    with torch.inference_mode(mode=False), torch.no_grad():
        made = absorbed(grown, undo)
        _set_training_(made, freed)
    before = before_edit(model, history, check=check)
    replacing = plan_replacing(optimizer, [p for item in made for p in item.parameters])
    unfreeze_all_(undo, model, history)
    put_all_plain_(model, made, undo)
    replace_(replacing, undo)
    names = tuple(item.name for item in made)
    edit = Edit(
        len(history.edits) + 1, history.generation, None, {}, {}, changes=(), absorbed=names
    )
    history.modules = structure(model)
    history.edits = [*history.edits, edit]
    if before is not None:
        before.check(model, history)
    return edit


def _sorted_out(model: nn.Module) -> tuple[dict[str, SplitLayer], dict[str, str]]:
    """The grown layers that can become plain, by path, and why the others cannot, by path.

    Raises:
        UnsupportedModelError: If a single block has hooks, which no plain layer could run.
    """
    grown = {path: m for path, m in model.named_modules() if isinstance(m, SplitLayer)}
    refuse_own_hooks((f"{p}.{n}", block) for p, s in grown.items() for n, block in enumerate(s))
    stay = {plain_path(p, s): why for p, s in grown.items() if (why := why_it_stays(s))}
    keep = {id(p) for path, s in grown.items() if plain_path(path, s) in stay for p in _own(s)}
    chosen: dict[str, SplitLayer] = {}
    for path, split in grown.items():
        name = plain_path(path, split)
        if name not in stay and not keep.isdisjoint(map(id, _own(split))):
            stay[name] = "it shares a tensor with such a layer"
        elif name not in stay:
            chosen[path] = split
    return chosen, stay


def absorbable(
    model: nn.Module, paths: Iterable[str]
) -> tuple[dict[str, SplitLayer], dict[str, str]]:
    """Some grown layers that can become plain, and why others cannot, by path.

    Layers that share a tensor with one of them are among them.
    """
    grown, stay = _sorted_out(model)
    held: set[int] = set()
    chosen = {*paths}
    while True:
        held = {id(p) for path in chosen & grown.keys() for p in grown[path].parameters()}
        more = {p for p, s in grown.items() if not held.isdisjoint(map(id, s.parameters()))}
        if more <= chosen:
            return {path: split for path, split in grown.items() if path in chosen}, stay
        chosen |= more


def _own(split: SplitLayer) -> Iterable[nn.Parameter]:
    return split.parameters()


def absorbed(
    grown: Mapping[str, SplitLayer], undo: Undo, *, trusted: bool = False
) -> list[Absorbed]:
    """The plain forms of grown layers; puts nothing in place yet.

    Layers whose original blocks share a Parameter share one again.

    Args:
        grown: The layers by path.
        undo: Takes back changes of blocks that have no values.
        trusted: As in `plain_values`.
    """
    found: list[Absorbed] = []
    shared: dict[int, nn.Parameter] = {}
    for path, split in grown.items():
        plain = plain_values(split, undo, trusted=trusted).train(split.training)
        joints = []
        for whole in wholes_of(split.composition()):
            parameter = plain._parameters.get(whole.name)  # noqa: SLF001
            if parameter is None:
                continue
            known = shared.setdefault(id(whole.tensors[0]), parameter)
            if known is not parameter and known.shape == parameter.shape:
                plain._parameters[whole.name] = known  # noqa: SLF001
                continue
            name = plain_path(path, split)
            name = name if isinstance(split, SplitTensor) else f"{name}.{whole.name}"
            joints.append(_joint(name, parameter, whole))
        found.append(Absorbed(path, split, plain, joints))
    return found


def _joint(name: str, parameter: nn.Parameter, whole: Whole) -> JointParameter:
    gains = whole.gains
    gradients = [
        None if part.grad is None else part.grad / gain
        for part, gain in zip(whole.tensors, gains, strict=True)
    ]
    if any(gradient is not None for gradient in gradients):
        parameter.grad = whole(gradients)
    parameter.requires_grad_(any(part.requires_grad for part in whole.tensors))
    scales = gains if any(gain != 1 for gain in gains) else ()
    return JointParameter(name, parameter, whole.tensors, whole, scales)


def _set_training_(made: Iterable[Absorbed], freed: set[int]) -> None:
    """Sets which plain parameters train: those whose parts do once closed generations are free.

    Raises:
        UnsupportedModelError: If some parts of one train, and others were fixed by hand.
    """
    mixed = []
    for joint in (joint for item in made for joint in item.parameters):
        trains = {part.requires_grad or id(part) in freed for part in joint.older}
        if len(trains) > 1:
            mixed.append(joint.name)
        joint.parameter.requires_grad_(True in trains)
    if mixed:
        raise UnsupportedModelError(
            f"some blocks of {named_paths(mixed)} were fixed by hand and others train, which one "
            f"plain parameter cannot; set requires_grad of all blocks alike, or go on with blocks "
            f"(`consolidate` joins those of one generation)"
        )


def put_all_plain_(model: nn.Module, made: Iterable[Absorbed], undo: Undo) -> None:
    """Puts plain layers in the places of grown ones, and their parameters wherever these lie."""
    holders, modules, made = holders_in(model), structure(model), list(made)
    inside = {block for item in made for split in item.split for block in split.modules()}
    others = {id(joint.older[0]): joint.parameter for item in made for joint in item.parameters}
    for module in {*modules.values()} - inside:
        store = vars(module)["_parameters"]
        for name in [n for n, p in store.items() if id(p) in others]:
            undo.keep(store)
            store[name] = others[id(store[name])]
    for item in made:
        put_plain_(item.path, item.split, item.plain, modules, holders, undo)


def absorb_again_(model: nn.Module, names: Iterable[str], undo: Undo, *, trusted: bool) -> None:
    """Repeats an absorption in a model that is rebuilt from its journal.

    Args:
        model: The model.
        names: The paths of the plain layers and tensors.
        undo: Takes it back.
        trusted: As in `plain_values`.

    Raises:
        ValueError: If the model has no such grown layers.
    """
    modules = {
        plain_path(path, module): (path, module)
        for path, module in model.named_modules()
        if isinstance(module, SplitLayer)
    }
    names = list(names)
    unfit = [name for name in names if name not in modules or _is_computed(modules[name][1])]
    if unfit or len({*names}) < len(names):
        raise ValueError(
            f"it makes `{(unfit or names)[0]}` plain, which has not grown or cannot be"
        )
    with torch.inference_mode(mode=False), torch.no_grad():
        made = absorbed(dict(modules[name] for name in names), undo, trusted=trusted)
        made = _same_parameters(made, undo)
    put_all_plain_(model, made, undo)


def _same_parameters(made: Iterable[Absorbed], undo: Undo) -> list[Absorbed]:
    """Plain layers whose parameters are the objects that were there before they grew."""
    made = list(made)
    others = {
        id(joint.parameter): in_the_place_of_(joint.parameter, joint.older[0], undo)
        for item in made
        for joint in item.parameters
    }
    for item in made:
        store = vars(item.plain)["_parameters"]
        store.update({name: others.get(id(p), p) for name, p in store.items()})
    return [
        replace(
            item,
            parameters=[
                replace(joint, parameter=others[id(joint.parameter)]) for joint in item.parameters
            ],
        )
        for item in made
    ]


def _is_computed(split: SplitLayer) -> bool:
    return split.layer_type.merging.computes_weight

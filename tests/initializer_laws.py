"""The contracts of initializers, held in values: one growth after the other, over a model's layers.

`python tests/initializer_laws.py` prints how many growths each initializer is held to.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from cases import CASES, Case
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import splitgrow
from splitgrow.analysis.units import along_tensors, layer_places
from splitgrow.growth.edits import Edit
from splitgrow.growth.hidden_units import hidden_groups
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.initializers import Initializer, initializers
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.layers.tensor_holder import layer_at, split_of

EXACT = 1e-12
VARIANCE = 3.0
"""The factor within which the variance of new units is that of the old ones, for each model."""
WIDER = 4
"""The number of units that a group gains, where it grows by single units."""


@dataclass
class Held:
    """What one initializer was seen to do to one model.

    Attributes:
        growths: The number of growths.
        refused: The layers that it refused, with the reasons.
        broken: The claims that did not hold, in words.
        ratios: The logarithms of variances, new over old, by layer.
    """

    growths: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)


@cache
def analysed(case: Case) -> nn.Module:
    """A model of the table, analysed, without dropout."""
    model = case.model()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return splitgrow.growable(model, case.inputs())


@cache
def batches(case: Case) -> list[tuple[Tensor, ...]]:
    """Inputs of a model; making them sets the seed of all random numbers."""
    return [case.inputs(seed) for seed in range(3, 8)]


def units_for(model: Any, layer: str, initializer: Initializer) -> int:
    """A number of units by which a layer can grow with an initializer."""
    graph = history_of(model).graph
    group, step = min(graph.steps(graph.nodes[layer], initializer.way).items(), key=lambda s: s[1])
    single = graph.unit_step(group, initializer.way) == 1
    return step * (WIDER if single else initializer.divides)


def can_grow_so(model: Any, layer: str, initializer: Initializer) -> bool:
    """Whether the way of an initializer is exact for all streams that a layer is part of."""
    graph, way = history_of(model).graph, initializer.way
    groups = graph.growing_groups(graph.nodes[layer].outs)
    return all(way is None or way in graph.ways[g] for g in groups if g in graph.ways)


def held_to_contract(case: Case, initializer: Initializer) -> Held:
    """Grows each layer of a model once, and looks at all claims each time."""
    model: Any = copy.deepcopy(analysed(case))
    batches(case)
    torch.manual_seed(0)
    found = Held()
    for layer in [layer.name for layer in model.layers if layer.growable]:
        if can_grow_so(model, layer, initializer):
            _grown(case, model, layer, initializer, found)
    return found


def _grown(case: Case, model: Any, layer: str, initializer: Initializer, found: Held) -> None:
    x = batches(case)[0]
    trained, before = _outputs(model, x, training=True), _outputs(model, x)
    project = _projection(before)
    kept = [(name, p, p.detach().clone()) for name, p in model.named_parameters()]

    def loss(inputs: tuple[Tensor, ...] = x) -> Tensor:
        return project(tree_leaves(model(*inputs)))

    units = units_for(model, layer, initializer)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", splitgrow.SplitGrowWarning)
            edit = model.expand_layer(
                layer,
                units,
                initializer=initializer,
                freeze=False,
                check=not initializer.exact,
                loss=loss if initializer.needs_data else None,
            )
    except ValueError as error:
        found.refused[layer] = str(error)
        return
    found.growths += 1
    found.ratios |= _ratios(model, edit)
    for claim, broken in (
        ("exact", initializer.exact and _moved(model, x, before, trained)),
        ("needs_unfrozen", not initializer.needs_unfrozen and _changed(kept)),
        ("differ_from", initializer.differ_from == "birth" and _alike(model, edit)),
        ("first_gradients", _first_gradients(case, model, edit, initializer, loss)),
        ("differ_from", initializer.differ_from == "step" and _alike(model, edit, fan_outs=True)),
    ):
        if broken:
            found.broken.append(f"{claim} of {layer}: {broken}")


def _outputs(model: Any, x: tuple[Tensor, ...], *, training: bool = False) -> list[Tensor]:
    model.train(training)
    with torch.no_grad():
        found = [tensor.clone() for tensor in tree_leaves(model(*x))]
    model.eval()
    return found


def _projection(before: list[Tensor]) -> Callable[[list[Tensor]], Tensor]:
    """A loss in which each of the old outputs counts differently."""
    weights = [torch.randn_like(tensor) for tensor in before]

    def loss(outputs: list[Tensor]) -> Tensor:
        old = [o[tuple(map(slice, w.shape))] for o, w in zip(outputs, weights, strict=True)]
        return torch.stack(
            [(o * w + o.square()).sum() for o, w in zip(old, weights, strict=True)]
        ).sum()

    return loss


def _moved(model: Any, x: tuple[Tensor, ...], before: list[Tensor], trained: list[Tensor]) -> str:
    """How far outputs are from those before, in both modes; empty if they are the same."""
    for mode, old in (("evaluation", before), ("training", trained)):
        now = _outputs(model, x, training=mode == "training")
        for one, other in zip(now, old, strict=True):
            led = one[tuple(map(slice, other.shape))]
            far = float((led - other).abs().max() / (1 + other.abs().max()))
            if not far < EXACT:
                return f"{far:.1e} in {mode} mode"
    return ""


def _changed(kept: list[tuple[str, Tensor, Tensor]]) -> str:
    return ", ".join(name for name, now, before in kept if not torch.equal(now, before))


def layers_of(model: Any, edit: Edit) -> Iterator[tuple[str, SplitLayer]]:
    """The layers that an edit changed, as they are now."""
    modules = dict(model.named_modules())
    for change in edit.changes:
        yield change.name, split_of(layer_at(modules, change.name, change.use))


def hidden_of(model: Any, edit: Edit) -> frozenset[int]:
    """The groups of hidden units of an edit."""
    originals = {name: split.original for name, split in layers_of(model, edit)}
    return hidden_groups(edit, history_of(model).graph, originals)


def _first_gradients(
    case: Case,
    model: Any,
    edit: Edit,
    initializer: Initializer,
    loss: Callable[[tuple[Tensor, ...]], Tensor],
) -> str:
    """Which blocks get another gradient than was claimed; then comes one step of SGD.

    Units behind a ReLU may get none on one small batch, so a block has a few.
    """
    sizes: dict[str, float] = {}
    for batch in batches(case):
        model.zero_grad()
        loss(batch).backward()
        largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
        for role, blocks in blocks_of_hidden(model, edit).items():
            found = [
                p.grad.abs().max() for b in blocks for p in b.parameters() if p.grad is not None
            ]
            size = float(max(found, default=torch.zeros(()))) / largest
            sizes[role] = max(size, sizes.get(role, 0.0))
        if all(sizes[role] > EXACT for role in sizes.keys() & initializer.first_gradients):
            break
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=0.01 / (1 + parameter.grad.abs().max()))
    for role, size in sizes.items():
        claimed = role in initializer.first_gradients
        if claimed != (size > EXACT) and (claimed or initializer.exact):
            return f"{role} of {sizes}"
    return ""


def blocks_of_hidden(model: Any, edit: Edit) -> dict[str, list[nn.Module]]:
    """The blocks of an edit that make hidden units, and those that read them, by role."""
    graph, hidden = history_of(model).graph, hidden_of(model, edit)
    found: dict[str, list[nn.Module]] = {}
    for name, split in layers_of(model, edit):
        entry, node = split.layer_type, graph.nodes[name]
        if entry.diagonal(split.original):
            continue
        sides = {"new": node.outs, "helper": node.outs if entry.looks_up else node.ins}
        if entry.reads_back(split.original):
            sides["helper"] = (*node.ins, *node.outs)
        for block, role in zip(split, split.blocks, strict=True):
            on_it = {run.group for run in graph.groups.resolve(sides.get(role.kind, ()))}
            if role.edit == edit.index and on_it & hidden:
                found.setdefault(role.kind, []).append(block)
    return found


def _alike(model: Any, edit: Edit, *, fan_outs: bool = False) -> str:
    """The groups in which two units have the same weights; empty if there is none."""
    return ", ".join(
        f"{len(rows)} units of group {group}, of which {len(torch.unique(rows, dim=0))} differ"
        for group, rows in weights_of_units(model, edit, fan_outs=fan_outs).items()
        if len(torch.unique(rows, dim=0)) < len(rows)
    )


def weights_of_units(model: Any, edit: Edit, *, fan_outs: bool) -> dict[int, Tensor]:
    """A row for each hidden unit of the groups that grew: all weights that make it.

    Args:
        model: The grown model.
        edit: Its last edit.
        fan_outs: Whether the weights that read it are to follow in its row.
    """
    graph = history_of(model).graph
    rows: dict[int, list[Tensor]] = {group: [] for group in hidden_of(model, edit)}
    for name, split in layers_of(model, edit):
        original, composition = split.original, split.composition()
        ins, outs = layer_places(graph.groups, graph.nodes[name], original)
        for key, places in along_tensors(original, ins, outs).items():
            whole = composition.value(key)
            diagonal = split.layer_type.diagonal(original)
            for dim, along in split.layer_type.tensors(original)[key].items():
                made = diagonal or not along.reads
                if whole is None or not (made or fan_outs) or split.layer_type.looks_up > made:
                    continue
                for group, found in rows.items():
                    at = [n for n, (unit, _) in enumerate(places[dim]) if unit.home == group]
                    if at:
                        at.sort(key=lambda n: places[dim][n][0].nth)
                        own = whole.index_select(dim, torch.tensor(at)).movedim(dim, 0)
                        width = len({places[dim][n][0] for n in at})
                        found.append(own.reshape(width, -1).double())
    return {group: torch.cat(found, 1) for group, found in rows.items()}


def _ratios(model: Any, edit: Edit) -> dict[str, float]:
    """The logarithm of the variance of new units over that of old ones, by layer that makes them.

    Each gets independent standard normal inputs.
    """
    found = {}
    hidden = hidden_of(model, edit)
    for name, split in layers_of(model, edit):
        original, entry = split.original, split.layer_type
        node = history_of(model).graph.nodes[name]
        groups = {run.group for run in history_of(model).graph.groups.resolve(node.outs)}
        known = isinstance(original, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
        if not known or entry.diagonal(original) or not groups & hidden:
            continue
        born = split.blocks[-1].edit == edit.index
        dims = (9,) * (-1 - entry.channel_dim(original))
        x = torch.randn(200, split.sizes()[0], *dims, dtype=torch.float64)
        with torch.no_grad():
            y = split(x)
        variance = y.transpose(0, 1).flatten(1).var(1)
        new = torch.zeros(len(variance), dtype=torch.bool)
        for start, length in split.outs.spans(edit.index.__eq__):
            new[start : start + length] = True
        if born and new.any() and variance[~new].mean() > 0:
            found[name] = float((variance[new].mean() / variance[~new].mean()).log())
    return found


def counted() -> Iterator[str]:
    """How many growths each initializer is held to, line by line, with all that did not hold."""
    counts: Counter[str] = Counter()
    for name, each in initializers().items():
        for case in CASES:
            held = held_to_contract(case, each)
            counts[name] += held.growths
            yield from (f"{name}, {case.name}: {broken}" for broken in held.broken)
        yield f"{name}: {counts[name]} growths"
    yield f"{counts.total()} growths by {len(counts)} initializers over {len(CASES)} models"


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in counted():
        sys.stdout.write(f"{line}\n")

"""Joining a layer's blocks from many edits of one generation to the blocks of one edit.

Every growth adds parameters, and each costs the optimizer and torch's autograd tens of microseconds
a step, even if it is small. The blocks of a generation that is still open fill the same two strips
of the weight as one growth would have: a helper and a new block.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from splitgrow.growth.edit_check import before_edit
from splitgrow.growth.edit_parts import JoinedBlocks
from splitgrow.growth.edits import Edit
from splitgrow.growth.history import History, check_structure, keep_, structure
from splitgrow.growth.optimizer_merge import JointParameter, plan_replacing, replace_
from splitgrow.growth.placing import set_blocks_
from splitgrow.growth.planned_blocks import build_block, planned_blocks
from splitgrow.layers.block_roles import Block
from splitgrow.layers.composition import Composition
from splitgrow.layers.dispatch import is_hooked
from splitgrow.layers.plain_again import has_holders
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.layers.types import TensorBlock
from splitgrow.layers.weight_views import room_for
from splitgrow.utils.rollback import Undo
from splitgrow.utils.spans import Spans, overlaps


@dataclass(frozen=True)
class Consolidated:
    """A layer with its joined blocks, made but not yet put in place."""

    path: str
    births: tuple[int, ...]
    split: SplitLayer
    after: Composition
    parameters: list[JointParameter]


def consolidate_(
    undo: Undo, model: nn.Module, history: History, *, optimizer: list[Optimizer], check: bool
) -> Edit | None:
    """Joins the blocks of the open generation, layer by layer.

    Returns:
        The edit; None if there was nothing to join.
    """
    check_structure(model, history)
    index = len(history.edits) + 1
    born = {edit.index for edit in history.edits if edit.generation == history.generation}
    with torch.inference_mode(mode=False), torch.no_grad():
        found = [
            consolidated(path, split, births, index)
            for path, split in _untied(model)
            if len(births := _births(split, born)) > 1 and _uniform(split, births)
        ]
    if not found:
        return None
    before = before_edit(model, history, check=check)
    replacing = plan_replacing(optimizer, [p for item in found for p in item.parameters])
    keep_(history, undo)
    for item in found:
        put_joined_(item, undo)
    replace_(replacing, undo)
    joined = tuple(JoinedBlocks(item.path, item.births) for item in found)
    edit = Edit(index, history.generation, None, {}, {}, (), joined=joined)
    history.modules = structure(model)
    history.edits = [*history.edits, edit]
    if before is not None:
        before.check(model, history)
    return edit


def put_joined_(item: Consolidated, undo: Undo) -> None:
    """Gives a layer its joined blocks."""
    after = item.after
    set_blocks_(item.split, (after.modules, after.blocks), (after.ins, after.outs), undo)


def _untied(model: nn.Module) -> Iterator[tuple[str, SplitLayer]]:
    """The grown layers that share no Parameter with another layer, which would divide it alike."""
    layers = list(_splits(model))
    owners: dict[nn.Parameter, set[str]] = {}
    for path, split in layers:
        for parameter in split.parameters():
            owners.setdefault(parameter, set()).add(path)
    tied = {path for paths in owners.values() if len(paths) > 1 for path in paths}
    return ((path, split) for path, split in layers if path not in tied)


def _splits(model: nn.Module) -> Iterator[tuple[str, SplitLayer]]:
    return ((path, m) for path, m in model.named_modules() if isinstance(m, SplitLayer))


def _births(split: SplitLayer, born: Collection[int]) -> tuple[int, ...]:
    """The edits of the open generation that added blocks to a layer."""
    return tuple(sorted({block.edit for block in split.blocks if block.edit in born}))


def _uniform(split: SplitLayer, births: Collection[int]) -> bool:
    """Whether one block could replace several: all have the same settings, and none has hooks."""
    chosen = [m for m, block in zip(split, split.blocks, strict=True) if block.edit in births]
    settings = {repr(_settings(module)) for module in chosen}
    merging = split.layer_type.merging
    if not merging.joins_new or len(settings) > 1:
        return False
    if isinstance(split.original, TensorBlock) and not split.original.persistent:
        return False  # no state_dict has its values, which loading makes anew for each block
    sizes = split.layer_type.sizes(split.original)
    kind = merging.block or type(merging.new(split.original, sizes, device="meta"))
    if any(is_hooked(module) or type(module) is not kind for module in chosen):
        return False
    forms: dict[str, set[object]] = {}
    for module in chosen:
        for name, tensor in module.named_parameters():
            if has_holders(tensor):
                return False
            form = tensor.requires_grad, tensor.dtype, tensor.device
            forms.setdefault(name, set()).add(form)
    return all(len(found) == 1 for found in forms.values())


def _settings(module: nn.Module) -> tuple[object, ...]:
    """The modules' attributes besides tensors and sizes, as far as they are plain data."""
    held = {k: v for k, v in vars(module).items() if isinstance(v, (float, bool, str, tuple))}
    counter = getattr(module, "num_batches_tracked", None)
    # The number of batches counts only where the statistics are plain averages.
    cumulative = counter is not None and getattr(module, "momentum", 0.0) is None
    return held, int(counter) if counter is not None and cumulative else None


def consolidated(path: str, split: SplitLayer, births: tuple[int, ...], index: int) -> Consolidated:
    """Joins a layer's blocks of some edits to those of one; puts nothing in place yet.

    Args:
        path: The layer's path.
        split: The layer.
        births: The edits whose blocks are joined, in order.
        index: The number of the edit that the joined blocks are of.
    """
    before = split.composition()
    ins, outs = split.ins.renamed(births, index), split.outs.renamed(births, index)
    sizes = split.sizes(births[0] - 1)
    gain = ins.length - sizes[0], outs.length - sizes[1]
    kept = [i for i, block in enumerate(split.blocks) if block.edit not in births]
    blocks = [split.blocks[i] for i in kept]
    modules = [split[i] for i in kept]
    layer = split.layer_type, split.original
    for kind, wanted in planned_blocks(*layer, sizes, gain).items():
        modules.append(build_block(*layer, kind, wanted, device="meta").train(split.training))
        new = kind != "helper"
        blocks.append(Block("new" if new else "helper", index, corner=new))
    after = Composition(tuple(modules), tuple(blocks), ins, outs)
    joined = [i for i, block in enumerate(before.blocks) if block.edit in births]
    parameters = []
    for place in range(len(kept), len(modules)):
        block = modules[place]
        for name, tensor in (*block.named_parameters(), *block.named_buffers()):
            if name not in split.layer_type.tensors(split.original):  # a counter of a batch norm
                setattr(block, name, getattr(before.modules[joined[-1]], name).clone())
                continue
            there = after.places(place, name)
            sources = {
                i: before.places(i, name)
                for i in joined
                if getattr(before.modules[i], name, None) is not None
                and any(True for _ in overlaps(there, before.places(i, name), tensor.dim()))
            }
            fill = _Fill(tensor.shape, there, tuple(sources.values()))
            older = tuple(getattr(before.modules[i], name) for i in sources)
            if isinstance(tensor, nn.Parameter):
                parameter = _parameter(fill, older)
                setattr(block, name, parameter)
                parameters.append(JointParameter(f"{path}.{place}.{name}", parameter, older, fill))
            else:
                setattr(block, name, fill(older))
    return Consolidated(path, births, split, after, parameters)


@dataclass(frozen=True)
class _Fill:
    """Assembles one tensor from several that are parts of the same larger one.

    Attributes:
        shape: The shape of the assembled tensor.
        places: Its place in the larger one, by dimension.
        sources: The places of the several tensors there.
    """

    shape: torch.Size
    places: Mapping[int, Spans]
    sources: tuple[Mapping[int, Spans], ...]

    def __call__(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """The tensor that they make together; zero where one is missing, or has no values yet."""
        given = [tensor for tensor in tensors if tensor is not None]
        like = next((tensor for tensor in given if not tensor.is_meta), given[0])
        made = room_for(like, self.shape).zero_()
        for tensor, source in zip(tensors, self.sources, strict=True):
            if tensor is None or tensor.is_meta:
                continue
            for there, own in overlaps(self.places, source, made.dim()):
                made[there] = tensor[own]
        return made


def _parameter(fill: _Fill, older: tuple[nn.Parameter, ...]) -> nn.Parameter:
    parameter = nn.Parameter(fill(older), requires_grad=older[0].requires_grad)
    gradients = [one.grad for one in older]
    if any(gradient is not None for gradient in gradients):
        parameter.grad = fill(gradients)
    return parameter

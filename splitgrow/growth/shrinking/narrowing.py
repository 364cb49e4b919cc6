"""Taking channels out of a layer: its blocks get narrower, and those that have none left go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.analysis.units import along_tensors
from splitgrow.errors import UnsupportedLayerError
from splitgrow.growth.edits import Removal
from splitgrow.growth.optimizer_merge import JointParameter
from splitgrow.growth.placing import set_blocks_
from splitgrow.growth.planned_blocks import BlockSizes, build_block
from splitgrow.layers.channel_layout import Layout
from splitgrow.layers.composition import Block, Composition
from splitgrow.layers.module_state import is_plain
from splitgrow.layers.plain_again import has_holders
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.layers.tensor_holder import layer_at, replace_tensor_, split_of
from splitgrow.layers.types import TensorBlock, known_layer_type, layer_type_of
from splitgrow.layers.types.parametrized_layers import computed_names
from splitgrow.utils.rollback import Undo
from splitgrow.utils.spans import Spans

Kept = Mapping[int, Tensor]
"""By dimension the positions of a tensor that stay."""


@dataclass(frozen=True)
class NarrowedTensor:
    """A tensor of a block, and the positions of it that stay."""

    name: str
    tensor: Tensor
    kept: Kept

    def __call__(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """The part that stays of a tensor which lies as this one does."""
        (whole,) = tensors
        assert whole is not None
        return part_at(whole, self.kept)

    def other_state(self, name: str, value: Tensor) -> Tensor | None:
        """The part that stays of an optimizer's tensor that sums over some dimensions.

        Adafactor (Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235, section 3) has the
        means over rows and columns. None for a tensor that lies in a way that is not known.
        """
        shape, dims = list(self.tensor.shape), range(self.tensor.dim())
        if value.dim() == len(shape):
            kept = {dim: at for dim, at in self.kept.items() if value.shape[dim] == shape[dim]}
            fits = all(value.shape[dim] in (1, shape[dim]) for dim in dims)
            return part_at(value, kept) if fits else None
        missing = {"row": len(shape) - 1, "col": len(shape) - 2}.get(name.rpartition("_")[2], -1)
        left = [dim for dim in dims if dim != missing]
        if missing < 0 or list(value.shape) != [shape[dim] for dim in left]:
            return None
        return part_at(value, {left.index(d): at for d, at in self.kept.items() if d in left})


@dataclass(frozen=True)
class NarrowedBlock:
    """A block that stays.

    Attributes:
        module: The block.
        role: Its role in the layer.
        tensors: Those of its tensors that get smaller.
        numbers: Those of its attributes that change with the number of channels.
    """

    module: nn.Module
    role: Block
    tensors: tuple[NarrowedTensor, ...]
    numbers: Mapping[str, Any]


@dataclass(frozen=True)
class NarrowedLayer:
    """A layer without some channels, planned and not yet changed.

    Attributes:
        removal: The record of the change.
        split: The layer; for one that has not grown a split layer that nobody else holds.
        blocks: The blocks that stay.
        layouts: Where the inputs and outputs that stay came from.
        placed: Whether the model has the split layer itself.
        emptied: Whether its original block would lose all of its channels. Then it has to become
            one plain layer first, and no blocks are planned.
    """

    removal: Removal
    split: SplitLayer
    blocks: tuple[NarrowedBlock, ...]
    layouts: tuple[Layout, Layout]
    placed: bool
    emptied: bool = False


def part_at(tensor: Tensor, kept: Kept) -> Tensor:
    """The part of a tensor at some positions, with storage of its own."""
    part = tensor.detach()
    for dim, positions in kept.items():
        part = part.index_select(dim, positions.to(tensor.device))
    dense = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    if dense and not tensor.is_contiguous():
        return part.contiguous(memory_format=torch.channels_last)
    return part if part.data_ptr() != tensor.data_ptr() or part.is_meta else part.clone()


def narrowed(modules: Mapping[str, nn.Module], removal: Removal) -> NarrowedLayer:
    """Plans the removal of channels from a layer.

    Args:
        modules: The model's modules by path.
        removal: The channels that go.

    Raises:
        UnsupportedLayerError: If the layer can do without none of them; the error says why.
    """
    layer = layer_at(modules, removal.name, removal.use)
    split = split_of(layer)
    composition = split.composition()
    gone = (_marks(removal.ins, split.ins.length), _marks(removal.outs, split.outs.length))
    layouts = split.ins.without(removal.ins), split.outs.without(removal.outs)
    _check_kind(removal, composition, layouts)
    blocks = []
    for index, role in enumerate(split.blocks):
        sizes = _block_sizes(composition, role, layouts)
        reads = sizes.ins or sizes.back or not split.ins.length
        makes = sizes.outs or not split.outs.length
        if not reads or not makes:
            if role.kind == "original":
                return NarrowedLayer(removal, split, (), layouts, split is layer, emptied=True)
            continue
        kept = _kept_of(composition, index, (~gone[0], ~gone[1]))
        blocks.append(_narrowed_block(composition, index, kept, sizes, removal.name))
    return NarrowedLayer(removal, split, tuple(blocks), layouts, placed=split is layer)


def _check_kind(
    removal: Removal, composition: Composition, layouts: tuple[Layout, Layout]
) -> None:
    """Makes sure that a layer, and its original block, stay layers of their kind.

    Raises:
        UnsupportedLayerError: If they would not.
    """
    first = _block_sizes(composition, composition.blocks[0], layouts)
    original, entry = composition.original, composition.layer_type
    for sizes in ((layouts[0].length, layouts[1].length), first[:2]):
        emptied = any(n and not m for n, m in zip(entry.sizes(original), sizes, strict=True))
        if not emptied and not _are_of_one_kind(
            entry.build(original, entry.sizes(original), device="meta"),
            entry.build(original, sizes, device="meta"),
        ):
            raise UnsupportedLayerError(
                f"`{removal.name}` would have {sizes[0]} inputs and {sizes[1]} units"
                f"{'' if sizes is not first[:2] else ' of those that it had before it grew'}, with "
                f"which a {type(original).__name__} is a layer of another kind, such as a "
                f"depthwise convolution; leave it more"
            )


def _marks(spans: Spans, length: int) -> Tensor:
    marks = torch.zeros(length, dtype=torch.bool)
    for start, count in spans:
        marks[start : start + count] = True
    return marks


def _block_sizes(
    composition: Composition, role: Block, layouts: tuple[Layout, Layout]
) -> BlockSizes:
    """The numbers of channels that a block has in layouts."""
    ins, outs = layouts
    entry, original = composition.layer_type, composition.original
    made = _count(outs, role.makes)
    if entry.diagonal(original):
        return BlockSizes(_count(ins, role.makes), made, 0)
    back = 0
    if entry.reads_back(original) and role.kind != "original":
        back = _count(outs, role.reads)
    return BlockSizes(_count(ins, role.reads), made, back)


def _count(layout: Layout, chosen: Any) -> int:
    return sum(length for _, length in layout.spans(chosen))


def _kept_of(
    composition: Composition, index: int, stays: tuple[Tensor, Tensor]
) -> dict[str, dict[int, Tensor]]:
    """The marks of the positions that stay along the dimensions of a block's tensors, by name.

    Args:
        composition: The layer.
        index: The place of the block.
        stays: The marks of the layer's input and output channels.
    """
    module, role = composition.modules[index], composition.blocks[index]
    entry, original = composition.layer_type, composition.original
    if entry.reads_back(original):
        whole = along_tensors(original, *stays)
        return {
            key: {
                dim: _at(whole[key][dim], spans)
                for dim, spans in composition.places(index, key).items()
            }
            for key in whole
        }
    reads = role.makes if entry.diagonal(original) else role.reads
    ins = _at(stays[0], composition.ins.spans(reads))
    return along_tensors(_like(composition, module), ins, _at(stays[1], composition.outs.spans(role.makes)))


def _like(composition: Composition, block: nn.Module) -> nn.Module:
    """The layer whose entry says how a block's tensors lie along its channels.

    That is the original, unless the plain layer has the block's tensors in another way.
    """
    original = composition.original
    if type(block) is type(original):
        return original
    for name in composition.layer_type.tensors(original):
        own = getattr(block, name, None)
        if own is not None and composition.merging.value(block, name) is not own:
            return block
    return original


def _at(marks: Tensor, spans: Spans) -> Tensor:
    parts = [marks[start : start + count] for start, count in spans]
    return torch.cat([marks[:0], *parts])


def _narrowed_block(
    composition: Composition,
    index: int,
    marks: Mapping[str, Mapping[int, Tensor]],
    sizes: BlockSizes,
    name: str,
) -> NarrowedBlock:
    module, role = composition.modules[index], composition.blocks[index]
    entry, original = composition.layer_type, composition.original
    tensors = []
    for key, along in marks.items():
        tensor = getattr(module, key, None)
        kept = {d: own.nonzero().flatten() for d, own in along.items() if not bool(own.all())}
        if not isinstance(tensor, Tensor) or not kept:
            continue
        if key in computed_names(module):
            raise UnsupportedLayerError(
                f"`{name}` computes its `{key}` from other tensors (a parametrization), which have "
                f"no such parts; torch.nn.utils.parametrize.remove_parametrizations makes it plain"
            )
        if has_holders(tensor):
            raise UnsupportedLayerError(
                f"the `{key}` of `{name}` has hooks, is shared between processes, or is of a type "
                f"of its own, and would be replaced by another Parameter; take these off first"
            )
        tensors.append(NarrowedTensor(key, tensor, kept))
    now = _block_sizes(composition, role, (composition.ins, composition.outs))
    before, after = (_built(composition, index, each) for each in (now, sizes))
    numbers = _numbers_of(before, after)
    return NarrowedBlock(module, role, tuple(tensors), numbers)


_COUNTS = (int, tuple, list)


def _numbers_of(before: nn.Module, after: nn.Module) -> dict[str, Any]:
    """The attributes in which a layer with fewer channels differs."""
    return {
        key: value
        for key, value in vars(after).items()
        if is_plain(value) and type(value) in _COUNTS and vars(before).get(key, value) != value
    }


def _built(composition: Composition, index: int, sizes: BlockSizes) -> nn.Module:
    """A block like one of a layer, of other sizes and without values."""
    entry, role = composition.layer_type, composition.blocks[index]
    if role.kind == "original":
        return entry.build(composition.original, (sizes.ins, sizes.outs), device="meta")
    return build_block(entry, composition.original, role.kind, sizes, device="meta")


def _are_of_one_kind(before: nn.Module, after: nn.Module) -> bool:
    """Whether the channels of two layers lie alike."""
    now, then = layer_type_of(before), layer_type_of(after)
    if now is None or then is None or type(now) is not type(then):
        return False
    return now.tensors(before) == then.tensors(after)


def smaller_parameters(layers: Iterable[NarrowedLayer]) -> list[JointParameter]:
    """The parameters that get smaller, each with the one in its place, which has its values.

    A Parameter that several layers share is one again.
    """
    found: dict[int, JointParameter] = {}
    for layer in layers:
        for index, block in enumerate(layer.blocks):
            for item in block.tensors:
                if not isinstance(item.tensor, nn.Parameter) or id(item.tensor) in found:
                    continue
                older = item.tensor
                made = nn.Parameter(part_at(older, item.kept), older.requires_grad)
                if older.grad is not None:
                    made.grad = part_at(older.grad, item.kept)
                path = layer.removal.path
                path = f"{path}.{index}.{item.name}" if layer.placed else f"{path}.{item.name}"
                found[id(older)] = JointParameter(
                    path, made, (older,), item, other_state=item.other_state
                )
    return [*found.values()]


def put_narrowed_(
    modules: Mapping[str, nn.Module],
    layers: Sequence[NarrowedLayer],
    parameters: Iterable[JointParameter],
    undo: Undo,
) -> None:
    """Takes channels out of layers.

    Args:
        modules: The model's modules by path.
        layers: The layers, as planned.
        parameters: The parameters in place of those that get smaller.
        undo: Takes it back.
    """
    others = {id(joint.older[0]): joint.parameter for joint in parameters}
    for layer in layers:
        for block in layer.blocks:
            own = vars(block.module)
            undo.keep(own, own["_parameters"], own["_buffers"])
            for item in block.tensors:
                store = "_parameters" if item.name in own["_parameters"] else "_buffers"
                smaller: Any = others.get(id(item.tensor))
                if smaller is None:
                    smaller = part_at(item.tensor, item.kept)
                if item.name in own[store]:
                    own[store][item.name] = smaller
                else:
                    own[item.name] = smaller
            own.update(block.numbers)
            layer.split.layer_type.merging.given(block.module)
        kept = [block.module for block in layer.blocks], [block.role for block in layer.blocks]
        if layer.placed:
            set_blocks_(layer.split, kept, layer.layouts, undo)
        elif isinstance(block.module, TensorBlock):
            _replace_tensor_(modules, layer.removal.name, block.module.value, undo)


def _replace_tensor_(
    modules: Mapping[str, nn.Module], name: str, tensor: Tensor, undo: Undo
) -> None:
    holder = modules[name.rpartition(".")[0]]
    undo.keep(vars(holder)["_parameters"], vars(holder)["_buffers"])
    replace_tensor_(modules, name, tensor)


def read_nothing_(layer: nn.Module, gone: tuple[Tensor, Tensor], undo: Undo) -> None:
    """Sets to zero the weights with which a layer reads some channels.

    Args:
        layer: The layer.
        gone: The marks of its input and of its output channels.
        undo: Gives them their values again.
    """
    composition = split_of(layer).composition()
    entry, original = composition.layer_type, composition.original
    if entry.diagonal(original) or entry.looks_up:
        return
    for index, module in enumerate(composition.modules):
        like = original if entry.reads_back(original) else _like(composition, module)
        axes = known_layer_type(like).tensors(like)
        for key, along in _kept_of(composition, index, gone).items():
            tensor = getattr(module, key, None)
            for dim, marks in along.items() if isinstance(tensor, Tensor) else ():
                positions = marks.nonzero().flatten()
                if axes[key][dim].reads and len(positions) and key not in computed_names(module):
                    _fill_with_zeros_(tensor, dim, positions.to(tensor.device), undo)


def _fill_with_zeros_(tensor: Tensor, dim: int, positions: Tensor, undo: Undo) -> None:
    values = tensor.detach().index_select(dim, positions)
    undo.on_failure(partial(_give_back_, tensor, dim, positions, values))
    tensor.detach().index_fill_(dim, positions, 0)


def _give_back_(tensor: Tensor, dim: int, positions: Tensor, values: Tensor) -> None:
    with torch.inference_mode(mode=False), torch.no_grad():
        tensor.detach().index_copy_(dim, positions, values)

"""Taking channels out of a layer: its blocks get narrower, and those that have none left go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from splitgrow.errors import UnsupportedLayerError
from splitgrow.growth.edit_parts import Removal
from splitgrow.growth.optimizer_merge import JointParameter
from splitgrow.growth.placing import set_blocks_
from splitgrow.growth.planned_blocks import BlockSizes
from splitgrow.growth.shrinking.block_parts import (
    Kept,
    block_sizes,
    built_like,
    changed_attributes,
    changes_kind,
    marks_at,
    marks_of_block,
    part_at,
)
from splitgrow.growth.shrinking.computed_parts import computed_parts
from splitgrow.layers.block_roles import Block
from splitgrow.layers.channel_layout import Layout
from splitgrow.layers.composition import Composition
from splitgrow.layers.plain_again import has_holders
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.layers.tensor_holder import layer_at, replace_tensor_, split_of
from splitgrow.layers.types import TensorBlock
from splitgrow.layers.types.parametrized_layers import computed_names
from splitgrow.utils.rollback import Undo


@dataclass(frozen=True)
class SmallerTensor:
    """A tensor of a block, and the positions of it that stay.

    Attributes:
        name: Its path in the block.
        tensor: The tensor.
        kept: The positions of it that stay, by dimension.
        holder: The module that has it.
        values: The values of its part, where these are others; None for the tensor's.
    """

    name: str
    tensor: Tensor
    kept: Kept
    holder: nn.Module
    values: Tensor | None = None

    @property
    def key(self) -> str:
        """Its name in its holder."""
        return self.name.rpartition(".")[2]

    def part(self) -> Tensor:
        """The part that stays."""
        return part_at(self.tensor, self.kept) if self.values is None else self.values

    @property
    def is_empty(self) -> bool:
        """Whether nothing stays of it: a block has no such tensor, as when growth adds it."""
        return any(len(positions) == 0 for positions in self.kept.values())

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
class SmallerBlock:
    """A block that stays.

    Attributes:
        module: The block.
        role: Its role in the layer.
        tensors: Those of its tensors that get smaller.
        numbers: Those of its attributes that change with the number of channels.
    """

    module: nn.Module
    role: Block
    tensors: tuple[SmallerTensor, ...]
    numbers: Mapping[str, Any]


@dataclass(frozen=True)
class SmallerLayer:
    """A layer without some channels, planned and not yet changed.

    Attributes:
        removal: The record of the change.
        split: The layer; for one that has not grown a split layer that nobody else holds.
        blocks: The blocks that stay.
        layouts: Where the inputs and outputs that stay came from.
        placed: Whether the model has the split layer itself.
        new_kind: Whether it will be a layer of another kind: see `changes_kind`.
        plain_first: Whether it has to become one plain layer first, since its original block would
            be of another kind, or have no channels left. Then no blocks are planned.
    """

    removal: Removal
    split: SplitLayer
    blocks: tuple[SmallerBlock, ...]
    layouts: tuple[Layout, Layout]
    placed: bool
    new_kind: bool = False
    plain_first: bool = False


def narrowed(modules: Mapping[str, nn.Module], removal: Removal) -> SmallerLayer:
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
    gone = (marks_at(removal.ins, split.ins.length), marks_at(removal.outs, split.outs.length))
    layouts = split.ins.without(removal.ins), split.outs.without(removal.outs)
    new_kind = changes_kind(composition, layouts)
    if new_kind and len(split.blocks) > 1:
        return SmallerLayer(removal, split, (), layouts, split is layer, new_kind, plain_first=True)
    blocks = []
    for index, role in enumerate(split.blocks):
        sizes = block_sizes(composition, role, layouts)
        reads = sizes.ins or sizes.back or not split.ins.length
        makes = sizes.outs or not split.outs.length
        if reads and makes:
            kept = marks_of_block(composition, index, (~gone[0], ~gone[1]))
            blocks.append(_narrowed_block(composition, index, kept, sizes, removal.name))
    return SmallerLayer(removal, split, tuple(blocks), layouts, split is layer, new_kind)


def _narrowed_block(
    composition: Composition,
    index: int,
    marks: Mapping[str, Mapping[int, Tensor]],
    sizes: BlockSizes,
    name: str,
) -> SmallerBlock:
    module, role = composition.modules[index], composition.blocks[index]
    tensors = []
    for key, along in marks.items():
        tensor = getattr(module, key, None)
        kept = {d: own.nonzero().flatten() for d, own in along.items() if not bool(own.all())}
        if not isinstance(tensor, Tensor) or not kept:
            continue
        own = [SmallerTensor(key, tensor, kept, module)]
        if key in computed_names(module):
            own = _computed_tensors(module, key, kept, name)
        if any(has_holders(item.tensor) for item in own):
            raise UnsupportedLayerError(
                f"the `{key}` of `{name}` has hooks, is shared between processes, or is of a type "
                f"of its own, and would be replaced by another Parameter; take these off first"
            )
        tensors += own
    now = block_sizes(composition, role, (composition.ins, composition.outs))
    before, after = (built_like(composition, index, each) for each in (now, sizes))
    numbers = changed_attributes(before, after)
    return SmallerBlock(module, role, tuple(tensors), numbers)


def _computed_tensors(module: nn.Module, key: str, kept: Kept, name: str) -> list[SmallerTensor]:
    """The tensors from which a tensor is computed, with the positions of them that stay.

    Raises:
        UnsupportedLayerError: If these have no such parts.
    """
    parts = computed_parts(module, key, kept)
    if parts is None:
        raise UnsupportedLayerError(
            f"`{name}` computes its `{key}` from other tensors (a parametrization), which have no "
            f"such parts; torch.nn.utils.parametrize.remove_parametrizations makes it plain"
        )
    return [
        SmallerTensor(
            part.path, getattr(part.holder, part.name), part.kept, part.holder, part.values
        )
        for part in parts
        if part.kept or part.values is not None
    ]


def smaller_parameters(layers: Iterable[SmallerLayer]) -> list[JointParameter]:
    """The parameters that get smaller, each with the one in its place, which has its values.

    A Parameter that several layers share is one again.
    """
    found: dict[int, JointParameter] = {}
    for layer in layers:
        for index, block in enumerate(layer.blocks):
            for item in block.tensors:
                if not isinstance(item.tensor, nn.Parameter) or item.is_empty:
                    continue
                if id(item.tensor) in found:
                    continue
                older = item.tensor
                made = nn.Parameter(item.part(), older.requires_grad)
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
    layers: Sequence[SmallerLayer],
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
        merging = layer.split.layer_type.merging  # it may be a layer of another kind afterwards
        for block in layer.blocks:
            undo.keep(vars(block.module))
            for item in block.tensors:
                own = vars(item.holder)
                undo.keep(own["_parameters"], own["_buffers"])
                store = "_parameters" if item.key in own["_parameters"] else "_buffers"
                smaller: Any = others.get(id(item.tensor))
                if smaller is None and not item.is_empty:
                    smaller = item.part()
                if item.key in own[store]:
                    own[store][item.key] = smaller
                else:
                    own[item.key] = smaller
            vars(block.module).update(block.numbers)
            merging.given(block.module)
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

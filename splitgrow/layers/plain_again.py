"""A grown layer becomes one stock layer again, in place: the module that the user made.

Its tensors are those of the blocks side by side. What the blocks' tensors go with, such as their
gradients and an optimizer's moments, is put together in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.layers.block_roles import Block
from splitgrow.layers.channel_layout import Layout
from splitgrow.layers.composition import Composition
from splitgrow.layers.freezing import hold_statistics
from splitgrow.layers.hooks import computing_hooks, hand_over_
from splitgrow.layers.module_state import is_plain, may_hold
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.layers.tensor_holder import SplitTensor, give_plain_, tensor_path
from splitgrow.layers.types import UNCHANGED, TensorBlock
from splitgrow.layers.types.tensor_layers import first_values
from splitgrow.layers.weight_views import room_for
from splitgrow.utils.module_slots import Holders, put_in_place_
from splitgrow.utils.rollback import Undo
from splitgrow.utils.spans import regions

_STORES = ("_parameters", "_buffers")


def why_it_stays(split: SplitLayer) -> str:
    """Why a grown layer cannot go on as one stock layer; empty if it can."""
    composition = split.composition()
    merging, original = split.layer_type.merging, split.original
    computed = merging.computes_weight or any(any(computing_hooks(b)) for b in split)
    if computed or type(composition.template) is not type(original):
        return "its weight is computed at each call, and a plain one would train otherwise"
    for name, _ in composition.template.named_parameters():
        if name not in split.layer_type.tensors(original):
            return f"each of its blocks has a `{name}` of its own"
    for whole in wholes_of(composition):
        parts = whole.tensors
        if any(map(has_holders, parts)):
            return f"a part of its `{whole.name}` has hooks, is shared, or is of a type of its own"
        if len({(part.dtype, part.device) for part in parts}) > 1:
            return f"the parts of its `{whole.name}` differ in dtype or device"
    counters = {int(c) for b in split if (c := _counter(b)) is not None}
    if len(counters) > 1 and getattr(original, "momentum", 0.0) is None:
        return "its running statistics are averages over other numbers of batches"
    return ""


def _counter(block: nn.Module) -> Tensor | None:
    found = vars(block)["_buffers"].get("num_batches_tracked")
    return None if found is None or found.is_meta else found


def has_holders(tensor: Any) -> bool:
    """Whether another holder of a tensor would lose it if a new one took its place."""
    if type(tensor) not in {nn.Parameter, Tensor}:
        return True
    hooks = tensor._backward_hooks or tensor._post_accumulate_grad_hooks  # noqa: SLF001
    shared = tensor.device.type == "cpu" and tensor.is_shared()
    return bool(hooks or (shared and isinstance(tensor, nn.Parameter)))


# -- one tensor of the plain layer ----------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """One tensor of a plain layer, made of the blocks' own.

    Attributes:
        composition: The blocks, and where they lie.
        name: The tensor's name.
        blocks: The places of the blocks that have a part of it.
    """

    composition: Composition
    name: str
    blocks: tuple[int, ...]

    @property
    def tensors(self) -> tuple[Any, ...]:
        """The blocks' tensors, as the blocks have them."""
        return tuple(self._own(index) for index in self.blocks)

    def _own(self, index: int) -> Any:
        block = vars(self.composition.modules[index])
        return next(block[s][self.name] for s in _STORES if block[s].get(self.name) is not None)

    @property
    def gains(self) -> tuple[float, ...]:
        """The factor of each block's values in the plain layer's."""
        merging, found = self.composition.merging, []
        for index in self.blocks:
            carry = self.composition.carry(index)
            pair = torch.tensor([0.0, 1.0], dtype=torch.float64)
            if carry != UNCHANGED:
                pair = merging.carried_over(self.name, pair, carry)
            found.append(float(pair[1] - pair[0]))
        return tuple(found)

    def __call__(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Tensors of the shapes of the blocks' own, put together like these; None for zeros."""
        like = next(tensor for tensor in tensors if tensor is not None)
        made = room_for(like, self.composition.shape(self.name)).zero_()
        for index, tensor in zip(self.blocks, tensors, strict=True):
            if tensor is None:
                continue
            part = self._as_plain(index, tensor.detach())
            for there, own in regions(self.composition.places(index, self.name), part.dim()):
                made[there] = part[own]
        return made

    def _as_plain(self, index: int, tensor: Tensor) -> Tensor:
        """A tensor that lies as a block's own does, as it lies in the plain layer."""
        block = self.composition.modules[index]
        twin: nn.Module = object.__new__(type(block))
        twin.__dict__.update(vars(block), _parameters={self.name: tensor}, _buffers={})
        value = self.composition.merging.value(twin, self.name)
        assert value is not None
        return value


def wholes_of(composition: Composition) -> list[Whole]:
    """The tensors of the plain layer that the blocks make side by side."""
    merging, found = composition.merging, []
    for name in composition.names:
        chosen = tuple(
            index
            for index, module in enumerate(composition.modules)
            if merging.value(module, name) is not None
        )
        if 0 in chosen:
            found.append(Whole(composition, name, chosen))
    return found


# -- the plain layer ------------------------------------------------------------------------------


def plain_values(split: SplitLayer, undo: Undo, *, trusted: bool = False) -> nn.Module:
    """A stock layer with the values of a grown one, as parameters and buffers of its own.

    If a block has no values yet, neither has the layer: its tensors lie on the meta device.

    Args:
        split: The grown layer.
        undo: Takes back changes of blocks that have no values.
        trusted: Whether blocks without values count as zeros. That takes the memory of the layer.
    """
    _complete_(split, undo, zeros=trusted)
    composition = split.composition()
    if not any(t.is_meta for b in split for t in (*b.parameters(), *b.buffers())):
        return composition.plain()
    plain, along = composition.room(), composition.names
    for name, buffer in split.original.named_buffers():
        if name not in along and not buffer.is_meta:
            setattr(plain, name, buffer.detach().clone())
    return plain


def _complete_(split: SplitLayer, undo: Undo, *, zeros: bool) -> None:
    """Gives values to blocks that have none, where no state_dict brings them, or zeros to all."""
    first: Any = split.original
    own = isinstance(first, TensorBlock) and not first.persistent
    if not (zeros or own):
        return
    device = next((t.device for t in (*first.parameters(), *first.buffers())), None)
    for block in split:
        for store in (vars(block)[each] for each in _STORES):
            undo.keep(store)
            for name, tensor in store.items():
                if tensor is None or not tensor.is_meta:
                    continue
                if own:
                    made = first_values(first.value, [*tensor.shape], first.use.role)
                else:
                    made = torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
                if isinstance(tensor, nn.Parameter):
                    made = nn.Parameter(made, requires_grad=tensor.requires_grad)
                store[name] = made


def put_plain_(
    path: str,
    split: SplitLayer,
    plain: nn.Module,
    modules: Mapping[str, nn.Module],
    holders: Holders,
    undo: Undo,
) -> None:
    """Puts a stock layer in the place of a grown one.

    It is the layer that was there before the growth, with other tensors and widths. So whoever has
    kept that one has the layer of today; and so has who kept the grown one.

    Args:
        path: The path of the grown layer.
        split: That layer.
        plain: A stock layer with the tensors and widths.
        modules: The model's modules by path.
        holders: The holders of the model's modules.
        undo: Takes it back.
    """
    if isinstance(split, SplitTensor):
        parent, _, key = tensor_path(path).rpartition(".")
        give_plain_(modules[parent], key, plain.value, undo)  # type: ignore[arg-type]
        return
    layer = split.original
    _become_(layer, split, plain, undo)
    _take_hooks_back_(split, layer, undo)
    undo.keep(vars(split))
    sizes = split.layer_type.sizes(layer)
    block = Block("original", 0)
    split.set_blocks([layer], [block], *(Layout.original(size) for size in sizes))
    put_in_place_(holders, split, layer, undo)


def _become_(layer: nn.Module, split: SplitLayer, plain: nn.Module, undo: Undo) -> None:
    """Gives a layer the tensors and numbers of another, and all that users set on the grown one."""
    own, made, users = vars(layer), vars(plain), vars(split)
    undo.keep(own)
    for store in _STORES:
        theirs = {k: v for k, v in users[store].items() if k not in made[store]}
        own[store] = {**{k: made[store].get(k, v) for k, v in own[store].items()}, **made[store]}
        own[store].update(theirs)
    fresh = vars(nn.Module())
    own.update({k: v for k, v in made.items() if k not in fresh and is_plain(v)})
    own.update({k: v for k, v in users.items() if k not in made and may_hold(split, "", k)})
    own["training"] = split.training
    split.layer_type.merging.given(layer)


def _take_hooks_back_(split: SplitLayer, layer: nn.Module, undo: Undo) -> None:
    """Gives a layer the hooks that went to the grown one, besides those that it kept."""
    names = [name for name, value in vars(layer).items() if "hook" in name]
    kept = {
        name: {k: h for k, h in vars(layer)[name].items() if h is not hold_statistics}
        for name in names
        if isinstance(vars(layer)[name], dict)
    }
    hand_over_(split, layer, undo)
    for name, hooks in kept.items():
        vars(layer)[name].update(hooks)

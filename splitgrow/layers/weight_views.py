"""One tensor of a grown layer put together from its blocks', without ever being out of date.

A frozen block's tensor becomes a view of the whole, so that nothing is copied again however it is
changed in place. A tensor that trains keeps storage of its own, since optimizers with fused kernels
take every parameter for contiguous, and is copied in at every use. So is one that stands in for the
block's own for the time of a call, as torch.func.functional_call has it: it is somebody else's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from splitgrow.utils.rollback import Undo
from splitgrow.utils.spans import Spans, regions

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""The memory formats with the channels last, by the number of dimensions."""


def memory_format_of(tensor: Tensor) -> torch.memory_format:
    """Channels last if the strides of a tensor, dense or a part of one, are in that order."""
    last = tensor.dim() in CHANNELS_LAST and tensor.stride(1) == 1 and tensor.stride(-1) > 1
    return CHANNELS_LAST[tensor.dim()] if last else torch.contiguous_format


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor fills its storage's stretch, as against being a part of a larger one."""
    return tensor.is_contiguous(memory_format=memory_format_of(tensor))


def make_dense_(module: nn.Module) -> None:
    """Gives a module's parameters storage of their own."""
    for parameter in module._parameters.values():  # noqa: SLF001
        if parameter is not None and not is_dense(parameter):
            with torch.inference_mode(mode=False):
                parameter.data = parameter.data.clone()


def keep_storage_(parameters: Iterable[nn.Parameter], undo: Undo) -> None:
    """Has parameters lie again where they lie now; they come to lie elsewhere as layers run."""
    for parameter in parameters:
        undo.on_failure(partial(_lay_back, parameter, parameter.detach()))


def _lay_back(parameter: nn.Parameter, place: Tensor) -> None:
    if parameter.data_ptr() != place.data_ptr() or parameter.stride() != place.stride():
        parameter.data = place


class Unfit(Exception):  # noqa: N818
    """The blocks, as they are now, cannot be put together."""


class WeightPart:
    """One block's tensor, and where it lies in the whole.

    Attributes:
        block: The block's place in the layer.
        module: The block.
        owner: The dictionary that has the tensor, under `name`.
        regions: The rectangles that it covers: there, and in itself.
        shape: Its shape.
        size: Its number of elements.
    """

    __slots__ = ("block", "module", "name", "owner", "raw", "regions", "shape", "size")

    def __init__(
        self, block: int, module: nn.Module, name: str, places: Mapping[int, Spans]
    ) -> None:
        self.block, self.module, self.name = block, module, name
        own = module._parameters.get(name) is not None  # noqa: SLF001
        self.owner: Any = module._parameters if own else module._buffers  # noqa: SLF001
        self.shape = self.tensor.shape
        self.size = self.shape.numel()
        self.regions = list(regions(places, len(self.shape)))
        self.raw: list[Tensor] = []

    @property
    def tensor(self) -> Tensor:
        """The block's tensor today.

        Raises:
            Unfit: If there is none, or it is none that has values of its own.
        """
        found = self.owner.get(self.name)
        if type(found) not in (nn.Parameter, Tensor):
            raise Unfit
        return found  # type: ignore[no-any-return]

    @property
    def scattered(self) -> bool:
        """Whether it lies in several pieces, and so cannot be a view of the whole."""
        return len(self.regions) > 1

    def settle(self, keeping: Own | None) -> bool:
        """Copies today's values into the whole, or makes the tensor a view of it.

        Args:
            keeping: Which tensors may become one: the blocks' own; None for none.

        Returns:
            Whether it has become one.

        Raises:
            Unfit: If the tensor has another dtype, device or shape than the whole was made for.
        """
        tensor, only = self.tensor, self.raw[0]
        there = tensor.data_ptr() == only.data_ptr() and tensor.stride() == only.stride()
        apart = self.scattered or tensor.requires_grad or keeping is None or _must_stay(tensor)
        apart = apart or (keeping is not None and not keeping.has(self))
        if there and not apart:
            return True
        if tensor.dtype != only.dtype or tensor.device != only.device or tensor.shape != self.shape:
            raise Unfit
        with torch.inference_mode(mode=False), torch.no_grad():
            if there:
                tensor.data = tensor.data.clone()
            for region, (_, own) in zip(self.raw, self.regions, strict=True):
                region.copy_(tensor.data[own])
            if not apart:
                tensor.data = only
        return not apart

    def write_back(self) -> None:
        """Gives the block's own tensor the whole's values, where it is not a view of it."""
        data = self.tensor.data
        for region, (_, own) in zip(self.raw, self.regions, strict=True):
            if data.data_ptr() != region.data_ptr():
                data[own] = region


class Own:
    """Which tensors belong to some modules, as against others that stand in for them for a while.

    Args:
        modules: The modules, with their own tensors in place.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._known = {
            (module, name): ref(tensor)
            for module in modules
            for owner in (module._parameters, module._buffers)  # noqa: SLF001
            for name, tensor in owner.items()
            if tensor is not None
        }

    def has(self, part: WeightPart) -> bool:
        """Whether the tensor that is there today is the block's own."""
        tensor = part.tensor
        known = self._known.get((part.module, part.name))
        if known is None or known() is None:  # its own was replaced for good
            known = self._known[part.module, part.name] = ref(tensor)
        return known() is tensor


def _must_stay(tensor: Tensor) -> bool:
    """Whether a tensor's storage is shared with somebody who would lose sight of it."""
    return tensor.is_inference() or (tensor.device.type == "cpu" and tensor.is_shared())  # type: ignore[no-untyped-call]


def room_for(first: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor to put others together in, of the type and memory format of the first of them."""
    return torch.empty(
        *shape,
        dtype=first.dtype,
        device=first.device,
        memory_format=memory_format_of(first),
    )


def whole_of(parts: Sequence[WeightPart], shape: Sequence[int]) -> Tensor:
    """The tensor that parts make together, once all of them are settled; they learn their places.

    Args:
        parts: The blocks' tensors.
        shape: The shape of the whole.
    """
    with torch.inference_mode(mode=False):
        whole = room_for(parts[0].tensor, shape)
        # Writing through this does not count as a change to what a graph has saved; whether a
        # block's tensor has changed since is looked at apart.
        raw = whole.data
    for part in parts:
        part.raw = [raw[there] for there, _ in part.regions]
    return whole

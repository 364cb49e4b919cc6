"""One tensor of a grown layer, assembled from its blocks' tensors and never out of date.

A frozen block's tensor becomes a view of the whole, so a change in place needs no further copy. A
tensor that trains keeps its own storage, since optimizers with fused kernels take every parameter
for contiguous, and is copied in at every use. So is a tensor that replaces the block's own for one
call, as in torch.func.functional_call: it belongs to the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakValueDictionary, ref

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
    """Whether a tensor fills its stretch of storage, rather than being a part of a larger one."""
    return tensor.is_contiguous(memory_format=memory_format_of(tensor))


def make_dense_(module: nn.Module) -> None:
    """Gives a module's parameters their own storage, unless other processes share it."""
    owned: Any = module._parameters.values()  # noqa: SLF001
    for parameter in owned:
        if parameter is None or is_dense(parameter):
            continue
        if parameter.device.type != "cpu" or not parameter.is_shared():
            with torch.inference_mode(mode=False):
                parameter.data = parameter.data.clone()


def keep_storage_(parameters: Iterable[nn.Parameter], undo: Undo) -> None:
    """Restores the parameters' present storage later; running layers moves them."""
    for parameter in parameters:
        undo.on_failure(partial(_lay_back, parameter, parameter.detach()))


def _lay_back(parameter: nn.Parameter, place: Tensor) -> None:
    if parameter.data_ptr() != place.data_ptr() or parameter.stride() != place.stride():
        parameter.data = place


class Unfit(Exception):  # noqa: N818
    """The blocks, as they are now, cannot be assembled."""


class WeightPart:
    """One block's tensor, and where it lies in the whole.

    Attributes:
        block: The block's place in the layer.
        module: The block.
        owner: The dictionary that has the tensor, under `name`.
        regions: The rectangles that it covers: in the whole, and in itself.
        shape: Its shape, as the whole has it.
        size: Its number of elements.
    """

    __slots__ = ("_turned", "block", "module", "name", "owner", "raw", "regions", "shape", "size")

    def __init__(
        self,
        block: int,
        module: nn.Module,
        name: str,
        places: Mapping[int, Spans],
        *,
        turned: bool = False,
    ) -> None:
        self.block, self.module, self.name, self._turned = block, module, name, turned
        own = module._parameters.get(name) is not None  # noqa: SLF001
        self.owner: Any = module._parameters if own else module._buffers  # noqa: SLF001
        self.shape = self.laid(self.tensor).shape
        self.size = self.shape.numel()
        self.regions = list(regions(places, len(self.shape)))
        self.raw: list[Tensor] = []

    @property
    def tensor(self) -> Tensor:
        """The block's tensor today.

        Raises:
            Unfit: If there is none, or it has no values of its own.
        """
        found = self.owner.get(self.name)
        if type(found) not in (nn.Parameter, Tensor):
            raise Unfit
        return found  # type: ignore[no-any-return]

    def laid(self, tensor: Tensor) -> Tensor:
        """The block's tensor, or its gradient, as the whole has it; and the other way round."""
        return tensor.T if self._turned else tensor

    @property
    def scattered(self) -> bool:
        """Whether it lies in several pieces or turned, and so cannot be a view of the whole."""
        return len(self.regions) > 1 or self._turned

    def settle(self, keeping: Own | None) -> bool:
        """Copies the present values into the whole, or makes the tensor a view of it.

        Args:
            keeping: The tensors that may become a view: the blocks' own; None for none.

        Returns:
            Whether it is a view now.

        Raises:
            Unfit: If the tensor has another dtype, device or shape than the whole was made for.
        """
        tensor, only = self.tensor, self.raw[0]
        there = tensor.data_ptr() == only.data_ptr() and tensor.stride() == only.stride()
        apart = self.scattered or tensor.requires_grad or keeping is None or _must_stay(tensor)
        apart = apart or (keeping is not None and not keeping.has(self))
        if there and not apart:
            return True
        laid = self.laid(tensor.data)
        if laid.dtype != only.dtype or laid.device != only.device or laid.shape != self.shape:
            raise Unfit
        with torch.inference_mode(mode=False), torch.no_grad():
            if there:
                laid = tensor.data = tensor.data.clone()
            for region, (_, own) in zip(self.raw, self.regions, strict=True):
                region.copy_(laid[own])
            if not apart:
                tensor.data = only
        return not apart

    def write_back(self) -> None:
        """Gives the block's own tensor the whole's values, where it is not a view of it."""
        data = self.laid(self.tensor.data)
        for region, (_, own) in zip(self.raw, self.regions, strict=True):
            if data.data_ptr() != region.data_ptr():
                data[own] = region


class Own:
    """The tensors that belong to some modules, as opposed to temporary replacements.

    Args:
        modules: The modules, with their own tensors in place.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._known: dict[tuple[int, str], ref[Tensor]] = {}
        self.learn_(modules)

    def learn_(self, modules: Iterable[nn.Module]) -> Own:
        """Learns those of further modules; of one that is gone, its like may have the id."""
        for module in modules:
            for owner in (module._parameters, module._buffers):  # noqa: SLF001
                for name, tensor in owner.items() if owner else ():
                    if tensor is not None:
                        self._known[id(module), name] = ref(tensor)
        return self

    def has(self, part: WeightPart) -> bool:
        """Whether the present tensor is the block's own."""
        tensor = part.tensor
        key = id(part.module), part.name
        known = self._known.get(key)
        if known is None or known() is None:  # its own was replaced for good
            known = self._known[key] = ref(tensor)
        return known() is tensor


def _must_stay(tensor: Tensor) -> bool:
    """Whether other holders of a tensor's storage would lose it if the tensor moved."""
    return tensor.is_inference() or (tensor.device.type == "cpu" and tensor.is_shared())  # type: ignore[no-untyped-call]


def room_for(first: Tensor, shape: Sequence[int]) -> Tensor:
    """An empty tensor to assemble others in, of the dtype and memory format of the first."""
    return torch.empty(
        *shape,
        dtype=first.dtype,
        device=first.device,
        memory_format=memory_format_of(first),
    )


def _common_whole(parts: Sequence[WeightPart], shape: Sequence[int]) -> Tensor | None:
    """The whole that a layer which shares these tensors has made; None if there is none.

    All frozen parts then are views of it, each at its place.
    """
    frozen = [part for part in parts if not part.tensor.requires_grad]
    if len(parts) < 2 or not frozen or any(part.scattered for part in frozen):
        return None
    first = frozen[0].tensor.detach()
    layout = memory_format_of(first)
    form = torch.empty(*shape, device="meta", memory_format=layout).stride()
    whole = _WHOLES.get(first.untyped_storage()._cdata)  # noqa: SLF001
    if whole is None or list(whole.shape) != list(shape) or whole.stride() != form:
        return None
    origins = set()
    for part in frozen:
        tensor = part.tensor.detach()
        spans = part.regions[0][0]
        start = sum((s.start or 0) * step for s, step in zip(spans, form, strict=True))
        origins.add((tensor.untyped_storage()._cdata, tensor.storage_offset() - start))  # noqa: SLF001
        if tensor.stride() != form or tensor.dtype != first.dtype:
            return None
    there = {(whole.untyped_storage()._cdata, whole.storage_offset())}  # noqa: SLF001
    return whole if origins == there and whole.dtype == first.dtype else None


_WHOLES: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
"""The wholes that layers have made, by their storage: no other tensor's storage may be taken."""


def whole_of(parts: Sequence[WeightPart], shape: Sequence[int]) -> Tensor:
    """The tensor that parts make together once all are settled; tells each part its place.

    Args:
        parts: The blocks' tensors.
        shape: The shape of the whole.
    """
    with torch.inference_mode(mode=False):
        whole = _common_whole(parts, shape)
        if whole is None:
            whole = room_for(parts[0].tensor, shape)
            _WHOLES[whole.untyped_storage()._cdata] = whole  # noqa: SLF001
        # Writing through this does not count as a change to a tensor that a graph has saved;
        # changes of a block's tensor since then are checked separately.
        raw = whole.data
    for part in parts:
        part.raw = [raw[there] for there, _ in part.regions]
    return whole

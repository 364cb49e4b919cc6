"""The blocks' tensors behind one tensor of a grown layer, for reading and for writing."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from splitgrow.errors import UnsupportedLayerError
from splitgrow.layers.composition import Composition
from splitgrow.layers.freezing import held
from splitgrow.layers.types.parametrized_layers import own_tensors
from splitgrow.layers.types.start_values import UNCHANGED
from splitgrow.layers.weight_views import room_for
from splitgrow.utils.spans import regions


class _Piece(NamedTuple):
    """One block's part.

    Attributes:
        tensor: The block's tensor, laid out as in the whole, sharing its memory.
        owner: The parameter or buffer that has its memory.
        frozen: Whether it is frozen.
        block: The block's place in the layer.
    """

    tensor: Tensor
    owner: Tensor
    frozen: bool
    block: int


class TensorSource:
    """The blocks' tensors that make one tensor of a grown layer.

    Args:
        composition: The layer's blocks and layouts.
        name: The tensor's name.
        gradients: Whether the gradient is meant.
    """

    def __init__(self, composition: Composition, name: str, *, gradients: bool = False) -> None:
        self.composition, self.name, self._gradients = composition, name, gradients
        self._counter = name not in composition.layer_type.tensors(composition.original)
        self._raw: Tensor | None = None
        self._seen: Any = None
        self._base: Tensor | None = None
        self._made_by: Any = None

    @property
    def label(self) -> str:
        """A name for the tensor in messages."""
        layer = type(self.composition.original).__name__
        ins, outs = self.composition.sizes
        what = f"`{self.name}.grad`" if self._gradients else f"`{self.name}`"
        return f"the {what} of a {layer} ({ins} to {outs} channels) that splitgrow has grown"

    def owners(self) -> Iterator[Any]:
        """The blocks' parameters or buffers; of a computed tensor those that it is made from."""
        for module in self.composition.modules:
            yield from own_tensors(module, self.name)

    @property
    def trains(self) -> bool:
        """Whether a part of it trains."""
        return any(owner.requires_grad for owner in self.owners())

    @property
    def known(self) -> bool:
        """Whether all parts are plain tensors, which can be written to."""
        return all(type(owner) in (Tensor, nn.Parameter) for owner in self.owners())

    def stands_for(self, composition: Composition, name: str) -> bool:
        """Whether it is this tensor of this layer."""
        return self.name == name and self.composition.modules == composition.modules

    def start(self, assembled: Tensor | None = None) -> Tensor:
        """The tensor as it is now, differentiable by the blocks' own.

        Args:
            assembled: The assembled tensor, if it is at hand.
        """
        if self._counter or self._gradients:
            whole = self._now()
        else:
            if assembled is None:
                assembled = self.composition.assembled(self.name)
            assert assembled is not None, self.name
            # Never a block's own: writing to it would pass by the blocks.
            own = {owner.untyped_storage()._cdata for owner in self.owners()}  # noqa: SLF001
            whole = assembled
            if whole.untyped_storage()._cdata in own:  # noqa: SLF001
                whole = whole.clone()
            if self.trains and not (torch.is_grad_enabled() or whole.is_inference()):
                whole.requires_grad_()  # as a parameter: by that torch chooses between kernels
        self._raw, self._seen = whole.detach(), self._state()
        self._base, self._made_by = whole, whole.grad_fn
        return whole

    @property
    def recorded(self) -> bool:
        """Whether autograd has recorded that the tensor was changed."""
        return self._base is not None and self._base.grad_fn is not self._made_by

    def refresh(self, *, always: bool = False) -> None:
        """Updates the tensor if the blocks have changed since."""
        state = self._state()
        if self._raw is None or (state == self._seen and not always):
            return
        with torch.no_grad():
            self._raw.copy_(self._now())
        self._seen = state

    def differs(self) -> bool:
        """Whether it has other values than the blocks."""
        return self._raw is not None and not torch.equal(self._raw, self._now())

    def write(self, *, silent: bool) -> None:
        """Writes its values into the blocks.

        Args:
            silent: Whether it does not count as a change, as through `Tensor.data`.

        Raises:
            UnsupportedLayerError: If it is computed from other tensors, or a frozen part would
                change; then nothing is written.
        """
        assert self._raw is not None
        with torch.no_grad():
            if self.composition.merging.computes_weight and not self._gradients:
                self._take_back("is computed from other tensors at each call")
            written = [(piece, self._part_of(piece)) for piece in self._pieces()]
            fixed = [p for p, value in written if p.frozen and not self._same(p, value)]
            if fixed and not self._gradients:
                blocks = ", ".join(str(piece.block) for piece in fixed)
                self._take_back(
                    f"is frozen in block {blocks}, which earlier generations are made of"
                )
            for piece, value in written:
                if not piece.frozen:
                    (piece.tensor.data if silent else piece.tensor.detach()).copy_(value)
            if self._gradients and fixed:
                self._raw.copy_(self._now())
        self._seen = self._state()

    def of_gradients(self, *, make: bool = False) -> Any:
        """The source of its gradients; None if there are none.

        Args:
            make: Whether to give zeros to parts that train and have no gradient.

        Raises:
            UnsupportedLayerError: If the tensor is computed from others at each call.
        """
        if self.composition.merging.computes_weight:
            raise UnsupportedLayerError(
                f"{self.label} is computed at each call; its gradient is that of the blocks' own "
                f"tensors (layer[0].{self.name}.grad, ...)"
            )
        owners = list(self.owners())
        for owner in owners if make else ():
            if owner.grad is None and owner.requires_grad:
                owner.grad = torch.zeros_like(owner)
        if all(owner.grad is None for owner in owners):
            return None
        return TensorSource(self.composition, self.name, gradients=True)

    def _take_back(self, why: str) -> None:
        assert self._raw is not None
        self._raw.copy_(self._now())
        raise UnsupportedLayerError(
            f"{self.label} {why}; nothing was written. Write to the tensors of the blocks that "
            f"train (layer[1].{self.name}, ...), let the past train again with unfreeze(), or make "
            f"the model plain with splitgrow.merge"
        )

    def _state(self) -> Any:
        if self._gradients:
            return [(id(o.grad), o.grad is not None and _count(o.grad)) for o in self.owners()]
        return [(owner.data_ptr(), _count(owner)) for owner in self.owners()]

    def _pieces(self) -> Iterator[_Piece]:
        merging = self.composition.merging
        for index, module in enumerate(self.composition.modules):
            own = vars(module)
            owner = own["_parameters"].get(self.name)
            frozen = owner is not None and not owner.requires_grad
            if owner is None:
                owner = own["_buffers"].get(self.name)
                frozen = owner is not None and held(module) and not self._counter
            if owner is None:
                continue
            block = _with_gradients(module, self.name) if self._gradients else module
            value = owner if self._counter else merging.value(block, self.name)
            assert value is not None
            yield _Piece(value.detach(), owner, frozen, index)

    def _now(self) -> Tensor:
        """The present values, in their own memory."""
        if self._counter:
            *_, last = self.owners()
            return last.detach().clone()  # type: ignore[no-any-return]
        composition = self.composition
        if not self._gradients:
            value = composition.value(self.name)
            assert value is not None
            return value
        pieces = list(self._pieces())
        whole = room_for(pieces[0].tensor, composition.shape(self.name)).zero_()
        for piece in pieces:
            part = self._carried(piece.tensor, piece.block, back=True)
            for there, own in self._regions(piece):
                whole[there] = part[own]
        return whole

    def _part_of(self, piece: _Piece) -> Tensor:
        """A block's part of the whole's values."""
        assert self._raw is not None
        if self._counter:
            return self._raw
        part = torch.empty_like(piece.tensor)
        for there, own in self._regions(piece):
            part[own] = self._raw[there]
        return self._carried(part, piece.block, back=not self._gradients)

    def _regions(self, piece: _Piece) -> Any:
        places = self.composition.places(piece.block, self.name)
        return regions(places, piece.tensor.dim())

    def _same(self, piece: _Piece, value: Tensor) -> bool:
        """Whether a block has these values, up to rounding if they are adjusted to the width."""
        own, tolerance = piece.tensor, 0.0
        if not self.composition.merging.side_by_side and own.is_floating_point():
            tolerance = 4 * torch.finfo(own.dtype).eps
        return bool(torch.isclose(own, value, tolerance, 0.0, equal_nan=True).all())

    def _carried(self, tensor: Tensor, block: int, *, back: bool) -> Tensor:
        carry = self.composition.carry(block)
        if carry == UNCHANGED:
            return tensor
        carry = carry.inverse if back else carry
        carried = partial(self.composition.merging.carried_over, self.name, carry=carry)
        if self._gradients:  # which a number that is added does not change
            return carried(tensor) - carried(torch.zeros_like(tensor))
        return carried(tensor)


def _count(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # noqa: SLF001


def _with_gradients(module: nn.Module, name: str) -> nn.Module:
    """A stand-in for a block, with its gradients in place of its parameters."""
    twin: nn.Module = object.__new__(type(module))
    twin.__dict__.update(vars(module))
    own = module._parameters[name]  # noqa: SLF001
    assert own is not None
    gradient = torch.zeros_like(own) if own.grad is None else own.grad
    twin.__dict__["_parameters"] = {**module._parameters, name: gradient}  # noqa: SLF001
    return twin

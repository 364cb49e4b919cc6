"""A grown layer's tensors assembled to those of one plain layer, kept from call to call."""

from __future__ import annotations

from collections.abc import Collection
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from splitgrow.layers.composition import Composition
from splitgrow.layers.weight_views import Own, Unfit, WeightPart, make_dense_, whole_of
from splitgrow.utils.spans import cut_out
from splitgrow.utils.wrappers import is_managed


class Assembly:
    """The tensors of the plain layer that a grown one equals.

    Attributes:
        composition: The layer's blocks and layouts.
        parts: The blocks' tensors; none if the plain layer's are not these tensors side by side.
        tensors: The present tensors of the parts, after `look`.
        flags: Which of them train.

    Args:
        composition: The layer's blocks and layouts.
        own: The blocks' own tensors; frozen ones become views of the assembled tensors, which are
            kept. None to keep nothing.
        names: Those that are assembled; None for all.
    """

    def __init__(
        self, composition: Composition, own: Own | None, names: Collection[str] | None = None
    ) -> None:
        self.composition, self._own, self._names = composition, own, names
        self.parts: list[WeightPart] = []
        self.tensors: list[Tensor] = []
        self.flags: tuple[bool, ...] = ()
        self._slots: dict[str, range] = {}
        self._missing: list[tuple[nn.Module, str]] = []
        self._wholes: dict[str, Tensor] = {}
        self._settled: tuple[Any, ...] = ()
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._apart: set[str] = set()
        self._copied: dict[tuple[bool, ...], int] = {}
        self._settling = Lock()  # several threads may run the layer at a time
        self._find_parts()

    def _find_parts(self) -> None:
        composition = self.composition
        entry, original = composition.layer_type, composition.original
        for name in entry.tensors(original) if entry.merging.keeps_weight else ():
            if self._names is not None and name not in self._names:
                continue
            start = len(self.parts)
            places = composition.all_places(name)
            for index, module in enumerate(composition.modules):
                if getattr(module, name, None) is None:
                    if composition.blocks[index].kind != "helper":
                        self._missing.append((module, name))
                    continue
                turned = name == "weight" and entry.merging.turned(module)
                self.parts.append(WeightPart(index, module, name, places[index], turned=turned))
            self._slots[name] = range(start, len(self.parts))

    def look(self) -> None:
        """Looks up the blocks' present tensors.

        Raises:
            Unfit: If a tensor is missing, or there is an extra one.
        """
        try:
            self.tensors = [part.owner[part.name] for part in self.parts]
            self.flags = tuple([tensor.requires_grad for tensor in self.tensors])
        except (KeyError, AttributeError):
            raise Unfit from None
        if any(getattr(module, name, None) is not None for module, name in self._missing):
            raise Unfit

    def slots(self, name: str) -> range:
        """The parts that belong to a tensor of the plain layer."""
        return self._slots[name]

    @property
    def copied(self) -> int:
        """How many elements a call copies to assemble the layer, as its blocks train now."""
        if self.flags not in self._copied:
            self._copied[self.flags] = self._count()
        return self._copied[self.flags]

    def _count(self) -> int:
        composition = self.composition
        if not composition.merging.keeps_weight:
            return sum(p.numel() for module in composition.modules for p in module.parameters())
        pairs = zip(self.parts, self.flags, strict=True)
        return sum(part.size for part, trains in pairs if trains or part.scattered)

    def values(self) -> dict[str, Tensor]:
        """The plain layer's present tensors, not differentiable; those that it has.

        Raises:
            Unfit: If the blocks, as they are now, cannot be put together.
        """
        tensors = self.tensors
        state = (self.flags, [(t.data_ptr(), t.stride()) for t in tensors])
        with self._settling:
            if state != self._settled:
                self._settle()
            values, copies = self._wholes, self._copies
            if not self._keeps:
                self._wholes, self._settled = {}, ()
        if copies:
            with torch.no_grad():
                regions, sources = zip(*copies, strict=True)
                torch._foreach_copy_(list(regions), list(sources))
        return values

    @property
    def _keeps(self) -> bool:
        """Whether the assembled tensors are kept from call to call.

        They are not where FSDP frees the parameters' storage after the call and fills it anew
        before the next: a parameter that pointed elsewhere would miss that, and the kept tensors
        would hold the memory.
        """
        return self._own is not None and not is_managed(self.composition.original)

    def _settle(self) -> None:
        self._settled, self._copies, self._apart = (), [], set()
        if self._own is not None and not all(self._own.has(p) for p in self.parts):
            # The assembled tensor has the values of the absent ones.
            self._wholes = {}
        for name, slots in self._slots.items():
            if slots:
                try:
                    self._settle_one(name, slots)
                except Unfit:  # they have moved, or have another dtype
                    self._wholes.pop(name, None)
                    self._settle_one(name, slots)
        self._settled = (self.flags, [(t.data_ptr(), t.stride()) for t in self.tensors])

    def _settle_one(self, name: str, slots: range) -> None:
        parts = [self.parts[slot] for slot in slots]
        if name not in self._wholes:
            self._wholes[name] = whole_of(parts, self.composition.shape(name))
        for slot, part in zip(slots, parts, strict=True):
            if not part.settle(self._own if self._keeps else None):
                self._apart.add(name)
                source = part.laid(self.tensors[slot].detach())
                for region, (_, own) in zip(part.raw, part.regions, strict=True):
                    self._copies.append((region, source[own] if part.scattered else source))

    def leave(self) -> None:
        """Gives every block its own storage again."""
        with self._settling:
            for module in self.composition.modules:
                make_dense_(module)
            self._wholes, self._settled = {}, ()

    def write_back(self, name: str) -> None:
        """Copies a tensor that was written to, such as running statistics, into the blocks."""
        for slot in self._slots[name] if name in self._apart else ():  # others are views of it
            self.parts[slot].write_back()

    def differentiable(self, name: str, value: Tensor) -> Tensor:
        """A value of the plain layer's, connected to the parts of it that train."""
        slots = self._slots[name]
        training = [slot for slot in slots if self.flags[slot]]
        if not training or not torch.is_grad_enabled():
            return value
        if value.dim() == 1 and not any(self.parts[slot].scattered for slot in slots):
            order = sorted(slots, key=lambda slot: self.parts[slot].regions[0][0][0].start)
            return torch.cat([self.tensors[slot] for slot in order])
        return self._joined([value], [training])[0]

    def all_differentiable(self) -> dict[str, Tensor]:
        """All values of the plain layer's, by one step of autograd.

        Raises:
            Unfit: If the blocks, as they are now, cannot be put together.
        """
        self.look()
        values = dict(self.values())
        if not torch.is_grad_enabled():
            return values
        training = {
            name: slots
            for name in values
            if (slots := [slot for slot in self._slots[name] if self.flags[slot]])
        }
        if training:
            joined = self._joined([values[name] for name in training], list(training.values()))
            values.update(zip(training, joined, strict=True))
        return values

    def _joined(self, values: list[Tensor], training: list[list[int]]) -> tuple[Tensor, ...]:
        slots = [(index, slot) for index, own in enumerate(training) for slot in own]
        parts = [(index, self.parts[slot]) for index, slot in slots]
        tensors = (self.tensors[slot] for _, slot in slots)
        joined: tuple[Tensor, ...] = _Joined.apply(values, parts, *tensors)  # type: ignore[no-untyped-call]
        return joined


class _Joined(Function):
    """Assembled tensors, connected to the parts of them that train."""

    @staticmethod
    def forward(
        ctx: Any, wholes: list[Tensor], parts: list[tuple[int, WeightPart]], *_: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.parts = parts
        ctx.set_materialize_grads(False)
        return tuple([whole.clone() for whole in wholes])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        found: list[Tensor | None] = []
        for index, part in ctx.parts:
            whole = gradients[index]
            found.append(None if whole is None else cut_out(whole, part.regions, part.shape))
        return None, None, *found

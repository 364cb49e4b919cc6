"""The model that a policy grows: alone, compiled, or in a wrapper for several processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from splitgrow.errors import UnsupportedModelError
from splitgrow.growth.edits import Edit
from splitgrow.growth.history import History
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.multiply_adds import MacsCounter
from splitgrow.handle import Handle, handle
from splitgrow.utils.rollback import Undo, all_or_nothing
from splitgrow.utils.wrappers import is_sharded

_Value = TypeVar("_Value")


class HeldModel:
    """A growable model with all that is around it.

    Args:
        given: The model; or what torch.compile returned for it; or a wrapper for several processes.

    Attributes:
        model: The growable model.
        several: Whether several processes train it, in a wrapper that splitgrow.distributed knows.

    Raises:
        TypeError: If it is no module.
        SplitGrowError: If there is no growable model.
        UnsupportedModelError: If it is in a wrapper that growth cannot follow.
    """

    def __init__(self, given: nn.Module) -> None:
        self._wrapped = uncompiled(given)
        self.several = isinstance(self._wrapped, nn.Module) and (
            isinstance(self._wrapped, DistributedDataParallel) or is_sharded(self._wrapped)
        )
        if self.several:
            from splitgrow.distributed import carrying  # noqa: PLC0415 - loaded only where needed

            self.model = carrying.growable_in(carrying.plain_of(self._wrapped))
            self._group: Any = carrying.group_of(self._wrapped)
        elif isinstance(self._wrapped, nn.DataParallel):
            raise UnsupportedModelError(
                "DataParallel is one process; give the model inside it, which grows there"
            )
        else:
            self.model = self._wrapped
        handle(self.model)

    @property
    def handle(self) -> Handle:
        """The operations on the model, with the history that it has now: loading changes that."""
        return handle(self.model)

    @property
    def history(self) -> History:
        """All that splitgrow knows of the model."""
        return history_of(self.model)

    @property
    def processes(self) -> int:
        """The number of processes that train it."""
        return dist.get_world_size(self._group) if self.several else 1

    def measure(self) -> MacsCounter:
        """The model's multiply-adds; of a sharded one in all processes together."""
        if not (self.several and is_sharded(self._wrapped)):
            return MacsCounter(self.model)
        from splitgrow.distributed import carrying  # noqa: PLC0415 - loaded only where needed

        with carrying.opened(self._wrapped, "measure", carrying.TIMEOUT, values=False) as model:
            return MacsCounter(model)

    def agreed(self, value: _Value) -> _Value:
        """The first process's value, of plain data; every process has to come."""
        if not self.several:
            return value
        ranks = dist.get_process_group_ranks(self._group or dist.group.WORLD)
        box = [value]
        dist.broadcast_object_list(box, src=ranks[0], group=self._group)
        return box[0]

    def decided(self, decide: Callable[[nn.Module], _Value]) -> _Value:
        """Plain data that a rule makes of the model; the first process's counts.

        Of a sharded model every process holds all of it for as long as that takes.

        Args:
            decide: The rule.
        """
        if not (self.several and is_sharded(self._wrapped)):
            return self.agreed(decide(self.model))
        from splitgrow.distributed import carrying  # noqa: PLC0415 - loaded only where needed

        with carrying.opened(self._wrapped, "choose", carrying.TIMEOUT) as model:
            found = decide(model)
        return self.agreed(found)

    def expand(
        self, request: Mapping[str, int], options: Mapping[str, Any], *, absorb: bool
    ) -> Edit:
        """Grows the model, and makes it plain again if that is wanted: all or nothing.

        Args:
            request: The units that layers gain.
            options: Further arguments of `expand`.
            absorb: Whether to absorb what was added.
        """
        asked: dict[int | str, int] = dict(request.items())
        if self.several:
            from splitgrow import distributed  # noqa: PLC0415 - loaded only where needed

            edit = distributed.expand(self._wrapped, asked, **options)
            if absorb:
                self.absorb(options["optimizer"])
            return edit

        @all_or_nothing
        def grow(undo: Undo) -> Edit:
            with undo.gathers():
                made = self.handle.expand(asked, **options)
                if absorb:
                    self.absorb(options["optimizer"])
            return made

        return grow()

    def shrink(
        self,
        request: Mapping[str, Sequence[int]],
        optimizer: Optimizer | Sequence[Optimizer] | None,
    ) -> Edit:
        """Takes channels out of layers.

        Args:
            request: The channels that go, by layer.
            optimizer: One or several optimizers, or None.
        """
        asked: dict[int | str, int | Sequence[int]] = dict(request.items())
        if self.several:
            from splitgrow import distributed  # noqa: PLC0415 - loaded only where needed

            edit: Edit = distributed.shrink(self._wrapped, asked, optimizer=optimizer)
            return edit
        return self.handle.shrink(asked, optimizer=optimizer)

    def absorb(self, optimizer: Optimizer | Sequence[Optimizer] | None) -> None:
        """Makes everything one plain layer again."""
        if self.several:
            from splitgrow import distributed  # noqa: PLC0415 - loaded only where needed

            distributed.absorb(self._wrapped, optimizer=optimizer)
        else:
            self.handle.absorb(optimizer=optimizer)


def uncompiled(given: nn.Module) -> nn.Module:
    """The module that torch.compile was given, or the module itself."""
    while isinstance(given, nn.Module) and "_orig_mod" in given._modules:  # noqa: SLF001
        given = given._modules["_orig_mod"]  # type: ignore[assignment]  # noqa: SLF001
    return given

"""The base class of criteria: how much each unit counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.growth.history import History
from splitgrow.pruning.criteria.unit_parameters import ParametersOfUnits, UnitParameter
from splitgrow.utils.preserve import (
    copy_buffers_,
    keep_attributes_,
    keep_random_states_,
    run_eagerly_,
)
from splitgrow.utils.rollback import Undo


@dataclass(frozen=True, eq=False)
class UnitsInView:
    """The units that a criterion scores, with all that it may look at.

    Attributes:
        model: The model. It is as before when the criterion is done, also after an error.
        history: All that splitgrow knows of it.
        units: The parameters along the units.
        loss: Gives the loss of the model on a batch, as a tensor of one number; None if it was not
            given.
        batches: The batches.
    """

    model: nn.Module
    history: History
    units: ParametersOfUnits
    loss: Callable[[nn.Module, Any], Any] | None = None
    batches: Sequence[Any] = ()

    @property
    def parameters(self) -> list[UnitParameter]:
        """The parameters along the units."""
        return self.units.parameters

    def losses(self) -> Iterator[Tensor]:
        """The loss on each batch, one after the other.

        Raises:
            ValueError: If no loss or no batch was given, or a loss is not finite.
            TypeError: If it is no tensor of one number.
        """
        if self.loss is None or not self.batches:
            raise ValueError(
                "this needs data: give `loss`, a function of the model and a batch, and `batches`"
            )
        for batch in self.batches:
            found = self.loss(self.model, batch)
            if not isinstance(found, Tensor) or found.numel() != 1:
                raise TypeError(f"loss must return a tensor of one number, got {found!r:.80}")
            if not bool(found.isfinite()):
                raise ValueError(f"the loss on a batch is {float(found.detach())}")
            yield found.reshape(())

    def run(self) -> None:
        """Runs the model on all batches, without gradients.

        Raises:
            ValueError: If no batch was given.
            TypeError: If the model cannot be called with a batch.
        """
        if not self.batches:
            raise ValueError(
                "this needs data: give `batches`, and `loss` unless a batch is all that the model "
                "is called with"
            )
        with torch.no_grad():
            for batch in self.batches:
                self._call(batch)

    def _call(self, batch: Any) -> None:
        if self.loss is not None:
            self.loss(self.model, batch)
            return
        args, kwargs = ((), batch) if isinstance(batch, Mapping) else (batch, {})
        try:
            self.model(*(args if isinstance(args, (tuple, list)) else (args,)), **kwargs)
        except TypeError as error:
            raise TypeError(
                f"the model cannot be called with a batch ({error}): give `loss`, a function of "
                f"the model and a batch, or batches of the model's arguments alone"
            ) from error


def preserve_runs_(undo: Undo, model: nn.Module, *, random: bool) -> None:
    """Makes `undo` restore all that runs of a model may change.

    Compiled modules run eagerly until then, since compiled code may call no hooks.

    Args:
        undo: Restores the model.
        model: The model.
        random: Whether random number generators are restored, too.
    """
    modules = [*model.modules()]
    if random:
        keep_random_states_(modules, undo)
    keep_attributes_(modules, undo)
    copy_buffers_(modules, undo)
    run_eagerly_(modules, undo)
    for parameter in model.parameters():
        undo.on_failure(partial(setattr, parameter, "grad", parameter.grad))
        parameter.grad = None


class Criterion(ABC):
    """An object that scores units: those with the lowest scores are pruned first.

    Attributes:
        name: Its name, which edits record.
        comparable: Whether scores of units in different groups are on one scale, such as that of
            the loss. The others are divided by the mean size of their group's before groups are
            compared.
        refits: Whether the readers of pruned units should be fitted to the old outputs, unless
            `prune` is told otherwise.
        draws: Whether scores are random numbers, so that the generators must go on.

    Example:
        >>> import torch, splitgrow
        >>> class LastFirst(splitgrow.pruning.Criterion):
        ...     name = "last first"
        ...     def scores(self, view):
        ...         numbers = torch.arange(view.units.count, 0, -1)
        ...         return view.units.by_group(numbers)
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))
        >>> edit = net.prune(0.5, criterion=LastFirst())
        >>> edit.removed[0].outs
        ((2, 2),)
    """

    name: str
    comparable: bool = False
    refits: bool = False
    draws: bool = False

    @abstractmethod
    def scores(self, view: UnitsInView) -> Mapping[int, Tensor]:
        """The scores of the units of each group, in order.

        A group may be left out: its units stay, and that is an error if `prune` names the layer.
        Meanwhile the model has copies of its buffers, and no gradients.

        Raises:
            ValueError: If it needs data that were not given.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

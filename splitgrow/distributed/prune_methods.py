"""Pruning a model that several processes train: by the mean of their scores, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from splitgrow.distributed.calls import as_list, in_words
from splitgrow.distributed.carrying import TIMEOUT, ByChoice, carry_out, growable_in, plain_of
from splitgrow.growth.edits import Edit
from splitgrow.handle import Handle
from splitgrow.pruning.choosing import PruneScope, Request
from splitgrow.pruning.criteria.criterion import Criterion
from splitgrow.pruning.methods import PruneMethods
from splitgrow.pruning.prune import (
    PrunePlan,
    choose_step,
    make_prune_plan,
    prune_by_,
    prune_settings,
)
from splitgrow.pruning.target import Target


def prune(  # noqa: PLR0913
    wrapped: nn.Module,
    amount: float | None = None,
    *,
    target: Target | None = None,
    criterion: str | Criterion = "group",
    scope: PruneScope = "global",
    steps: int = 1,
    recover: Callable[[Edit], object] | None = None,
    layers: Iterable[int | str] | None = None,
    ignore: Iterable[int | str] = (),
    keep: float = 0.1,
    refit: bool | None = None,
    loss: Callable[[nn.Module, Any], Any] | None = None,
    batches: Iterable[Any] = (),
    round_to: int = 1,
    give_up: bool = False,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    check: bool = True,
    timeout: float = TIMEOUT,
) -> Edit | None:
    """Takes out the units that count least in all processes, as `model.prune` in one.

    The scores are the mean over the processes, of which each has batches of its own; moments of
    activations are those of all samples together. So with as many batches in each, the choice is
    that of one process with all of them. It is the first rank's for all. Each step is all or
    nothing over all processes. Of a sharded model every process holds all of it for as long as a
    step takes, but not while `recover` trains.

    Args:
        wrapped: As in `expand_layer`.
        amount: The share of the units that goes.
        target: As in `model.prune`, like `criterion`, `scope`, `layers`, `ignore` and `keep`. A
            latency is the first rank's.
        criterion: The scores of units.
        scope: Whether groups are compared with each other.
        steps: The number of steps, in equal parts.
        recover: Called with the edit in every process after each step, to train the model in its
            wrapper.
        layers: The layers whose units may go.
        ignore: The layers whose units stay.
        keep: The share of each layer's units that stays.
        refit: As in `model.prune`; by the samples of all processes.
        loss: Gives the loss of the growable model, without its wrapper, on a batch.
        batches: Some batches, of this process.
        round_to: As in `shrink`, like `give_up`, `optimizer`, `check` and `timeout`.
        give_up: Whether closed generations may lose channels.
        optimizer: One or several optimizers of this process.
        check: Whether to compare outputs.
        timeout: Seconds to wait for the other processes, at each step.

    Returns:
        The edit of the last step, the same in every process; None if the target is met already.

    Raises:
        DistributedError: As in `shrink`. If a later step is stopped, the earlier ones stay.
        SplitGrowError: As `model.prune`, if it raises the same in all of them.
        TypeError: Likewise.
        ValueError: Likewise.

    Example:
        >>> import splitgrow
        >>> def halve(ddp, optimizer, loss, batches):  # in every process, with its own batches
        ...     options = {"criterion": "taylor", "loss": loss, "batches": batches}
        ...     return splitgrow.distributed.prune(ddp, 0.5, optimizer=optimizer, **options)
    """
    layers, ignore = as_list(layers), as_list(ignore)
    said: dict[str, Any] = {
        "criterion": criterion,
        "scope": scope,
        "layers": layers,
        "ignore": ignore,
        "keep": keep,
        "refit": refit,
        "loss": loss,
        "round_to": round_to,
        "give_up": give_up,
    }
    steps_of = _Steps(growable_in(plain_of(wrapped)), amount, target, steps, recover)
    edit = None
    for step in range(1, steps + 1) if isinstance(steps, int) and steps > 0 else (1,):
        settings = {**said, "batches": batches}

        def choose(_: Handle, step: int = step, own: Any = settings) -> Request:
            return steps_of.chosen(step, own)

        def take_out(_: Handle, chosen: Mapping[str, Any]) -> Edit | None:
            return steps_of.take_out(chosen, optimizer=optimizer, check=check)

        made = carry_out(
            wrapped,
            in_words("prune", amount, target=target, steps=steps, step=step, **said, check=check),
            ByChoice(choose, take_out),
            optimizer=optimizer,
            timeout=timeout,
            values=True,
            shared=False,
        )
        edit = made or edit
        if made is not None and recover is not None:
            recover(made)
    if edit is None and amount is not None:
        raise ValueError(
            f"amount={amount:g} leaves every layer as it is: no whole unit, or step of units, may "
            f"go from any"
        )
    return edit


class _Steps(PruneMethods):
    """The two halves of each step in one process, between which the choice is shared.

    Args:
        model: The growable model.
        amount: As in `prune`, like the others.
        target: How small the model must become.
        steps: The number of steps.
        recover: Trains after each.
    """

    def __init__(
        self, model: nn.Module, amount: object, target: object, steps: object, recover: object
    ) -> None:
        super().__init__(model)
        self._asked = amount, target, steps
        self._recover = recover
        self._plan: PrunePlan | None = None

    def chosen(self, step: int, settings: Mapping[str, Any]) -> Request:
        """The channels that go in a step, by layer. The first time, the arguments are checked.

        Raises:
            TypeError: If one of them is of another type.
        """
        if self._recover is not None and not callable(self._recover):
            raise TypeError(f"recover must be a function of an edit, got {self._recover!r}")
        if self._plan is None:
            own = prune_settings(**settings)
            self._plan = self._operation("prune", make_prune_plan, own, *self._asked)
        return self._operation("prune", choose_step, self._plan, step)

    def take_out(self, chosen: Mapping[str, Any], *, optimizer: object, check: bool) -> Edit | None:
        """Takes out the channels that were chosen; None if none were."""
        if not chosen:
            return None
        return self._growth(
            "prune", prune_by_, self._plan, chosen, optimizer=optimizer, check=check
        )

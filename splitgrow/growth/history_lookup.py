"""Looking up a model's history, and the base class of all its methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Concatenate

from torch import nn

from splitgrow.errors import SplitGrowError
from splitgrow.growth.history import History
from splitgrow.utils.adapters import refuse_adapters
from splitgrow.utils.model_lock import change_alone, refuse_inside_forward
from splitgrow.utils.rollback import P, T, Undo
from splitgrow.utils.wrappers import refuse_wrapped

HISTORY = "_splitgrow_history"
"""The attribute of a growable model that holds its history."""


def history_of(model: nn.Module) -> History:
    """The history of a growable model.

    Raises:
        TypeError: If `model` is not a module.
        SplitGrowError: If the model was never made growable.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    history: History | None = vars(model).get(HISTORY)
    if history is None:
        inside = [name for name, part in model.named_modules() if HISTORY in vars(part)]
        if inside:
            raise SplitGrowError(
                f"{type(model).__name__} itself is not growable, but a module in it is: "
                f"{' and '.join(f'`{name}`' for name in inside)}; pass that"
            )
        raise SplitGrowError(
            f"{type(model).__name__} is not growable yet; call splitgrow.growable(model, "
            f"example_inputs) first"
        )
    return history


class HandleBase:
    """One growable model, with its history.

    Args:
        model: A growable model.

    Raises:
        SplitGrowError: If the model was never made growable.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._history = history_of(model)

    def _operation(
        self,
        what: str,
        work: Callable[Concatenate[Undo, nn.Module, History, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Runs an operation all or nothing, while no other thread runs or changes the model.

        Every method that changes the model makes one such call.

        Args:
            what: The operation in words, for errors.
            work: Does it, given an `Undo`, the model, its history, and the arguments.
            args: Its other positional arguments.
            kwargs: Its named arguments.

        Raises:
            SplitGrowError: If an earlier generation is being shown, or the model is running.
            UnsupportedModelError: If the model is in a wrapper for several processes, or has
                adapters.
        """
        model, history = self._model, self._history
        history.model_lock.refuse_if_shown(what)
        with history.model_lock.rlock:  # or another thread may change modules during these checks
            history.refuse_while_viewing(what)
            refuse_wrapped(model, what)
            refuse_adapters(model, what)
            refuse_inside_forward(model, what)
            return change_alone(
                model, history.model_lock, what, work, model, history, *args, **kwargs
            )

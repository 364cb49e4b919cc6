"""A model's history, where the model keeps it, and what all of its methods start from."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from splitgrow.errors import SplitGrowError
from splitgrow.growth.history import History
from splitgrow.utils.model_lock import lock_, refuse_inside_forward
from splitgrow.utils.preserve import keep_modes_
from splitgrow.utils.rollback import Undo
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
        raise SplitGrowError(
            f"{type(model).__name__} is not growable yet; call splitgrow.growable(model, "
            f"example_inputs) first"
        )
    return history


class Handled:
    """One growable model, with its history.

    Args:
        model: A growable model.

    Raises:
        SplitGrowError: If the model was never made growable.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._history = history_of(model)

    def _turn(self, what: str) -> AbstractContextManager[Any]:
        """A context in which no other thread changes the model.

        Raises:
            SplitGrowError: If another thread shows a generation.
        """
        self._history.gate.refuse_if_shown(what)
        return self._history.gate.lock

    def _alone(self, what: str, undo: Undo) -> None:
        """Has other threads' calls of the model wait, too.

        Raises:
            SplitGrowError: If an earlier generation is being shown, or the model is running.
            UnsupportedModelError: If the model is in a wrapper for several processes.
        """
        self._history.refuse_while_viewing(what)
        refuse_wrapped(self._model, what)
        refuse_inside_forward(self._model, what)
        keep_modes_(undo)
        lock_(self._model, self._history.gate, what, undo)

"""A model's history, where the model keeps it, and what all of its methods start from."""

from __future__ import annotations

from torch import nn

from splitgrow.errors import SplitGrowError
from splitgrow.history import History
from splitgrow.wrapping import refuse_wrapped

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

    def _about_to(self, what: str) -> None:
        """Makes sure that the whole network is being shown, and that no wrapper misses a change.

        Raises:
            SplitGrowError: If an earlier generation is being shown.
            UnsupportedModelError: If the model is in a wrapper for several processes.
        """
        self._history.refuse_while_viewing(what)
        refuse_wrapped(self._model, what)

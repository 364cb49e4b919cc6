"""Operations that add parameters to a model, and all who must learn of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from splitgrow.growth.averages import follow_growth_, warn_of_copies_behind
from splitgrow.growth.history import History, added_since
from splitgrow.growth.history_lookup import HandleBase
from splitgrow.growth.optimizers import ParameterPaths, arrange_, listed
from splitgrow.growth.untrained import watch_new_
from splitgrow.utils.rollback import T, Undo


class GrowingBase(HandleBase):
    """A base class of the methods that add parameters."""

    def _growth(
        self,
        what: str,
        work: Callable[..., T],
        *args: Any,
        optimizer: object,
        **kwargs: Any,
    ) -> T:
        """Runs an operation that adds or replaces parameters, and tells those who hold them.

        Args:
            what: The operation in words: a verb.
            work: Does it, as in `_operation`, with `optimizer` among the named arguments.
            args: Its other positional arguments.
            optimizer: One or several optimizers, or None.
            kwargs: Its other named arguments.

        Raises:
            TypeError: If `optimizer` is no optimizer.
            OptimizerError: If an optimizer cannot take new parameters.
        """
        optimizers = listed(optimizer)

        def grow(undo: Undo, model: nn.Module, history: History) -> T:
            before, since = ParameterPaths.now(model), len(history.edits)
            made = work(undo, model, history, *args, optimizer=optimizers, **kwargs)
            arrange_(optimizers, before, model, undo)
            watch_new_(model, what, added_since(model, since), optimizers, undo)
            follow_growth_(model, undo)
            warn_of_copies_behind(model)
            return made

        return self._operation(what, grow)

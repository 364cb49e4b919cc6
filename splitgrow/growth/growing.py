"""Operations that add parameters to a model, and all who must learn of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from splitgrow.growth.averages import follow_growth_, warn_of_copies_behind
from splitgrow.growth.history import History, added_since
from splitgrow.growth.history_lookup import HandleBase, history_of
from splitgrow.growth.optimizers import ParameterPaths, arrange_, listed
from splitgrow.growth.rate_groups import follow_rates_
from splitgrow.growth.untrained import watch_new_
from splitgrow.utils.module_slots import all_parameters
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
            before, since = all_parameters(model), len(history.edits)
            paths = ParameterPaths.now(model, optimizers) if optimizers else None
            made = work(undo, model, history, *args, optimizer=optimizers, **kwargs)
            if paths is not None:
                arrange_(optimizers, paths, model, undo)
            tell_(model, what, since, optimizers, undo, before=before)
            return made

        return self._operation(what, grow)


def tell_(
    model: nn.Module,
    what: str,
    since: int,
    optimizers: Iterable[Optimizer],
    undo: Undo,
    *,
    before: Collection[nn.Parameter],
    loaded: bool = False,
) -> None:
    """Has averages grow along with a model, and warns, now or later, of those left behind.

    Args:
        model: The model, which has new parameters.
        what: The operation that added them.
        since: The number of the last edit before it.
        optimizers: The optimizers that were told of them.
        undo: Takes it back.
        before: The parameters that it had before.
        loaded: Whether a state_dict or a file brought them. Averages may be loaded after that, so
            these are looked at when an optimizer steps.
    """
    follow_rates_()
    now = all_parameters(model)
    new = added_since(model, history_of(model), since, now)
    there = set(map(id, now))
    gone = [p for p, key in zip(before, map(id, before), strict=True) if key not in there]
    watch_new_(model, what, new, optimizers, undo, gone=gone, loaded=loaded)
    follow_growth_(model, undo)
    if not loaded:
        warn_of_copies_behind(model)

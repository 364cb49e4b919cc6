"""The base class of initializers: the first values of new units, and the claims made for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from torch import Tensor

from splitgrow.growth.prepared import PreparedEdit

BLOCKS = frozenset(("new", "helper"))
"""The blocks that an edit adds: new units, and what old units read of them."""
DIFFER_FROM = ("birth", "step", "")
"""The times from which no two units are alike: birth, the first step, or none."""


class Initializer(ABC):
    """An object that gives new units their first values.

    It works on blocks that have torch's own random values and are not yet in place: an error leaves
    the model as it was. Values are set in place, without gradients.

    Its attributes are its contract. The defaults are those of "zero". Claims about learning hold
    for hidden units: those that may have any values, and that a layer makes and another one reads.
    Where a norm over all channels reads new units, their values follow from the way in which the
    stream grows, whatever the initializer: see `Edit.ways`.

    Attributes:
        name: Its name, by which `register_initializer` registers it and edits record it.
        exact: Whether the model computes the same as before, up to rounding. The check of an edit
            tests it. For an inexact one it tests that only the values change anything: with helpers
            at zero, and old values as they were, the model must compute the same as before; and the
            edit records how far the outputs have moved.
        needs_data: Whether it needs `PreparedEdit.loss`.
        held_out: A closure that returns a loss on data which `PreparedEdit.loss` does not see;
            None if it has none. `Edit.loss` is then of it.
        needs_unfrozen: Whether it changes existing values. It is refused where these are frozen,
            and they are restored if the edit fails.
        divides: The number of new units that belong together: each group of hidden units must gain
            a multiple of it.
        way: The way in which groups grow that a norm over all channels reads: "zero", "average" or
            "duplicate"; None for each group's preferred one.
        first_gradients: The blocks that get a gradient at the first step: "new", "helper". The
            others get theirs once these have moved.
        differ_from: The time from which no two units of a group are alike: "birth" if different
            weights make them, "step" if different weights make or read them after the first step,
            "" if some may stay alike.
        keeps_variance: Whether the inputs of new units' activations have the variance of the old
            ones', on inputs that are independent of each other.
    """

    name: str
    exact: bool = True
    needs_data: bool = False
    held_out: Callable[[], Tensor] | None = None
    needs_unfrozen: bool = False
    divides: int = 1
    way: str | None = None
    first_gradients: frozenset[str] = frozenset(("helper",))
    differ_from: str = "birth"
    keeps_variance: bool = False

    @abstractmethod
    def apply(self, prepared: PreparedEdit) -> None:
        """Gives the blocks that an edit adds their values."""

    @property
    def contract(self) -> Mapping[str, str]:
        """Its claims in words, by the columns of a table.

        Example:
            >>> import splitgrow
            >>> splitgrow.initializers()["zero"].contract["first gradients"]
            'helpers'
        """
        return {
            "exact": "yes" if self.exact else "no",
            "first gradients": " and ".join(
                words
                for block, words in (("new", "new units"), ("helper", "helpers"))
                if block in self.first_gradients
            ),
            "units differ": {"birth": "at birth", "step": "after a step", "": "not all"}[
                self.differ_from
            ],
            "variance kept": "yes" if self.keeps_variance else "no",
            "units": "any number" if self.divides == 1 else f"multiples of {self.divides}",
            "data": "needed" if self.needs_data else "no",
            "frozen past": "no" if self.needs_unfrozen else "yes",
        }

    def __repr__(self) -> str:
        return repr(self.name)

"""The base class of initializers: the first values of new units, and the claims made for them."""

from __future__ import annotations

from abc import ABC, abstractmethod

from splitgrow.growth.prepared import PreparedEdit


class Initializer(ABC):
    """An object that gives new units their first values.

    It works on blocks that have torch's own random values and are not yet in place: an error leaves
    the model as it was. Values are set in place, without gradients.

    Attributes:
        name: Its name, by which `register_initializer` registers it and edits record it.
        exact: Whether the model computes the same as before, up to rounding. The check of an edit
            tests it. For an inexact one it tests that only the values change anything: with helpers
            at zero the model must compute the same as before.
        needs_data: Whether it needs `PreparedEdit.loss`.
        needs_unfrozen: Whether it changes existing values. It is refused where these are frozen,
            and they are restored if the edit fails.
        divides: The number of new units that belong together: each group must gain a multiple of
            it.
        way: The way in which groups grow that a norm over all channels reads: "zero", "average" or
            "duplicate"; None for each group's preferred one.
    """

    name: str
    exact: bool = True
    needs_data: bool = False
    needs_unfrozen: bool = False
    divides: int = 1
    way: str | None = None

    @abstractmethod
    def apply(self, prepared: PreparedEdit) -> None:
        """Gives the blocks that an edit adds their values."""

    def __repr__(self) -> str:
        return repr(self.name)

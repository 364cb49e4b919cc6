"""One growth or shrink of a plan, and large numbers in a few digits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PlannedGrowth:
    """One growth or shrink of a plan, and the model after it; or the model as it is at the start.

    Attributes:
        index: Its number, from 1; 0 for the start.
        moment: The moment in words.
        step: The optimizer step after which it comes; None if that is not known.
        request: The units that layers gain, by name; negative ones go.
        targets: The widths that the layers which are asked for have after it, by name.
        widths: The width of each layer after it, by name.
        parameters: The number of parameters of the model after it.
        macs: The multiply-adds of a forward pass for one sample after it.
        macs_spent: The multiply-adds of the training by then; None if these are not known.
    """

    index: int
    moment: str
    step: int | None
    request: Mapping[str, int] = field(hash=False)
    targets: Mapping[str, int] = field(hash=False)
    widths: Mapping[str, int] = field(hash=False)
    parameters: int
    macs: int
    macs_spent: int | None

    @property
    def shrinks(self) -> bool:
        """Whether units go."""
        return any(units < 0 for units in self.request.values())


def shortened(count: float) -> str:
    """A large number in four digits with a unit: k, M, G, T, P, E.

    Example:
        >>> shortened(12_345_678), shortened(999)
        ('12.35 M', '999')
    """
    units: Iterable[str] = ("", "k", "M", "G", "T", "P", "E")
    unit = ""
    for unit in units:
        if count < 1000 or unit == "E":
            break
        count /= 1000
    return f"{count:.4g} {unit}".strip()

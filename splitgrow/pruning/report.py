"""What a pruning has done: widths, parameters and arithmetic, as a table and a picture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from splitgrow.growth.edit_parts import LayerChange, Removal
from splitgrow.growth.edits import Edit
from splitgrow.utils.pictures import blank_figure, save_figure, without_frame_
from splitgrow.utils.text_tables import Rows, Tabular

_UNITS = 2
"""The column of the numbers of units."""


@dataclass(frozen=True)
class WidthChange:
    """The width of a layer before and after.

    Attributes:
        layer: The layer's name.
        kind: The name of its type.
        before: The number of its units before.
        after: The number after.
    """

    layer: str
    kind: str
    before: int
    after: int


@dataclass(frozen=True, repr=False)
class PruningReport(Tabular):
    """The changes of widths in some edits.

    Attributes:
        rows: The layers whose width changed, in order of execution.
        parameters: The number of parameters that went.
        macs: The multiply-adds for one sample before and after; None where they were not counted.
        moved: How far the outputs on the example inputs moved in each edit that took units out,
            relative to the largest; None where they did not.
        criteria: The names of the criteria that chose the units.
    """

    rows: tuple[WidthChange, ...]
    parameters: int
    macs: tuple[int, int] | None
    moved: tuple[float | None, ...]
    criteria: tuple[str, ...]

    def _head(self) -> str:
        steps = len(self.moved)
        lines = [f"{self.parameters:,} parameters went in {steps} step{'s' if steps != 1 else ''}"]
        if self.macs is not None:
            before, after = self.macs
            share = f" ({after / before:.1%})" if before else ""
            lines.append(f"multiply-adds for one sample: {before:,} -> {after:,}{share}")
        return "\n".join(lines)

    def _rows(self) -> Rows:
        table: list[tuple[str, ...]] = [("layer", "type", "units", "stay")]
        for row in self.rows:
            stay = f"{row.after / row.before:.0%}"
            table.append((row.layer, row.kind, f"{row.before:,} -> {row.after:,}", stay))
        return table

    def _bars(self) -> dict[int, list[tuple[int, int]]]:
        return {_UNITS: [(row.before, row.after) for row in self.rows]}

    def draw(self, path: str | Path) -> Path:
        """Draws the width of each layer before and after, as bars in the order of execution.

        Args:
            path: The file to write; its suffix chooses the format.

        Returns:
            The path.

        Raises:
            ModuleNotFoundError: If matplotlib is missing; the message says how to get it.
        """
        count = len(self.rows)
        figure = blank_figure(8, 1.5 + 0.22 * max(2, count))
        axes = figure.subplots()
        places = range(count)
        axes.barh(places, [row.before for row in self.rows], color="#d5dde5", label="before")
        axes.barh(places, [row.after for row in self.rows], color="#3b6ea5", label="after")
        for place, row in zip(places, self.rows, strict=True):
            axes.annotate(
                f"{row.after:,} of {row.before:,}",
                (row.before, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
        axes.set_yticks(places, [row.layer for row in self.rows], fontsize=7)
        axes.invert_yaxis()
        axes.margins(x=0.2, y=0.01)
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("units")
        figure.legend(loc="outside lower right", ncols=2, frameon=False, fontsize=7)
        axes.set_title(self._title(), loc="left", fontsize=10)
        without_frame_(axes)
        return save_figure(figure, path)

    def _title(self) -> str:
        title = f"{self.parameters:,} parameters went"
        if self.macs is not None and self.macs[0]:
            title += f", {self.macs[1] / self.macs[0]:.1%} of the multiply-adds stay"
        return title + (f" (criterion: {', '.join(self.criteria)})" if self.criteria else "")


def report(edits: Edit | Iterable[Edit]) -> PruningReport:
    """The changes of widths in some edits, one after the other.

    Args:
        edits: An edit, or several: ``splitgrow.handle(model).edits`` has all. Growth counts, too.

    Raises:
        TypeError: If they are no edits.
        ValueError: If there is none.

    Example:
        >>> import torch, splitgrow
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))
        >>> edits = []
        >>> _ = net.prune(0.5, steps=2, recover=edits.append)
        >>> print(splitgrow.pruning.report(edits))
        16 parameters went in 2 steps
        multiply-adds for one sample: 24 -> 12 (50.0%)
          layer  type    units   stay
          0      Linear  8 -> 4  50%
    """
    given = (edits,) if isinstance(edits, Edit) else tuple(edits)
    for each in given:
        if not isinstance(each, Edit):
            raise TypeError(f"edits are Edits, got {each!r:.80}")
    if not given:
        raise ValueError("edits is empty: there is nothing to report")
    shrunk = [edit for edit in given if edit.removed]
    counted = [edit.macs for edit in shrunk if edit.macs is not None]
    return PruningReport(
        tuple(row for row in _width_changes(given) if row.before != row.after),
        sum(item.parameters for edit in shrunk for item in edit.removed),
        (counted[0][0], counted[-1][1]) if counted and len(counted) == len(given) else None,
        tuple(edit.moved for edit in shrunk),
        tuple(dict.fromkeys(edit.criterion for edit in shrunk if edit.criterion)),
    )


def _width_changes(edits: Iterable[Edit]) -> list[WidthChange]:
    """The layers of some edits, in order of execution, which each edit has for its own layers."""
    rows: dict[str, WidthChange] = {}
    order: list[str] = []
    for edit in edits:
        items: tuple[LayerChange | Removal, ...] = (*edit.changes, *edit.removed)
        place = 0
        for item in items:
            first = rows[item.name].before if item.name in rows else item.width[0]
            rows[item.name] = WidthChange(item.name, item.kind, first, item.width[1])
            if item.name not in order:
                order.insert(place, item.name)
            place = order.index(item.name) + 1
    return [rows[name] for name in order]

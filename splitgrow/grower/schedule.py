"""The plan of a policy: each growth with its moment, its widths and its size, before training."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from splitgrow.grower.drawing import draw_schedule
from splitgrow.grower.planned_growth import PlannedGrowth, shortened
from splitgrow.utils.json_records import read_record, written
from splitgrow.utils.text_tables import aligned

_COLUMNS = 100
"""The number of columns that the printed plan fits."""


@dataclass(frozen=True)
class Schedule:
    """The whole plan of a policy.

    Attributes:
        start: The model as it is at the start.
        growths: The growths and shrinks, in order.
        factor: The factor by which every layer changes in the end, before rounding; None if layers
            have goals of their own.
        at_most: Whether a score chooses the layers of each growth, so that sizes are upper bounds.
        moves: Whether shrinks take units where a criterion says, so that layers have other widths
            in the end than this plan, which is of equal factors.
        left: Why layers that can grow are left alone, by name.
    """

    start: PlannedGrowth
    growths: tuple[PlannedGrowth, ...]
    factor: float | None = None
    at_most: bool = False
    moves: bool = False
    left: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def stages(self) -> tuple[PlannedGrowth, ...]:
        """The start, the growths and the shrinks."""
        return (self.start, *self.growths)

    def to_rows(self) -> list[dict[str, Any]]:
        """The plan as plain data: a row for each layer and growth.

        Each has the growth's number, moment and step, the layer, its width before and after, and
        the model's parameters and multiply-adds after the growth.
        """
        return [
            {
                "growth": growth.index,
                "moment": growth.moment,
                "step": growth.step,
                "layer": name,
                "before": before.widths[name],
                "after": width,
                "parameters": growth.parameters,
                "macs": growth.macs,
                "macs_spent": growth.macs_spent,
            }
            for before, growth in zip(self.stages, self.growths, strict=False)
            for name, width in growth.widths.items()
        ]

    def to_data(self) -> dict[str, Any]:
        """The plan as plain data that JSON takes."""
        data: dict[str, Any] = written(self)
        return data

    @classmethod
    def from_data(cls, data: object) -> Schedule:
        """A plan from its plain data.

        Raises:
            ValueError: If a value is of another type, or one is missing.
        """
        return read_record(cls, data, "schedule")

    def draw(self, path: str | Path) -> Path:
        """Draws the plan: widths by layer, and the model's multiply-adds by growth.

        Args:
            path: A file; its suffix sets the format, such as ``.png`` or ``.svg``.

        Returns:
            The path.

        Raises:
            ModuleNotFoundError: If matplotlib is missing; the message says how to get it.
        """
        return draw_schedule(self.stages, path, at_most=self.at_most)

    def __str__(self) -> str:
        return "\n".join((*self._summary(), "", *self._widths(), *self._left_alone()))

    def _summary(self) -> Iterator[str]:
        shrinks = any(growth.shrinks for growth in self.growths)
        factor = "" if self.factor is None else f" to {self.factor:.4g} times the widths"
        bound = "; a score chooses the layers, so sizes are upper bounds" if self.at_most else ""
        if self.moves:
            bound = "; units move between layers, and widths with them"
        yield f"{self._counted()}{factor}{bound}"
        head = "change" if shrinks else "growth"
        table = [(head, "moment", "parameters", "macs a sample", "macs spent by then")]
        for stage in self.stages:
            spent = "" if stage.macs_spent is None else shortened(stage.macs_spent)
            size = (f"{stage.parameters:,}", shortened(stage.macs), spent)
            table.append((str(stage.index or "start"), _clipped(stage.moment, 38), *size))
        yield from aligned(table, left=2)

    def _counted(self) -> str:
        """The numbers of growths and of shrinks."""
        changes = [growth.shrinks for growth in self.growths if growth.request]
        counts = (("growth", changes.count(False)), ("shrink", changes.count(True)))
        told = [f"{n} {word}{'' if n == 1 else 's'}" for word, n in counts if n]
        return " and ".join(told) or "0 growths"

    def _widths(self) -> Iterator[str]:
        heads = [str(stage.index or "start") for stage in self.stages]
        table = [("layer", *heads)]
        for names, widths in _alike(self.stages):
            cells = [
                str(width) if index == 0 or width != widths[index - 1] else "."
                for index, width in enumerate(widths)
            ]
            table.append((names, *cells))
        room = (
            _COLUMNS
            - 2
            - sum(2 + max(len(row[column]) for row in table) for column in range(1, len(heads) + 1))
        )
        table = [(_clipped(row[0], max(room, 16)), *row[1:]) for row in table]
        yield from aligned(table, left=1)

    def _left_alone(self) -> Iterator[str]:
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left.items():
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
            yield _clipped(f"left alone: {shown} ({reason})", _COLUMNS)


def _alike(stages: Sequence[PlannedGrowth]) -> list[tuple[str, tuple[int, ...]]]:
    """Layers by name with their widths; those that differ in numbers only are one row."""
    rows: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name in stages[0].widths:
        widths = tuple(stage.widths.get(name, 0) for stage in stages)
        rows.setdefault((re.sub(r"(?<![A-Za-z_])\d+", "*", name), widths), []).append(name)
    return [
        (names[0] if len(names) == 1 else f"{pattern} ({len(names)})", widths)
        for (pattern, widths), names in rows.items()
    ]


def _clipped(text: str, room: int) -> str:
    """A text without its middle, if it is too long."""
    if len(text) <= room:
        return text
    end = (room - 3) // 2
    return f"{text[: room - 3 - end]}...{text[len(text) - end :]}"

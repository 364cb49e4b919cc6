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
        table = plan_widths(self)
        room = _COLUMNS - 2
        for column in range(1, len(table[0])):
            room -= 2 + max(len(row[column]) for row in table)
        widths = [(_clipped(row[0], max(room, 16)), *row[1:]) for row in table]
        moments = aligned(plan_moments(self), left=2)
        left = (_clipped(line, _COLUMNS) for line in plan_left(self))
        return "\n".join((plan_head(self), *moments, "", *aligned(widths, left=1), *left))


def plan_head(schedule: Schedule) -> str:
    """The line above a plan: how many growths, and how far they lead."""
    factor = "" if schedule.factor is None else f" to {schedule.factor:.4g} times the widths"
    bound = "; a score chooses the layers, so sizes are upper bounds" if schedule.at_most else ""
    if schedule.moves:
        bound = "; units move between layers, and widths with them"
    changes = [growth.shrinks for growth in schedule.growths if growth.request]
    counts = (("growth", changes.count(False)), ("shrink", changes.count(True)))
    told = [f"{n} {word}{'' if n == 1 else 's'}" for word, n in counts if n]
    return f"{' and '.join(told) or '0 growths'}{factor}{bound}"


def plan_moments(schedule: Schedule) -> list[tuple[str, ...]]:
    """A plan's growths as rows, the head first: moment, size, and arithmetic until then."""
    shrinks = any(growth.shrinks for growth in schedule.growths)
    head = "change" if shrinks else "growth"
    table: list[tuple[str, ...]] = [
        (head, "moment", "parameters", "macs a sample", "macs spent by then")
    ]
    for stage in schedule.stages:
        spent = "" if stage.macs_spent is None else shortened(stage.macs_spent)
        size = (f"{stage.parameters:,}", shortened(stage.macs), spent)
        table.append((str(stage.index or "start"), _clipped(stage.moment, 38), *size))
    return table


def plan_widths(schedule: Schedule) -> list[tuple[str, ...]]:
    """The widths of a plan's layers as rows, the head first: at the start, after each growth."""
    heads = [str(stage.index or "start") for stage in schedule.stages]
    table: list[tuple[str, ...]] = [("layer", *heads)]
    for names, widths in _alike(schedule.stages):
        cells = [
            str(width) if index == 0 or width != widths[index - 1] else "."
            for index, width in enumerate(widths)
        ]
        table.append((names, *cells))
    return table


def plan_left(schedule: Schedule) -> Iterator[str]:
    """A line for each reason why a plan leaves layers alone."""
    reasons: dict[str, list[str]] = {}
    for name, reason in schedule.left.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
        yield f"left alone: {shown} ({reason})"


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

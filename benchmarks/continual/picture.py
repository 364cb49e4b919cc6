"""Pictures of what runs have come to: accuracy, size and time of every method, side by side."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from benchmarks.continual.results import (
    FOLDER,
    OTHER_DAY,
    Found,
    by_contestant,
    picture_of,
    seconds_of,
    usual_day,
)
from benchmarks.continual.suites import SUITES, Suite
from splitgrow.demos.themes import LIGHT, Theme, plain_theme, png, sheet

_WIDE = 30.0
"""From this ratio of the largest to the smallest on, powers of ten alone are marked."""


@dataclass(frozen=True)
class Row:
    """What is shown of a method: means over its runs.

    Attributes:
        name: Its name.
        accuracy: In percent, in the end.
        least: The smallest of the runs.
        most: The largest.
        learned: The accuracy of every task when it was learned, in percent.
        megabytes: All tasks' networks, masks counted.
        seconds: How long learning took.
        other_day: Whether that is of another day than the others'.
    """

    name: str
    accuracy: float
    least: float
    most: float
    learned: float
    megabytes: float
    seconds: float
    other_day: bool


def rows(found: Sequence[Found]) -> list[Row]:
    """The rows of a picture, the most accurate last."""
    shown = []
    for name, runs in by_contestant(found).items():
        values = [100 * run.accuracy for run in runs]
        seconds, then = seconds_of(runs, usual_day(found))
        row = Row(
            name=name,
            accuracy=statistics.fmean(values),
            least=min(values),
            most=max(values),
            learned=100 * statistics.fmean(run.learned for run in runs),
            megabytes=statistics.fmean(run.megabytes or 0.0 for run in runs),
            seconds=seconds,
            other_day=not then,
        )
        shown.append(row)
    return sorted(shown, key=lambda row: (row.accuracy, row.name))


def described(rows: Sequence[Row]) -> str:
    """The numbers that a picture shows, which it has as its description, too."""
    return json.dumps([asdict(row) for row in rows])


def write_pictures(found: Sequence[Found]) -> None:
    """Writes the page's pictures, one for each suite that has runs."""
    for suite in SUITES:
        shown = rows_of(suite, found)
        if shown:
            (FOLDER / picture_of(suite)).write_bytes(picture(shown, LIGHT))


def rows_of(suite: Suite, found: Sequence[Found]) -> list[Row]:
    """The rows of a suite's picture."""
    return rows([each for each in found if each.suite == suite.name])


def picture(rows: Sequence[Row], theme: Theme) -> bytes:
    """A PNG with a row for each method, the last on top."""
    figure = sheet(theme, height=1.5 + 0.3 * len(rows))
    accuracy, size, time = figure.subplots(1, 3, sharey=True, width_ratios=(2, 1, 1))
    for at, row in enumerate(rows):
        colour = theme.test if row.name.startswith("avalanche") else theme.train
        accuracy.plot([row.accuracy, row.learned], [at, at], color=colour, lw=1, ls=":")
        accuracy.plot([row.least, row.most], [at, at], color=colour, lw=5, alpha=0.35)
        accuracy.plot(row.learned, at, "o", ms=6, mfc=theme.paper, color=colour)
        for axes, value in ((accuracy, row.accuracy), (size, row.megabytes), (time, row.seconds)):
            axes.plot(value, at, "o", ms=6, color=colour)
    names = [row.name + OTHER_DAY * row.other_day for row in rows]
    accuracy.set_yticks(range(len(rows)), labels=names)
    _finish(accuracy, "accuracy in percent", theme)
    for axes, name in ((size, "MB, masks counted"), (time, "seconds of learning")):
        _finish(axes, name, theme)
        _in_powers(axes)
    figure.legend(
        handles=_legend(theme, rows),
        loc="outside lower center",
        ncols=5,
        frameon=False,
        fontsize=8,
        labelcolor=theme.ink,
    )
    return png(figure, description=described(rows))


def _in_powers(axes: Axes) -> None:
    least, most = axes.dataLim.intervalx
    axes.set_xscale("log")
    subs = (1.0,) if most > _WIDE * least else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=5))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _finish(axes: Axes, text: str, theme: Theme) -> None:
    plain_theme(axes, theme)
    axes.set_xlabel(text, color=theme.ink)


def _legend(theme: Theme, rows: Sequence[Row]) -> list[Line2D]:
    def mark(name: str, colour: str, face: str) -> Line2D:
        return Line2D([], [], marker="o", ls="", ms=6, color=colour, mfc=face, label=name)

    found = [
        mark("splitgrow", theme.train, theme.train),
        mark("Avalanche", theme.test, theme.test),
        mark("when learned", theme.ink, theme.paper),
        Line2D([], [], color=theme.ink, lw=5, alpha=0.35, label="over seeds"),
    ]
    if any(row.other_day for row in rows):
        found.append(Line2D([], [], ls="", label=f"{OTHER_DAY.strip()} time of another day"))
    return found

"""Pictures of what runs have come to: accuracy, size and time of every method, side by side."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from benchmarks.continual.results import FOLDER, Found, by_contestant, picture_of
from benchmarks.continual.suites import SUITES
from splitgrow.cli.themes import LIGHT, Theme, plain, png, sheet

_OFTEN = (1.0, 2.0, 5.0)
Runs: TypeAlias = Sequence[Found]


def write_pictures(found: Runs) -> None:
    """Writes the page's pictures, one for each suite that has runs."""
    for suite in SUITES:
        own = by_contestant([each for each in found if each.suite == suite.name])
        if own:
            (FOLDER / picture_of(suite)).write_bytes(picture(own, LIGHT))


def picture(methods: Mapping[str, Runs], theme: Theme) -> bytes:
    """A PNG of a suite: a row for each method, the most accurate on top.

    Args:
        methods: Each method's runs, over seeds.
        theme: The colours.
    """
    rows = sorted(methods.items(), key=lambda pair: _mean(pair[1], _accuracy))
    figure = sheet(theme, height=1.5 + 0.3 * len(rows))
    accuracy, size, time = figure.subplots(1, 3, sharey=True, width_ratios=(2, 1, 1))
    for at, (name, runs) in enumerate(rows):
        colour = theme.test if name.startswith("avalanche") else theme.train
        values = [_accuracy(run) for run in runs]
        learned = _mean(runs, _learned)
        accuracy.plot([_mean(runs, _accuracy), learned], [at, at], color=colour, lw=1, ls=":")
        accuracy.plot([min(values), max(values)], [at, at], color=colour, lw=5, alpha=0.35)
        accuracy.plot(learned, at, "o", ms=6, mfc=theme.paper, color=colour)
        accuracy.plot(_mean(runs, _accuracy), at, "o", ms=6, color=colour)
        size.plot(_mean(runs, lambda run: run.megabytes or 0.0), at, "o", ms=6, color=colour)
        time.plot(_mean(runs, lambda run: run.seconds), at, "o", ms=6, color=colour)
    accuracy.set_yticks(range(len(rows)), labels=[name for name, _ in rows])
    _name(accuracy, "accuracy in percent", theme)
    _name(size, "MB, masks counted", theme)
    _name(time, "seconds of learning", theme)
    for axes in (size, time):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=_OFTEN, numticks=5))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    figure.legend(
        handles=_legend(theme), loc="outside lower center", ncols=4, frameon=False, fontsize=8,
        labelcolor=theme.ink,
    )  # fmt: skip
    return png(figure)


def _name(axes: Axes, text: str, theme: Theme) -> None:
    plain(axes, theme)
    axes.set_xlabel(text, color=theme.ink)


def _legend(theme: Theme) -> list[Line2D]:
    def mark(name: str, colour: str, face: str) -> Line2D:
        return Line2D([], [], marker="o", ls="", ms=6, color=colour, mfc=face, label=name)

    return [
        mark("splitgrow", theme.train, theme.train),
        mark("Avalanche", theme.test, theme.test),
        mark("when learned", theme.ink, theme.paper),
        Line2D([], [], color=theme.ink, lw=5, alpha=0.35, label="over seeds"),
    ]


def _accuracy(run: Found) -> float:
    return 100 * run.accuracy


def _learned(run: Found) -> float:
    return 100 * run.learned


def _mean(runs: Runs, of: Callable[[Found], float]) -> float:
    return statistics.fmean(of(run) for run in runs)

"""The picture of networks that are compared at equal arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

from splitgrow.demos.arm_results import GROWN, LARGE, SMALL, ArmPoint, GrowResult
from splitgrow.demos.figures import zoom
from splitgrow.demos.themes import Theme, colour_of, plain_theme, png, sheet
from splitgrow.grower.planned_growth import shortened

_DASHES = (0, (4, 3))


@dataclass(frozen=True)
class _Look:
    """How an arm's curve is drawn: apart from the others without colours too."""

    line: str
    marker: str


_LOOKS = {GROWN: _Look("-", "o"), LARGE: _Look("--", "s"), SMALL: _Look(":", "^")}


def curves(result: GrowResult, theme: Theme) -> bytes:
    """A PNG of test accuracy and loss, over the multiply-adds and over the seconds."""
    figure = sheet(theme, height=6.8)
    grid = figure.subplots(2, 2, sharex="col", sharey="row")
    for row, name in enumerate(("accuracy", "loss")):
        for column, unit in enumerate(("macs", "seconds")):
            axes = grid[row][column]
            _draw(axes, result, (unit, name), theme)
            plain_theme(axes, theme)
    (accuracy, _), (loss, _) = grid
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    # Of the beginning, where all are bad, less is shown, so that the rest can be told apart.
    late = [look for look in result.evaluations if look.macs > 0.4 * result.macs]
    zoom(accuracy, [look.accuracy for look in late])
    loss.set_yscale("log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    loss.yaxis.set_major_formatter("{x:g}")
    loss.yaxis.set_minor_locator(NullLocator())
    accuracy.set_ylabel("test accuracy", color=theme.ink)
    loss.set_ylabel("test loss (cross entropy)", color=theme.ink)
    arithmetic, time = "multiply-adds of training", "processor time of training, seconds"
    if theme.narrow:
        arithmetic, time = "multiply-adds", "seconds"
    loss.set_xlabel(arithmetic, color=theme.ink)
    loss.xaxis.set_major_formatter(lambda value, _: shortened(value))
    grid[1][1].set_xlabel(time, color=theme.ink)
    for axes in grid[0]:
        _number_growths(axes, result, "macs" if axes is accuracy else "seconds", theme)
    handles, labels = accuracy.get_legend_handles_labels()
    handles.append(Line2D([], [], color=theme.ink, linewidth=1, linestyle=_DASHES))
    figure.legend(
        handles,
        [*labels, "a growth, with its number"],
        loc="outside upper center",
        ncols=theme.columns(len(handles)),
        frameon=False,
        labelcolor=theme.ink,
        handlelength=3,
    )
    return png(figure)


def _draw(axes: Axes, result: GrowResult, shown: tuple[str, str], theme: Theme) -> None:
    unit, name = shown
    colours = {GROWN: theme.test, LARGE: theme.train, SMALL: colour_of(2)}
    for arm, look in _LOOKS.items():
        points = [point for point in result.evaluations if point.arm == arm]
        axes.plot(
            [getattr(point, unit) for point in points],
            [getattr(point, name) for point in points],
            color=colours[arm],
            linewidth=1.5,
            linestyle=look.line,
            marker=look.marker,
            ms=4,
            label=arm,
        )
    for growth in result.growths:
        axes.axvline(getattr(growth, unit), color=theme.ink, linewidth=1, linestyle=_DASHES)


def _number_growths(axes: Axes, result: GrowResult, unit: str, theme: Theme) -> None:
    """Numbers above the lines of growths, but for those too near to the one before."""
    ends = [float(getattr(point, unit)) for point in result.evaluations]
    last = -max(ends)
    for number, growth in enumerate(result.growths, 1):
        at = _place(growth, unit)
        if at - last < max(ends) / 30:
            continue
        last = at
        axes.annotate(
            str(number),
            xy=(at, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            color=theme.ink,
        )


def _place(point: ArmPoint, unit: str) -> float:
    return float(getattr(point, unit))

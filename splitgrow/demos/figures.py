"""The report's pictures, drawn by matplotlib without its global state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Patch, Rectangle
from matplotlib.text import Text
from matplotlib.ticker import PercentFormatter

from splitgrow.demos.results import BlockMap, Growth, Outcome
from splitgrow.demos.themes import (
    ON_COLOUR,
    Theme,
    colour_of,
    name_stretches,
    plain_theme,
    png,
    sheet,
)
from splitgrow.growth.reporting import BlockArea

_HATCH = "///"
_LEAST = 0.9


def learning(result: Outcome, theme: Theme) -> bytes:
    """A PNG of accuracy and loss over the steps, with the growths marked."""
    figure = sheet(theme)
    accuracy, loss = figure.subplots(2, 1, sharex=True)
    steps = [step.step for step in result.steps]
    ends = [evaluation.step for evaluation in result.evaluations]
    for axes, name in ((accuracy, "accuracy"), (loss, "loss")):
        train = running_mean([getattr(step, name) for step in result.steps], len(steps) // 60)
        test = [getattr(evaluation, name) for evaluation in result.evaluations]
        axes.plot(steps, train, color=theme.train, linewidth=1.5, label="training, running mean")
        axes.plot(ends, test, color=theme.test, linewidth=1.5, marker="o", ms=4, label="test")
        axes.set_ylabel(name, color=theme.ink)
        plain_theme(axes, theme)
        for growth in result.growths:
            axes.axvline(growth.step, color=theme.ink, linewidth=1, linestyle=(0, (4, 3)))
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    zoom(accuracy, [evaluation.accuracy for evaluation in result.evaluations])
    loss.set_ylim(bottom=0, top=1.1 * max(evaluation.loss for evaluation in result.evaluations))
    loss.set_xlabel("training step", color=theme.ink)
    accuracy.legend(loc="best", facecolor=theme.paper, labelcolor=theme.ink, framealpha=0.9)
    _name_generations(accuracy, result.growths, steps[-1], theme)
    return png(figure)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Each value averaged with up to `window` before it."""
    return [
        sum(values[max(0, at - window) : at + 1]) / (at + 1 - max(0, at - window))
        for at in range(len(values))
    ]


def zoom(axes: Axes, accuracies: Sequence[float]) -> None:
    """Shows the upper part of the scale if all tests lie there, so that they can be told apart.

    A tenth of the scale is shown at least, so that half a percent does not look like a drop.
    """
    worst = min(accuracies)
    axes.set_ylim(min(_LEAST, max(0.0, worst - 1.5 * (1.0 - worst) - 0.01)), 1.01)


def _name_generations(axes: Axes, growths: Sequence[Growth], last: int, theme: Theme) -> None:
    starts = [0, *(growth.step for growth in growths)]
    ends = [*starts[1:], last]
    stretches = enumerate(zip(starts, ends, strict=True))
    names = {f"generation {at}": (str(at), stretch) for at, stretch in stretches}
    name_stretches(axes, names, theme)


def draw_block_map(blocks: BlockMap, theme: Theme) -> bytes:
    """A PNG of a grown layer's weight: every block where it lies, coloured by its generation."""
    figure = sheet(theme)
    FigureCanvasAgg(figure)  # can measure text
    axes = figure.subplots()
    labels = []
    for block in blocks.blocks:
        for row in block.rows:
            labels += [_draw_block(axes, block, row, column, theme) for column in block.columns]
    columns = _edges(span for block in blocks.blocks for span in block.columns)
    rows = _edges(span for block in blocks.blocks for span in block.rows)
    axes.set(xlim=(0, columns[-1]), xticks=columns)
    axes.set(ylim=(rows[-1], 0), yticks=rows)  # unit 0 on top, as matrices are written
    axes.set_xlabel("input channels", color=theme.ink)
    axes.set_ylabel("units (output channels)", color=theme.ink)
    axes.set_title(blocks.layer, color=theme.ink, loc="left", family="monospace")
    plain_theme(axes, theme)
    axes.grid(visible=False)
    handles = [
        Patch(facecolor=colour_of(generation), label=f"generation {generation}")
        for generation in sorted({block.generation for block in blocks.blocks})
    ]
    handles.append(
        Patch(facecolor=theme.faint, edgecolor=theme.paper, hatch=_HATCH, label="helper")
    )
    figure.legend(
        handles=handles,
        loc="outside upper right",
        ncols=theme.columns(len(handles)),
        frameon=False,
        labelcolor=theme.ink,
    )
    figure.draw_without_rendering()  # places everything, so that labels can be fitted
    for text, rectangle in labels:
        _fit(text, rectangle)
    return png(figure)


def _draw_block(
    axes: Axes, block: BlockArea, row: tuple[int, int], column: tuple[int, int], theme: Theme
) -> tuple[Text, Rectangle]:
    (top, bottom), (left, right) = row, column
    colour = colour_of(block.generation)
    rectangle = Rectangle(
        (left, top),
        right - left,
        bottom - top,
        facecolor=colour,
        edgecolor=theme.paper,
        linewidth=2,
        hatch=_HATCH if block.kind == "helper" else None,
    )
    axes.add_patch(rectangle)
    text = axes.text(
        (left + right) / 2,
        (top + bottom) / 2,
        block.kind,
        ha="center",
        va="center",
        color=ON_COLOUR,
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 2},  # keeps the hatch off it
    )
    return text, rectangle


def _edges(spans: Iterable[tuple[int, int]]) -> list[int]:
    """Where blocks begin and end, but for those too near to another to be written beside it."""
    edges = sorted({position for span in spans for position in span})
    last = edges[-1]
    kept = [edges[0]]
    for edge in edges[1:-1]:
        if min(edge - kept[-1], last - edge) >= last / 20:
            kept.append(edge)
    return [*kept, last]


def _fit(text: Text, rectangle: Rectangle) -> None:
    """Turns or shrinks a label until it lies within its rectangle; gives up if it never does."""
    room = rectangle.get_window_extent()
    for size in (11, 9, 7):
        for rotation in (0, 90):
            text.set(fontsize=size, rotation=rotation)
            needed = text.get_window_extent()
            if needed.width < 0.9 * room.width and needed.height < 0.9 * room.height:
                return
    text.remove()

"""The pictures of a run: the accuracies as a matrix, their course, and the size."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from splitgrow.demos.continual.outcome import RunOutcome
from splitgrow.demos.figures import zoom
from splitgrow.demos.themes import ON_COLOUR, Theme, colour_of, plain_theme, png, sheet

_LABELLED = 12  # tasks; with more, numbers in the cells would run into each other


def matrix(outcome: RunOutcome, theme: Theme) -> bytes:
    """A PNG of the accuracies: a row after each task, a column for each task."""
    count = len(outcome.accuracy)
    figure = sheet(theme, height=min(8.0, 2.6 + 0.32 * count))
    axes = figure.subplots()
    cells = [[*row, *[float("nan")] * (count - len(row))] for row in outcome.accuracy]
    least = min(min(row) for row in outcome.accuracy)
    image = axes.imshow(cells, cmap="viridis", vmin=min(least, 0.5), vmax=1.0, aspect="auto")
    if count <= _LABELLED:
        for row, values in enumerate(outcome.accuracy):
            for column, value in enumerate(values):
                dark = value < (min(least, 0.5) + 1) / 2
                colour = "#ffffff" if dark else ON_COLOUR
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=colour)
    names = [task.name for task in outcome.tasks]
    axes.set_xticks(range(count), labels=names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(count), labels=names, fontsize=8)
    axes.set_xlabel("test accuracy of", color=theme.ink)
    axes.set_ylabel("after learning", color=theme.ink)
    plain_theme(axes, theme)
    axes.grid(visible=False)
    axes.hlines([row - 0.5 for row in range(1, count)], -0.5, count - 0.5, color=theme.paper)
    axes.vlines([row - 0.5 for row in range(1, count)], -0.5, count - 0.5, color=theme.paper)
    bar = figure.colorbar(image, ax=axes, format=PercentFormatter(1.0, decimals=0))
    bar.ax.tick_params(colors=theme.ink)
    bar.outline.set_visible(False)
    return png(figure)


def growth(outcome: RunOutcome, theme: Theme) -> bytes:
    """A PNG of accuracy and size over the tasks."""
    figure = sheet(theme)
    accuracy, size = figure.subplots(2, 1, sharex=True)
    steps = range(1, len(outcome.tasks) + 1)
    means = [sum(row) / len(row) for row in outcome.accuracy]
    own = [row[-1] for row in outcome.accuracy]
    accuracy.plot(steps, own, color=theme.train, marker="o", ms=4, label="of the task just learned")
    accuracy.plot(steps, means, color=theme.test, marker="o", ms=4, label="of all tasks so far")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    zoom(accuracy, [*means, *own])
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True))
    accuracy.set_ylabel("test accuracy", color=theme.ink)
    _legend(accuracy, theme)
    shared = [task.shared / outcome.first_weights for task in outcome.tasks]
    used = [task.weights / outcome.first_weights for task in outcome.tasks]
    size.step(steps, shared, where="mid", color=colour_of(2), label="weights that tasks share")
    size.plot(steps, used, color=colour_of(3), marker="o", ms=4, label="weights that the task uses")
    size.set_ylim(bottom=0)
    size.set_ylabel("times one network", color=theme.ink)
    size.set_xlabel("tasks learned", color=theme.ink)
    _legend(size, theme)
    for axes in (accuracy, size):
        plain_theme(axes, theme)
    return png(figure)


def _legend(axes: Axes, theme: Theme) -> None:
    axes.legend(loc="best", facecolor=theme.paper, labelcolor=theme.ink, framealpha=0.9)

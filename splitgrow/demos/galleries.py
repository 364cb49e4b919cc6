"""Pictures of an autoencoder that grew in resolution: its errors and its reconstructions."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from splitgrow.demos.figures import running_mean
from splitgrow.demos.results import Level, LevelStep, ProgressiveResult, Tiles
from splitgrow.demos.themes import Theme, colour_of, name_stretches, plain_theme, png, sheet


def errors(result: ProgressiveResult, theme: Theme) -> bytes:
    """A PNG of the error over the steps, with the growths marked and the fades shaded."""
    figure = sheet(theme, height=5.2)
    axes = figure.subplots()
    ends = [evaluation.step for evaluation in result.evaluations]
    full = [evaluation.full_error for evaluation in result.evaluations]
    for level in result.levels:
        _draw_level(axes, result, level.level, theme)
    axes.plot(ends, full, color=theme.ink, linewidth=1.2, ls=":", label="test, at full resolution")
    for growth in result.growths:
        axes.axvline(growth.step, color=theme.ink, linewidth=1, linestyle=(0, (4, 3)))
    for at, (first, last) in enumerate(_fades(result.steps)):
        name = "a level fades in" if at == 0 else None
        axes.axvspan(first - 1, last, color=theme.faint, alpha=0.6, linewidth=0, label=name)
    axes.set_yscale("log")
    axes.set_ylabel("mean squared error", color=theme.ink)
    axes.set_xlabel("training step", color=theme.ink)
    plain_theme(axes, theme)
    axes.tick_params(which="minor", length=0, colors=theme.ink)
    axes.legend(loc="upper right", facecolor=theme.paper, labelcolor=theme.ink, framealpha=0.9)
    _name_levels(axes, result, theme)
    return png(figure)


def _draw_level(axes: Axes, result: ProgressiveResult, level: int, theme: Theme) -> None:
    """The errors of one level; those of another are of other images, so no line joins them."""
    names = ("training, running mean", "test") if level == 0 else (None, None)
    steps = [step for step in result.steps if step.level == level]
    losses = running_mean([step.loss for step in steps], len(result.steps) // 60)
    axes.plot([step.step for step in steps], losses, color=theme.train, lw=1.5, label=names[0])
    ends = [evaluation for evaluation in result.evaluations if evaluation.level == level]
    errors = [end.error for end in ends]
    axes.plot(
        [end.step for end in ends],
        errors,
        color=theme.test,
        linewidth=1.5,
        marker="o",
        ms=4,
        label=names[1],
    )


def _fades(steps: Sequence[LevelStep]) -> list[tuple[int, int]]:
    """The first and the last step of each fade."""
    spans = []
    for (_, fading), run in groupby(steps, key=lambda step: (step.level, step.alpha < 1)):
        inside = [step.step for step in run]
        if fading:
            spans.append((inside[0], inside[-1]))
    return spans


def _name_levels(axes: Axes, result: ProgressiveResult, theme: Theme) -> None:
    edges = [0, *(growth.step for growth in result.growths), result.steps[-1].step]
    names = {}
    for level, start, end in zip(result.levels, edges[:-1], edges[1:], strict=True):
        side = str(level.resolution)
        names[f"{side}x{side}"] = (side, (float(start), float(end)))
    name_stretches(axes, names, theme)


def gallery(levels: Sequence[Level], theme: Theme) -> bytes:
    """A PNG of test images: for each level a row of originals and one of reconstructions."""
    count = min(levels[0].originals.count, 5 if theme.narrow else levels[0].originals.count)
    rows = [
        (f"{level.resolution}x{level.resolution}\n{what}", tiles, level.level)
        for level in levels
        for what, tiles in (("original", level.originals), ("decoded", level.reconstructions))
    ]
    figure = sheet(theme, height=0.2 + 0.82 * len(rows))
    grid = figure.subplots(len(rows), count, squeeze=False)
    for (name, tiles, level), places in zip(rows, grid, strict=True):
        for picture, axes in zip(pictures(tiles)[:count], places, strict=True):
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_color(colour_of(level))
                spine.set_linewidth(1.5)
        label = {"rotation": 0, "ha": "right", "va": "center", "color": theme.ink, "fontsize": 9}
        places[0].set_ylabel(name, **label)
    return png(figure)


def pictures(tiles: Tiles) -> list[NDArray[np.uint8]]:
    """Each picture as (side, side), or (side, side, 3) if it has colours."""
    pixels = np.frombuffer(base64.b64decode(tiles.pixels), dtype=np.uint8)
    arrays = pixels.reshape(tiles.count, tiles.channels, tiles.side, tiles.side)
    return [array[0] if tiles.channels == 1 else array.transpose(1, 2, 0) for array in arrays]

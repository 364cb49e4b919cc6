"""The picture of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from splitgrow.grower.planned_growth import PlannedGrowth, shortened
from splitgrow.utils.pictures import blank_figure, save_figure, without_frame_

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_START = (0.16, 0.28, 0.45)
_END = (0.96, 0.70, 0.35)
_MOST_NAMES = 40
"""The number of layers whose names still have room below the bars."""


def draw_schedule(stages: Sequence[PlannedGrowth], path: str | Path, *, at_most: bool) -> Path:
    """Draws the widths of the layers and the size of the model at each stage of a plan.

    Args:
        stages: The start and the changes.
        path: The file.
        at_most: Whether the sizes are upper bounds.
    """
    layers = list(stages[0].widths)
    figure = blank_figure(min(20, max(8, 0.45 * len(layers) + 3)), 7.5)
    above, below = figure.subplots(2, 1, height_ratios=(3, 2))
    _draw_widths(above, stages, layers, at_most=at_most)
    _draw_sizes(below, stages)
    return save_figure(figure, path)


def _draw_widths(
    axes: Axes, stages: Sequence[PlannedGrowth], layers: Sequence[str], *, at_most: bool
) -> None:
    """Bars of the layers' widths: growths on top of each other, shrinks side by side."""
    shrinks = any(stage.shrinks for stage in stages)
    wide = 0.8 / len(stages) if shrinks else 0.8
    bottom = [0] * len(layers)
    for index, stage in enumerate(stages):
        widths = [stage.widths[name] for name in layers]
        heights = [width - base for width, base in zip(widths, bottom, strict=True)]
        word = "shrink" if stage.shrinks else "growth"
        label = f"{word} {stage.index}: {stage.moment}" if stage.index else "start"
        aside = wide * (index - (len(stages) - 1) / 2) if shrinks else 0.0
        places = [place + aside for place in range(len(layers))]
        axes.bar(places, heights, wide, bottom=bottom, color=_colour(index, stages), label=label)
        bottom = bottom if shrinks else widths
    axes.set_ylabel("units, at most" if at_most else "units")
    axes.set_xlim(-0.6, len(layers) - 0.4)
    if len(layers) <= _MOST_NAMES:
        axes.set_xticks(range(len(layers)), list(layers), rotation=45, ha="right", fontsize=8)
    else:
        axes.set_xlabel("layers, in order of execution")
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    without_frame_(axes)


def _draw_sizes(axes: Axes, stages: Sequence[PlannedGrowth]) -> None:
    """The multiply-adds of a forward pass over the training, and the parameters in words."""
    steps = [stage.step for stage in stages]
    known = [step for step in steps if step is not None]
    by_step = len(known) == len(steps)
    places = known if by_step else list(range(len(stages)))
    end = places[-1] + (places[-1] - places[-2] if len(places) > 1 else 1)
    macs = [stage.macs for stage in stages]
    for index, (start, stop) in enumerate(zip(places, [*places[1:], end], strict=True)):
        axes.fill_between([start, stop], [macs[index]] * 2, color=_colour(index, stages))
        words = f"{shortened(macs[index])}\n{shortened(stages[index].parameters)} parameters"
        axes.annotate(
            words,
            ((start + stop) / 2, macs[index]),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.set_ylim(0, 1.35 * max(macs))
    axes.set_xlim(places[0], end)
    axes.set_ylabel("multiply-adds\nof a forward pass for a sample")
    axes.yaxis.set_major_formatter(lambda value, _: shortened(value))
    if by_step:
        axes.set_xlabel("optimizer step")
    else:
        axes.set_xticks(places, [stage.moment for stage in stages], fontsize=8, ha="left")
    without_frame_(axes)


def _colour(index: int, stages: Sequence[PlannedGrowth]) -> tuple[float, ...]:
    share = index / max(len(stages) - 1, 1)
    return tuple((1 - share) * a + share * b for a, b in zip(_START, _END, strict=True))

"""A picture of scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from splitgrow.utils.pictures import blank_figure, save_figure, without_frame_


def draw_bars(rows: Sequence[tuple[str, float]], title: str, path: str | Path) -> Path:
    """Draws a bar for each row, the first at the top.

    Args:
        rows: Names and numbers.
        title: The title.
        path: The file to write.
    """
    figure = blank_figure(8, 1.2 + 0.3 * max(1, len(rows)))
    axes = figure.subplots()
    names, numbers = [name for name, _ in rows], [number for _, number in rows]
    bars = axes.barh(range(len(rows)), numbers, color="#3b6ea5")
    axes.bar_label(bars, labels=[f"{number:.3g}" for number in numbers], padding=4, fontsize=9)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title(title, loc="left", fontsize=11)
    without_frame_(axes)
    return save_figure(figure, path)

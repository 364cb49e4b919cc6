"""A picture of scores, drawn by matplotlib without its global state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw_bars(rows: Sequence[tuple[str, float]], title: str, path: Path) -> Path:
    """Draws a bar for each row, the first at the top.

    Args:
        rows: Names and numbers.
        title: The title.
        path: The file to write.
    """
    figure = Figure(figsize=(8, 1.2 + 0.3 * max(1, len(rows))), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names, numbers = [name for name, _ in rows], [number for _, number in rows]
    bars = axes.barh(range(len(rows)), numbers, color="#3b6ea5")
    axes.bar_label(bars, labels=[f"{number:.3g}" for number in numbers], padding=4, fontsize=9)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title(title, loc="left", fontsize=11)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path)
    return path

"""Pictures by matplotlib, which an extra installs: without its global state, loaded when drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def blank_figure(width: float, height: float) -> Figure:
    """An empty figure.

    Args:
        width: Its width in inches.
        height: Its height in inches.

    Raises:
        ModuleNotFoundError: If matplotlib is missing; the message says how to get it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "pictures are drawn by matplotlib: pip install 'splitgrow[demo]'", name=error.name
        ) from error
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def without_frame_(axes: Axes) -> None:
    """Leaves the lines at the left and below only."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes a figure; the suffix of the file sets the format, such as ``.png`` or ``.svg``."""
    path = Path(path)
    figure.savefig(path)
    return path

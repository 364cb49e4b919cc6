"""The colours of the reports' pictures, and their common canvas."""

from __future__ import annotations

import io
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which remain apart for every kind of colour blindness; by generation.
_GENERATIONS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00")
ON_COLOUR = "#111111"  # readable on each of them
_TRAIN, _TEST = "#0072B2", "#D55E00"


@dataclass(frozen=True)
class Theme:
    """The colours of a picture's paper and ink."""

    paper: str
    ink: str
    faint: str
    train: str = _TRAIN
    test: str = _TEST


LIGHT = Theme(paper="#ffffff", ink="#1c2330", faint="#d5dae2")
DARK = Theme(paper="#171c26", ink="#e4e8ef", faint="#3a4252", train="#56B4E9", test="#E69F00")


def colour_of(generation: int) -> str:
    """The colour of a generation."""
    return _GENERATIONS[generation % len(_GENERATIONS)]


def sheet(theme: Theme, *, height: float = 6.4) -> Figure:
    """An empty picture, `height` inches high."""
    return Figure(figsize=(9, height), dpi=144, layout="constrained", facecolor=theme.paper)


def plain_theme(axes: Axes, theme: Theme) -> None:
    """Leaves of axes no more than is needed."""
    axes.set_facecolor(theme.paper)
    axes.grid(visible=True, color=theme.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.ink, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.faint)


def name_stretch(axes: Axes, name: str, stretch: tuple[float, float], theme: Theme) -> None:
    """Writes a name above a stretch of the horizontal axis, in its middle."""
    axes.annotate(
        name,
        xy=(sum(stretch) / 2, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        color=theme.ink,
    )


def png(figure: Figure, *, description: str | None = None) -> bytes:
    """The picture as a file, with a description inside; equal ones give equal bytes."""
    buffer = io.BytesIO()
    # The software's version in the file would make equal runs give different bytes.
    metadata = {"Software": None, "Description": description}
    figure.savefig(buffer, format="png", metadata=metadata)
    return buffer.getvalue()

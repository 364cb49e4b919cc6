"""The colours of the reports' pictures, and their common canvas."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation

# Okabe and Ito's colours, which remain apart for every kind of colour blindness; by generation.
_GENERATIONS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00")
ON_COLOUR = "#111111"  # readable on each of them
_TRAIN, _TEST = "#0072B2", "#D55E00"


@dataclass(frozen=True)
class Theme:
    """How a picture looks.

    Attributes:
        paper: The colour of its background.
        ink: The colour of text and lines.
        faint: The colour of what stands back.
        train: The colour of training data.
        test: The colour of test data.
        narrow: Whether it is for a screen as narrow as a telephone's.
    """

    paper: str
    ink: str
    faint: str
    train: str = _TRAIN
    test: str = _TEST
    narrow: bool = False

    def columns(self, count: int) -> int:
        """The number of columns of a legend that fit, of `count` that there could be."""
        return min(count, 2) if self.narrow else count


LIGHT = Theme(paper="#ffffff", ink="#1c2330", faint="#d5dae2")
DARK = Theme(paper="#171c26", ink="#e4e8ef", faint="#3a4252", train="#56B4E9", test="#E69F00")


def colour_of(generation: int) -> str:
    """The colour of a generation."""
    return _GENERATIONS[generation % len(_GENERATIONS)]


def sheet(theme: Theme, *, height: float = 6.4) -> Figure:
    """An empty picture, `height` inches high. Text is as large on a narrow one."""
    width = 4.6 if theme.narrow else 9
    return Figure(figsize=(width, height), dpi=144, layout="constrained", facecolor=theme.paper)


def plain_theme(axes: Axes, theme: Theme) -> None:
    """Leaves of axes no more than is needed."""
    axes.set_facecolor(theme.paper)
    axes.grid(visible=True, color=theme.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.ink, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.faint)


def name_stretches(
    axes: Axes, names: Mapping[str, tuple[str, tuple[float, float]]], theme: Theme
) -> None:
    """Writes names above stretches of the horizontal axis, each in the middle of its own.

    Call it when all else is drawn. Where a name is wider than its stretch, all are short; a short
    one that is still too wide is left out.

    Args:
        axes: The axes.
        names: The short form and the stretch of each name.
        theme: The theme.
    """
    figure = axes.figure
    assert isinstance(figure, Figure)
    FigureCanvasAgg(figure)  # can measure text
    figure.draw_without_rendering()
    for short in (False, True):
        texts = [
            (
                axes.annotate(
                    own if short else name,
                    xy=(sum(stretch) / 2, 1.0),
                    xycoords=("data", "axes fraction"),
                    xytext=(0, 5),
                    textcoords="offset points",
                    ha="center",
                    color=theme.ink,
                ),
                stretch,
            )
            for name, (own, stretch) in names.items()
        ]
        wide = [text for text, stretch in texts if not _fits(text, axes, stretch)]
        if not wide:
            return
        for text in wide if short else [text for text, _ in texts]:
            text.remove()


def _fits(text: Annotation, axes: Axes, stretch: tuple[float, float]) -> bool:
    """Whether a text is narrower than a stretch of the horizontal axis."""
    (left, _), (right, _) = axes.transData.transform([(at, 0.5) for at in stretch])
    return bool(text.get_window_extent().width <= 0.95 * (right - left))


def png(figure: Figure, *, description: str | None = None) -> bytes:
    """The picture as a file, with a description inside; equal ones give equal bytes."""
    buffer = io.BytesIO()
    # The software's version in the file would make equal runs give different bytes.
    metadata = {"Software": None, "Description": description}
    figure.savefig(buffer, format="png", metadata=metadata)
    return buffer.getvalue()

"""Pictures of a network that became deeper: its layers by generation, and its size over time."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from splitgrow.demos.results import ChainLayer, Deepening, DeeperResult
from splitgrow.demos.themes import ON_COLOUR, Theme, colour_of, plain_theme, png, sheet

_BOX = 0.8  # of a cell's width and height


def chain(layers: Sequence[ChainLayer], theme: Theme) -> bytes:
    """A PNG of the network in each generation, one below the other.

    Every layer is a box in a column of its own, with its number of units, in the colours of the
    generations that these were born in.
    """
    generations = len(layers[0].units)
    figure = sheet(theme, height=2.2 + 0.62 * generations)
    axes = figure.subplots()
    plain_theme(axes, theme)
    axes.grid(visible=False)
    for generation in range(generations):
        there = [at for at, layer in enumerate(layers) if layer.units[generation] is not None]
        line = ([there[0], there[-1]], [generation, generation])
        axes.plot(*line, color=theme.faint, linewidth=2, zorder=1)
        for at in there:
            _draw_layer(axes, at, generation, layers[at].units)
    axes.set(xlim=(-0.6, len(layers) - 0.4), ylim=(generations - 0.4, -0.6))
    axes.set_xticks(range(len(layers)), [_label(layer) for layer in layers])
    axes.tick_params(axis="x", labelrotation=90, labelsize=9)
    axes.set_yticks(range(generations), [f"generation {at}" for at in range(generations)])
    for tick, layer in zip(axes.get_xticklabels(), layers, strict=True):
        tick.set_fontfamily("monospace")
        tick.set_fontweight("bold" if layer.insertion else "normal")
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.legend(
        handles=[
            Patch(facecolor=colour_of(at), label=f"born in generation {at}")
            for at in range(generations)
        ],
        loc="outside upper center",
        ncols=theme.columns(min(generations, 3)),
        frameon=False,
        labelcolor=theme.ink,
    )
    return png(figure)


def _label(layer: ChainLayer) -> str:
    return f"{layer.insertion}: {layer.name}" if layer.insertion else layer.name


def _draw_layer(axes: Axes, at: int, generation: int, units: Sequence[int | None]) -> None:
    """A box for the units of a layer, each generation's as wide as its share of them."""
    known = [count or 0 for count in units[: generation + 1]]
    grown = [new - old for old, new in zip([0, *known], known, strict=False)]
    left, corner = at - _BOX / 2, generation - _BOX / 2
    for born, count in enumerate(grown):
        width = _BOX * count / known[-1]
        face = colour_of(born)
        axes.add_patch(Rectangle((left, corner), width, _BOX, facecolor=face, zorder=2))
        left += width
    text = "+".join(str(count) for count in grown if count)
    size = 10 if len(text) < 4 else 7
    axes.text(
        at, generation, text, ha="center", va="center", color=ON_COLOUR, fontsize=size, zorder=4
    )


def size(result: DeeperResult, theme: Theme) -> bytes:
    """A PNG of the depth and the number of parameters over the steps."""
    figure = sheet(theme, height=4.6)
    depth, parameters = figure.subplots(2, 1, sharex=True)
    last = result.steps[-1].step
    for axes, name in ((depth, "depth"), (parameters, "parameters")):
        steps, values = _stairs(result.growths, name, last)
        axes.step(steps, values, where="post", color=theme.train, linewidth=2)
        axes.set_ylabel(name, color=theme.ink)
        axes.set_ylim(0, 1.15 * max(values))
        plain_theme(axes, theme)
        for growth in result.growths:
            axes.axvline(growth.step, color=theme.ink, linewidth=1, linestyle=(0, (4, 3)))
    depth.yaxis.set_major_locator(MaxNLocator(integer=True))
    parameters.yaxis.set_major_formatter("{x:,.0f}")
    parameters.set_xlabel("training step", color=theme.ink)
    return png(figure)


def _stairs(growths: Sequence[Deepening], name: str, last: int) -> tuple[list[int], list[int]]:
    """Where a number changes, and its value from there on."""
    pairs = [getattr(growth, name) for growth in growths]
    steps = [0, *(growth.step for growth in growths), last]
    return steps, [pairs[0][0], *(after for _, after in pairs), pairs[-1][1]]

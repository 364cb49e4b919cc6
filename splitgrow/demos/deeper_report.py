"""Writes the report of a run of the deeper demo."""

from __future__ import annotations

from html import escape
from pathlib import Path

from splitgrow.cli.ways import KEEPING
from splitgrow.demos import chains, figures, pages, tables
from splitgrow.demos.results import DeeperResult


def write_deeper_report(result: DeeperResult, folder: Path) -> Path:
    """Writes learning.png, chain.png, size.png and report.html into `folder`.

    Returns:
        The path of the HTML file.
    """
    drawings = {
        "learning": pages.Drawing(
            lambda theme: figures.learning(result, theme),
            "Accuracy and loss over the training steps, with a dashed line at each insertion",
        ),
        "chain": pages.Drawing(
            lambda theme: chains.chain(result.chain, theme),
            "The layers of the network in each generation, as a row of boxes",
        ),
        "size": pages.Drawing(
            lambda theme: chains.size(result, theme),
            "Depth and number of parameters over the training steps, as stairs",
        ),
    }
    title = f"splitgrow demo, deeper: {result.dataset}"
    return pages.write_page(folder, title, drawings, lambda images: _body(result, images))


def _body(result: DeeperResult, images: dict[str, str]) -> str:
    train, test = result.images
    settings, growths = result.settings, result.growths
    return f"""<h1>A network that became deeper while it trained</h1>
<p class="soft">{escape(result.dataset)}: {train:,} training and {test:,} test images.
A residual CNN of width {settings.width}, {growths[0].depth[0]} layers deep at first and
{growths[-1].depth[1]} in the end; {settings.epochs} epochs before and after each edit, seed
{settings.seed}; {result.seconds:.0f} seconds in all.</p>
{pages.two_ways(KEEPING)}

<h2>Before growth, deeper and fused</h2>
{pages.measurements(result.measurements, settings.batch_size)}
<p class="soft">{escape(tables.speed(result.measurements))}</p>
<p class="soft">{escape(tables.fusion(result))}</p>

<h2>Nothing moved</h2>
<p>Each row compares the network right before an edit with the network right after it, on all test
images and before any training. An insertion computes its own input. So fusing it at once gives the
old network, and nothing is left of the insertion. New units of a grown layer remain.</p>
{_deepenings(result)}

<h2>Accuracy and loss</h2>
<figure>{images["learning"]}
<figcaption>Dashed lines mark the edits. After each of them only the new layers and units
learn.</figcaption></figure>

<h2>The network, generation by generation</h2>
<figure>{images["chain"]}
<figcaption>The layers with weights in order of execution, with their numbers of units; a shortcut
runs beside the layers in front of it. A box has the colour of the generation in which the layer was
inserted, and where it grew wider later, a part in that generation's.</figcaption></figure>

<h2>Depth and parameters</h2>
<figure>{images["size"]}
<figcaption>Depth counts the layers with weights on the longest way from the image to the
logits.</figcaption></figure>

<h2>The old networks are still there</h2>
<p>Each generation was closed when the next edit came: its layers are frozen, and the network can
still be run as it was. The table compares its logits at the end of the run with those from when it
was closed.</p>
{pages.recoveries(result.recoveries)}

<h2>Layers removed by fusion</h2>
{_vanished(result)}

<h2>The edits</h2>
{pages.edits(growths)}"""


def _deepenings(result: DeeperResult) -> str:
    rows = (
        (str(event.edit.index), escape(tables.what(event.edit)), *tables.deepening_cells(event))
        for event in result.growths
    )
    head = ("edit", "change", *tables.DEEPENING_HEAD)
    return pages.table(head, rows, numbers=(0, *range(2, len(head))))


def _vanished(result: DeeperResult) -> str:
    if not result.vanished:
        return "<p>Nothing.</p>"
    return pages.table(
        ("type", "modules", "when fused"),
        ((escape(row.type), str(row.merged), str(row.fused)) for row in result.vanished),
        numbers=(1, 2),
    )

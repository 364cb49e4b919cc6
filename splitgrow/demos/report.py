"""Writes the report of a run: one HTML file that needs no other, and its pictures as PNGs."""

from __future__ import annotations

from html import escape
from pathlib import Path

from splitgrow.cli.ways import KEEPING
from splitgrow.demos import figures, pages, tables
from splitgrow.demos.results import Result


def write_report(result: Result, folder: Path) -> Path:
    """Writes learning.png, blocks.png and report.html into `folder`.

    Returns:
        The path of the HTML file.
    """
    drawings = {
        "learning": pages.Drawing(
            lambda theme: figures.learning(result, theme),
            "Accuracy and loss over the training steps, with a dashed line at each growth",
        ),
        "blocks": pages.Drawing(
            lambda theme: figures.draw_block_map(result.block_map, theme),
            "The weight of a grown layer as rectangles, one for each block",
        ),
    }
    title = f"splitgrow demo: {result.dataset}"
    return pages.write_page(folder, title, drawings, lambda images: _body(result, images))


def _body(result: Result, images: dict[str, str]) -> str:
    train, test = result.images
    settings = result.settings
    return f"""<h1>A network that grew while it trained</h1>
<p class="soft">{escape(result.dataset)}: {train:,} training and {test:,} test images.
A residual CNN of width {settings.width}, grown {len(result.growths)} times by
{settings.by:.0%}; {settings.epochs} epochs before and after each growth, seed
{settings.seed}; {result.seconds:.0f} seconds in all.</p>
{pages.two_ways(KEEPING)}

<h2>Before growth, grown and fused</h2>
{pages.measurements(result.measurements, settings.batch_size)}
<p class="soft">{escape(tables.speed(result.measurements))}</p>
<p class="soft">Fused and grown differ by at most {result.fused_difference:.1e} in any logit;
the largest logit is {result.largest_logit:.1f}.</p>

<h2>Accuracy and loss</h2>
<figure>{images["learning"]}
<figcaption>Dashed lines mark the growths. A growth by itself changed no test logit by more than
{max(growth.disturbance for growth in result.growths):.1e}.</figcaption></figure>

<h2>The old networks are still there</h2>
<p>Each generation was closed when the next growth came: its blocks are frozen, and the network
can still be run as it was. The table compares its logits at the end of the run with those
from when it was closed.</p>
{pages.recoveries(result.recoveries)}

<h2>Inside a grown layer</h2>
<figure>{images["blocks"]}
<figcaption>The weight of <code>{escape(result.block_map.layer)}</code>, with its units from top to
bottom and its input channels from left to right. New blocks add units and read all channels of
their time. Helpers read channels that arrived later, and add to the units that were there.
</figcaption></figure>

<h2>The edits</h2>
{pages.edits(result.growths)}"""

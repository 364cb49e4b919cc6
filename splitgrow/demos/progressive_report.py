"""Writes the report of a run of the progressive demo."""

from __future__ import annotations

from html import escape
from pathlib import Path

from splitgrow.cli.ways import LEARNING
from splitgrow.demos import galleries, pages, tables
from splitgrow.demos.results import ProgressiveResult


def write_progressive_report(result: ProgressiveResult, folder: Path) -> Path:
    """Writes gallery.png, errors.png and report.html into `folder`.

    Returns:
        The path of the HTML file.
    """
    drawings = {
        "gallery": pages.Drawing(
            lambda theme: galleries.gallery(result.levels, theme),
            "Test images and their reconstructions, two rows for each resolution",
        ),
        "errors": pages.Drawing(
            lambda theme: galleries.errors(result, theme),
            "The error over the training steps, with the fades shaded",
        ),
    }
    title = f"splitgrow demo, progressive: {result.dataset}"
    return pages.write_page(folder, title, drawings, lambda images: _body(result, images))


def _body(result: ProgressiveResult, images: dict[str, str]) -> str:
    train, test = result.images
    settings, first, last = result.settings, result.levels[0], result.levels[-1]
    bottleneck = result.latent * first.resolution**2
    pixels = last.originals.channels * last.resolution**2
    return f"""<h1>An autoencoder whose images grew while it trained</h1>
<p class="soft">{escape(result.dataset)}: {train:,} training and {test:,} test images, from
{first.resolution}x{first.resolution} to {last.resolution}x{last.resolution} pixels.
{settings.epochs} epochs at the first level, then for each growth as many in which the new level
fades in and as many on it alone; seed {settings.seed}; {result.seconds:.0f} seconds in all. An
image passes through {bottleneck:,} numbers; in the end it has {pixels:,}.</p>
{pages.two_ways(LEARNING)}

<h2>Originals and reconstructions</h2>
<figure>{images["gallery"]}
<figcaption>The same test images at every level, above as they are at its resolution and below as
the autoencoder gave them back at its end.</figcaption></figure>

<h2>The levels</h2>
{pages.table(tables.LEVEL_HEAD, tables.level_rows(result), numbers=range(len(tables.LEVEL_HEAD)))}
<p class="soft">Errors are mean squares of test pixels whose training images have deviation 1. At
full size the reconstructions are enlarged and compared with the largest images.</p>

<h2>Error</h2>
<figure>{images["errors"]}
<figcaption>Dashed lines mark the growths. In the shaded parts the new level fades in, from alpha 0
to 1. A finer level starts from the coarser one's reconstruction, and has more to
learn.</figcaption></figure>

<h2>Growing changed nothing</h2>
<p>Right after each growth, the autoencoder's outputs for the larger test images are its outputs for
the smaller ones, each pixel four times.</p>
{_growths(result)}

<h2>Fused</h2>
<p>{escape(tables.fade_fusion(result))}</p>"""


def _growths(result: ProgressiveResult) -> str:
    rows = (
        (
            f"{event.step:,}",
            f"{event.resolution}x{event.resolution}",
            f"{event.parameters:,}",
            pages.yes_or_no("the same, bit for bit", good=True)
            if event.exact
            else pages.yes_or_no(f"differ by up to {event.disturbance:.1e}", good=False),
        )
        for event in result.growths
    )
    head = ("step", "resolution", "parameters added", "reconstructions")
    return pages.table(head, rows, numbers=(0, 1, 2))

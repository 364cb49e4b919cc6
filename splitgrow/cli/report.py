"""Writes the report of a run: one HTML file that needs no other, and its pictures as PNGs."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from splitgrow.cli import figures
from splitgrow.cli.results import Result
from splitgrow.cli.tables import arrow

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2330; --soft: #5b6575;
  --line: #d5dae2; --wash: #f4f6f9; --good: #00694b; --bad: #b03a00; }
@media (prefers-color-scheme: dark) { :root { --paper: #171c26; --ink: #e4e8ef; --soft: #9aa5b5;
  --line: #3a4252; --wash: #1f2632; --good: #4cc9a0; --bad: #ff9a5c; } }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 60rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
.soft, figcaption { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .75rem 0; min-width: 60%; }
th { font-weight: 600; color: var(--soft); }
th, td { padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--line); text-align: left; }
tr.sum td { font-weight: 600; border-bottom-width: 2px; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font: .92em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.yes { color: var(--good); font-weight: 600; } .no { color: var(--bad); font-weight: 600; }
figure { margin: 1rem 0; } img { width: 100%; height: auto; border-radius: 6px; }
"""


def write_report(result: Result, folder: Path) -> Path:
    """Writes learning.png, blocks.png and report.html into `folder`.

    The pictures are also inside the HTML, once for light and once for dark screens.

    Returns:
        The path of the HTML file.
    """
    light = _pictures(result, figures.LIGHT)
    dark = _pictures(result, figures.DARK)
    for name, png in light.items():
        (folder / f"{name}.png").write_bytes(png)
    images = {name: _picture(light[name], dark[name], _ALTERNATIVES[name]) for name in light}
    path = folder / "report.html"
    path.write_text(_page(result, images), encoding="utf-8")
    return path


_ALTERNATIVES = {
    "learning": "Accuracy and loss over the training steps, with a dashed line at each growth",
    "blocks": "The weight of a grown layer as rectangles, one for each block",
}


def _pictures(result: Result, theme: figures.Theme) -> dict[str, bytes]:
    return {
        "learning": figures.learning(result, theme),
        "blocks": figures.block_map(result.block_map, theme),
    }


def _picture(light: bytes, dark: bytes, alternative: str) -> str:
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_data_uri(dark)}">'
        f'<img src="{_data_uri(light)}" alt="{escape(alternative)}"></picture>'
    )


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _page(result: Result, images: dict[str, str]) -> str:
    train, test = result.images
    settings = result.settings
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>splitgrow demo: {escape(result.dataset)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>A network that grew while it trained</h1>
<p class="soft">{escape(result.dataset)}: {train:,} training and {test:,} test images.
A residual CNN of width {settings.width}, grown {len(result.growths)} times by
{settings.grow:.0%}; {settings.epochs} epochs before and after each growth, seed
{settings.seed}; {result.seconds:.0f} seconds in all.</p>

<h2>Before growth, grown and fused</h2>
{_measurements(result)}
<p class="soft">Fused and grown differ by at most {result.fused_difference:.1e} in any logit;
the largest logit is {result.largest_logit:.1f}.</p>

<h2>Accuracy and loss</h2>
<figure>{images["learning"]}
<figcaption>Dashed lines mark the growths. A growth by itself changed no test logit by more than
{max(growth.disturbance for growth in result.growths):.1e}.</figcaption></figure>

<h2>The old networks are still there</h2>
<p>Each generation was closed when the next growth came: its blocks are frozen, and the network
can still be run as it was. This is what it gave at the end of the run, compared with the logits
that were recorded when it was closed.</p>
{_recoveries(result)}

<h2>Inside a grown layer</h2>
<figure>{images["blocks"]}
<figcaption>The weight of <code>{escape(result.block_map.layer)}</code>, with its units from top to
bottom and its input channels from left to right. New blocks add units and read all channels of
their time. Helpers read channels that arrived later, and add to the units that were there.
</figcaption></figure>

<h2>The edits</h2>
{_edits(result)}
</body>
</html>
"""


def _measurements(result: Result) -> str:
    batch = result.settings.batch_size
    return _table(
        ("network", "test accuracy", "parameters", f"ms per batch of {batch}"),
        (
            (row.network, f"{row.accuracy:.2%}", f"{row.parameters:,}", f"{row.milliseconds:.2f}")
            for row in result.measurements
        ),
        numbers=(1, 2, 3),
    )


def _recoveries(result: Result) -> str:
    return _table(
        ("generation", "test accuracy", "logits"),
        (
            (
                str(row.generation),
                f"{row.accuracy:.2%}",
                '<span class="yes">the same, bit for bit</span>'
                if row.exact
                else f'<span class="no">differ by up to {row.largest_difference:.1e}</span>',
            )
            for row in result.recoveries
        ),
        numbers=(0, 1),
    )


def _edits(result: Result) -> str:
    head = ("layer", "type", "units", "inputs", "parameters added")
    parts = []
    for growth in result.growths:
        edit = growth.edit
        rows = [
            (
                f"<code>{escape(change.name)}</code>",
                escape(change.kind),
                arrow(change.width),
                arrow(change.in_width),
                f"{change.parameters:,}",
            )
            for change in edit.changes
        ]
        parts.append(
            f"<h3>Edit {edit.index}: opens generation {edit.generation}, after"
            f" {growth.step:,} steps; {edit.parameters:,} parameters</h3>"
        )
        parts.append(_table(head, rows, numbers=(2, 3, 4)))
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int]) -> str:
    """An HTML table of cells that are HTML already; the columns in `numbers` are right-aligned."""

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = (' class="number"' if at in numbers else "" for at in range(len(cells)))
        pairs = zip(kinds, cells, strict=True)
        return "<tr>" + "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in pairs) + "</tr>"

    body = "\n".join(line("td", row) for row in rows)
    table = f"<table>\n<thead>{line('th', head)}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    return f'<div class="scroll">{table}</div>'

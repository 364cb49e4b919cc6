"""HTML pages that need no other file: their style, pictures and tables."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from splitgrow.checkpoints.asides import write_bytes
from splitgrow.cli.ways import KEEPING, LEARNING
from splitgrow.demos.results import Growth, Measurement, Recovery
from splitgrow.demos.tables import MEASURED, edit_rows, measured
from splitgrow.demos.themes import DARK, LIGHT, Theme

_TAG = re.compile("<[^>]*>")
_LONG = 40
"""The characters of a cell that would be squeezed to a high column on a narrow screen."""
_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2330; --soft: #5b6575;
  --line: #d5dae2; --wash: #f4f6f9; --good: #00694b; --bad: #b03a00;
  --shade: #0004; }
@media (prefers-color-scheme: dark) { :root { --paper: #171c26; --ink: #e4e8ef; --soft: #9aa5b5;
  --line: #3a4252; --wash: #1f2632; --good: #4cc9a0; --bad: #ff9a5c;
  --shade: #fff5; } }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 60rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
.soft, figcaption { color: var(--soft); }
.scroll { overflow-x: auto; background:
  linear-gradient(to right, var(--paper) 30%, transparent) left / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 30%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) left / 1rem 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) right / 1rem 100% no-repeat scroll; }
table { border-collapse: collapse; margin: .75rem 0; min-width: 60%; }
th { font-weight: 600; color: var(--soft); }
th, td { padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--line); text-align: left; }
.long { min-width: 16rem; }
tr.sum td { font-weight: 600; border-bottom-width: 2px; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font: .92em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.yes { color: var(--good); font-weight: 600; } .no { color: var(--bad); font-weight: 600; }
@media (max-width: 40rem) { body { padding: 1.25rem 1rem 3rem; } table { font-size: .9rem; }
  th, td { padding-right: .6rem; } h1 { font-size: 1.4rem; } }
figure { margin: 1rem 0; } img { width: 100%; height: auto; border-radius: 6px; }
"""


@dataclass(frozen=True)
class Drawing:
    """A picture of a report: how it is drawn in a theme, and its description in words."""

    draw: Callable[[Theme], bytes]
    alternative: str


def write_page(
    folder: Path, title: str, drawings: Mapping[str, Drawing], body: Callable[[dict[str, str]], str]
) -> Path:
    """Writes report.html and the drawings, as NAME.png, into `folder`.

    The pictures are also inside the HTML, for light and dark, wide and narrow screens; `body`
    makes the page of them, by their names.

    Returns:
        The path of the HTML file.

    Raises:
        CheckpointError: If something else than a file is there, or it cannot be written.
    """
    images = {}
    for name, drawing in drawings.items():
        light = drawing.draw(LIGHT)
        write_bytes(folder / f"{name}.png", light)
        images[name] = _picture(light, drawing)
    path = folder / "report.html"
    write_bytes(path, _page(title, body(images)).encode())
    return path


_SCREENS = {
    "(max-width: 40rem) and (prefers-color-scheme: dark)": replace(DARK, narrow=True),
    "(max-width: 40rem)": replace(LIGHT, narrow=True),
    "(prefers-color-scheme: dark)": DARK,
}
"""The screens for which a picture is drawn anew; the first that fits counts."""


def _picture(light: bytes, drawing: Drawing) -> str:
    sources = "".join(
        f'<source media="{media}" srcset="{_data_uri(drawing.draw(theme))}">'
        for media, theme in _SCREENS.items()
    )
    alternative = escape(drawing.alternative)
    return f'<picture>{sources}<img src="{_data_uri(light)}" alt="{alternative}"></picture>'


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _page(title: str, body: str) -> str:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def two_ways(shown: str) -> str:
    """The two ways to grow, with that one first which the page shows."""
    other = KEEPING if shown == LEARNING else LEARNING
    return (
        f'<p class="soft">This page shows one of two ways to grow. {escape(shown)} The other way: '
        f"{escape(other[0].lower() + other[1:])}</p>"
    )


def yes_or_no(text: str, *, good: bool) -> str:
    """A text in the colour of success or failure."""
    return f'<span class="{"yes" if good else "no"}">{escape(text)}</span>'


def measurements(rows: Iterable[Measurement], batch: int) -> str:
    """Networks at the end of a run."""
    return table(
        ("network", *MEASURED, f"ms per batch of {batch}"),
        map(measured, rows),
        numbers=(1, 2, 3, 4),
    )


def recoveries(rows: Iterable[Recovery]) -> str:
    """Whether the old networks are still there."""
    return table(
        ("generation", "test accuracy", "logits"),
        (
            (
                str(row.generation),
                f"{row.accuracy:.2%}",
                yes_or_no("the same, bit for bit", good=True)
                if row.exact
                else yes_or_no(f"differ by up to {row.largest_difference:.1e}", good=False),
            )
            for row in rows
        ),
        numbers=(0, 1),
    )


def edits(growths: Iterable[Growth]) -> str:
    """The effect of each edit on each layer."""
    head = ("layer", "type", "units", "inputs", "parameters added")
    parts = []
    for growth in growths:
        edit = growth.edit
        rows = (
            (f"<code>{escape(name)}</code>", *map(escape, cells))
            for name, *cells in edit_rows(edit)
        )
        parts.append(
            f"<h3>Edit {edit.index}: opens generation {edit.generation}, after"
            f" {growth.step:,} steps; {edit.parameters:,} parameters</h3>"
        )
        parts.append(table(head, rows, numbers=(2, 3, 4)))
    return "\n".join(parts)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int]) -> str:
    """An HTML table of cells that are HTML already; the columns in `numbers` are right-aligned."""

    def kind(at: int, cell: str) -> str:
        name = "number" if at in numbers else "long" if len(_TAG.sub("", cell)) > _LONG else ""
        return f' class="{name}"' if name else ""

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = (kind(at, cell) for at, cell in enumerate(cells))
        pairs = zip(kinds, cells, strict=True)
        return "<tr>" + "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in pairs) + "</tr>"

    body = "\n".join(line("td", row) for row in rows)
    table = f"<table>\n<thead>{line('th', head)}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    return f'<div class="scroll" tabindex="0">{table}</div>'

"""What was measured against what was promised, for the terminal and for a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.table import Table

from benchmarks.page import PAGE, put_between
from benchmarks.speed.results import FOLDER, Entry, Measurement, read
from benchmarks.speed.thresholds import Thresholds

_MARKERS = "<!-- speed table -->", "<!-- end -->"
_COLOURS: Mapping[str, str] = {
    "met": "green",
    "in slack": "yellow",
    "missed": "red",
    "BROKEN": "bold red",
    "": "",
}


def terminal_table(entries: Iterable[Entry], thresholds: Thresholds, *, quick: bool) -> Table:
    """All measurements, with a verdict each."""
    table = Table(title="Speed and memory" + ", quick: small networks, loose limits" * quick)
    table.add_column("claim", no_wrap=True)
    table.add_column("on")
    table.add_column("measured", justify="right")
    table.add_column("at most", justify="right")
    table.add_column("verdict")
    table.add_column("beside")
    for entry in entries:
        for turn, one in enumerate(entry.measurements):
            threshold = thresholds.of(entry.claim, one.case)
            verdict = threshold.verdict(one, quick=quick)
            limit = threshold.quick if quick else threshold.target
            table.add_row(
                "" if turn else entry.claim,
                one.case,
                one.text,
                _limit(one, limit),
                verdict,
                one.beside_text,
                style=_COLOURS[verdict] if verdict == "BROKEN" else None,
            )
        table.add_section()
    return table


def write_page(path: Path = PAGE, folder: Path = FOLDER) -> None:
    """Puts the tables of all results files between the markers of a page.

    Raises:
        ValueError: If the page has no markers.
    """
    thresholds = Thresholds.read()
    tables = [page_table(read(file), thresholds) for file in sorted(folder.glob("speed-*.json"))]
    put_between(path, *_MARKERS, "\n".join(tables))


def page_table(entries: Mapping[str, Entry], thresholds: Thresholds) -> str:
    """The results of one file, as Markdown."""
    lines = [f"\nOn {machine}:\n" for machine in dict.fromkeys(map(_machine, entries.values()))]
    lines += [
        "\n| claim | on | measured | target | verdict | beside | date, commit |\n",
        "|---|---|---|---|---|---|---|\n",
    ]
    for entry in entries.values():
        lines.append(f"| **{entry.says}**: `{entry.command}` | | | | | | {_when(entry)} |\n")
        for one in entry.measurements:
            threshold = thresholds.of(entry.claim, one.case)
            cells = (
                "",
                one.case,
                one.text,
                _limit(one, threshold.target),
                threshold.verdict(one, quick=False),
                one.beside_text,
                "",
            )
            lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def _limit(one: Measurement, limit: float | None) -> str:
    if limit is None:
        return ""
    return f"{limit:.2f}" if one.unit == "ratio" else f"{limit:g} {one.unit}"


def _machine(entry: Entry) -> str:
    on = entry.machine
    device = "" if on["device"] == "cpu" else f"{on['device']}, "
    return (
        f"{device}{on['cpu']}, {on['threads']} threads on {on['cores']} cores, torch {on['torch']}"
    )


def _when(entry: Entry) -> str:
    return f"{entry.date}, {entry.commit}" if entry.commit else entry.date

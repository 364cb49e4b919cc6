"""What was measured against what was promised, for the terminal and for a page."""

from __future__ import annotations

import json
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
    found = {device: read(folder / f"speed-{device}.json") for device in ("cpu", "cuda")}
    text = page_table(found["cpu"], thresholds, found["cuda"])
    notes = notes_of(folder / "speed-cuda.json")
    if notes.exists():
        left = "; ".join(f"{name}: {why}" for name, why in json.loads(notes.read_text()).items())
        text += f"\nNot measured on the GPU, or not to the end: {left or 'nothing'}.\n"
    put_between(path, *_MARKERS, text)


def notes_of(path: Path) -> Path:
    """The file beside a results file that tells what was not measured."""
    return path.with_name(f"notes-{path.name}")


def page_table(
    entries: Mapping[str, Entry], thresholds: Thresholds, on_gpu: Mapping[str, Entry] | None = None
) -> str:
    """The results of one file, as Markdown; those of a GPU in two columns of their own."""
    on_gpu = on_gpu or {}
    where = [*entries.values(), *on_gpu.values()]
    lines = [f"\nOn {machine}:\n" for machine in dict.fromkeys(map(_machine, where))]
    heads = ["claim", "on", "measured", "target", "verdict", "beside", "date, commit"]
    heads += ["on the GPU", "verdict there"] * bool(on_gpu)
    lines += [f"\n| {' | '.join(heads)} |\n", "|" + "---|" * len(heads) + "\n"]
    for claim in [*entries, *(name for name in on_gpu if name not in entries)]:
        sides = [side[claim].measurements if claim in side else [] for side in (entries, on_gpu)]
        entry = entries[claim] if claim in entries else on_gpu[claim]
        dates = [_when(side[claim]) if claim in side else "" for side in (entries, on_gpu)]
        head = f"| **{entry.says}**: `{entry.command}` | | | | | | {dates[0]} |"
        lines.append(head + f" {dates[1]} | |" * bool(on_gpu) + "\n")
        here, there = ({one.case: one for one in side} for side in sides)
        for case in dict.fromkeys((*here, *there)):
            threshold = thresholds.of(claim, case)
            own, other = here.get(case), there.get(case)
            cells = [
                "",
                case,
                own.text if own else "",
                _limit(own or there[case], threshold.target),
                threshold.verdict(own, quick=False) if own else "",
                own.beside_text if own else "",
                "",
            ]
            if on_gpu:
                cells += [f"{other.text}; {other.beside_text}" if other else ""]
                cells += [threshold.verdict(other, quick=False) if other else ""]
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

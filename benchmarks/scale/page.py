"""SCALE.md: exponents, tables and pictures, from the result files."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.scale import ranks, running
from benchmarks.scale.fits import Slope, slope, upper_half
from benchmarks.scale.models import SERIES, Series
from benchmarks.scale.steps import STEPS

mpl.use("Agg")
PAGE = Path(__file__).parents[1] / "SCALE.md"
PICTURES = Path(__file__).parents[1] / "results"
NEAR = 1.1
"""Up to this exponent, time or memory counts as near linear."""
LEAST = {"seconds": 0.05, "memory": 4.0}
"""Below, at the largest size, a number is too small for an exponent: in s, in MiB."""
_COLOURS = dict(zip(STEPS, [*mpl.color_sequences["tab10"]], strict=False))
_INTRODUCTION = """\
# From small to large

Written by `python -m benchmarks.scale --page` from `benchmarks/results/scale/`. To measure again,
about 20 minutes of one processor: `python -m benchmarks.scale --runs DIR`, then `--beyond` for
sizes outside of the fits, and `--part ranks`. Each model runs in a process of its own, on one
thread, after all steps were done once with a tiny model. Seconds are those of the processor, since
the machine had other load. Memory is the most on top of what was in use before the step; a step's
own results count, since they are kept.

The exponent is the slope of the logarithm of the number over the logarithm of the size, by least
squares over the upper half of the sizes, with its standard error. Near linear is at most 1.1.

| step | what is done |
|---|---|
"""
_MODELS = """
"Llama" is the model of transformers with a config of its own (eager attention, 16 tokens); its
shape of 32 layers of 4096 is that of Llama 2 7B. "CNN" has residual blocks of two convolutions with
batch norms, on maps of 8 by 8. A tensor without values lies on the meta device: a step that needs
values is refused there.
"""
_RANKS = """\
## Processes that share a model by FSDP2

A Llama of {layers} layers of width {width} ({parameters:.0f} million parameters), each block and
the whole in `fully_shard`, grown over gloo by processes on one machine. Seconds are the processor's
of the rank that took most, and those per rank; waiting for the others is not in them, except for
looks into the store. "Sent" is the least that the collectives make a rank send, as a mean over
ranks, from the sizes of their tensors; "words" are votes in the store, by the first rank.

"""


def write_page(folder: Path) -> Path:
    """Writes the page, and the pictures beside the other results.

    Args:
        folder: The folder with the results.

    Returns:
        The page.
    """
    records = running.read(folder / running.NAME)
    meanings = "".join(f"| {name} | {says} |\n" for name, says in STEPS.items())
    parts = [_INTRODUCTION + meanings + _MODELS]
    if records:
        parts.append(exponents_section(records))
    for name in SERIES:
        own = [record for record in records if record["series"] == name]
        if own:
            draw(name, own, PICTURES / f"scale-{name}.png")
            parts.append(series_section(name, own))
    told = broken_section(records)
    if told:
        parts.append(told)
    measured = ranks.read_ranks(folder / ranks.NAME)
    if measured:
        parts.append(ranks_section(measured))
    PAGE.write_text("\n".join(parts))
    return PAGE


def points_of(
    series: Series, records: Iterable[dict[str, Any]], step: str, key: str, *, beyond: bool = False
) -> list[tuple[float, float]]:
    """The size and the number of each measurement of a step that was done."""
    found = []
    for record in records:
        size = tuple(record["size"])
        if size not in series.sizes and not beyond:
            continue
        for one in record["steps"]:
            if one["step"] == step and not one["error"]:
                x = size[0] if series.axis == "layers" else one["parameters"]
                found.append((float(x), float(one[key])))
    return sorted(found)


def exponent_of(
    series: Series, records: Iterable[dict[str, Any]], step: str, key: str
) -> tuple[str, Slope | None]:
    """An exponent as text, and itself if there is one."""
    points = points_of(series, records, step, key)
    if not points:
        return "", None
    if points[-1][1] < LEAST[key]:
        return f"under {LEAST[key]:g} {'s' if key == 'seconds' else 'MiB'}", None
    found = slope(upper_half(points))
    return (found.text, found) if found else ("", None)


def exponents_section(records: Sequence[dict[str, Any]]) -> str:
    """All exponents, and those that are more than near linear."""
    names = [name for name in SERIES if any(r["series"] == name for r in records)]
    parts, steep = [], []
    for key, title in (("seconds", "Exponents of time"), ("memory", "Exponents of memory")):
        rows = []
        for step in STEPS:
            cells = [step]
            for name in names:
                own = [record for record in records if record["series"] == name]
                text, found = exponent_of(SERIES[name], own, step, key)
                if found and found.value - found.error > NEAR:
                    text = f"**{text}**"
                    steep.append(f"{step} in `{name}`, {key}: {found.text}")
                cells.append(text)
            rows.append(cells)
        heads = [f"`{name}`, over {SERIES[name].axis}" for name in names]
        parts.append(f"## {title}\n\n{_table(['step', *heads], rows)}")
    told = "; ".join(steep) if steep else "none"
    parts.append(f"More than near linear, by more than the error: {told}.\n")
    where = records[-1]["machine"]
    repeats = 1 + max(record["repeat"] for record in records)
    plural = "measurement" + "s" * (repeats > 1)
    parts.append(
        f"{repeats} {plural} of each size; torch {where['torch']}; "
        f"{where['date']}, {where['commit']}.\n"
    )
    return "\n".join(parts)


def series_section(name: str, records: Sequence[dict[str, Any]]) -> str:
    """The numbers of each size, and the picture."""
    series = SERIES[name]
    rows = []
    for size in dict.fromkeys(tuple(r["size"]) for r in sorted(records, key=lambda r: r["size"])):
        own = [record for record in records if tuple(record["size"]) == size]
        first = own[0]["steps"][0]
        cells = [f"{size[0]} of {size[1]}", f"{first['parameters'] / 1e6:,.1f} M"]
        cells += [f"{first['model']:,.0f} MiB"]
        for step in STEPS:
            found = [one for r in own for one in r["steps"] if one["step"] == step]
            done = [one for one in found if not one["error"]]
            if not done:
                cells.append("refused" if found else "")
                continue
            seconds = statistics.median(one["seconds"] for one in done)
            memory = statistics.median(one["memory"] for one in done)
            cells.append(f"{_short(seconds)} s, {_short(memory)} MiB")
        rows.append(cells)
    head = ["layers, width", "parameters", "model", *STEPS]
    return (
        f"## {series.family}: {series.says}\n\n![{series.says}](results/scale-{name}.png)\n\n"
        f"{_table(head, rows)}"
    )


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}" if number >= 0.01 else "0"


def broken_section(records: Iterable[dict[str, Any]]) -> str:
    """Where each step is refused, or comes to no end: the smallest model in which it does."""
    firsts: dict[tuple[str, str, str], tuple[Any, str]] = {}
    for record in sorted(records, key=lambda r: r["size"]):
        for one in record["steps"]:
            if one["error"]:
                key = (record["series"], one["step"], one["error"].partition(":")[0])
                firsts.setdefault(key, (record["size"], one["error"]))
    rows = [
        [name, step, f"{size[0]} of {size[1]}", error]
        for (name, step, _), (size, error) in firsts.items()
    ]
    if not rows:
        return ""
    head = ["series", "step", "from layers, width", "why"]
    return f"## What is not done\n\n{_table(head, rows)}"


def ranks_section(records: Sequence[dict[str, Any]]) -> str:
    """Time and bytes over the number of ranks."""
    rows = []
    worlds = sorted({record["world"] for record in records})
    for step, says in ranks.STEPS.items():
        for world in worlds:
            own = [record["ranks"] for record in records if record["world"] == world]
            found = [[one[step] for one in each if step in one] for each in own]
            if not all(found):
                continue
            most = statistics.median(max(one["seconds"] for one in each) for each in found)
            sent = statistics.median(max(one["sent"] for one in each) for each in found)
            words = statistics.median(each[0]["words"] for each in found)
            calls = statistics.median(each[0]["calls"] for each in found)
            rows.append(
                [says, str(world), _short(most), f"{sent / 2**20:.2f}", f"{words / 1024:.1f}"]
            )
            rows[-1].append(f"{calls:.0f}")
            says = ""
    layers, width = records[-1]["size"]
    parameters = layers * 12 * width**2 + 2 * 1024 * width
    text = _RANKS.format(layers=layers, width=width, parameters=parameters / 1e6)
    head = ["", "ranks", "seconds", "sent, MiB", "words, KiB", "collectives"]
    where = records[-1]["machine"]
    return f"{text}{_table(head, rows)}\n{where['date']}, {where['commit']}.\n"


def draw(name: str, records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws time and memory over the size, both as logarithms."""
    series = SERIES[name]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for axis, key, title in zip(
        axes, ("seconds", "memory"), ("seconds of the processor", "MiB"), strict=True
    ):
        for step in STEPS:
            points = points_of(series, records, step, key, beyond=True)
            sizes = sorted({x for x, _ in points})
            middle = [statistics.median(y for x, y in points if x == size) for size in sizes]
            if any(each > 0 for each in middle):
                axis.loglog(sizes, middle, marker=".", label=step, color=_COLOURS[step])
        axis.set_xlabel(series.axis)
        axis.set_ylabel(title)
    axes[0].legend(fontsize="x-small")
    figure.suptitle(f"{series.family}: {series.says}")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"

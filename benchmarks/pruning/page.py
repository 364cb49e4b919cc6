"""PRUNING.md: what was measured of shrinking, how, and what came out, from the result files."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.coverage.catalogues import LIBRARIES
from benchmarks.learning.tasks import TASKS
from benchmarks.pruning import accuracy, times
from benchmarks.pruning.records import OUTCOMES, path_of, read

PAGE = Path(__file__).parent.parent / "PRUNING.md"
NAMED = 12
"""How many models a reason names at most."""
BOTH = ("ours", "peer")

_INTRODUCTION = """\
# Shrinking beside torch-pruning

Written by `python -m benchmarks.pruning --page` from `benchmarks/results/pruning/`. To measure
again: `python -m benchmarks.pruning --library torchvision` (or `timm`, `transformers`), `--part
times`, `--part accuracy --data CIFAR10`. The rival is torch-pruning 1.6.1. All on one thread of a
CPU; seconds are those of the processor, since the machine had other load.
"""
_COVERAGE = """\
## Which models can be pruned

Each model is made with random values, in a process of its own, in double precision up to 30 million
parameters and in single above. All layers but those that make the model's outputs lose a quarter of
their units at once, whole units such as heads, and at least one. Models of transformers return no
cache (`use_cache=False`), since its keys and values would be outputs. Then:

* a forward pass gives outputs of the same shapes, and finite ones;
* a training step has a finite loss, and reaches all parameters that it reached before pruning;
* the pruned model comes back from a file and answers the same, bit for bit.

splitgrow gets the model and an input: `growable`, `shrink` with `check=True`, `save`, and `load`
into a fresh model. torch-pruning gets its pruner (`MetaPruner`, group magnitude, the same quarter)
and more: the layers that make the outputs, found by splitgrow; the heads of attentions
(`num_heads`) and joined gates (`out_channel_groups`), found by their names; `round_to` and
`hidden_dim` for torchvision's transformers; its script's ignored layers for detection; and, after
pruning, the attributes that its examples set. It is asked again with whole heads in place of parts
of each head, without a fused attention, with all heads left alone, and with the layers left alone
that splitgrow cannot shrink; the first way that works counts. Its model may come back from
`tp.load_state_dict` or, as its documentation advises, from a pickle of the whole model. It has 40
seconds for each way, or 10 in a model of under a million parameters.

splitgrow compares the outputs with those of the model while nothing reads the channels
that go. torch-pruning has no such check; here its outputs are compared likewise, where no norm
looks at several channels and no convolution is grouped.

| outcome | meaning |
|---|---|
"""
_TIMES = """\
## Time and memory

Each repeat runs in a process of its own, in turn. "Analysis" is `growable`, or the pruner's
constructor (for Llama `build_dependency`); "pruning" is `shrink`, or the pruner's `step` (for Llama
a group for each MLP and each attention, since the pruner ranks values and there are none). Memory
is the most on top of the model.
"""
_ACCURACY = """\
## Accuracy at half the multiply-adds

Networks and data of `benchmarks.learning` (CIFAR-10, a small ResNet and a small VGG). All runs but
"dense" end at half of the large network's multiply-adds. The budget of a run, in multiply-adds of
training, is the same for all: 60 % before pruning, 40 % after it. "Dense" trains the whole network
for all of it, "from the start" a network that was pruned at random before training. "Grown, then
group" grows from half the widths to the large network in the first 60 %. Units are compared over
all layers or in each, and two rates are tried after pruning; the best on validation data of one
seed counts. torch-pruning takes 400 small steps and stops at the target, as its own benchmark does.
Accuracies in percent on test data, means and standard deviations over seeds.
"""


def write_page(folder: Path) -> Path:
    """Writes the page.

    Args:
        folder: The folder with the results.

    Returns:
        The page.
    """
    meanings = "".join(f"| {name} | {meaning} |\n" for name, meaning in OUTCOMES.items())
    parts = [_INTRODUCTION, _COVERAGE + meanings]
    known = {library: read(path_of(library, folder)) for library in LIBRARIES}
    parts += [coverage_section(name, [*found.values()]) for name, found in known.items() if found]
    measured = times.read(folder / times.NAME)
    if measured:
        parts.append(f"{_TIMES}\n{times_table(measured)}")
    runs = {name: accuracy.read(folder / f"accuracy-{name}.jsonl") for name in accuracy.NAMES}
    if any(runs.values()):
        tables = [accuracy_section(name, own) for name, own in runs.items() if own]
        parts.append("\n".join([_ACCURACY, *tables]))
    PAGE.write_text("\n".join(parts))
    return PAGE


def coverage_section(library: str, records: Sequence[dict[str, Any]]) -> str:
    """What came out for one library."""
    where = [record["machine"] for record in records if "machine" in record]
    dates = sorted({each["date"] for each in where})
    head = f"### {library}\n\n{len(records)} models, torch {where[0]['torch']}, {dates[-1]}.\n\n"
    table = _table(("", "splitgrow", "torch-pruning"), coverage_rows(records))
    parts = [head + table]
    parts += [_failures(who, records) for who in BOTH]
    parts += [_fewer(records), _helped(records)]
    return "\n".join(filter(None, parts))


def coverage_rows(records: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """The rows of a library's table."""
    statuses = {who: Counter(record[who]["status"] for record in records) for who in BOTH}
    rows = [
        (name, *(str(statuses[who][name]) for who in BOTH))
        for name in OUTCOMES
        if any(statuses[who][name] for who in BOTH)
    ]
    able = [r for r in records if all(r[who]["status"] == "works" for who in BOTH)]
    every = sum(record["layers"] for record in records)
    rows.append(
        ("layers narrower, where it works", *(_share(_layers(w, records), every) for w in BOTH))
    )
    if able:
        on = f", {len(able)} models that work in both"
        layers = sum(record["layers"] for record in able)
        rows.append((f"layers narrower{on}", *(_share(_layers(w, able), layers) for w in BOTH)))
        whole = sum(record["parameters"] for record in able)
        left = (sum(record[who]["parameters"] for record in able) for who in BOTH)
        rows.append((f"parameters left{on}", *(f"{part / whole:.1%}" for part in left)))
        for step in ("analysis", "pruning"):
            own = [[record[who]["seconds"].get(step, 0.0) for record in able] for who in BOTH]
            rows.append(
                (f"{step}, median seconds{on}", *(f"{statistics.median(x):.2f}" for x in own))
            )
            rows.append((f"{step}, most seconds{on}", *(f"{max(x):.2f}" for x in own)))
    same = Counter(record["peer"]["equal"] for record in records if record["peer"]["equal"])
    told = ", ".join(f"{count}: {name}" for name, count in same.most_common())
    checked = sum(record["ours"]["status"] == "works" for record in records)
    rows.append(("computes as without those channels", f"{checked}: checked by `shrink`", told))
    return rows


def _layers(who: str, records: Sequence[dict[str, Any]]) -> int:
    return sum(record[who]["pruned"] for record in records if record[who]["status"] == "works")


def _failures(who: str, records: Sequence[dict[str, Any]]) -> str:
    """The reasons why models do not work, with their names."""
    found: dict[str, list[str]] = {}
    for record in records:
        own = record[who]
        if own["status"] not in {"works", "not run"}:
            found.setdefault(f"{own['status']}: {own['reason']}", []).append(record["name"])
    if not found:
        return ""
    name = {"ours": "splitgrow", "peer": "torch-pruning"}[who]
    order = sorted(found.items(), key=lambda item: -len(item[1]))
    return f"Not working in {name}:\n\n" + "".join(
        f"- {len(models)}: {reason[:200]}: {_named(models)}\n" for reason, models in order
    )


def _fewer(records: Sequence[dict[str, Any]]) -> str:
    """Where the rival makes more layers narrower."""
    found = [
        f"`{record['name']}` ({record['ours']['pruned']} and {record['peer']['pruned']} of "
        f"{record['layers']})"
        for record in records
        if record["peer"]["status"] == "works"
        and record["peer"]["pruned"] > record["ours"]["pruned"]
    ]
    if not found:
        return ""
    return f"torch-pruning makes more layers narrower in {len(found)}: {_listed(found)}.\n"


def _helped(records: Sequence[dict[str, Any]]) -> str:
    used = Counter(
        help_
        for record in records
        if record["peer"]["status"] == "works"
        for help_ in record["peer"]["help"].split(", ")
        if help_
    )
    told = ", ".join(f"{name} ({count})" for name, count in used.most_common())
    return f"torch-pruning's working models needed: {told}.\n" if told else ""


def _named(models: Sequence[str]) -> str:
    return _listed([f"`{name}`" for name in models])


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - NAMED} more" * (len(items) > NAMED)
    return ", ".join(items[:NAMED]) + more


def times_table(measured: Sequence[dict[str, Any]]) -> str:
    """Medians, with the least and the most."""
    rows = []
    for case, says in times.CASES.items():
        for way, name in times.WAYS.items():
            own = [each for each in measured if (each["case"], each["way"]) == (case, way)]
            done = [each for each in own if not each["error"]]
            if not own:
                continue
            if not done:
                rows.append((says, name, own[-1]["error"], "", "", ""))
                continue
            cells = [
                _spread([each[key] for each in done], digits)
                for key, digits in (("analysis", 2), ("pruning", 2), ("memory", 0))
            ]
            rows.append((says, name, *cells, f"{done[-1]['left']:,}"))
    head = ("model", "", "analysis, s", "pruning, s", "memory, MiB", "parameters left")
    where = measured[-1]["machine"]
    repeats = max(Counter((each["case"], each["way"]) for each in measured).values())
    origin = f"{repeats} repeats, torch {where['torch']}; {where['date']}, {where['commit']}."
    return f"{_table(head, rows)}\n{origin}\n"


def _spread(values: Sequence[float], digits: int) -> str:
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def accuracy_section(name: str, runs: Sequence[accuracy.Run]) -> str:
    """The table of a task."""
    rows = []
    for arm in accuracy.ARMS:
        own = [run for run in runs if run.job.arm == arm]
        if not own:
            continue
        tried = [run.job for run in own if run.job.seed == 0]
        best = accuracy.best_job(own, tried)
        chosen = [run for run in own if (run.job.scope, run.job.rate) == (best.scope, best.rate)]
        columns = ([getattr(run, key) for run in chosen] for key in ("trained", "before", "test"))
        share = statistics.mean(run.share for run in chosen)
        parameters = statistics.mean(run.parameters for run in chosen)
        cells = [_mean(column) for column in columns]
        if arm == "from the start":
            cells[:2] = ["", ""]
        rows.append(
            (arm, *cells, f"{share:.1%}", f"{parameters:,.0f}", best.scope, f"{best.rate:g}")
        )
    head = ("way", "before pruning", "without recovery", "in the end", "multiply-adds")
    head += ("parameters", "scope", "rate")
    budget = runs[-1].job.budget
    title = f"### {name}: {budget:,.0f} billion multiply-adds\n\n"
    return f"{title}{TASKS[name].says[0].upper()}{TASKS[name].says[1:]}.\n\n{_table(head, rows)}"


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.1%})" if whole else "0 of 0"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"

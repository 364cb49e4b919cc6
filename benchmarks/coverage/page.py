"""COVERAGE.md: what was checked, how, and what came out, from the JSON files alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.coverage.catalogues import LIBRARIES
from benchmarks.coverage.findings import STATUSES
from benchmarks.coverage.results import DONE, FOLDER, Results
from benchmarks.coverage.roles import RESULTS, ROLES
from benchmarks.coverage.summary import (
    Record,
    by_reason,
    families,
    is_analysed,
    peer_statuses,
    reasons_for_fixed_layers,
    reasons_of_role,
    remarks,
    share_of_layers,
    statuses,
    tagged,
    times,
    without_graph,
)

REASONS = 10
"""How many of the commonest reasons are shown."""

INTRODUCTION = """\
# Coverage

Which models of torchvision, timm and transformers splitgrow grows as they are. Written by
`python -m benchmarks.coverage --page` from `benchmarks/results/`; to check again:
`python -m benchmarks.coverage --library torchvision` (or `timm`, `transformers`).

## What is checked

Every model is made with random values for all weights and statistics, in a process of its own, on
one thread, with a time limit. It is analysed, and every layer that can grow grows once, in one edit
where the steps allow it. Then:

| law | what is compared | allowed |
|---|---|---|
| same | the outputs after growth with those before; if the output grew, its leading part | 1e-10 |
| changed | the outputs after the new units got random values: they must differ | over 1e-9 |
| past | `model.at(0)` with the outputs before growth | bit for bit |
| merge | the merged model with the grown one; it has its own class, nothing of splitgrow | 1e-10 |
| fuse | the fused model with the grown one | 1e-10 |

Differences are relative to the largest value of the same output.

Models under 30 million parameters are checked in double precision. Where a model itself turns to
single precision on its way, 1e-5 is allowed; where it runs in single precision only, that, or ten
times what rounding its weights does to its outputs, and never more than 1e-3. Larger models are
made without values: they are analysed, grown and merged, and only shapes are compared ("shapes
verified"). Of detection models the features of the backbone are compared, and the boxes where
their number is the same.

torch-pruning 1.6.1 is asked for less, on the same models and inputs: to build its dependency graph
and to give one group of channels to prune, of the first layer for which it finds one within 10
seconds, or half a second in a model of under a million parameters. The pruned model is not run.

| status | meaning |
|---|---|
"""

ROLES_INTRODUCTION = """\
One model of each family, with small random weights. The layers of each role grow by themselves, in
a copy. "MLP" are the hidden units of feed-forward parts, "heads" whole attention heads, "stream"
the width of the embedding or of the first patches, "vocabulary" the embedding's rows, and "head"
the rows of the last layer. The laws above are checked; for models that write text, also greedy
text of four tokens, with a cache and without, before and after growth and merging.

"""


def write_page(path: Path, folder: Path = FOLDER) -> None:
    """Writes the page about all libraries that have results."""
    known = [Results(library, folder) for library in LIBRARIES]
    path.write_text(page([results for results in known if results.models]))


def page(known: Sequence[Results]) -> str:
    """The whole page, as Markdown."""
    meanings = "".join(f"| {status} | {meaning} |\n" for status, meaning in STATUSES.items())
    return INTRODUCTION + meanings + "".join(section(results) for results in known)


def section(results: Results) -> str:
    """What was found of one library."""
    records, machine = list(results.models.values()), results.machine
    parts = [
        f"\n## {results.library} {results.version}\n",
        f"torch {machine['torch']}, splitgrow {machine['splitgrow']}, {machine['cores']} cores, "
        f"{machine['date']}.\n",
        _table(("", "splitgrow", "torch-pruning"), _rows(results, records)),
        _roles(records),
        _fixed_layers(records),
        _without_graph(records),
        _remarks(records),
        _not_verified(records),
    ]
    return "\n".join(part for part in parts if part)


def _rows(results: Results, records: list[Record]) -> list[tuple[str, str, str]]:
    counts, peer = statuses(records), peer_statuses(records)
    listed = results.totals.get("models", len(records))
    analysed = sum(map(is_analysed, records))
    theirs = {
        "refused": f"failed: {peer['failed']}",
        "unbuildable": f"not run: {peer['not run']}",
        "timeout": str(peer["timeout"]),
    }
    asked = len(records) - peer["not run"]
    rows = [
        ("models tried", f"{len(records)} of {listed}", str(asked)),
        ("analysed", str(analysed), str(peer["ok"])),
    ]
    rows += [(_title(status), str(n), theirs.get(status, "")) for status, n in counts.items()]
    can, there = share_of_layers(records)
    rows.append(("convolutions and linear layers that can grow", _share(can, there), ""))
    taken = times(records)
    if taken is not None:
        on = f" ({taken.models} models that both analysed)"
        rows.append(
            (f"analysis, median seconds{on}", f"{taken.median[0]:.2f}", f"{taken.median[1]:.2f}")
        )
        rows.append(("analysis, most seconds", f"{taken.worst[0]:.2f}", f"{taken.worst[1]:.2f}"))
    if "families" in results.totals:
        done, tried = families(records)
        total = results.totals["families"]
        rows.append(("families with a verified model", f"{done} of {total} ({tried} tried)", ""))
    for tag in results.totals.keys() - {"models", "families"}:
        rows.append(_tag_row(tag, results.totals[tag], tagged(records, tag)))
    return rows


def _tag_row(tag: str, total: int, chosen: list[Record]) -> tuple[str, str, str]:
    done = sum(record["status"] in DONE for record in chosen)
    theirs = peer_statuses(chosen)["ok"]
    return (
        f"{tag} verified, as shapes or in values",
        f"{done} of {total} ({len(chosen)} tried)",
        f"analysed: {theirs}",
    )


def _title(status: str) -> str:
    titles = {"verified": "grown and verified", "timeout": "timed out"}
    return titles.get(status, status)


def _fixed_layers(records: list[Record]) -> str:
    common = reasons_for_fixed_layers(records).most_common(REASONS)
    if not common:
        return ""
    rows = [(str(count), reason) for reason, count in common]
    return "\n### Why layers are fixed\n\n" + _table(("layers", "reason"), rows)


def _roles(records: list[Record]) -> str:
    """Which roles of the layers of each family grow, and why the others do not."""
    asked = [record for record in records if record.get("roles")]
    if not asked:
        return ""
    meanings = "".join(f"- **{result}**: {meaning}\n" for result, meaning in RESULTS.items())
    counts = [(role, *_of_role(asked, role)) for role in ROLES]
    rows = [
        (record["family"], *(_cell(record["roles"][role]) for role in ROLES))
        for record in sorted(asked, key=lambda record: str(record["family"]))
    ]
    reasons = [
        (str(count), role, reason)
        for role in ROLES
        for reason, count in reasons_of_role(asked, role).most_common(REASONS)
    ]
    return (
        f"\n### Roles\n\n{ROLES_INTRODUCTION}{meanings}\n"
        + _table(("role", "families that have it", *RESULTS), counts)
        + "\n"
        + _table(("families", "role", "commonest reason in a family"), reasons)
        + "\n"
        + _table(("family", *ROLES), rows)
    )


def _of_role(records: list[Record], role: str) -> tuple[str, ...]:
    results = [record["roles"][role]["result"] for record in records]
    there = len(results) - results.count("none")
    return (str(there), *(str(results.count(result)) for result in RESULTS))


def _cell(found: Record) -> str:
    """The result, with the number of layers where only some grow."""
    if found["result"] == "none":
        return ""
    part = f" ({found['can']} of {found['there']})" if found["result"] == "part" else ""
    return f"{found['result']}{part}"


def _without_graph(records: list[Record]) -> str:
    traced, others = without_graph(records)
    if not others:
        return ""
    rows = [(str(count), reason) for reason, count in others.most_common(REASONS)]
    text = (
        f"\n### Fused without a graph\n\nOf the verified models torch.fx traces {traced}. "
        "`splitgrow.fuse` leaves the others in their own class: they are merged, and batch norms "
        "are folded where forward's source allows it. torch.fx says of them:\n\n"
    )
    return text + _table(("models", "reason"), rows)


def _remarks(records: list[Record]) -> str:
    """Notes that qualify a result, with the models they are about."""
    lines = [f"- {note}: {_named(models)}" for note, models in remarks(records).items()]
    if not lines:
        return ""
    return "\n### Remarks\n\n" + _lines(lines)


def _not_verified(records: list[Record]) -> str:
    lines = []
    for status in STATUSES:
        if status in DONE:
            continue
        for reason, names in by_reason(records, status).items():
            lines.append(f"- **{status}**: {reason}: {_named(names)}")
    if not lines:
        return ""
    return "\n### Models that are not verified\n\n" + _lines(lines)


def _named(models: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in models)


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.1%})" if whole else "0 of 0"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for row in rows:
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |")
    return _lines(lines)


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)

"""What runs have come to, in one file, and the page that is made of it."""

from __future__ import annotations

import datetime
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.continual.jobs import Job
from benchmarks.continual.suites import PAIRS, SUITES, Suite
from splitgrow.demos.continual.comparison import duration
from splitgrow.demos.continual.outcome import forgetting_of, read_outcome

FOLDER = Path(__file__).parents[1] / "results"
RESULTS = FOLDER / "continual.json"
TUNING = FOLDER / "continual-tuning.json"
PAGE = Path(__file__).parents[1] / "CONTINUAL.md"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What came of a run.

    Attributes:
        suite: The suite.
        contestant: Who learned its tasks.
        seed: The seed.
        accuracy: The mean test accuracy of all tasks in the end.
        learned: The mean test accuracy of every task when it was learned.
        forgetting: By how much a task's accuracy fell from its best, on average.
        expansion: How many times the weights of one network there are; None if it is not known.
        megabytes: All tasks' networks, with masks; None if it is not known.
        seconds: How long learning took.
        unchanged: How many tasks' outputs stayed the same bit for bit; None if it is not known.
        tasks: How many tasks there are.
        smaller: The parameters of a task's plain network over the shared weights, over tasks.
        faster: Its time for a batch over that of the last task's whole network, in turn with it,
            over tasks; None if it is not known.
        difference: The largest difference of outputs once dead units are taken out.
        settings: What was chosen.
        notes: What is to be known of it.
        measured: The day on which the run ended; empty if it is not known.
    """

    suite: str
    contestant: str
    seed: int
    accuracy: float
    learned: float
    forgetting: float
    expansion: float | None
    megabytes: float | None
    seconds: float
    unchanged: int | None
    tasks: int
    smaller: float | None = None
    faster: float | None = None
    difference: float | None = None
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()
    measured: str = ""


def found_of(job: Job) -> Found:
    """What came of a finished run."""
    return _peer(job) if job.contestant.peer else _ours(job)


def _ours(job: Job) -> Found:
    run = read_outcome(job.results)
    whole = run.networks[-1].parameters
    return Found(
        suite=job.suite.name,
        contestant=job.contestant.name,
        seed=job.seed,
        accuracy=run.mean_accuracy,
        learned=run.learned_accuracy,
        forgetting=run.forgetting,
        expansion=run.expansion,
        megabytes=run.tasks[-1].bytes / 1e6,
        seconds=run.seconds,
        unchanged=sum(run.unchanged),
        tasks=len(run.tasks),
        smaller=statistics.fmean(n.compact / whole for n in run.networks),
        faster=statistics.median(
            n.compact_milliseconds / n.whole_milliseconds for n in run.networks
        ),
        difference=max(n.difference for n in run.networks),
        settings={**asdict(run.settings), "data": run.dataset, "versions": run.versions},
        measured=_day(job.results),
    )


def _peer(job: Job) -> Found:
    document = json.loads(job.results.read_text(encoding="utf-8"))
    matrix = document["accuracy"]
    last = matrix[-1]
    still = [drift == 0 for drift in document["drift"]]
    return Found(
        suite=job.suite.name,
        contestant=job.contestant.name,
        seed=job.seed,
        accuracy=statistics.fmean(last),
        learned=statistics.fmean(row[-1] for row in matrix),
        forgetting=forgetting_of(matrix),
        expansion=None,
        megabytes=4 * document["parameters"] / 1e6,
        seconds=sum(document["training_seconds"]),
        unchanged=sum(still),
        tasks=len(last),
        settings=document["settings"],
        notes=tuple(document["notes"]),
        measured=_day(job.results),
    )


def _day(path: Path) -> str:
    return datetime.date.fromtimestamp(path.stat().st_mtime).isoformat()


def write_results(path: Path, found: Sequence[Found], machine: dict[str, Any]) -> None:
    """Writes what was found."""
    document = {"machine": machine, "runs": [asdict(each) for each in found]}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read_results(path: Path) -> tuple[list[Found], dict[str, Any]]:
    """What was found, and where."""
    document = json.loads(path.read_text(encoding="utf-8"))
    runs = [Found(**{**each, "notes": tuple(each["notes"])}) for each in document["runs"]]
    return runs, document["machine"]


def page(
    found: Sequence[Found], machine: dict[str, Any], tuning: dict[str, Any] | None = None
) -> str:
    """The page, in Markdown.

    Args:
        found: What came of the runs.
        machine: Where they were made.
        tuning: What came of `benchmarks.continual.tuning`.
    """
    parts = [_INTRODUCTION.format(**machine)]
    for suite in SUITES:
        own = [each for each in found if each.suite == suite.name]
        if own:
            parts += [_suite(suite, own), _pairs(own), _networks(own)]
    if tuning:
        parts.append(_tuning(tuning))
    return "\n".join(part for part in parts if part)


_INTRODUCTION = """# Continual learning, measured

This page is made from `benchmarks/results/continual.json` by
`python -m benchmarks.continual --page`.
`python -m benchmarks.continual --runs DIR --data NAME=PATH ...` makes the runs;
`--avalanche PYTHON` names an environment with Avalanche (see
`benchmarks/continual/avalanche-requirements.txt`).

* {cpu}, {cores} cores, {threads} thread(s) a run; torch {torch}, Python {python}; {commit}.
* Cut to what two cores can do: small networks, 1,000 training images a task, ten epochs. Absolute
  accuracies are low for it; what counts is how methods compare.
* Task-incremental: every task has a head, and which task an image belongs to is told.
* All methods have the same network, the same training images (a tenth of each task's is set apart
  to decide on, also for methods that decide nothing), epochs, batch size, learning rate, momentum.
  PackNet trains half as many epochs again after pruning, ours and Avalanche's alike. CPG and Pack
  and Expand train a network alone for their goal, then to the goal, while they prune, and again
  after it: five times as many epochs and more, all of them in the time. "Separate, 5x epochs" tells
  what as much training comes to without sharing.
* The strengths of EWC and LwF, and the learning rates of networks without norms, were chosen for
  each data set, ours and Avalanche's alike, on training images that were held out; the table at the
  end has what was tried.
* Accuracies are of test images, in percent, means over seeds with the smallest and the largest.
  "Test" after a method's name: growth, pruning and choices were decided on the test images, as the
  published code of CPG has it; such accuracies flatter.
* Forgotten: by how much a task's accuracy fell from its best to the end, on average.
* Weights: how many times those of one network, norms, biases and heads apart. MB: all tasks'
  networks together, with 32 bits a number, and the bits of masks counted.
* Unchanged: tasks whose outputs at the end are those of when they were learned, bit for bit.
"""


def usual_day(found: Sequence[Found]) -> str:
    """The day on which most of some runs were made."""
    return Counter(each.measured for each in found).most_common(1)[0][0]


def seconds_of(runs: Sequence[Found], day: str) -> tuple[float, bool]:
    """How long runs took on a day, on average, and whether any was made on it.

    If none was, how long they took on others: a machine that many share is not as fast on every
    day.
    """
    then = [run.seconds for run in runs if run.measured == day]
    return statistics.fmean(then or [run.seconds for run in runs]), bool(then)


def picture_of(suite: Suite) -> str:
    """The name of the file of its picture."""
    return f"continual-{suite.name}.png"


OTHER_DAY = " †"
_OTHER_DAYS = (
    "Of {days}; all other times are of {usual}. The machine is not as fast on every day, so these "
    "are not to be compared with the others."
)


def _suite(suite: Suite, found: Sequence[Found]) -> str:
    lines = [
        f"## {suite.title}",
        "",
        f"Network: {suite.backbone}, width {suite.width:g}; {suite.limit:,} training images a "
        f"task, {suite.epochs} epochs, batches of {suite.batch_size}, learning rate "
        f"{suite.learning_rate:g}.",
        "",
        f"![Accuracy, size and time of every method](results/{picture_of(suite)})",
        "",
        "| method | accuracy | forgotten | weights | MB | unchanged | time | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = sorted(by_contestant(found).items(), key=lambda pair: -_mean(pair[1], "accuracy"))
    usual, others = usual_day(found), set()
    for name, runs in rows:
        weights = _mean_or_none(runs, "expansion")
        unchanged = sum(run.unchanged or 0 for run in runs)
        seconds, then = seconds_of(runs, usual)
        if not then:
            others |= {run.measured for run in runs}
        lines.append(
            f"| {name} | {_percent(runs, 'accuracy')} | {_percent(runs, 'forgetting')} "
            f"| {'' if weights is None else f'{weights:.2f}'} "
            f"| {_mean_or_none(runs, 'megabytes') or 0:.2f} "
            f"| {unchanged} of {sum(run.tasks for run in runs)} "
            f"| {duration(seconds)}{'' if then else OTHER_DAY} | {len(runs)} |"
        )
    if others:
        days = ", ".join(sorted(others))
        lines += ["", f"{OTHER_DAY.strip()} {_OTHER_DAYS.format(usual=usual, days=days)}"]
    return "\n".join([*lines, ""])


def _pairs(found: Sequence[Found]) -> str:
    groups = by_contestant(found)
    pairs = [(peer, ours) for peer, ours in PAIRS.items() if peer in groups and ours in groups]
    if not pairs:
        return ""
    lines = [
        "Against Avalanche 0.6, on the same tasks and with the same network and budget, over the "
        "seeds that both have; difference: of a seed's two runs; time: ours over theirs, training "
        "alone.",
        "",
        "| ours | accuracy | Avalanche's | accuracy | difference | time |",
        "|---|---|---|---|---|---|",
    ]
    for peer, ours in pairs:
        a, b = ({run.seed: run for run in groups[name]} for name in (ours, peer))
        both = sorted(a.keys() & b.keys())
        if both:
            apart = [100 * (a[seed].accuracy - b[seed].accuracy) for seed in both]
            mine, theirs = [a[seed] for seed in both], [b[seed] for seed in both]
            ratio = _mean(mine, "seconds") / _mean(theirs, "seconds")
            lines.append(
                f"| {ours} | {_percent(mine, 'accuracy')} | {peer} "
                f"| {_percent(theirs, 'accuracy')} | {_spread(apart, '+.1f')} | {ratio:.2f} |"
            )
    return "\n".join([*lines, ""])


def _networks(found: Sequence[Found]) -> str:
    groups = {
        name: runs for name, runs in by_contestant(found).items() if runs[0].smaller is not None
    }
    if not groups:
        return ""
    lines = [
        "A task's network made plain, dead units taken out, against the whole network of the last "
        "task: parameters, time for a batch (the two in turn; median over tasks), and the largest "
        "difference of outputs, relative to the largest.",
        "",
        "| method | parameters | time | difference |",
        "|---|---|---|---|",
    ]
    for name, runs in sorted(groups.items()):
        faster = _mean_or_none(runs, "faster")
        time = "" if faster is None else f"{faster:.2f}"
        lines.append(
            f"| {name} | {_mean(runs, 'smaller'):.2f} | {time} "
            f"| {max(run.difference or 0 for run in runs):.0e} |"
        )
    return "\n".join([*lines, ""])


def _tuning(tried: dict[str, Any]) -> str:
    lines = [
        "## What was chosen",
        "",
        "Mean accuracy of all tasks in the end on training images that were held out, over the "
        "seeds: `python -m benchmarks.continual.tuning`. What is in bold was taken; what failed "
        "for a seed could not be.",
        "",
        "| tasks | seeds | method | values and what they came to |",
        "|---|---|---|---|",
    ]
    for suite in SUITES:
        for name, values in tried.get(suite.name, {}).items():
            taken = {f"{value:g}" for value in suite.chosen.get(name, {}).values()}
            shown = [
                f"**{value}: {_tried(came)}**" if value in taken else f"{value}: {_tried(came)}"
                for value, came in values.items()
            ]
            lines.append(f"| {suite.name} | {suite.tried} | {name} | {', '.join(shown)} |")
    return "\n".join([*lines, ""])


def _tried(accuracy: float | None) -> str:
    return "failed" if accuracy is None else f"{100 * accuracy:.1f}"


def by_contestant(found: Sequence[Found]) -> dict[str, list[Found]]:
    """The runs of each contestant."""
    groups: dict[str, list[Found]] = {}
    for each in found:
        groups.setdefault(each.contestant, []).append(each)
    return groups


def _mean(runs: Sequence[Found], name: str) -> float:
    return statistics.fmean(float(getattr(run, name)) for run in runs)


def _mean_or_none(runs: Sequence[Found], name: str) -> float | None:
    known = [getattr(run, name) for run in runs if getattr(run, name) is not None]
    return statistics.fmean(known) if known else None


def _percent(runs: Sequence[Found], name: str) -> str:
    return _spread([100 * float(getattr(run, name)) for run in runs], ".1f")


def _spread(values: Sequence[float], form: str) -> str:
    """The mean, with the smallest and the largest if these look different."""
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return f"{statistics.fmean(values):{form}}" + (f" ({low} to {high})" if low != high else "")

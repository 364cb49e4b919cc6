"""What the runs beside gromo say, as a section of a page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.learning.rivals.grounds import GROUNDS, Ground
from benchmarks.learning.rivals.plan import (
    SEEDS,
    again,
    final_jobs,
    missing,
    trials,
)
from benchmarks.learning.rivals.records import Job, Outcome, Records, Run, Timing, read_all

_HEAD = """\
## Beside gromo

gromo 0.1.0 grows networks of its own containers. The same networks of torch.nn, with the same
weights at the start, are grown by splitgrow, in the same three growths, and trained with the same
loop and the same batches: AdamW, the same number of multiply-adds by torch's counter, one thread.
Each way of both libraries is tried once, on seed 0 with the middle batch and rate and
{share:.0%} of the budget; gromo's statistics are then free, splitgrow's count. The best way of
each library and the large network are then tuned alike, with three batches and three rates on
seed 0 by validation accuracy, and the best setting is run with three seeds. gromo says nothing of
the optimizer, and its tutorials make a new one at each growth. Here its moments are moved by hand,
by name. The three best ways of each library are also tried with a new one, and the better counts.
A second growth of gromo's VGG by statistics fails, since it then expects other shapes of
convolutions with biases; its container is made anew after each growth, with the same weights.
gromo's `FullConv2dGrowingModule` is left out: a growth of the ResNet takes it a minute.
"""


def rivals_section(runs: Path) -> str:
    """The section, from the files in a folder; nothing needs gromo."""
    found = read_all(runs)
    parts = [_HEAD.format(share=next(iter(trials(next(iter(GROUNDS.values()))))).share)]
    parts += [_ground(ground, found.runs) for ground in GROUNDS.values() if found.runs]
    parts += [_ways(found.runs)] if found.runs else []
    parts += [_times(found.times)] if found.times else []
    parts += [_cases(found.cases)] if found.cases else []
    return "\n".join(parts)


def _ground(ground: Ground, runs: Sequence[Run]) -> str:
    """The table of the runs with all seeds."""
    own = [run for run in runs if run.job.ground == ground.name]
    head = f"### {ground.name}: {ground.says}; {ground.budget:g} billion multiply-adds\n"
    if not _tuned(ground, own):
        return f"{head}\nNot measured yet.\n"
    rows = [
        "| | new units | batch, rate | test accuracy, % | seconds | growth: seconds | its "
        "statistics: billion multiply-adds | steps |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, job in final_jobs(ground, own).items():
        mine = [run for run in own if run.job in {_seeded(job, seed) for seed in SEEDS}]
        if mine:
            rows.append(_line(name, mine))
    told = summary(Records(list(own), [], []))[ground.name]
    said = [_verdict(told, "splitgrow", other) for other in ("gromo", "large from the start")]
    return head + "\n" + "\n".join(rows) + "\n\n" + " ".join(said) + "\n"


def _verdict(told: dict[str, tuple[float, float]], one: str, other: str) -> str:
    """A sentence on the difference of two arms."""
    difference = told[one][0] - told[other][0]
    noise = math.hypot(told[one][1], told[other][1])
    if math.isnan(noise) or abs(difference) <= noise:
        verdict = "no more than the spread of seeds"
    else:
        verdict = f"in favour of {one if difference > 0 else other}"
    return f"{one} and {other} differ by {difference:+.1f} points, {verdict} ({noise:.1f})."


def _tuned(ground: Ground, runs: Sequence[Run]) -> bool:
    """Whether all trials and settings were run, so that the best are known."""
    done = {run.job for run in runs}
    return bool(done) and all(job.share == 1 and job.seed for job in missing(ground, runs))


def _seeded(job: Job, seed: int) -> Job:
    return Job(**{**vars(job), "seed": seed})


def _line(name: str, runs: Sequence[Run]) -> str:
    job = runs[0].job
    way = job.way + (", fresh optimizer" if job.state == "fresh" else "")
    scores, seconds, growing, adds, steps = (
        _spread([float(getattr(run, field)) for run in runs], digits)
        for field, digits in (
            ("test", 1),
            ("seconds", 1),
            ("growing", 2),
            ("statistics", 0),
            ("steps", 0),
        )
    )
    cells = (name, way, f"{job.batch}, {job.rate:g}", scores, seconds, growing, adds, steps)
    return "| " + " | ".join(cells) + " |"


def _spread(values: Sequence[float], digits: int) -> str:
    told = f"{statistics.mean(values):.{digits}f}"
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{told} ± {spread:.{digits}f}" if round(spread, digits) else told


def _ways(runs: Sequence[Run]) -> str:
    """The table of each way's trial."""
    found: dict[tuple[str, str], dict[str, Run]] = {}
    for ground in GROUNDS.values():
        own = [run for run in runs if run.job.ground == ground.name]
        wanted = {*trials(ground), *(again(ground, own) if own else [])}
        for run in own:
            if run.job in wanted:
                fresh = ", fresh optimizer" if run.job.state == "fresh" else ""
                key = run.job.library, run.job.way + fresh
                found.setdefault(key, {})[ground.name] = run
    rows = [
        "### Each way once",
        "",
        "Validation accuracy in percent at the end, and in brackets its change at the three "
        "growths together.",
        "",
        "| library | new units | " + " | ".join(GROUNDS) + " |",
        "|---|---|" + "---|" * len(GROUNDS),
    ]
    for (library, way), each in found.items():
        cells = " | ".join(_trial(each.get(name)) for name in GROUNDS)
        rows.append(f"| {library} | {way} | {cells} |")
    return "\n".join(rows) + "\n"


def _trial(run: Run | None) -> str:
    if run is None:
        return ""
    if run.error:
        return "refused" if run.job.library == "splitgrow" else f"fails: {run.error[:60]}"
    change = sum(after - before for before, after in run.jumps)
    return f"{run.validation:.1f} ({change:+.1f})"


def _times(times: Sequence[Timing]) -> str:
    """The table of times of a growth."""
    rows = [
        "### The time of a growth",
        "",
        "Milliseconds of the processor, the median of the rounds and their range, one thread: all "
        "growing layers from the start's widths to the next ones, with the optimizer, and for ways "
        "from data with the statistics of one batch. splitgrow's are `expand` and `absorb` with "
        "`check=False`. The analysis by `growable` is once for a network.",
        "",
    ]
    names = [*dict.fromkeys((t.library, t.way) for t in times)]
    rows += ["| | " + " | ".join(GROUNDS) + " |", "|---|" + "---|" * len(GROUNDS)]
    named = {"step": "a training step before growth", "growable": "splitgrow, `growable`, once"}
    for library, way in names:
        own = {t.ground: t for t in times if (t.library, t.way) == (library, way)}
        cells = " | ".join(_milliseconds(own.get(name)) for name in GROUNDS)
        rows.append(f"| {named.get(way, f'{library}, {way}')} | {cells} |")
    batches = ", ".join(f"{t.ground} {t.batch}" for t in {t.ground: t for t in times}.values())
    return "\n".join(rows) + f"\n\nBatches: {batches}.\n"


def _milliseconds(timing: Timing | None) -> str:
    if timing is None:
        return ""
    found = [1000 * s for s in timing.seconds]
    return f"{statistics.median(found):,.0f} ({min(found):,.0f} to {max(found):,.0f})"


def _cases(cases: Sequence[Outcome]) -> str:
    """The table of cases, with the exceptions below."""
    ways = [*dict.fromkeys((o.library, o.way) for o in cases)]
    errors: dict[str, int] = {}
    rows = [
        "### What each library grows",
        "",
        "A small network of each kind trains a little and grows twice. A cell tells how the "
        "accuracy in percent moves at the two growths, and in brackets the largest change of "
        "a logit over the largest logit; a number in square brackets is an exception below.",
        "",
        "| network | " + " | ".join(f"{library}, {way}" for library, way in ways) + " |",
        "|---|" + "---|" * len(ways),
    ]
    for case in dict.fromkeys(o.case for o in cases):
        own = {(o.library, o.way): o for o in cases if o.case == case}
        cells = " | ".join(_outcome(own.get(key), errors) for key in ways)
        rows.append(f"| {case} | {cells} |")
    rows += ["", *(f"{number}. `{error}`" for error, number in errors.items()), ""]
    return "\n".join(rows)


def _outcome(outcome: Outcome | None, errors: dict[str, int]) -> str:
    if outcome is None:
        return ""
    rows = zip(outcome.before, outcome.after, outcome.moved, strict=False)
    parts = [f"{after - before:+.1f} ({moved:.1g})" for before, after, moved in rows]
    if outcome.error:
        count = errors.setdefault(outcome.error, len(errors) + 1)
        when = "2nd growth " if outcome.after else ""
        parts.append(f"{when}**fails** [{count}]")
    return ", ".join(parts)


def summary(found: Records) -> dict[str, dict[str, tuple[float, float]]]:
    """The mean and the spread of test accuracies of each arm, by networks."""
    told: dict[str, dict[str, tuple[float, float]]] = {}
    for ground in GROUNDS.values():
        own = [run for run in found.runs if run.job.ground == ground.name]
        if not _tuned(ground, own):
            continue
        for name, job in final_jobs(ground, own).items():
            scores = [r.test for r in own if r.job in {_seeded(job, s) for s in SEEDS}]
            spread = statistics.stdev(scores) if len(scores) > 1 else math.nan
            told.setdefault(ground.name, {})[name] = (statistics.mean(scores), spread)
    return told

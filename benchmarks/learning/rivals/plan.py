"""The runs to make: first every way once, then the best one's settings, then it with all seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from benchmarks.learning.rivals.gromo_growth import WAYS
from benchmarks.learning.rivals.grounds import Ground
from benchmarks.learning.rivals.records import Job, Run

INITIALIZERS = (
    "zero",
    "orthogonal",
    "copy_statistics",
    "pair",
    "net2net",
    "variance_transfer",
    "gradient",
    "gradmax",
    "tiny",
)
LEFT_OUT = ("full",)
"""Ways of gromo that have this in their names are left out: a growth takes up to a minute."""
SEEDS = (0, 1, 2)
TRIED = 0.35
"""The share of the budget that the trial of a way gets."""
DATA_FREE = "copy_uniform"
"""What gromo's create_layer_extensions does when it is told nothing."""


def missing(ground: Ground, runs: Sequence[Run]) -> Iterator[Job]:
    """The runs that are still to be made, in order; call it again once they are made."""
    done = {run.job for run in runs}
    for plan in (trials, again, tuning, finals):  # each builds on the results of those before it
        left = [job for job in dict.fromkeys(plan(ground, runs)) if job not in done]
        if left:
            yield from left
            return


def trials(ground: Ground, _: Sequence[Run] = ()) -> list[Job]:
    """Each way of both libraries once, with the middle settings.

    gromo's statistics are not counted, so that its ways are not held back by what they cost.
    """
    job = Job(ground.name, "splitgrow", "", ground.batches[1], ground.rates[1], 0, "kept")
    ours = [replace(job, way=way) for way in INITIALIZERS]
    ways = [way for way in WAYS if not any(part in way for part in LEFT_OUT)]
    theirs = [replace(job, library="gromo", way=way, state="moved", counted=False) for way in ways]
    return [replace(job, share=TRIED) for job in (*ours, *theirs)]


def again(ground: Ground, runs: Sequence[Run]) -> list[Job]:
    """The three best ways of each library with a fresh optimizer, as gromo's tutorials make one."""
    tried = set(trials(ground))
    jobs = []
    for library in ("splitgrow", "gromo"):
        own = [run for run in runs if run.job in tried and run.job.library == library]
        best = sorted(own, key=_score, reverse=True)[:3]
        jobs += [replace(run.job, state="fresh") for run in best]
    return jobs


def chosen(ground: Ground, runs: Sequence[Run], library: str) -> Job:
    """The way of a library that does best in its trials."""
    tried = {*trials(ground), *again(ground, runs)}
    own = [r for r in runs if r.job in tried and r.job.library == library]
    return max(own, key=_score).job


def _score(run: Run) -> float:
    return -1.0 if run.error else run.validation


def tuned(ground: Ground, job: Job) -> list[Job]:
    """A job with each batch and each rate."""
    pairs = product(ground.batches, ground.rates)
    return [replace(job, batch=batch, rate=rate) for batch, rate in pairs]


def contestants(ground: Ground, runs: Sequence[Run]) -> dict[str, Job]:
    """The large network and the best way of each library, with the whole budget."""
    large = Job(ground.name, "none", "", ground.batches[1], ground.rates[1], 0, "kept")
    ours, theirs = (
        replace(chosen(ground, runs, library), share=1.0) for library in ("splitgrow", "gromo")
    )
    return {"large from the start": large, "splitgrow": ours, "gromo": theirs}


def tuning(ground: Ground, runs: Sequence[Run]) -> list[Job]:
    """The contestants with each setting."""
    return [job for own in contestants(ground, runs).values() for job in tuned(ground, own)]


def best_setting(ground: Ground, runs: Sequence[Run], job: Job) -> Job:
    """The setting with which a contestant does best on the validation data."""
    own = {*tuned(ground, job)}
    return max((run for run in runs if run.job in own), key=_score).job


def final_jobs(ground: Ground, runs: Sequence[Run]) -> dict[str, Job]:
    """What is run with all seeds, by its name in the table.

    Beside the contestants that is the default of each library, and gromo's best way that measures
    data, all with the settings of their library's contestant.
    """
    best = {
        name: best_setting(ground, runs, job) for name, job in contestants(ground, runs).items()
    }
    ours, theirs = best["splitgrow"], best["gromo"]
    tried = set(trials(ground))
    measured = [r for r in runs if r.job in tried and _measures(r.job)]
    way = max(measured, key=_score).job.way
    return {
        **best,
        "splitgrow, default": replace(ours, way="zero"),
        "gromo, default": replace(theirs, way=DATA_FREE),
        "gromo, from data": replace(theirs, way=way, counted=True),
        "gromo, from data, not counted": replace(theirs, way=way),
    }


def _measures(job: Job) -> bool:
    return job.library == "gromo" and WAYS[job.way].measured


def finals(ground: Ground, runs: Sequence[Run]) -> list[Job]:
    """What is run with all seeds."""
    jobs = final_jobs(ground, runs).values()
    return [replace(job, seed=seed) for job in jobs for seed in SEEDS]

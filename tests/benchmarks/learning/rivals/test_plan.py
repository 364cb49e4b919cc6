"""Beside gromo each way is tried once, the best are tuned, and then run with all seeds."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.learning.rivals.gromo_growth import WAYS
from benchmarks.learning.rivals.grounds import GROUNDS
from benchmarks.learning.rivals.plan import (
    again,
    best_setting,
    chosen,
    contestants,
    final_jobs,
    missing,
    trials,
)
from benchmarks.learning.rivals.records import Job, Run

GROUND = GROUNDS["mlp"]


def made(job: Job) -> Run:
    """A run whose score is best for "pair", "pairing", fresh optimizers, and larger settings."""
    score = 50.0 + job.batch / 100 + job.rate + 2 * (job.way in {"pair", "pairing"})
    return Run(job, 10, 2.0, 0.1, 0.0, score + (job.state == "fresh"), score - job.seed, ())


def all_runs() -> list[Run]:
    runs: list[Run] = []
    while left := [*missing(GROUND, runs)]:
        runs += [made(job) for job in left]
    return runs


def test_the_best_way_of_each_library_is_tuned_and_then_run_with_all_seeds() -> None:
    runs = all_runs()
    assert len({run.job for run in runs}) == len(runs)
    assert chosen(GROUND, runs, "splitgrow") == replace(
        made(trials(GROUND)[0]).job, way="pair", state="fresh"
    )
    assert chosen(GROUND, runs, "gromo").way == "pairing"
    assert len(again(GROUND, runs)) == 6
    own = contestants(GROUND, runs)
    assert [*own] == ["large from the start", "splitgrow", "gromo"]
    best = best_setting(GROUND, runs, own["gromo"])
    assert (best.batch, best.rate) == (128, 4e-3)
    for name, job in final_jobs(GROUND, runs).items():
        seeds = {run.job.seed for run in runs if replace(run.job, seed=0) == job}
        assert seeds == {0, 1, 2}, name


def test_each_way_of_gromo_is_tried_but_for_those_that_take_minutes() -> None:
    tried = {job.way for job in trials(GROUND) if job.library == "gromo"}
    assert {*WAYS} - tried == {"TINY, full", "GradMax, full"}


def test_gromo_need_not_pay_for_statistics_in_its_trials_and_splitgrow_does() -> None:
    assert {job.counted for job in trials(GROUND) if job.library == "gromo"} == {False}
    assert {job.counted for job in trials(GROUND) if job.library == "splitgrow"} == {True}


def test_a_run_that_failed_is_not_chosen() -> None:
    runs = [made(job) for job in trials(GROUND)]
    failed = [replace(r, error="no") if r.job.way == "pairing" else r for r in runs]
    assert chosen(GROUND, failed, "gromo").way != "pairing"
    assert chosen(GROUND, runs, "gromo").way == "pairing", "the control"

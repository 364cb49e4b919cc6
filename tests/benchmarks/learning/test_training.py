"""The benchmark of growing to learn runs, resumes, and chooses settings by validation."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from benchmarks.learning.initializers import initializers_table
from benchmarks.learning.networks import Gpt, Vgg
from benchmarks.learning.plan import best_settings, missing, missing_initializers, read, write
from benchmarks.learning.results import lines, table, verdict
from benchmarks.learning.tasks import Data, Task
from benchmarks.learning.training import ARMS, INITIALIZED, Job, Run, Training
from benchmarks.learning.where import Trial, spearman, tried


def data(_: Path) -> Data:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(96, 3, 8, 8, generator=generator), torch.arange(96) % 4
    part = x[:64] + y[:64, None, None, None], y[:64]
    return Data(part, (x[64:80], y[64:80]), (x[80:], y[80:]))


TASK = Task(
    "tiny",
    "a tiny network on noise",
    lambda: Vgg((4, 4), 4),
    lambda: Vgg((8, 8), 4),
    data,
    (0.02, 0.1),
    (4, 8, 16),
    (1e-3, 1e-2, 1e-1),
)


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "small"])
def test_an_arm_uses_its_share_of_the_budget(arm: str) -> None:
    job = Job("tiny", arm, 0.02, 8, 1e-2, 0)
    run = Training(job, TASK, ARMS[arm], Path()).run()
    assert run.curve[-1][0] == pytest.approx(0.02 * ARMS[arm].share, rel=0.1)
    assert len(run.jumps) == len(ARMS[arm].grown_at)
    for before, after in run.jumps if not ARMS[arm].freeze else ():
        assert before == after, "growth changes no score"
    assert 0 <= run.test <= 100


def test_runs_are_kept_and_only_those_missing_are_made(tmp_path: Path) -> None:
    jobs = [*missing(TASK, 0.02, [], 2)]
    assert len(jobs) == 27
    path = tmp_path / "runs.jsonl"
    made = [
        Run(job, 1, 1.0, 0.0, 50.0, ((0.02, 1.0, job.rate * job.batch),), ((1.0, 1.0),))
        for job in jobs
    ]
    for run in made:
        write(path, run)
    assert read(path) == made
    assert best_settings(TASK, 0.02, made, "large") == (16, 1e-1)
    finals = [*missing(TASK, 0.02, made, 2)]
    assert {job.arm for job in finals} == {*ARMS}
    assert all((job.batch, job.rate) == (16, 1e-1) for job in finals)
    lower = dataclasses.replace(TASK, error=True)
    assert best_settings(lower, 0.02, made, "large") == (4, 1e-3)


def test_the_table_tells_when_an_arm_first_is_as_good_as_the_large_one() -> None:
    curve = ((0.01, 1.0, 60.0), (0.02, 2.0, 80.0))
    runs = [
        Run(Job("tiny", "large", 0.02, 4, 1e-3, 0), 2, 2.0, 0.0, 79.0, curve),
        Run(Job("tiny", "grown, half", 0.02, 4, 1e-3, 0), 1, 1.0, 0.0, 81.0, ((0.01, 1.0, 80.0),)),
        Run(Job("tiny", "small, half", 0.02, 4, 1e-3, 0), 1, 3.0, 0.0, 50.0, ((0.01, 3.0, 51.0),)),
    ]
    found = {line.arm: line for line in lines(TASK, 0.02, runs)}
    assert found["grown, half"].reached == ((0.5, 0.5),)
    text = table(TASK, [*found.values()])
    assert "| grown, half | 4, 0.001 | 81.0 | 0.5 | 0.50 | 0.50, 0.50 |" in text
    assert "| small, half | 4, 0.001 | 50.0 | 0.5 | 1.50 | never |" in text


def test_ranks_are_correlated_as_spearman_does() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(0.948683, abs=1e-5)
    assert math.isnan(spearman([0, 0, 0], [1, 2, 3])), "all layers are equal to the score"
    trial = Trial("tiny", 0, {"dead": {"a": 0.5, "b": 0.1}}, {"a": 0.0, "b": 1.0})
    assert trial.correlation("dead") == pytest.approx(1), "few dead units want most to grow"


def test_each_layer_is_grown_alone_from_the_same_state() -> None:
    trial = tried(TASK, data(Path()), 0, (2, 2))
    assert [*trial.gains] == [*trial.scores["gain"]]
    assert len(trial.gains) == 2


def test_a_network_of_more_blocks_is_reached_by_copies() -> None:
    draw = torch.Generator().manual_seed(0)
    text = torch.randint(0, 256, (400,), generator=draw)
    held = text[:160].view(10, 16), text[1:161].view(10, 16)
    task = dataclasses.replace(
        TASK,
        small=lambda: Gpt((16, 1, 16, 1), 64),
        large=lambda: Gpt((32, 2, 64, 2), 64),
        data=lambda _: Data((text, text), held, held, text=True),
        copied=("blocks.0",),
        error=True,
    )
    arm = ARMS["grown, half"]
    grown = Training(Job("tiny", arm.name, 1.0, 2, 1e-3, 0), task, arm, Path()).run()
    large = Training(Job("tiny", "large", 1.0, 2, 1e-3, 0), task, ARMS["large"], Path()).run()
    assert len(grown.jumps) == 3
    for before, after in grown.jumps:
        assert after == pytest.approx(before, rel=1e-5)
    assert grown.steps > large.steps / 2, "its first steps are those of a small network"


def test_each_initializer_is_run_with_the_chosen_settings_and_refusals_are_told() -> None:
    made = [
        Run(job, 1, 1.0, 0.0, 50.0, ((0.02, 1.0, job.rate * job.batch),), ((1.0, 1.0),))
        for job in missing(TASK, 0.02, [], 1)
    ]
    assert initializers_table(TASK, 0.02, made) == ""
    jobs = [*missing_initializers(TASK, 0.02, made, 2)]
    assert [job.arm for job in jobs] == [*INITIALIZED] * 2
    refused = Run(jobs[0], 1, 0.0, 0.0, float("nan"), (), refused="no helper there")
    run = Run(jobs[1], 1, 2.0, 0.5, 60.0, ((0.02, 1.0, 1.6),), ((50.0, 49.0), (51.0, 51.0)))
    names = [INITIALIZED[job.arm].initializer for job in jobs]
    text = initializers_table(TASK, 0.02, [*made, refused, run])
    assert f"| {names[0]} | 1 | refused: no helper there | |" in text
    assert f"| {names[1]} | 1 | 60.0 | -1.0, +0.0 | 25.0% |" in text


@pytest.mark.parametrize(
    ("grown", "small", "says"),
    [
        ((90.0, 91.0), (70.0, 71.0), ("the grown one is better", "growing is better")),
        ((60.0, 61.0), (70.0, 71.0), ("does not reach it", "better to stay small")),
        ((79.0, 81.0), (80.0, 82.0), ("spreads overlap", "do not differ by more")),
    ],
)
def test_the_verdict_compares_with_the_large_and_the_small_network(
    grown: tuple[float, ...], small: tuple[float, ...], says: tuple[str, str]
) -> None:
    scores = {"large": (80.0, 80.5), "grown, half": grown, "small, half": small, "small": small}
    runs = [
        Run(Job("tiny", arm, 0.02, 4, 1e-3, seed), 1, 1.0, 0.0, score, ((0.02, 1.0, score),))
        for arm, own in scores.items()
        for seed, score in enumerate(own)
    ]
    told = verdict(TASK, lines(TASK, 0.02, runs))
    assert all(part in told for part in says), told

"""The section beside gromo is made from the files alone, whole or compact."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.learning.rivals.grounds import GROUNDS
from benchmarks.learning.rivals.page import rivals_section, summary
from benchmarks.learning.rivals.plan import missing
from benchmarks.learning.rivals.records import (
    COMPACT,
    Job,
    Outcome,
    Run,
    Timing,
    add,
    compact,
    read,
    read_all,
)


def made(job: Job) -> Run:
    score = 60.0 + job.seed if job.library == "gromo" else 70.0
    return Run(job, 10, 2.0, 0.123456, 7.0, score, score, ((50.0, 45.0), (55.0, 54.0)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    runs: list[Run] = []
    while left := [*missing(GROUNDS["mlp"], runs)]:
        runs += [made(job) for job in left]
    add(tmp_path / "mlp.jsonl", runs)
    add(tmp_path / "times.jsonl", [Timing("mlp", "gromo", "TINY", 64, (0.1, 0.3, 0.2))])
    outcomes = [
        Outcome("a block", "splitgrow", "zero", (30.0, 32.0), (30.0, 32.0), (0.0, 1e-8)),
        Outcome("a block", "gromo", "TINY", (30.0,), (25.0,), (0.5,), "E: no (x.py:1)"),
    ]
    add(tmp_path / "cases.jsonl", outcomes)
    return tmp_path


def test_the_tables_tell_scores_times_and_exceptions(folder: Path) -> None:
    text = rivals_section(folder)
    assert "| gromo | copy_uniform | 32, 0.001 | 61.0 ± 1.0 | 2.0 | 0.12 | 7 | 10 |" in text
    assert "| gromo | TINY | 60.0 (-6.0) |  |  |" in text
    assert "| gromo, TINY | 200 (100 to 300) |  |  |" in text
    assert "| a block | +0.0 (0), +0.0 (1e-08) | -5.0 (0.5), 2nd growth **fails** [1] |" in text
    assert "1. `E: no (x.py:1)`" in text
    assert "Not measured yet." in text, "the networks without runs"
    assert summary(read_all(folder))["mlp"]["gromo"] == (61.0, 1.0)


def test_a_compact_copy_gives_the_same_section(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    compact(folder, other / COMPACT)
    assert rivals_section(other) == rivals_section(folder)


def test_runs_are_read_as_they_were_written(folder: Path) -> None:
    runs = read(folder / "mlp.jsonl")
    lines = (folder / "mlp.jsonl").read_text().splitlines()
    assert [json.dumps(asdict(run)) for run in runs] == lines
    assert read(folder / "none.jsonl") == []

"""`splitgrow continual` and `splitgrow compare`, run as a user runs them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import assert_readable, needs_browser
from click.testing import CliRunner, Result
from killing import steps_and_seconds

from splitgrow import continual
from splitgrow.cli.continual_settings import BACKBONE_NAMES, METHOD_NAMES, SPLITS, RunSettings
from splitgrow.cli.main import main
from splitgrow.demos.backbones import BACKBONES as MADE
from splitgrow.demos.continual.comparison import Spread, duration, percent, rows
from splitgrow.demos.continual.outcome import (
    OutcomeError,
    RunOutcome,
    TaskOutcome,
    read_outcome,
    write_outcome,
)
from splitgrow.demos.continual.running import ContinualRun
from splitgrow.demos.tasksets import TASK_KINDS

QUICK = ["--epochs", "1", "--width", "0.1", "--limit", "60", "--tasks", "2", "--backbone", "cnn"]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments])


def run(out: Path, *more: str, method: str = "packnet") -> Result:
    return invoke("continual", "--method", method, "--out", str(out), *QUICK, *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "packnet"
    result = run(out)
    assert result.exit_code == 0, result.output
    return out


def test_a_run_leaves_results_pictures_and_one_page(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "growth.png",
        "learner.safetensors",
        "matrix.png",
        "report.html",
        "results.json",
    }
    outcome = read_outcome(finished)
    assert outcome.finished
    assert len(outcome.tasks) == len(outcome.accuracy) == len(outcome.networks) == 2
    assert [len(row) for row in outcome.accuracy] == [1, 2]
    assert outcome.unchanged == (True, True)
    assert outcome.forgetting == 0
    page = (finished / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "bit for bit" in page
    for task in outcome.tasks:
        assert task.name in page


def test_the_tasks_networks_are_held_against_the_whole_one(finished: Path) -> None:
    first, last = read_outcome(finished).networks
    for each in (first, last):
        assert each.compact <= each.parameters <= last.parameters
        assert each.difference < 1e-5
        assert min(each.whole_milliseconds, each.milliseconds, each.compact_milliseconds) > 0


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method_runs_and_says_what_it_came_to(method: str, tmp_path: Path) -> None:
    result = run(tmp_path / "out", method=method)
    assert result.exit_code == 0, result.output
    assert f"\n{method}: " in result.stdout
    assert result.stdout.endswith(f"Report: {tmp_path / 'out' / 'report.html'}\n")
    again = run(tmp_path / "out", "--quiet", method=method)
    assert (again.exit_code, again.stderr) == (0, "")
    assert again.stdout == f"{tmp_path / 'out' / 'report.html'}\n"


def test_a_finished_run_is_shown_again_and_not_made_again(finished: Path) -> None:
    before = (finished / "learner.safetensors").stat().st_mtime_ns
    result = run(finished)
    assert result.exit_code == 0, result.output
    assert "2 of 2 tasks are learned already" in result.output
    assert (finished / "learner.safetensors").stat().st_mtime_ns == before


def test_a_directory_of_another_run_is_refused(finished: Path) -> None:
    result = run(finished, "--seed", "3")
    assert result.exit_code == 1
    assert "holds a run with other settings: seed 0, not 3" in result.output


def results_without_times(path: Path) -> Any:
    document = json.loads((path / "results.json").read_text())
    for task in document["tasks"]:
        del task["seconds"]
    for network in document["networks"]:
        for times in ("whole_milliseconds", "milliseconds", "compact_milliseconds"):
            del network[times]
    return document


KILLED = """
import sys
sys.path.insert(0, "tests")
from killing import Steps
from splitgrow.cli.main import main
with Steps() as steps:
    main(sys.argv[1:], standalone_mode=False)
print(steps.taken)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_three_times_comes_to_the_same_results(tmp_path: Path) -> None:
    def ended(out: Path, **environment: str) -> tuple[int, str]:
        """The exit code and the last line printed."""
        process = subprocess.run(
            [
                sys.executable, "-c", KILLED, "continual", "--method", "cpg", "--quiet",
                "--out", str(out), *QUICK, "--tasks", "5", "--epochs", "2", "-o", "growth=0.5",
            ],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ".", **environment},
            check=False,
        )  # fmt: skip
        return process.returncode, process.stdout.strip().split("\n")[-1]

    whole = ended(tmp_path / "whole")
    steps, draw = int(whole[1]), random.Random(0)
    for _ in range(3):
        moment = steps_and_seconds(draw.randint(1, steps // 5), draw.uniform(0, 0.1))
        assert ended(tmp_path / "killed", **moment) == (-signal.SIGKILL, "")
    code, rest = ended(tmp_path / "killed")
    assert code == 0
    assert int(rest) < steps  # it went on, and did not begin anew
    found = results_without_times(tmp_path / "killed")
    assert found == results_without_times(tmp_path / "whole")


def outcome(seed: int = 0, accuracy: float = 0.9, **settings: Any) -> RunOutcome:
    task = TaskOutcome("a", 2, 0.9, 10.0, 50, 5, 8, 150, 2_000_000, {})
    return RunOutcome(
        settings=RunSettings(method="cpg", seed=seed, **settings),
        dataset="digits",
        images=(10, 5),
        finished=True,
        tasks=(task, replace(task, name="b")),
        accuracy=((1.0,), (0.5, accuracy)),
        first_weights=100,
        unchanged=(True, True),
        versions={},
    )


def test_an_outcome_is_the_same_once_it_was_written(tmp_path: Path) -> None:
    before = outcome(options={"largest": 1.5})
    write_outcome(tmp_path / "results.json", before)
    assert read_outcome(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_measures_are_what_they_are_called() -> None:
    one = outcome()
    assert one.mean_accuracy == pytest.approx(0.7)
    assert one.learned_accuracy == pytest.approx(0.95)
    assert one.forgetting == pytest.approx(0.5)
    assert one.expansion == 1.5
    assert one.seconds == 20
    assert replace(one, accuracy=((0.4,), (0.5, 0.9))).forgetting == 0  # it rose


def test_runs_that_differ_in_their_seed_alone_are_one_row() -> None:
    runs = [outcome(0, 0.9), outcome(1, 0.7), outcome(0, 0.8, width=2.0)]
    first, second = rows(runs)
    assert (first.runs, second.runs) == (2, 1) or (first.runs, second.runs) == (1, 2)
    both = first if first.runs == 2 else second
    assert both.accuracy == Spread(pytest.approx(0.65), pytest.approx(0.6), pytest.approx(0.7))
    assert percent(both.accuracy) == "65.0 (60.0 to 70.0)"
    assert percent(Spread(0.5, 0.5, 0.5)) == "50.0"
    assert [duration(s) for s in (3.21, 300, 9000)] == ["3.2 s", "5.0 min", "2.5 h"]


def test_runs_are_compared_in_a_table_and_as_json(finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_outcome(other / "results.json", outcome())
    result = invoke("compare", str(finished), str(other))
    assert result.exit_code == 0, result.output
    assert "packnet" in result.output
    assert "cpg" in result.output
    found = json.loads(invoke("compare", str(finished), "--json").stdout)
    assert found["version"] == 1
    assert found["rows"][0]["settings"]["method"] == "packnet"
    assert found["rows"][0]["runs"] == 1
    both = (str(finished), str(other))
    assert invoke("compare", *both, "--quiet", "--filter", "pack*").output == "packnet\n"
    assert "did you mean 'packnet'" in invoke("compare", *both, "--filter", "packnt").stderr


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cannot be read"),
        ("{}", "holds no run"),
        ('{"version": 1}', "holds no run"),
        ('{"version": 2}', "holds no run"),
        ('{"version": 3}', "holds no run"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_files_that_hold_no_run_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(OutcomeError, match=reason):
        read_outcome(tmp_path)
    result = invoke("compare", str(tmp_path))
    assert result.exit_code == 1
    assert reason in result.output


def test_a_run_that_is_not_finished_is_not_compared(tmp_path: Path) -> None:
    write_outcome(tmp_path / "results.json", replace(outcome(), finished=False))
    result = invoke("compare", str(tmp_path))
    assert result.exit_code == 1
    assert "is not finished" in result.output
    assert "no such file" in invoke("compare", str(tmp_path / "none")).output


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--option", "goal"], "NAME=VALUE"),
        (["--option", "goal=0.5", "--option", "goal=0.6"], "given twice"),
        (["--option", "colour=1"], "colour"),
        (["--option", "prune=3"], "prune must lie"),
        (["--backbone", "nowhere:make", "--width", "1"], "nowhere"),
        (["--backbone", "nowhere:make"], "--width is for cnn"),
        (["--backbone", "vgg", "--width", "1"], "did you mean 'vgg16_bn'"),
        (["--augment", "flip"], "did you mean 'flips'"),
        (["--checkpoint", "missing.pt"], "cannot read missing.pt"),
        (["--tasks", "11"], "classes"),
        (["--size", "8"], "needs --data"),
        (["--data", "missing.npz"], "no such file"),
        (["--split", "superclasses"], "superclasses"),
        (["--learning-rate", "nan"], "not a number"),
        (["--weight-decay", "2"], "not in the range"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_line(
    tmp_path: Path, arguments: list[str], reason: str
) -> None:
    result = run(tmp_path / "out", *arguments)
    assert result.exit_code in {1, 2}, result.output
    assert reason in result.output
    assert "Traceback" not in result.output


def test_ones_own_model_is_learned_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    given = ("--backbone", "mynets.py:make", "--width", "1")
    result = run(tmp_path / "out", *given, method="cpg")
    assert result.exit_code == 0, result.output


def test_the_lists_that_need_no_torch_are_those_of_the_library() -> None:
    assert {*METHOD_NAMES} == {*continual.METHODS}
    assert {*BACKBONE_NAMES} == {*MADE}
    assert {*SPLITS} == {*TASK_KINDS}


@pytest.mark.parametrize("method", ["packnet", "joint"])
def test_a_run_that_was_stopped_between_learning_and_judging_goes_on(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is learned is written before what it came to."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(whole, method=method).exit_code == 0

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ContinualRun, "_note", stop)
        assert run(stopped, method=method).exit_code == 130
    assert (stopped / "learner.safetensors").exists()
    assert not (stopped / "results.json").exists()
    assert run(stopped, method=method).exit_code == 0
    assert results_without_times(stopped) == results_without_times(whole)


@needs_browser
def test_a_browser_shows_the_page_on_narrow_and_wide_screens(
    finished: Path, tmp_path: Path
) -> None:
    assert_readable(finished / "report.html", tmp_path)

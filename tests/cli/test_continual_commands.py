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
import torch
from browser import assert_readable, needs_browser
from click.testing import CliRunner, Result
from killing import steps_and_seconds
from PIL import Image
from torch import nn

import splitgrow
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
from splitgrow.demos.continual.running import ContinualRun, backbone
from splitgrow.demos.continual.watching import RunWatch
from splitgrow.demos.datasets import load_dataset
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


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_the_options_of_every_method_are_listed_with_a_line_of_help(method: str) -> None:
    kind = continual.METHODS[method]
    found = json.loads(invoke("continual", "options", method, "--json").stdout)
    assert (found["version"], found["method"]) == (1, method)
    assert {*kind.settings} <= {option["name"] for option in found["options"]}
    assert all(option["help"] and option["type"] for option in found["options"])
    text = " ".join(invoke("continual", "options", method).stdout.split())
    for option in found["options"]:
        assert f"{option['name']}={json.dumps(option['default'])}" in text
        assert " ".join(option["help"].split()) in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["contnual"], "no such command 'contnual': did you mean 'continual'"),
        (["continual", "optons", "cpg"], "did you mean 'options'"),
        (["continual", "cpg"], "a method is given as --method cpg"),
        (["continual", "options", "cgp"], "did you mean 'cpg'"),
        (["continual", "--method", "packnt"], "did you mean 'packnet'"),
        (["continual"], "give a --method"),
        (["grow", "resnt"], "did you mean 'resnet'"),
        (["grow", "mlp", "--score", "gian"], "did you mean 'gain'"),
        (["grow", "mlp", "--init", "zeo"], "did you mean 'zero'"),
        (["grow", "mlp", "--augment", "crop"], "did you mean 'crops'"),
        (["prune", "a:b", "--amount", "0.5", "--criterion", "tailor"], "did you mean 'taylor'"),
        (["export", "a:b", "c", "d", "--format", "onxx"], "did you mean 'onnx'"),
        (["demo", "--epoch", "3"], "--epochs"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_closest(arguments: list[str], reason: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert reason in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("gaol=0.5", "cpg has no option 'gaol': did you mean 'goal'"),
        ("zzz=1", "`splitgrow continual options cpg` lists them"),
        ("growth=abc", 'growth="abc": give a number'),
        ("growth=NaN", "growth=NaN: give a number"),
        ("patience=1.5", "patience=1.5: give a whole number or null"),
        ("sparsities=0.5", "give numbers as [...]"),
        ("goal=0.2", "is 0.2; guessing among its 5 classes reaches 0.2, so give more than that"),
        ('goal={"0, 1, 2, 3, 4": 0.9}', "no goal is given for task '5, 6, 7, 8, 9'"),
    ],
)
def test_an_option_of_no_sense_is_told_before_anything_is_learned(
    tmp_path: Path, option: str, reason: str
) -> None:
    result = run(tmp_path / "out", "--option", option, method="cpg")
    assert result.exit_code == 1
    assert reason in result.stderr
    assert not (tmp_path / "out").exists()


def test_epochs_count_for_each_task_and_each_training_of_it(tmp_path: Path) -> None:
    """As --help says; the control is a method that trains once."""
    assert "of each task in its training" in " ".join(invoke("continual", "-h").stdout.split())
    seen: list[continual.Event] = []

    def passes(method: str, *more: str) -> list[int]:
        seen.clear()
        out = tmp_path / f"{method}{len(more)}"
        assert run(out, "--epochs", "2", *more, method=method).exit_code == 0
        done = [each for each in seen if isinstance(each, continual.EpochDone)]
        stages: dict[tuple[str, str], int] = {}
        for each in done:
            stages[each.task, each.stage] = stages.get((each.task, each.stage), 0) + 1
        return [count for (_, stage), count in stages.items() if stage == "train"]

    with pytest.MonkeyPatch.context() as patch:
        told = RunWatch.__call__

        def call(watch: RunWatch, event: continual.Event) -> None:
            seen.append(event)
            told(watch, event)

        patch.setattr(RunWatch, "__call__", call)
        assert passes("finetuning") == [2, 2]
        assert passes("packnet") == [2, 2]
        assert passes("packnet", "--tasks", "5", "--epochs", "3")[-1] == 3


def test_augmented_runs_are_stopped_and_go_on_to_the_same_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--augment", "flips,crops", "--epochs", "2")
    assert run(tmp_path / "whole", *more).exit_code == 0
    left = [3]

    def stop(watch: RunWatch, event: continual.Event) -> None:
        left[0] -= isinstance(event, continual.EpochDone)
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunWatch, "__call__", stop)
        stopped = run(tmp_path / "stopped", *more)
        assert stopped.exit_code == 130
        assert "no task is learned yet" in stopped.stderr
    assert run(tmp_path / "stopped", *more).exit_code == 0
    found = results_without_times(tmp_path / "stopped")
    assert found == results_without_times(tmp_path / "whole")
    assert found["settings"]["augment"] == "flips,crops"
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "half of them mirrored" in page
    assert run(tmp_path / "plain", "--epochs", "2").exit_code == 0
    plain = results_without_times(tmp_path / "plain")
    assert plain["digests"] != found["digests"]


def test_a_run_begins_with_the_weights_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\n"
        "def make(width=9):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(),"
        " nn.Linear(width, 10))\n"
    )
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 10))
    torch.save(net.state_dict(), "weights.pt")
    own = ("--width", "1", "--backbone", "mynets.py:make(width=9)", "--checkpoint", "weights.pt")
    settings = RunSettings(method="ewc", backbone=own[3], checkpoint="weights.pt")
    made = backbone(settings, load_dataset(None))
    assert torch.equal(made.state_dict()["1.weight"], net[1].weight)
    assert run(tmp_path / "out", *own).exit_code == 0
    wrong = run(tmp_path / "other", *own[:3], "mynets.py:make(width=8)", *own[4:])
    assert wrong.exit_code == 1
    assert "1.weight is 9 x 64, and 8 x 64 in the model" in wrong.stderr
    splitgrow.save(splitgrow.growable(net, torch.ones(1, 64)), "grown.safetensors")
    made = backbone(replace(settings, checkpoint="grown.safetensors"), load_dataset(None))
    assert torch.equal(made.state_dict()["1.weight"], net[1].weight)


def test_a_folder_is_a_task(tmp_path: Path) -> None:
    for task, shade in (("light", 150), ("dark", 20)):
        for label in (0, 1):
            folder = tmp_path / "data" / task / f"kind{label}"
            folder.mkdir(parents=True)
            for number in range(10):
                Image.new("L", (6, 6), shade + 60 * label + number).save(folder / f"{number}.png")
    given = (
        "--data",
        str(tmp_path / "data"),
        "--epochs",
        "1",
        "--backbone",
        "mlp",
        "--width",
        "0.1",
    )
    result = invoke("continual", "--method", "packnet", *given, "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    found = read_outcome(tmp_path / "out")
    assert [task.name for task in found.tasks] == ["dark", "light"]
    assert [task.classes for task in found.tasks] == [2, 2]
    assert found.settings.split == "superclasses"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
def test_ctrl_c_says_what_is_kept_and_how_to_go_on(tmp_path: Path) -> None:
    """A real process, stopped in its second task."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [
        sys.executable, "-m", "splitgrow.cli", "continual", "--method", "finetuning", *QUICK,
        "--tasks", "5", "--out", str(tmp_path / "out"), "--epochs", "150",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    try:
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as own:
            assert own.stderr is not None
            for line in own.stderr:
                if " in " in line and line.startswith("0, 1"):
                    break
            own.send_signal(signal.SIGINT)
            rest = own.stderr.read()
            code = own.wait(timeout=60)
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130
    assert "Traceback" not in rest
    told = rest.strip().splitlines()[-1]
    assert told.startswith("Interrupted: ")
    done = int(told.split()[1])
    kept = f"of 5 tasks are learned and kept in {tmp_path / 'out'}; the same command goes on."
    assert told.endswith(kept)
    assert done >= 1
    assert (tmp_path / "out" / "learner.safetensors").exists()


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

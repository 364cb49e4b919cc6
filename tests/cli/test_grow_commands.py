from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from splitgrow.cli.continual_settings import BACKBONE_NAMES
from splitgrow.cli.grow_settings import (
    INITIALIZER_NAMES,
    NETWORK_NAMES,
    SCORE_NAMES,
    GrowSettings,
    usual_shares,
)
from splitgrow.cli.main import main
from splitgrow.cli.ways import KEEPING, LEARNING
from splitgrow.demos import arms
from splitgrow.demos.arm_results import ArmEvaluation
from splitgrow.demos.views import VIEWS
from splitgrow.growth.initializers import initializers, registry
from splitgrow.scores import MEASURES

OPTIONS = ["--limit", "64", "--epochs", "1", "--batch-size", "16", "--threads", "1"]
SMALL = ["--width", "0.03"]


def _grow(out: Path, *options: str) -> tuple[int, str, str]:
    outcome = CliRunner().invoke(main, ["grow", *OPTIONS, "--out", str(out), *options])
    return outcome.exit_code, outcome.stdout, outcome.stderr


def _words(text: str) -> str:
    return " ".join(text.split())


def test_the_lists_of_names_are_those_of_the_library() -> None:
    assert {*INITIALIZER_NAMES} <= {*initializers()}
    built_in = {name for name, each in initializers().items() if "splitgrow" in str(type(each))}
    assert {*INITIALIZER_NAMES} == built_in
    assert {*SCORE_NAMES} == {*MEASURES}
    assert {*NETWORK_NAMES} == {"resnet", *BACKBONE_NAMES}


def test_shares_are_spread_over_the_growths() -> None:
    assert usual_shares(3) == GrowSettings.shares
    for steps in (1, 2, 7):
        shares = usual_shares(steps)
        assert len(shares) == steps
        assert list(shares) == sorted(set(shares))


@pytest.mark.parametrize("arguments", [["demo", "--help"], ["grow", "--help"]])
def test_help_tells_of_both_ways_to_grow(arguments: list[str]) -> None:
    text = _words(CliRunner().invoke(main, arguments).output)
    assert LEARNING in text
    assert KEEPING in text


def test_the_command_prints_the_comparison_and_writes_the_report(tmp_path: Path) -> None:
    code, printed, progress = _grow(tmp_path / "new", "mlp", *SMALL)
    assert code == 0
    for text in ("grown", "large", "small", "At equal multiply-adds the grown network", "one run"):
        assert text in printed
    assert "digits: 64 training and 360 test images" in progress
    assert progress.count("grown at step") == 3
    files = {file.name for file in (tmp_path / "new").iterdir()}
    assert files == {"curves.png", "report.html", "results.json"}
    results = json.loads((tmp_path / "new" / "results.json").read_text())
    assert results["finished"] is True
    assert results["settings"]["network"] == "mlp"
    assert [arm["arm"] for arm in results["arms"]] == ["grown", "large", "small"]
    assert len(results["plan"]["growths"]) == len(results["growths"]) == 3
    assert results["plan"]["start"]["widths"]["features.1"] == 8


def test_quiet_prints_the_path_of_the_report_alone(tmp_path: Path) -> None:
    told = _grow(tmp_path, "mlp", *SMALL, "--quiet", "--steps", "1")
    assert told == (0, f"{tmp_path / 'report.html'}\n", "")


def test_json_has_the_results_or_the_plan(tmp_path: Path) -> None:
    code, printed, _ = _grow(tmp_path, "mlp", *SMALL, "--json", "--augment", "crops")
    assert code == 0
    found = json.loads(printed)
    assert found == json.loads((tmp_path / "results.json").read_text())
    assert found["settings"]["augment"] == "crops"
    code, printed, _ = _grow(tmp_path / "none", "mlp", *SMALL, "--json", "--plan")
    assert code == 0
    plan = json.loads(printed)["plan"]
    assert len(plan["growths"]) == 3
    assert plan["start"]["widths"]["features.1"] == 8


def test_the_plan_is_printed_and_nothing_is_trained_or_written(tmp_path: Path) -> None:
    code, printed, _ = _grow(tmp_path / "out", "resnet", "--width", "0.5", "--steps", "2", "--plan")
    assert code == 0
    assert printed.startswith("2 growths to 2 times the widths")
    assert "20 % of the arithmetic" in printed
    assert "as 1 epoch of the large network" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["--factor", "1.5", "--every", "1"], ["3 growths to 1.5 times", "step 3"]),
        (["--params", "2e3", "--shares", "0.3"], ["1 growth to 2.554 times", "30 % of"]),
        (["--macs", "2000", "--plateau", "2"], ["3 growths to", "validation loss stalls for 2"]),
        (["--macs", "2000", "--params", "1e3"], ["3 growths to 1.4"]),
        (["--only", "features.1", "--steps", "1"], ["left alone: features.3, head"]),
        (["--except", "features.1", "--steps", "1"], ["left alone: features.1 "]),
        (["--score", "gain", "--steps", "1"], ["a score chooses the layers"]),
        (["--round-to", "12", "--steps", "1"], [" 8  12\n"]),
    ],
)
def test_options_make_the_policy(tmp_path: Path, options: list[str], texts: list[str]) -> None:
    code, printed, errors = _grow(tmp_path, "mlp", *SMALL, *options, "--plan")
    assert code == 0, errors
    for text in texts:
        assert text in printed


def test_a_module_and_its_initializer_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_INITIALIZERS", dict(initializers()))
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "own_growing.py"
    path.write_text(
        "import splitgrow\n"
        "from torch import nn\n"
        "from splitgrow.growth.initializers import Zero\n"
        "class Own(Zero):\n"
        "    name = 'of my own'\n"
        "splitgrow.register_initializer(Own())\n"
        "def make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))\n"
    )
    options = ["--init", "of my own", "--steps", "1"]
    code, _, errors = _grow(tmp_path / "out", f"{path}:make", *options)
    assert code == 0, errors
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["growths"][0]["edit"]["initializer"] == "of my own"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nonsense"], "has no MODULE:FACTORY form"),
        (["mlp", "surplus"], "unexpected extra argument"),
        (["mlp", "--factor", "1"], "a factor above 1, not 1"),
        (["mlp", "--factor", "nan"], "a factor above 1, not nan"),
        (["mlp", "--factor", "inf"], "a factor above 1, not inf"),
        (["mlp", "--factor", "2", "--macs", "5"], "--factor and --macs exclude each other"),
        (["mlp", "--params", "0"], "--params"),
        (["mlp", "--macs", "nan"], "'nan' is not a number"),
        (["mlp", "--steps", "0"], "--steps"),
        (["mlp", "--every", "0"], "--every"),
        (["mlp", "--every", "5", "--plateau", "2"], "--every and --plateau exclude each other"),
        (["mlp", "--shares", "0.5,0.2"], "shares rise, and lie between 0 and 1"),
        (["mlp", "--shares", "a"], "'a' is not a list of shares"),
        (["mlp", "--shares", "0.2,0.3", "--steps", "3"], "contradicts --shares, which are 2"),
        (["mlp", "--init", "nothing"], "no initializer is called 'nothing'"),
        (["mlp", "--score", "nothing"], "--score"),
        (["mlp", "--share", "0.5"], "--share is for --score"),
        (["mlp", "--score", "gain", "--share", "1.5"], "--share"),
        (["mlp", "--round-to", "0"], "--round-to"),
        (["mlp", "--lr-scale", "nan"], "'nan' is not a number"),
        (["mlp", "--warmup", "-1"], "--warmup"),
        (["mlp", "--epochs", "0"], "--epochs"),
        (["mlp", "--learning-rate", "inf"], "--learning-rate"),
        (["mlp", "--size", "16"], "--size is for picture files"),
        (["mlp", "--only", "nothing"], "no layer 'nothing'"),
        (["mlp", "--freeze", "--init", "net2net"], "changes values that exist"),
        (["some:factory", "--width", "2"], "--width is for resnet, cnn"),
    ],
)
def test_wrong_options_are_usage_errors_before_any_work(
    tmp_path: Path, options: list[str], message: str
) -> None:
    code, printed, errors = _grow(tmp_path, *options)
    assert (code, printed) == (2, "")
    assert message in errors
    assert list(tmp_path.iterdir()) == []


def test_a_missing_module_is_told_before_the_data_are_read(tmp_path: Path) -> None:
    code, printed, errors = _grow(tmp_path, "no.such.module:make", "--data", "nowhere")
    assert (code, printed) == (1, "")
    assert errors.startswith("Error: cannot import no.such.module")
    assert errors.count("\n") == 1


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tell = arms.Arm.tell

    def interrupted(arm: arms.Arm, event: object) -> None:
        tell(arm, event)
        if isinstance(event, ArmEvaluation) and event.step > 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(arms.Arm, "tell", interrupted)
    code, printed, errors = _grow(tmp_path, "mlp", *SMALL, "--epochs", "3", "--shares", "0.1,0.2")
    kept = tmp_path / "interrupted.json"
    assert (code, printed) == (130, "")
    told = f"Interrupted: what was measured until then is in {kept}; "
    assert errors.endswith(f"{told}the same command begins anew.\n")
    record = json.loads(kept.read_text())
    assert record["finished"] is False
    assert {step["arm"] for step in record["steps"]} == {"grown"}
    assert record["growths"][0]["edit"]["request"]
    assert record["evaluations"][-1]["step"] == record["steps"][-1]["step"] > 8


# The demo


def test_the_demo_grows_its_own_network(tmp_path: Path) -> None:
    arguments = ["demo", "--grow", *OPTIONS, "--width", "2", "--out", str(tmp_path)]
    outcome = CliRunner().invoke(main, arguments)
    assert outcome.exit_code == 0
    assert "At equal multiply-adds the grown network" in outcome.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["settings"]["network"] == "resnet"
    assert results["plan"]["start"]["widths"]["stem.0"] == 2
    assert results["arms"][0]["widths"]["stem.0"] == 4


def test_the_demo_goes_to_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(VIEWS, "grow", replace(VIEWS["grow"], run=stop))
    assert CliRunner().invoke(main, ["demo", "--grow", "--limit", "64"]).exit_code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["splitgrow-demo-grow"]


def test_a_fraction_is_not_for_the_demo_that_grows_to_learn(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(main, ["demo", "--grow", "--by", "0.5", "--out", str(tmp_path)])
    assert outcome.exit_code == 2
    assert "--by is for widths, which --grow doubles" in _words(outcome.stderr)

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import splitgrow
from splitgrow.cli.main import main
from splitgrow.cli.settings import DemoSettings
from splitgrow.demos import datasets
from splitgrow.demos.demo import run
from splitgrow.demos.networks import ResidualNet, stages_for
from splitgrow.demos.results import DemoEvent, Evaluation, Growth, Phase, Result, TrainingStep
from splitgrow.demos.training import growth_request, one_cycle
from splitgrow.demos.views import VIEWS

SETTINGS = DemoSettings(epochs=2, width=2, batch_size=32)
OPTIONS = ["--limit", "64", "--epochs", "1", "--width", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def finished(dataset: datasets.Dataset) -> tuple[Result, list[DemoEvent]]:
    events: list[DemoEvent] = []
    return run(dataset, SETTINGS, events.append), events


# The run


def test_a_run_trains_three_generations_for_the_same_number_of_steps(
    finished: tuple[Result, list[DemoEvent]],
) -> None:
    result, _ = finished
    generations = [step.generation for step in result.steps]
    assert generations == [0] * 4 + [1] * 4 + [2] * 4  # 2 epochs of 2 batches
    assert [step.step for step in result.steps] == list(range(1, 13))
    assert [(e.step, e.generation) for e in result.evaluations] == [
        (2, 0),
        (4, 0),
        (6, 1),
        (8, 1),
        (10, 2),
        (12, 2),
    ]


def test_events_come_in_the_order_in_which_things_happen(
    finished: tuple[Result, list[DemoEvent]],
) -> None:
    _, events = finished
    epoch = [TrainingStep, TrainingStep, Evaluation]
    phase = [Phase, *epoch, *epoch]
    assert [type(event) for event in events] == [*phase, Growth, *phase, Growth, *phase]


def test_every_width_inside_the_network_grows_and_the_classes_stay(
    finished: tuple[Result, list[DemoEvent]],
) -> None:
    result, _ = finished
    for at, growth in enumerate(result.growths, 1):
        assert (growth.edit.index, growth.edit.generation, growth.step) == (at, at, 4 * at)
        widths = {change.name: change.width for change in growth.edit.changes}
        assert widths.pop("head") == (10, 10)
        assert all(new > old for old, new in widths.values())


def test_growing_by_itself_leaves_the_logits_as_they_are(
    finished: tuple[Result, list[DemoEvent]],
) -> None:
    result, _ = finished
    assert all(growth.disturbance < 1e-5 for growth in result.growths)


def test_old_networks_come_back_bit_for_bit_and_differ_from_the_new_one(
    finished: tuple[Result, list[DemoEvent]],
) -> None:
    result, _ = finished
    assert [recovery.generation for recovery in result.recoveries] == [0, 1]
    assert all(recovery.exact for recovery in result.recoveries)
    assert all(recovery.largest_difference == 0 for recovery in result.recoveries)
    closed = {e.generation: e.accuracy for e in result.evaluations}  # the last of each counts
    assert [recovery.accuracy for recovery in result.recoveries] == [closed[0], closed[1]]


def test_a_network_that_does_not_come_back_is_told(
    dataset: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def stay(handle: splitgrow.Handle, generation: int) -> Iterator[None]:
        yield

    monkeypatch.setattr(splitgrow.Handle, "at", stay)
    result = run(dataset, SETTINGS, lambda event: None)
    assert not any(recovery.exact for recovery in result.recoveries)
    assert all(recovery.largest_difference > 1e-3 for recovery in result.recoveries)


def test_parameters_add_up_and_fusing_saves_the_norms(
    finished: tuple[Result, list[DemoEvent]],
) -> None:
    result, _ = finished
    before, grown, fused = result.measurements
    assert [m.network for m in result.measurements] == ["before growth", "grown", "fused"]
    added = sum(growth.edit.parameters for growth in result.growths)
    assert grown.parameters == before.parameters + added
    assert fused.parameters < grown.parameters
    assert all(m.milliseconds > 0 for m in result.measurements)


def test_the_fused_network_answers_like_the_grown_one(
    finished: tuple[Result, list[DemoEvent]],
) -> None:
    result, _ = finished
    _, grown, fused = result.measurements
    assert result.fused_difference < 1e-5 * max(1.0, result.largest_logit)
    assert abs(fused.accuracy - grown.accuracy) < 0.01  # logits that are nearly the same may swap


def test_the_block_map_tiles_the_weight_of_a_layer(
    finished: tuple[Result, list[DemoEvent]],
) -> None:
    result, _ = finished
    blocks = result.block_map.blocks
    units = max(stop for block in blocks for _, stop in block.rows)
    inputs = max(stop for block in blocks for _, stop in block.columns)
    covered = torch.zeros(units, inputs, dtype=torch.int64)
    for block in blocks:
        for top, bottom in block.rows:
            for left, right in block.columns:
                covered[top:bottom, left:right] += 1
    assert torch.equal(covered, torch.ones_like(covered))
    assert {block.kind for block in blocks} == {"original", "new", "helper"}
    assert {block.generation for block in blocks} == {0, 1, 2}


def _losses(dataset: datasets.Dataset, seed: int) -> list[float]:
    settings = DemoSettings(epochs=1, width=2, batch_size=32, seed=seed)
    return [step.loss for step in run(dataset, settings, lambda event: None).steps]


def test_the_seed_makes_the_run_and_torchs_own_random_state_is_left(
    dataset: datasets.Dataset,
) -> None:
    state = torch.get_rng_state()
    first = _losses(dataset, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert _losses(dataset, seed=3) == first
    assert _losses(dataset, seed=4) != first


def test_training_lowers_the_loss(dataset: datasets.Dataset) -> None:
    settings = DemoSettings(epochs=10, width=4, batch_size=32, learning_rate=0.02)
    losses = [step.loss for step in run(dataset, settings, lambda event: None).steps]
    assert sum(losses[-6:]) < 0.5 * sum(losses[:6])


def test_training_that_diverges_ends_with_the_reason(dataset: datasets.Dataset) -> None:
    broken = replace(dataset, x_train=dataset.x_train * float("inf"))
    with pytest.raises(FloatingPointError, match="after 0 steps; a lower learning rate may help"):
        run(broken, SETTINGS, lambda event: None)


# Its parts


def test_a_growth_request_names_one_layer_of_each_group_and_not_the_head() -> None:
    net = splitgrow.growable(ResidualNet(3, 7, width=4, stages=2), torch.zeros(2, 3, 8, 8))
    request = growth_request(splitgrow.handle(net).layers, 0.5)
    assert request == {"stem.0": 2, "stages.0.conv1": 2, "stages.1.conv1": 4, "stages.1.conv2": 4}


def test_a_growth_request_is_made_of_whole_steps() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=4), nn.Conv2d(8, 2, 1))
    net = splitgrow.growable(net, torch.zeros(1, 3, 4, 4))
    layers = splitgrow.handle(net).layers
    request = growth_request(layers, 0.01)
    steps = {layer.name: layer.step for layer in layers}
    assert request
    assert all(units == steps[name] for name, units in request.items())
    assert splitgrow.handle(net).expand(request).parameters > 0


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000])
def test_the_learning_rate_rises_and_falls_within_a_phase(steps: int) -> None:
    rates = [one_cycle(step, steps) for step in range(steps)]
    peak = rates.index(max(rates))
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert steps < 10 or rates[0] < 0.3 * max(rates) > rates[-1]


@pytest.mark.parametrize(("channels", "size"), [(1, (8, 8)), (3, (32, 20)), (1, (1, 1))])
def test_the_network_takes_images_of_any_size(channels: int, size: tuple[int, int]) -> None:
    net = ResidualNet(channels, 5, width=3, stages=stages_for(size)).eval()
    assert net(torch.zeros(2, channels, *size)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("width", -1),
        ("batch_size", 0),
        ("by", 0.0),
        ("by", float("inf")),
        ("learning_rate", float("nan")),
        ("seed", -1),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        DemoSettings(**{"epochs": 1, "width": 2, name: value})


# The command


def _demo(out: Path, *options: str) -> tuple[int, str, str]:
    outcome = CliRunner().invoke(main, ["demo", *OPTIONS, "--out", str(out), *options])
    return outcome.exit_code, outcome.stdout, outcome.stderr


def test_the_command_prints_the_tables_and_writes_the_report(tmp_path: Path) -> None:
    code, printed, progress = _demo(tmp_path / "new" / "folder")
    assert code == 0
    for text in ("The edits", "the same, bit for bit", "before growth", "grown", "fused"):
        assert text in printed
    assert "stages.1.shortcut.0" in printed
    assert "digits: 64 training and 360 test images, 8x8, grey, 10 classes" in progress
    assert "generation 2" in progress
    files = {file.name for file in (tmp_path / "new" / "folder").iterdir()}
    assert files == {"blocks.png", "learning.png", "report.html", "results.json"}


def test_the_results_are_written_as_json(tmp_path: Path) -> None:
    assert _demo(tmp_path, "--seed", "5")[0] == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["finished"] is True
    assert results["settings"]["seed"] == 5
    assert len(results["steps"]) == 3
    assert [growth["edit"]["generation"] for growth in results["growths"]] == [1, 2]
    assert [row["network"] for row in results["measurements"]][-1] == "fused"
    assert all(recovery["exact"] for recovery in results["recoveries"])


def test_quiet_prints_the_path_of_the_report_alone(tmp_path: Path) -> None:
    assert _demo(tmp_path, "--quiet") == (0, f"{tmp_path / 'report.html'}\n", "")


def test_json_is_what_lies_in_the_results(tmp_path: Path) -> None:
    code, printed, _ = _demo(tmp_path, "--json")
    assert code == 0
    assert json.loads(printed) == json.loads((tmp_path / "results.json").read_text())


def test_a_filter_keeps_the_rows_of_layers_that_fit(tmp_path: Path) -> None:
    code, printed, errors = _demo(tmp_path, "--filter", "stem.*", "--filter", "hed")
    assert code == 0
    edits = printed.partition("The old networks")[0]
    assert "stem.0" in edits
    assert "head" not in edits
    assert "nothing fits --filter hed: did you mean 'head'" in errors
    assert _demo(tmp_path, "--filter", "stem.*", "--json")[0] == 2


def test_the_command_fails_if_an_old_network_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def stay(handle: splitgrow.Handle, generation: int) -> Iterator[None]:
        yield

    monkeypatch.setattr(splitgrow.Handle, "at", stay)
    code, printed, errors = _demo(tmp_path)
    assert code == 1
    assert errors.endswith("Error: an old network was not recovered bit for bit\n")
    assert "fused" in printed  # the results are shown all the same


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(dataset: object, settings: object, watch: object) -> None:
        watch(Phase(0, 10))
        watch(TrainingStep(1, 0, 1, 2.5, 0.125))
        raise KeyboardInterrupt

    monkeypatch.setitem(VIEWS, "wider", replace(VIEWS["wider"], run=interrupted))
    code, printed, errors = _demo(tmp_path)
    kept = tmp_path / "interrupted.json"
    assert (code, printed) == (130, "")
    assert errors.endswith(
        f"Interrupted: what was measured until then is in {kept}; the same command begins anew.\n"
    )
    record = json.loads(kept.read_text())
    assert record["finished"] is False
    assert record["steps"][0]["loss"] == 2.5


def test_ctrl_c_before_the_first_step_says_that_nothing_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets, "load_dataset", interrupted)
    code, _, errors = _demo(tmp_path)
    assert (code, errors) == (130, "Interrupted: nothing was measured yet, and nothing is kept.\n")
    assert list(tmp_path.iterdir()) == []


def test_a_bad_data_file_is_one_line_on_stderr(tmp_path: Path) -> None:
    (tmp_path / "data.npz").write_bytes(b"not a zip")
    code, printed, errors = _demo(tmp_path / "out", "--data", str(tmp_path / "data.npz"))
    assert (code, printed) == (1, "")
    assert errors.startswith(f"Error: {tmp_path / 'data.npz'}: it is damaged")
    assert errors.count("\n") == 1


def test_a_report_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, printed, errors = _demo(tmp_path / "file" / "out")
    assert (code, printed) == (1, "")
    assert errors.startswith("Error: cannot write the report: ")


@pytest.mark.parametrize(
    "options",
    [
        ("--epochs", "0"),
        ("--width", "x"),
        ("--by", "0"),
        ("--by", "nan"),
        ("--by", "1e9"),
        ("--learning-rate", "inf"),
        ("--seed", "-1"),
        ("--limit", "0"),
        ("--size", "32"),
        ("--nonsense",),
        ("surplus",),
        ("--deeper", "--progressive"),
        ("--progressive", "--by", "0.5"),
        ("--grow", "--by", "0.5"),
        ("--grow", "--deeper"),
        ("--deeper", "--size", "32"),
        ("--progressive", "--epochs", "0"),
    ],
)
def test_wrong_options_are_usage_errors(tmp_path: Path, options: tuple[str, ...]) -> None:
    code, printed, errors = _demo(tmp_path, *options)
    assert (code, printed) == (2, "")
    assert "Usage: " in errors
    assert list(tmp_path.iterdir()) == []

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from browser import assert_readable, needs_browser
from click.testing import CliRunner
from torch import nn

import splitgrow
from splitgrow.cli.main import main
from splitgrow.cli.settings import DemoSettings
from splitgrow.demos import chains, datasets, deeper, tables, themes
from splitgrow.demos.deeper import depth, run
from splitgrow.demos.deeper_report import write_deeper_report
from splitgrow.demos.networks import ResidualNet
from splitgrow.demos.results import (
    ChainLayer,
    Deepening,
    DeeperResult,
    DemoEvent,
    Evaluation,
    Phase,
    TrainingStep,
)
from splitgrow.demos.training import size_of

SETTINGS = DemoSettings(epochs=2, width=2, batch_size=32)
OPTIONS = ["--deeper", "--limit", "64", "--epochs", "1", "--width", "2", "--threads", "1"]
KINDS = ["identity", "residual", "gate", "block"]


@pytest.fixture(scope="module")
def finished(dataset: datasets.Dataset) -> tuple[DeeperResult, list[DemoEvent]]:
    events: list[DemoEvent] = []
    return run(dataset, SETTINGS, events.append), events


# The run


def test_there_is_training_before_and_after_each_edit(
    finished: tuple[DeeperResult, list[DemoEvent]],
) -> None:
    result, events = finished
    epoch = [TrainingStep, TrainingStep, Evaluation]
    phase = [Phase, *epoch, *epoch]
    assert [type(event) for event in events] == [*phase, *([Deepening, *phase] * 5)]
    assert [growth.step for growth in result.growths] == [4, 8, 12, 16, 20]
    assert [growth.edit.generation for growth in result.growths] == [1, 2, 3, 4, 5]


def test_each_kind_is_inserted_once_and_an_inserted_layer_grows(
    finished: tuple[DeeperResult, list[DemoEvent]],
) -> None:
    result, _ = finished
    edits = [growth.edit for growth in result.growths]
    assert [edit.inserted[0].kind for edit in edits[:4]] == KINDS
    branch = edits[1].inserted[0].name
    assert list(edits[4].request) == [f"{branch}.0"]


def test_no_edit_moves_accuracy_loss_or_logits(
    finished: tuple[DeeperResult, list[DemoEvent]],
) -> None:
    result, _ = finished
    for growth in result.growths:
        assert growth.disturbance < 1e-5
        assert growth.accuracy[0] == growth.accuracy[1]
        assert growth.loss[0] == pytest.approx(growth.loss[1], abs=1e-5)


def test_training_does_move_them(finished: tuple[DeeperResult, list[DemoEvent]]) -> None:
    result, _ = finished
    pairs = zip(result.growths, result.growths[1:], strict=False)
    assert any(abs(first.loss[1] - second.loss[0]) > 1e-3 for first, second in pairs)


def test_fused_at_once_nothing_is_left_of_an_insertion_and_the_new_units_are(
    finished: tuple[DeeperResult, list[DemoEvent]],
) -> None:
    result, _ = finished
    left = [after - before for before, after in (g.fused_parameters for g in result.growths)]
    assert left[:4] == [0, 0, 0, 0]
    assert left[4] == result.growths[4].edit.parameters


def test_depth_and_parameters_add_up(finished: tuple[DeeperResult, list[DemoEvent]]) -> None:
    result, _ = finished
    assert [growth.depth for growth in result.growths] == [
        (6, 7),
        (7, 9),
        (9, 10),
        (10, 12),
        (12, 12),
    ]
    for growth in result.growths:
        assert growth.parameters[1] - growth.parameters[0] == growth.edit.parameters
    sizes = {row.network: row.parameters for row in result.measurements}
    assert sizes["before growth"] == result.growths[0].parameters[0]
    assert sizes["deeper"] == result.growths[-1].parameters[1]


def test_every_closed_generation_comes_back_bit_for_bit(
    finished: tuple[DeeperResult, list[DemoEvent]],
) -> None:
    result, _ = finished
    assert [recovery.generation for recovery in result.recoveries] == [0, 1, 2, 3, 4]
    assert all(recovery.exact for recovery in result.recoveries)


def test_a_network_that_does_not_come_back_is_told(
    dataset: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def stay(handle: splitgrow.Handle, generation: int) -> Iterator[None]:
        yield

    monkeypatch.setattr(splitgrow.Handle, "at", stay)
    result = run(dataset, SETTINGS, lambda event: None)
    assert not any(recovery.exact for recovery in result.recoveries)


def test_the_chain_tells_who_came_when(finished: tuple[DeeperResult, list[DemoEvent]]) -> None:
    result, _ = finished
    born = {}
    for layer in result.chain:
        born.setdefault(layer.insertion, []).append(layer.units.count(None))
    assert born == {
        "": [0] * len(born[""]),
        "identity": [1],
        "residual": [2, 2],
        "gate": [3],
        "block": [4, 4],
    }
    (widened,) = (layer for layer in result.chain if layer.units[5] != layer.units[4])
    assert (widened.insertion, widened.units[4:]) == ("residual", (4, 6))


def test_fusion_folds_all_norms_and_answers_alike(
    finished: tuple[DeeperResult, list[DemoEvent]],
) -> None:
    result, _ = finished
    vanished = {row.type: (row.merged, row.fused) for row in result.vanished}
    assert vanished["BatchNorm2d"] == (9, 0)
    assert 0 < result.fused_difference < 1e-5 * max(1.0, result.largest_logit)


@pytest.mark.parametrize("stages", [2, 4])
def test_the_same_edits_fit_networks_of_any_size(stages: int) -> None:
    net = ResidualNet(3, 5, width=2, stages=stages)
    images = torch.randn(2, 3, 8, 8)
    data = datasets.Dataset("noise", images, torch.arange(2), images, torch.arange(2), ("a", "b"))
    trainer = deeper.Trainer(net, data, SETTINGS, lambda event: None)
    before, size = trainer.logits(trainer.model), size_of(trainer.model)
    for change in deeper.changes(stages):
        change(trainer)
    assert torch.allclose(trainer.logits(trainer.model), before, atol=1e-5)
    assert size_of(trainer.model) > size


def test_depth_is_that_of_the_longest_way() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(3, 3) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.d(self.b(torch.relu(self.a(x))) + self.c(x))

    model = splitgrow.growable(Forked(), torch.ones(1, 3))
    assert depth(splitgrow.handle(model).layers) == 3


# What is shown of it


def test_the_report_shows_every_edit(
    finished: tuple[DeeperResult, list[DemoEvent]], tmp_path: Path
) -> None:
    result, _ = finished
    text = write_deeper_report(replace(result, dataset="<b>"), tmp_path).read_text("utf-8")
    for growth in result.growths:
        for name, *_ in tables.edit_rows(growth.edit):
            assert name in text
    assert text.count("nothing is left of it") == 4
    assert text.count("the same, bit for bit") == 5
    assert "&lt;b&gt;" in text
    assert {file.name for file in tmp_path.iterdir()} == {
        "chain.png",
        "learning.png",
        "report.html",
        "size.png",
    }


def test_the_chain_is_drawn_from_the_layers() -> None:
    layers = (
        ChainLayer("a", "Conv2d", "", (4, 4)),
        ChainLayer("b", "Conv2d", "gate", (None, 4)),
        ChainLayer("c", "Linear", "", (4, 8)),
    )
    first = chains.chain(layers, themes.LIGHT)
    assert chains.chain(layers, themes.LIGHT) == first
    assert chains.chain(layers, themes.DARK) != first
    sooner = (layers[0], replace(layers[1], units=(4, 4)), layers[2])
    assert chains.chain(sooner, themes.LIGHT) != first


# The command


def _demo(out: Path, *options: str) -> tuple[int, str, str]:
    outcome = CliRunner().invoke(main, ["demo", *OPTIONS, "--out", str(out), *options])
    return outcome.exit_code, outcome.stdout, outcome.stderr


def test_the_command_prints_the_tables_and_writes_the_report(tmp_path: Path) -> None:
    code, printed, progress = _demo(tmp_path, "--seed", "5")
    assert code == 0
    for text in (
        "identity behind stem.2",
        "gate: Conv2d",
        "nothing is left of it",
        "Removed by fusion",
    ):
        assert text in printed
    assert "generation 5" in progress
    assert "block behind stages.0" in progress
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["finished"], results["settings"]["seed"]) == (True, 5)
    kinds = [growth["edit"]["inserted"] for growth in results["growths"][:4]]
    assert [inserted[0]["kind"] for inserted in kinds] == KINDS
    assert results["chain"][0]["units"] == [2] * 6


def test_quiet_prints_the_path_of_the_report_alone(tmp_path: Path) -> None:
    assert _demo(tmp_path, "--quiet") == (0, f"{tmp_path / 'report.html'}\n", "")


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = deeper.changes

    def interrupted(stages: int) -> tuple[deeper.Change, ...]:
        def stop(trainer: deeper.Trainer) -> splitgrow.Edit:
            raise KeyboardInterrupt

        return *original(stages)[:2], stop

    monkeypatch.setattr(deeper, "changes", interrupted)
    code, printed, errors = _demo(tmp_path)
    kept = tmp_path / "interrupted.json"
    assert (code, printed) == (130, "")
    assert errors.endswith(
        f"Interrupted: what was measured until then is in {kept}; the same command begins anew.\n"
    )
    record = json.loads(kept.read_text())
    assert record["finished"] is False
    assert [growth["depth"] for growth in record["growths"]] == [[6, 7], [7, 9]]


@needs_browser
def test_a_browser_shows_the_page_on_narrow_and_wide_screens(
    finished: tuple[DeeperResult, list[DemoEvent]], tmp_path: Path
) -> None:
    assert_readable(write_deeper_report(finished[0], tmp_path), tmp_path)

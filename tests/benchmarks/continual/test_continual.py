"""The continual benchmark: its files, and the inputs that its peer refuses before it runs."""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import astuple, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from benchmarks.continual import avalanche_peer
from benchmarks.continual.jobs import Job
from benchmarks.continual.picture import Row, described, picture, rows, rows_of
from benchmarks.continual.results import (
    FOLDER,
    OTHER_DAY,
    PAGE,
    RESULTS,
    TUNING,
    Found,
    page,
    picture_of,
    read_results,
    write_results,
)
from benchmarks.continual.suites import CANDIDATES, PAIRS, SUITES, ordered
from benchmarks.continual.task_files import Task, read_tasks, write_tasks
from benchmarks.continual.tuning import JUDGED, candidates, hold_out
from splitgrow.demos.themes import LIGHT


def task(seed: int, validation: bool = False, classes: int = 3, side: int = 4) -> Task:
    generator = np.random.default_rng(seed)

    def split(count: int) -> tuple[Any, Any]:
        images = generator.normal(size=(count, 1, side, side)).astype(np.float32)
        return images, np.arange(count) % classes

    asided = split(5) if validation else (None, None)
    return Task(*split(12), *split(7), *asided)


def test_tasks_come_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "some.tasks"
    written = [task(0), task(1, validation=True), task(2, classes=2)]
    write_tasks(path, written)
    read = read_tasks(path)
    assert [each.classes for each in read] == [3, 3, 2]
    assert read[0].image_shape == (1, 4, 4)
    for ours, theirs in zip(written, read, strict=True):
        for field in fields(Task):
            one, other = getattr(ours, field.name), getattr(theirs, field.name)
            assert (one is None) == (other is None)
            if one is not None:
                assert one.dtype == other.dtype
                assert np.array_equal(one, other)


def test_ten_tasks_and_more_stay_in_order(tmp_path: Path) -> None:
    written = [task(seed) for seed in range(12)]
    write_tasks(tmp_path / "tasks.npz", written)
    read = read_tasks(tmp_path / "tasks.npz")
    assert all(np.array_equal(a.x_test, b.x_test) for a, b in zip(written, read, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": np.zeros((12, 1, 4, 4))}, "x_train_0 is float64"),
        ({"y_test": np.zeros(7, np.int32)}, "y_test_0 is int32"),
        ({"x_test": np.zeros((7, 4, 4), np.float32)}, "not float32 with 4 dimensions"),
        ({"y_train": np.zeros(11, np.int64)}, "12 images and y_train_0 11 labels"),
        ({"y_train": np.full(12, -1)}, "labels below 0"),
        ({"y_train": None}, "y_train_0 is missing"),
        ({"x_validation": np.zeros((5, 1, 4, 4), np.float32)}, "y_validation_0 is missing"),
    ],
)
def test_arrays_of_another_layout_are_not_written(tmp_path, change, message) -> None:
    path = tmp_path / "tasks.npz"
    with pytest.raises(ValueError, match=message):
        write_tasks(path, [replace(task(0), **change)])
    assert not path.exists()


def test_files_of_another_layout_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tasks.npz"
    with pytest.raises(FileNotFoundError, match="no such file of tasks"):
        read_tasks(path)
    path.write_text("no tasks")
    with pytest.raises(ValueError, match=r"is no \.npz file"):
        read_tasks(path)
    np.savez(path, images=np.zeros(3))
    with pytest.raises(ValueError, match="without a gap: images"):
        read_tasks(path)
    np.savez(path, x_train_0=np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"is no whole \.npz file of plain arrays"):
        read_tasks(path)
    with pytest.raises(ValueError, match="no x_train_0"):
        write_tasks(path, [])
    with pytest.raises(ValueError, match="images of different shapes"):
        write_tasks(path, [task(0), task(1, side=5)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "joint"], "'joint' is not one of 'naive'"),
        (["--method", "pnn"], "say --backbone mlp"),
        (["--method", "packnet", "--epochs", "1"], "epochs before and after pruning"),
        (["--method", "ewc", "--backbone", "lenet"], "'lenet' is not one of 'cnn'"),
        (["--method", "ewc", "--tasks", "missing.npz"], "'missing.npz' does not exist"),
        (["--method", "ewc", "--out", "missing/result.json"], "there is no folder missing"),
    ],
)
def test_the_peer_says_what_is_wrong_with_a_call(tmp_path, arguments, message) -> None:
    path = tmp_path / "tasks.npz"
    write_tasks(path, [task(0)])
    given = ["--tasks", str(path), "--out", str(tmp_path / "result.json"), *arguments]
    result = CliRunner().invoke(avalanche_peer.main, given)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


@pytest.mark.skipif(find_spec("avalanche") is not None, reason="Avalanche is installed")
def test_the_peer_says_where_to_get_avalanche(tmp_path: Path) -> None:
    path = tmp_path / "tasks.npz"
    write_tasks(path, [task(0)])
    given = ["--method", "ewc", "--tasks", str(path), "--out", str(tmp_path / "result.json")]
    result = CliRunner().invoke(avalanche_peer.main, given)
    assert result.exit_code == 1
    assert "avalanche-requirements.txt" in result.output
    path.write_text("no tasks")
    assert "is no .npz file" in CliRunner().invoke(avalanche_peer.main, given).output


class Forgetful:
    """A stand-in for a strategy: its network knows the latest task only, and never trains."""

    def __init__(self) -> None:
        self.model = Remembering()
        self.model.train()

    def train(self, number: int) -> None:
        self.model.latest = number


class Remembering(torch.nn.Module):
    latest = 0

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        right = torch.arange(len(x)) % 2
        wrong_side = bool(number[0] != self.latest)
        return torch.nn.functional.one_hot((right + wrong_side) % 2, 2) * self.scale


def test_accuracy_and_drift_are_of_each_task_after_every_one() -> None:
    tasks = [task(seed, classes=2) for seed in range(3)]
    said: list[str] = []
    strategy = Forgetful()
    found = avalanche_peer.learn(strategy, range(3), tasks, said.append)
    assert found["accuracy"] == [[1.0], [0.0, 1.0], [0.0, 0.0, 1.0]]
    assert found["drift"] == [1.0, 1.0, 0.0]
    assert found["parameters"] == 2
    assert len(found["training_seconds"]) == len(said) == 3
    assert strategy.model.training
    gone = torch.tensor([torch.nan])
    assert avalanche_peer.drift_of(gone, gone) is None


# -- runs and the page -----------------------------------------------------------------------------


def job(name: str, runs: Path, seed: int = 0) -> Job:
    contestant = next(each for each in ordered() if each.name == name)
    return Job(SUITES[0], contestant, seed, Path("/data/glyphs.npz"), runs)


def test_ours_and_avalanches_of_one_kind_run_one_after_the_other_with_the_same_budget(
    tmp_path: Path,
) -> None:
    names = [each.name for each in ordered()]
    assert len({*names}) == len(names)
    for peer, ours in PAIRS.items():
        assert names.index(peer) == names.index(ours) + 1
        one, other = (job(name, tmp_path).command(2, "python") for name in (ours, peer))
        given = [dict(itertools.pairwise(c)) for c in (one, other)]
        for flag in ("--backbone", "--width", "--batch-size", "--momentum", "--seed", "--threads"):
            assert given[0][flag] == given[1][flag]
        rates = [{**CANDIDATES.get(name, {})}.get("learning-rate") for name in (ours, peer)]
        assert rates[0] == rates[1]  # what each may choose from
        assert rates[0] or given[0]["--learning-rate"] == given[1]["--lr"]
        after = int(given[1].get("--packnet-post-prune-epochs", 0))
        assert int(given[1]["--epochs"]) - after == int(given[0]["--epochs"])
    with pytest.raises(ValueError, match="need --avalanche"):
        job("avalanche ewc", tmp_path).command(1, None)


def test_a_run_is_finished_once_its_results_say_so(tmp_path: Path) -> None:
    one, peer = job("cpg", tmp_path), job("avalanche ewc", tmp_path)
    for each in (one, peer):
        assert not each.finished
        each.directory.mkdir(parents=True)
        each.results.write_text("{")
        assert not each.finished
    one.results.write_text('{"finished": false}')
    assert not one.finished
    one.results.write_text('{"finished": true}')
    peer.results.write_text("{}")
    assert one.finished
    assert peer.finished


def found(name: str, seed: int, accuracy: float, seconds: float, **more: Any) -> Found:
    given: dict[str, Any] = {"expansion": 1.5, "megabytes": 2.0, "unchanged": 20, **more}
    return Found(
        suite="glyph100",
        contestant=name,
        seed=seed,
        accuracy=accuracy,
        learned=0.9,
        forgetting=0.1,
        seconds=seconds,
        tasks=20,
        settings={},
        **given,
    )


def test_the_page_has_means_with_their_spread_and_the_pairs(tmp_path: Path) -> None:
    runs = [
        found("ewc", 0, 0.80, 10.0),
        found("ewc", 1, 0.90, 30.0),
        found("ewc", 2, 0.85, 500.0),
        found("avalanche ewc", 0, 0.77, 40.0, expansion=None, megabytes=None),
        found("avalanche ewc", 1, 0.83, 40.0, expansion=None, megabytes=None),
        found("cpg", 0, 0.95, 100.0, smaller=0.5, faster=0.25, difference=1e-6),
    ]
    where = {"cpu": "a", "cores": 2, "threads": 1, "torch": "t", "python": "p", "commit": "c"}
    write_results(tmp_path / "continual.json", runs, where)
    assert read_results(tmp_path / "continual.json") == (runs, where)
    text = page(runs, where)
    assert "| cpg | 95.0 | 10.0 | 1.50 | 2.00 | 20 of 20 | 1.7 min | 1 |" in text
    assert "| ewc | 85.0 (80.0 to 90.0) | 10.0 |" in text
    # Seeds that only one of them has are left out.
    ours = "| ewc | 85.0 (80.0 to 90.0) | avalanche ewc"
    assert f"{ours} | 80.0 (77.0 to 83.0) | +5.0 (+3.0 to +7.0) | 0.50 |" in text
    assert "| cpg | 0.50 | 0.25 | 1e-06 |" in text
    assert OTHER_DAY not in text
    # Times of another day are marked, and left out where there are some of the same day.
    other = {"measured": "2000-01-02"}
    later = page([replace(runs[0], **other), *runs[1:-1], replace(runs[-1], **other)], where)
    assert "| cpg | 95.0 | 10.0 | 1.50 | 2.00 | 20 of 20 | 1.7 min † | 1 |" in later
    assert "| 4.4 min | 3 |" in later
    assert later.count(" †") == 1
    assert "† Of 2000-01-02; all other times" in later
    assert text.index("| cpg | 95") < text.index("| ewc | 85") < text.index("| avalanche ewc | 80")


def test_the_picture_shows_what_it_says_it_shows_and_equal_rows_give_equal_bytes() -> None:
    runs = [found("ewc", 0, 0.80, 10.0), found("ewc", 1, 0.90, 30.0), found("cpg", 0, 0.95, 100.0)]
    shown = rows(runs)
    assert [row.name for row in shown] == ["ewc", "cpg"]
    ewc = Row("ewc", 85.0, 80.0, 90.0, 90.0, 2.0, 20.0, other_day=False)
    assert astuple(shown[0]) == ("ewc", *map(pytest.approx, astuple(ewc)[1:]))
    drawn = picture(shown, LIGHT)
    with Image.open(io.BytesIO(drawn)) as image:
        assert image.info["Description"] == described(shown)
    assert drawn == picture(rows(runs[::-1]), LIGHT)
    pixels = {_pixels(drawn)}
    for change in ({"accuracy": 0.9}, {"learned": 0.99}, {"megabytes": 3.0}, {"seconds": 20.0}):
        pixels.add(_pixels(picture(rows([*runs[:2], replace(runs[2], **change)]), LIGHT)))
    assert len(pixels) == 5


def _pixels(png: bytes) -> bytes:
    with Image.open(io.BytesIO(png)) as image:
        return image.tobytes()


# -- strengths -------------------------------------------------------------------------------------


def test_strengths_are_chosen_on_training_images_that_are_not_learned_from(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(4 * 2 * JUDGED + 20) % 4
    # Every image is another one, and the test images are yet others.
    images = generator.integers(0, 256, (len(labels), 6, 6, 1), dtype=np.uint8)
    images[0, 0, 0], images[0, 0, 1] = 0, 255
    source, target = tmp_path / "all.npz", tmp_path / "tuning" / "held.npz"
    np.savez(source, x_train=images, y_train=labels, x_test=255 - images[:8], y_test=labels[:8])
    hold_out(source, target)
    held = np.load(target)
    learned, judged = ({each.tobytes() for each in held[name]} for name in ("x_train", "x_test"))
    assert learned | judged <= {each.tobytes() for each in images}
    assert not learned & judged
    assert len(learned) == len(labels) // 2
    assert np.bincount(held["y_test"]).tolist() == [JUDGED] * 4


def test_every_strength_is_tried_alike_and_nothing_else_is_changed(tmp_path: Path) -> None:
    for suite in SUITES:
        tried = candidates(suite, tmp_path / "held.npz", tmp_path)
        assert {*tried} == {*CANDIDATES}
        for name, options in CANDIDATES.items():
            ((option, values),) = options.items()
            assert [value for value, _ in tried[name]] == [*values]
            commands = [jobs[-1].command(1, "python") for _, jobs in tried[name]]
            assert all([j.seed for j in jobs] == [*range(suite.tried)] for _, jobs in tried[name])
            assert len({j.directory for _, jobs in tried[name] for j in jobs}) == (
                len(values) * suite.tried
            )
            flags = [
                before
                for before, *parts in zip(commands[0], *(c[1:] for c in commands), strict=False)
                if len({*parts}) > 1
            ]
            own = f"--{option}" if name.startswith("avalanche") else "--option"
            if option == "learning-rate":
                own = "--lr" if name.startswith("avalanche") else "--learning-rate"
            assert sorted(flags) == sorted(["--out", own])


def test_the_strengths_that_were_taken_are_the_best_that_were_tried() -> None:
    tried = json.loads(TUNING.read_text())
    for suite in SUITES:
        assert {*suite.chosen} == {*tried[suite.name]} == {*CANDIDATES}
        for name, ((option, taken),) in ((n, o.items()) for n, o in suite.chosen.items()):
            came = {float(value): accuracy for value, accuracy in tried[suite.name][name].items()}
            assert {*came} == {*CANDIDATES[name][option]}
            assert came[taken] == max(accuracy or 0 for accuracy in came.values())


def test_the_page_is_made_from_the_results() -> None:
    tuning = json.loads(TUNING.read_text())
    assert PAGE.read_text() == page(*read_results(RESULTS), tuning)
    for suite in SUITES:
        assert f"(results/{picture_of(suite)})" in PAGE.read_text()
        with Image.open(FOLDER / picture_of(suite)) as image:
            assert image.info["Description"] == described(rows_of(suite, read_results(RESULTS)[0]))
    assert "**" in page(*read_results(RESULTS), tuning).split("## What was chosen")[1]

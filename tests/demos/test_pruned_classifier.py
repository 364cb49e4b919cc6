from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import splitgrow
from splitgrow.cli.main import main
from splitgrow.cli.prune_settings import DATA_CRITERIA
from splitgrow.demos import pruned_classifier
from splitgrow.demos.datasets import load_dataset
from splitgrow.demos.training import evaluated
from splitgrow.pruning.criteria.gradients import Taylor

CODE = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))

def few():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2))

def large():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 3))
"""
MAKE = "prunable_classifier.py:make"
OPTIONS = ("--data", "spots.npz", "--amount", "0.5", "--threads", "1", "--batch-size", "16")
TRAINING = ("--epochs", "2", "--learning-rate", "0.02")


@pytest.fixture(autouse=True)
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A trained classifier of small images, whose weights lie in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("prunable_classifier.py").write_text(CODE)
    draw = np.random.default_rng(0)
    labels = np.arange(96) % 3
    images = draw.integers(0, 90, (96, 4, 4))
    images[np.arange(96), labels, labels] += 80
    halves = {"x_train": images[:64], "y_train": labels[:64], "x_test": images[64:]}
    np.savez("spots.npz", **halves, y_test=labels[64:])  # type: ignore[arg-type]  # of numpy's stubs
    torch.manual_seed(0)
    made: dict[str, Any] = {}
    exec(CODE, made)
    net = made["make"]()
    dataset = load_dataset(Path("spots.npz"))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(dataset.x_train), dataset.y_train).backward()
        optimizer.step()
    torch.save(net.state_dict(), "trained.pt")
    yield net
    sys.modules.pop("prunable_classifier", None)


def _accuracy(net: nn.Module) -> float:
    dataset = load_dataset(Path("spots.npz"))
    return (evaluated(net, dataset.x_test).argmax(1) == dataset.y_test).float().mean().item()


def _prune(*options: str, target: str = MAKE) -> tuple[int, str, str]:
    given = ["prune", target, "--checkpoint", "trained.pt", *OPTIONS, *options]
    outcome = CliRunner().invoke(main, given)
    return outcome.exit_code, outcome.stdout, outcome.stderr


def _document(*options: str) -> Any:
    code, printed, errors = _prune(*options, "--json")
    assert code == 0, errors
    return json.loads(printed)


def test_the_accuracies_are_those_of_the_networks(trained: nn.Module) -> None:
    told = _document("--out", "smaller.safetensors", *TRAINING)["accuracy"]
    made: dict[str, Any] = {}
    exec(CODE, made)
    smaller = made["make"]()
    splitgrow.load(smaller, "smaller.safetensors")
    assert told["images"] == 32
    assert told["before"] == _accuracy(trained) > 0.5
    assert told["trained"] == [_accuracy(smaller)]
    assert len(told["pruned"]) == 1


def test_a_step_is_told_as_it_happens_and_all_at_the_end() -> None:
    code, printed, progress = _prune(*TRAINING, "--steps", "2")
    assert code == 0
    assert "spots: 64 training and 32 test images" in progress
    assert "step 1: 60 parameters went, " in progress
    assert "step 2: " in progress
    assert "accuracy on 32 test images: " in printed
    assert "  step  parameters  multiply-adds  pruned  trained\n" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_one_step_without_training_has_one_accuracy() -> None:
    code, printed, _ = _prune()
    assert code == 0
    assert "% before -> " in printed
    assert printed.count("% pruned") == 1
    assert "trained" not in printed


def test_training_recovers_accuracy() -> None:
    """The same units go; the control is without training."""
    told = _document("--amount", "0.8", "--epochs", "10", "--learning-rate", "0.02")["accuracy"]
    assert told["pruned"] == _document("--amount", "0.8")["accuracy"]["pruned"]
    assert told["trained"][0] > told["pruned"][0] + 0.1


def test_the_same_seed_gives_the_same_run() -> None:
    runs = [_document(*TRAINING, "--criterion", "random", "--seed", seed) for seed in "116"]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("criterion", DATA_CRITERIA)
def test_criteria_look_at_images(criterion: str) -> None:
    document = _document("--criterion", criterion, "--batches", "2")
    assert document["layers"][0]["after"] == 6


def test_a_criterion_gets_batches_of_training_images_with_the_cross_entropy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    scores = Taylor.scores

    def watched(criterion: Taylor, view: Any) -> Any:
        seen.append((view.batches, [loss.item() for loss in view.losses()]))
        return scores(criterion, view)

    monkeypatch.setattr(Taylor, "scores", watched)
    _document("--criterion", "taylor", "--batches", "3")
    ((batches, losses),) = seen
    dataset = load_dataset(Path("spots.npz"))
    assert [len(images) for images, _ in batches] == [16, 16, 16]
    known = zip(dataset.x_train, dataset.y_train, strict=True)
    rows = {image.numpy().tobytes(): int(label) for image, label in known}
    drawn = [(x.numpy().tobytes(), int(y)) for own in batches for x, y in zip(*own, strict=True)]
    assert len({image for image, _ in drawn}) == 48
    assert all(rows[image] == label for image, label in drawn)
    assert all(loss > 0 for loss in losses)


def test_readers_are_fitted_on_request() -> None:
    fitted, plain = _document("--refit")["steps"], _document()["steps"]
    assert fitted[0]["moved"] != plain[0]["moved"]
    chosen = _document("--criterion", "reconstruction")["steps"]
    assert chosen[0]["moved"] != _document("--criterion", "reconstruction", "--no-refit")["steps"]


def test_a_plan_trains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruned_classifier, "_Recovery", None)
    code, printed, _ = _prune(*TRAINING, "--steps", "2", "--plan", "--out", "smaller")
    assert code == 0
    assert printed.endswith("later steps may take other units\n")
    assert not Path("smaller").exists()


def test_example_inputs_may_be_given_also_with_data() -> None:
    assert _document("--input", "7,1,4,4")["macs"] == [228, 114]


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("prunable_classifier.py:few", "not (2, 3) logits"),
        ("prunable_classifier.py:large", "with inputs 2,1,4,4: "),
    ],
)
def test_a_model_that_is_no_classifier_of_the_images_is_told(target: str, error: str) -> None:
    given = ["prune", target, *OPTIONS]
    outcome = CliRunner().invoke(main, given)
    assert outcome.exit_code == 1
    assert error in outcome.stderr


def test_missing_data_are_told() -> None:
    code, _, errors = _prune("--data", "nowhere.npz")
    assert code == 1
    assert errors.startswith("Error: nowhere.npz: there is no such file or folder")


def _stop_in_step(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    """Makes the training after a step fail."""
    epochs, begun = pruned_classifier._Recovery.epochs, []

    def stopped(recovery: Any) -> Any:
        begun.append(1)
        if len(begun) == step:
            raise error
        return epochs(recovery)

    monkeypatch.setattr(pruned_classifier._Recovery, "epochs", stopped)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            KeyboardInterrupt(),
            130,
            "Interrupted: the model after step 1 of 3 is in smaller, ",
        ),
        (FloatingPointError("the loss was nan"), 1, "nan; the model after step 1 of 3 is in"),
    ],
)
def test_a_stopped_run_keeps_the_model_of_the_last_whole_step(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    _stop_in_step(monkeypatch, 2, error)
    stopped, printed, errors = _prune(*TRAINING, "--steps", "3", "--out", "smaller")
    assert (stopped, printed) == (code, "")
    assert words in errors
    made: dict[str, Any] = {}
    exec(CODE, made)
    model = made["make"]()
    splitgrow.load(model, "smaller")
    assert model.layers[0].width == 10


def test_a_run_that_is_stopped_before_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _stop_in_step(monkeypatch, 1, KeyboardInterrupt())
    code, _, errors = _prune(*TRAINING, "--out", "smaller")
    assert code == 130
    assert errors.endswith("Interrupted: nothing is written.\n")
    assert not Path("smaller").exists()

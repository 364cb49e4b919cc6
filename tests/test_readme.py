"""The README's code runs as it stands there."""

from __future__ import annotations

import doctest
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_equal, largest_difference, outputs_of, train_steps

import splitgrow
from benchmarks.vision import torchvision

README = (Path(__file__).parent.parent / "README.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.zoo
@pytest.mark.slow
def test_the_first_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", torchvision())
    x = torch.randn(2, 3, 64, 64)
    seen: list[Any] = []

    def train(model: Any, optimizer: torch.optim.Optimizer) -> None:
        if model.generation == 0:
            train_steps(model, (x,), optimizer, steps=1)
            seen.append(outputs_of(model.eval(), x))
        else:
            assert_equal(outputs_of(model, x), seen[0])
            train_steps(model, (x,), optimizer, steps=2)
            assert largest_difference(outputs_of(model, x), seen[0]) > 1e-3

    def evaluate(model: Any) -> None:
        seen.append(outputs_of(model, x))

    names: dict[str, Any] = {"train": train, "evaluate": evaluate}
    exec(CODE[0], names)
    assert torch.equal(seen[1], seen[0])
    assert names["model"].layers[1].width == 80
    assert isinstance(names["deploy"], torch.fx.GraphModule)


@pytest.mark.zoo
@pytest.mark.slow
def test_the_example_of_insertions_runs_and_changes_nothing() -> None:
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    model = torchvision().models.resnet18(weights=None).double().eval()
    model = splitgrow.growable(model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = outputs_of(model, x)
    exec(CODE[1], {"model": model, "optimizer": optimizer})
    assert len(splitgrow.handle(model).edits) == 4
    assert_equal(outputs_of(model, x), before)


def test_the_sessions_show_what_they_print() -> None:
    sessions = re.findall(r"```pycon\n(.*?)```", README, re.DOTALL)
    assert sessions
    for number, text in enumerate(sessions):
        names = {"torch": torch, "splitgrow": splitgrow}
        session = doctest.DocTestParser().get_doctest(text, names, f"README {number}", None, 0)
        found = doctest.DocTestRunner().run(session)
        assert found.attempted > 5
        assert not found.failed


def test_both_commands_pin_what_they_install_and_end_in_what_they_run() -> None:
    commands = re.findall(r"```bash\n(python3 .*)\n```", README)
    assert [command.rsplit("&& ", 1)[1] for command in commands] == ["splitgrow demo", "pytest"]
    assert all("pip install -c constraints.txt" in command for command in commands)


def test_the_model_counts_are_those_that_are_tested() -> None:
    counts = re.findall(r"(\w+) (\d+) of (?:\d+ layers|(\d+))", README)
    stated = {name: int(count) for name, count, _ in counts}
    source = (Path(__file__).parent / "test_zoo.py").read_text()
    tested = dict(re.findall(r'"(\w+)": \((\d+), \d+\)', source))
    assert stated == {name: int(count) for name, count in tested.items()}

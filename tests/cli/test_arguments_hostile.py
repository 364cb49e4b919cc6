"""Bad input for every option of every command, made from click's own list of them.

A new command or option is covered by itself: it only has to be an option of click.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import splitgrow
from splitgrow.cli.main import main

NETS = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 2))
"""

TRAINING = ["--data", "tiny.npz", "--epochs", "1", "--threads", "1"]
GOOD = {
    "demo": ["--limit", "8", *TRAINING, "--out", "made", "--width", "1"],
    "grow": ["nets.py:make", "--plan", *TRAINING],
    "inspect": ["nets.py:make", "--input", "1,16"],
    "prune": ["nets.py:make", "--amount", "0.5", *TRAINING, "--out", "made"],
    "export": ["nets.py:make", "run.safetensors", "made.pt"],
    "continual": [
        "--method", "finetuning", "--tasks", "1", *TRAINING, "--backbone", "mlp", "--width", "0.02",
        "--out", "made",
    ],
    "continual options": ["cpg"],
    "compare": ["missing"],
}  # fmt: skip
"""Arguments with which a command runs, and soon ends."""
BAD = (
    "",
    "abc",
    "-1",
    "0",
    "nan",
    "inf",
    "1e999",
    "-0.5",
    "missing.file",
    "folder",
    "\x00",
    "\u00e9",
)
"""Texts that most options cannot take; those that can are taken."""


def commands(
    group: click.Group = main, before: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands below a group, with the words that call them."""
    for name, command in group.commands.items():
        yield (*before, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*before, name))


ALL = dict(commands())


def options() -> Iterator[tuple[str, str]]:
    """Each option that takes a value, with the name of its command."""
    for words, command in ALL.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.is_flag:
                yield " ".join(words), max(parameter.opts, key=len)


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a model, its checkpoint and data, in which the commands run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("nets.py").write_text(NETS)
    Path("folder").mkdir()
    labels = np.arange(16) % 2
    images = np.random.default_rng(0).integers(0, 255, (16, 4, 4)).astype(np.uint8)
    np.savez("tiny.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    model: Any = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 2))
    splitgrow.save(splitgrow.growable(model, torch.ones(1, 16)), "run.safetensors")
    yield tmp_path
    sys.modules.pop("nets", None)


def files() -> dict[str, bytes]:
    """The contents of all files below the current folder but those that a run may make."""
    found = (path for path in Path().rglob("*") if path.is_file())
    return {
        str(path): path.read_bytes()
        for path in found
        if path.parts[0] not in {"made", "made.pt", "__pycache__"}
    }


def run(command: str, *more: str) -> tuple[int, str, str]:
    """The exit code, the output and the errors of a command with good arguments and others."""
    outcome = CliRunner().invoke(main, [*command.split(), *GOOD[command], *more])
    wrong = outcome.exception
    assert wrong is None or isinstance(wrong, SystemExit), (more, repr(wrong))
    return outcome.exit_code, outcome.stdout, outcome.stderr


def check_told(code: int, errors: str) -> None:
    """A failure has one line that says why, and no traceback."""
    assert code in {0, 1, 2}
    assert "Traceback" not in errors
    if code:
        last = errors.strip().splitlines()[-1]
        assert "Error: " in errors
        assert len(last) > len("Error: "), errors


def test_every_command_has_arguments_to_be_tried_with() -> None:
    assert {*GOOD} == {" ".join(words) for words in ALL}


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("command", sorted({*GOOD} - {"compare"}))
def test_the_arguments_that_are_tried_are_good(command: str) -> None:
    """The control: it is the bad text that the others fail for."""
    code, _, errors = run(command)
    assert code == 0, errors


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize(("command", "option"), sorted(options()))
def test_bad_text_for_an_option_is_told_and_loses_nothing(command: str, option: str) -> None:
    before = files()
    refused = 0
    for bad in OTHER.get(option, BAD):
        more = [f"{option}={bad}"]
        code, _, errors = run(command, *more)
        check_told(code, errors)
        refused += code != 0
        kept = {path: content for path, content in files().items() if path in before}
        assert kept == before, (option, bad)
        if code == 2:
            assert files() == before, (option, bad)
    assert refused or option in {"--filter", "--only", "--except"}, f"{option} takes everything"


def arguments() -> Iterator[tuple[str, int]]:
    """Each argument that has a place, with the name of its command."""
    for words, command in ALL.items():
        own = [each for each in command.params if isinstance(each, click.Argument)]
        for at in range(len(own)):
            yield " ".join(words), at


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize(("command", "at"), sorted(arguments()))
def test_bad_text_for_an_argument_is_told_and_loses_nothing(command: str, at: int) -> None:
    before = files()
    refused = 0
    for bad in (*BAD, "nets.py", "nets.py:", "nets.py:make(", "nets.py:make(1, 2)", "x:y:z"):
        given = list(GOOD[command])
        given[at] = bad
        options = [each for each in given if each.startswith("--")]
        first = given.index(options[0]) if options else len(given)
        called = [*command.split(), *given[first:], "--", *given[:first]]
        outcome = CliRunner().invoke(main, called)
        wrong = outcome.exception
        assert wrong is None or isinstance(wrong, SystemExit), (bad, repr(wrong))
        check_told(outcome.exit_code, outcome.stderr)
        refused += outcome.exit_code != 0
        assert {path: text for path, text in files().items() if path in before} == before, bad
    assert refused > 8


OTHER = {
    "--filter": ("[",),
    "--out": ("", "nets.py", "nets.py/made"),
    "--picture": ("", "folder", "nets.py/made.png", "made.xyz"),
}
"""Other bad texts: any file name and any pattern makes sense."""


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("command", ["demo", "grow", "continual", "prune", "export"])
@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_told(command: str) -> None:
    Path("closed").mkdir(mode=0o500)
    if command == "export":
        done = CliRunner().invoke(
            main, ["export", "nets.py:make", "run.safetensors", "closed/a.pt"]
        )
        code, errors = done.exit_code, done.stderr
    else:
        code, _, errors = run(command, "--out", "closed/made")
    assert code == 1
    check_told(code, errors)


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("command", ["demo", "continual", "prune", "export", "grow"])
def test_a_file_where_a_folder_is_wanted_is_told(command: str) -> None:
    Path("file").write_text("mine")
    if command == "export":
        arguments = ["export", "nets.py:make", "run.safetensors", "file/a.pt"]
        done = CliRunner().invoke(main, arguments)
        code, errors = done.exit_code, done.stderr
    else:
        code, _, errors = run(command, "--out", "file/made")
    assert command == "grow" or code in {1, 2}, errors  # a plan writes nothing
    check_told(code, errors)
    assert Path("file").read_text() == "mine"

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

import splitgrow
from splitgrow.cli.main import main

ROOT = Path(splitgrow.__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["demo", "--help"], ["grow", "--help"], ["prune", "-h"], ["inspect", "-h"]],
)
def test_help_has_examples(arguments: list[str]) -> None:
    outcome = CliRunner().invoke(main, arguments)
    assert outcome.exit_code == 0
    assert "Examples:\n" in outcome.output
    assert "\n    splitgrow " in outcome.output  # each on a line of its own


def _commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[list[str]]:
    yield [*words]
    for name, below in getattr(command, "commands", {}).items():
        yield from _commands(below, (*words, name))


@pytest.mark.parametrize("words", [*_commands(main)], ids=" ".join)
def test_help_fits_a_terminal_of_80_columns(words: list[str]) -> None:
    outcome = CliRunner().invoke(main, [*words, "--help"], terminal_width=80)
    assert outcome.exit_code == 0
    assert [line for line in outcome.stdout.splitlines() if len(line) > 80] == []


def test_help_shows_the_defaults_of_the_demo() -> None:
    text = CliRunner().invoke(main, ["demo", "--help"]).output
    for expected in ("default: 64", "default: 0.5", "default: 0.01", "default: splitgrow-demo"):
        assert expected in text


LEAN = """
import sys
from splitgrow.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    heavy = {"torch", "numpy", "matplotlib", "sklearn", "PIL"} & set(sys.modules)
    sys.exit(f"imported {heavy}" if heavy else end.code)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["nonsense"], 2),
        (["demo", "--help"], 0),
        (["demo", "--deeper", "--progressive"], 2),
        (["grow", "--help"], 0),
        (["grow", "mlp", "--every", "3", "--plateau", "2"], 2),
        (["prune", "--help"], 0),
        (["continual", "--help"], 0),
        (["compare", "--help"], 0),
        (["export", "--help"], 0),
        (["inspect", "--help"], 0),
        (["prune", "nets:make", "--amount", "0.5", "--criterion", "taylor"], 2),
        (["inspect"], 2),
    ],
)
def test_help_and_usage_errors_need_nothing_heavy(arguments: list[str], code: int) -> None:
    outcome = _python("-c", LEAN, *arguments)
    assert outcome.returncode == code, outcome.stderr


def test_the_version_is_that_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"1.2.3 of {name}")
    outcome = CliRunner().invoke(main, ["--version"])
    assert (outcome.exit_code, outcome.output) == (0, "splitgrow 1.2.3 of splitgrow\n")


def test_the_version_of_a_checkout_that_is_not_installed_is_not_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    outcome = CliRunner().invoke(main, ["--version"])
    assert (outcome.exit_code, outcome.output) == (0, "splitgrow (not installed)\n")


@pytest.mark.parametrize("arguments", [["nonsense"], ["--nonsense"], ["demo", "--nonsense"]])
def test_an_unknown_command_or_option_is_a_usage_error(arguments: list[str]) -> None:
    outcome = CliRunner().invoke(main, arguments)
    assert outcome.exit_code == 2
    assert "nonsense" in outcome.stderr


def test_two_demos_at_once_are_refused_by_name() -> None:
    outcome = CliRunner().invoke(main, ["demo", "--deeper", "--progressive"])
    assert outcome.exit_code == 2
    assert "--deeper and --progressive are two demos: choose one of them" in outcome.stderr


@pytest.mark.parametrize("package", ["sklearn", "PIL"])
def test_a_missing_package_is_named_with_the_way_to_get_it(package: str) -> None:
    blocked = f"import sys; sys.modules[{package!r}] = None"
    outcome = _python("-c", f"{blocked}\nfrom splitgrow.cli.main import main\nmain(['demo'])")
    assert outcome.returncode == 1
    assert outcome.stderr == (
        f"Error: this command needs {package}, which is not installed: "
        'pip install "splitgrow[demo]" installs it\n'
    )


def test_data_of_ones_own_need_no_scikit_learn(tmp_path: Path) -> None:
    labels = np.arange(6) % 2
    images = np.arange(96, dtype=np.uint8).reshape(6, 4, 4)
    path = tmp_path / "own.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    load = f"datasets.load_dataset(pathlib.Path({str(path)!r}))"
    blocked = "import sys, pathlib; sys.modules['sklearn'] = None"
    outcome = _python("-c", f"{blocked}\nfrom splitgrow.demos import datasets\nprint({load}.name)")
    assert outcome.stdout == "own\n", outcome.stderr


def test_a_package_that_is_missing_for_another_reason_is_not_hidden() -> None:
    blocked = "import sys; sys.modules['json'] = None"
    outcome = _python("-c", f"{blocked}\nfrom splitgrow.cli.main import main\nmain(['demo'])")
    assert outcome.returncode == 1
    assert "ModuleNotFoundError" in outcome.stderr


def test_the_exit_code_reaches_the_shell(tmp_path: Path) -> None:
    path = tmp_path / "missing.npz"
    outcome = _python(
        "-m", "splitgrow.cli", "demo", "--data", str(path), "--out", str(tmp_path / "out")
    )
    assert outcome.returncode == 1
    assert outcome.stderr.startswith(f"Error: {path}: there is no such file or folder")
    assert outcome.stderr.count("\n") == 1


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Lets child processes be interrupted, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_with_130_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "splitgrow.cli", "demo", "--epochs", "5000"]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path)], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        code = process.wait(timeout=60)
    assert first.startswith("digits: 1,437 training")
    assert code == 130
    assert "Interrupted: " in rest
    assert "Traceback" not in rest


def test_output_that_is_no_terminal_has_no_escape_codes(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from torch import nn\nnet = nn.Linear(2, 3)\n")
    outcome = _python("-m", "splitgrow.cli", "inspect", f"{tmp_path / 'net.py'}:net", "--input=1,2")
    assert outcome.returncode == 0
    assert "Linear" in outcome.stdout
    assert "\x1b" not in outcome.stdout + outcome.stderr

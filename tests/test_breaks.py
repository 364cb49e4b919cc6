"""The places that `python -m breaks` breaks: each is there, once, and so is its test."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from breaks import __main__ as command
from breaks.catalogue import BREAKS, Break
from breaks.runs import ROOT, Copy, Outcome, is_stale

ONE = Break("kept.py", "x = 1", "x = 2", "x is wrong", "test_it.py")


def test_no_break_is_stale() -> None:
    assert [change.old for change in BREAKS if is_stale(change)] == []
    assert len({(change.file, change.old) for change in BREAKS}) == len(BREAKS)
    assert all(change.new not in ("", change.old) for change in BREAKS)


def test_the_test_that_comes_first_is_there() -> None:
    for change in BREAKS:
        file, _, name = change.first.partition("::")
        assert f"def {name}" in (ROOT / "tests" / file).read_text()


@pytest.mark.parametrize(
    ("source", "stale"), [("x = 1", False), ("x = 1; x = 1", True), ("", True)]
)
def test_a_break_whose_text_is_not_there_just_once_is_stale(
    source: str, stale: bool, tmp_path: Path
) -> None:
    (tmp_path / "splitgrow").mkdir()
    (tmp_path / "splitgrow/kept.py").write_text(source)
    assert is_stale(ONE, tmp_path) == stale
    assert is_stale(replace(ONE, file="gone.py"), tmp_path)


@pytest.mark.parametrize(
    ("test", "state", "by"),
    [
        ("assert kept.x == 1", "caught", "tests/test_it.py::test_it"),
        ("assert kept.x", "survived", ""),
        ("assert kept.x == 3", "fails unbroken", "tests/test_it.py::test_it"),
        ("import time; time.sleep(600 * (kept.x - 1))", "hangs", ""),
    ],
)
def test_what_becomes_of_a_break(
    test: str, state: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a project of one module and one test."""
    whole = {
        "splitgrow/kept.py": "x = 1\n",
        "tests/test_it.py": f"import kept\n\n\ndef test_it():\n    {test}\n",
        "pyproject.toml": '[tool.pytest.ini_options]\nmarkers = ["zoo: none"]\n'
        'pythonpath = ["splitgrow"]\n',
        "tests/breaks/__init__.py": "",
        "tests/breaks/quick.py": (ROOT / "tests/breaks/quick.py").read_text(),
    }
    for name, text in whole.items():
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / name).write_text(text)
    monkeypatch.setattr("breaks.runs.ROOT", tmp_path / "project")
    copy = Copy(tmp_path / "copy", limit=5 if state == "hangs" else 600, full=False)
    outcome = copy.tried(1, ONE, "mark")
    assert (outcome.state, outcome.test) == (state, by)
    assert (tmp_path / "copy/splitgrow/kept.py").read_text() == "x = 1\n"
    assert copy.tried(1, replace(ONE, old="y = 1"), "mark").state == "stale"


def test_what_is_known_is_not_tried_again_and_an_interruption_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tried = tmp_path / "found.json", list[int]()

    class Interrupted(Copy):
        def __init__(self, root: Path, *, limit: float, full: bool) -> None:
            pass

        def tried(self, number: int, change: Break, mark: str) -> Outcome:
            tried.append(number)
            if tried == [1, 2, 3]:
                raise KeyboardInterrupt
            return Outcome(number, change.file, change.meaning, "caught", "a test", 1.0, mark)

    monkeypatch.setattr(command, "Copy", Interrupted)
    monkeypatch.setattr("sys.argv", ["breaks", "--json", str(path)])
    assert command.main() == 130
    assert [item["number"] for item in json.loads(path.read_text())] == [1, 2]
    assert command.main() == 0
    assert tried == [1, 2, 3, *range(3, len(BREAKS) + 1)]

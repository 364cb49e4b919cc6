"""Every piece of Python on the pages in docs/ runs, and so do the examples beside them."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import page_setups
import pytest
import torch

from benchmarks.vision import torchvision

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))
NOTEBOOKS = sorted((DOCS / "examples").glob("*.ipynb"))
OF_LIBRARIES = {"lightning_callback.py"}
"""Examples that need the packages of benchmarks/requirements.txt."""
OWN_PROCESS = {"many_processes.py"}
"""Examples that start processes, which need the script as their main module."""


def pieces_of(page: str) -> list[str]:
    """The scripts on a page, without their indentation."""
    found = re.findall(r"^ *```python\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(piece) for piece in found]


WITH_CODE = [name for name, page in PAGES.items() if pieces_of(page)]


def marked(name: str) -> Any:
    needs_libraries = name in page_setups.LIBRARIES | OF_LIBRARIES
    return pytest.param(name, marks=[pytest.mark.zoo, pytest.mark.slow] if needs_libraries else [])


@pytest.mark.parametrize("name", [marked(name) for name in WITH_CODE])
@pytest.mark.filterwarnings("default")
def test_the_code_of_a_page_runs_in_order(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    with page_setups.names_for(name) as names:
        for number, piece in enumerate(pieces_of(PAGES[name]), 1):
            exec(compile(piece, f"{name}, piece {number}", "exec"), names)


def test_control_code_that_does_not_run_is_found() -> None:
    (piece,) = pieces_of("Text.\n\n    ```python\n    unknown_name\n    ```\n")
    with pytest.raises(NameError):
        exec(piece, {})


def test_every_page_that_needs_names_is_there() -> None:
    assert set(page_setups.SETUPS) | page_setups.LIBRARIES <= set(WITH_CODE)


@pytest.mark.slow
@pytest.mark.parametrize("name", [marked(script.name) for script in EXAMPLES])
@pytest.mark.filterwarnings("default:::lightning", "default::UserWarning:lightning")
def test_an_example_runs(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = DOCS / "examples" / name
    if name in OF_LIBRARIES:
        torchvision()  # lightning imports it
    assert len(script.read_text().splitlines()) <= 80
    monkeypatch.setenv("SPLITGROW_EXAMPLE", "small")
    if script.name in OWN_PROCESS:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        run = [sys.executable, str(script)]
        assert "True" in subprocess.run(run, capture_output=True, text=True, check=True).stdout
        return
    runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().out
    assert said
    assert "CHANGED" not in said
    assert ": False" not in said


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_is_kept_without_outputs(
    notebook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITGROW_EXAMPLE", "small")
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = json.loads(notebook.read_text())["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            exec("".join(cell["source"]), names)


def test_the_page_of_examples_lists_all_of_them() -> None:
    listed = re.findall(r"\(examples/([\w.]+)\)", PAGES["examples.md"])
    assert sorted(listed) == sorted(path.name for path in EXAMPLES + NOTEBOOKS)


def test_the_reference_has_all_public_names() -> None:
    shown = " ".join(page for name, page in PAGES.items() if name.startswith("reference/"))
    listed = {entry.rpartition(".")[2] for entry in re.findall(r"^::: (\S+)$", shown, re.MULTILINE)}
    assert page_setups.public_names() - listed == set()

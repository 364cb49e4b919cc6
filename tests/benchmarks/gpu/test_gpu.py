"""The command for a GPU: it always comes to an end, and tells what it did not measure."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from benchmarks.gpu import running
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.plan import PARTS, Part
from benchmarks.speed import results, tables
from benchmarks.speed.catalogue import CLAIMS
from benchmarks.speed.results import Entry, Measurement, Spread

CHILD = """
import sys, time
for part in sys.argv[1:]:
    name = part.split(":")[0]
    print("=start=", name, flush=True)
    if name == "bf16":
        time.sleep(60)
    if name == "channels-last":
        sys.exit(3)
    if name == "optimizers":
        print("=failed=", "ValueError: no", flush=True)
    print("=done=", name, flush=True)
"""


@pytest.fixture
def console() -> Console:
    return Console(quiet=True)


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that does what its parts are named after."""
    monkeypatch.setattr(running, "CHILD", ("-c", CHILD))
    monkeypatch.setattr(Part, "limit", 2.0)


def test_the_parts_fit_into_ten_minutes_and_are_claims() -> None:
    assert sum(part.seconds for part in PARTS) <= 9.5 * 60
    assert {part.claim for part in PARTS} <= {claim.name for claim in CLAIMS}


def test_what_hangs_is_stopped_what_dies_is_left_and_the_rest_is_measured(console) -> None:
    names = ("training-free", "bf16", "channels-last", "optimizers", "cuda-graphs", "long-run")
    parts = [Part(name, 1) for name in names]
    why = running.run_parts(parts, [], device="cpu", minutes=1, console=console)
    assert why == {
        "cuda-graphs": "needs cuda",
        "bf16": "stopped after 2 s",
        "channels-last": "its process ended with 3",
        "optimizers": "ValueError: no",
    }


def test_it_ends_when_its_time_is_over(console) -> None:
    parts = [Part("bf16", 1), Part("training-free", 1)]
    why = running.run_parts(parts, [], device="cpu", minutes=1 / 60, console=console)
    assert why == {"bf16": "no time was left", "training-free": "no time was left"}


def test_without_a_card_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = CliRunner().invoke(main, ["--only", "bf16"])
    assert found.exit_code == 1
    assert "sees no CUDA device" in found.output
    found = CliRunner().invoke(main, ["--device", "cpu", "--quick"])
    assert found.exit_code == 2
    assert "--json" in found.output


@pytest.mark.skipif(find_spec("torchvision") is None, reason="needs torchvision")
@pytest.mark.slow
@pytest.mark.zoo
def test_its_parts_run_without_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    path = tmp_path / "found.json"
    chosen = ("optimizers", "bf16", "cuda-graphs")
    options = [part for name in chosen for part in ("--only", name)]
    found = CliRunner().invoke(main, ["--device", "cpu", "--quick", "--json", str(path), *options])
    assert set(results.read(path)) == {"optimizers", "bf16"}, found.output
    notes = json.loads(tables.notes_of(path).read_text())
    assert notes["cuda-graphs"] == "needs cuda"


def test_the_page_has_a_column_for_the_card(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("<!-- speed table -->\n<!-- end -->\n")

    def entry(claim: str, value: float, device: str) -> Entry:
        measured = Measurement("a net", "ratio", Spread.of([value]), {"plain": "3.0 ms"})
        where = {"device": device, "cpu": "some", "threads": 2, "cores": 2, "torch": "2"}
        return Entry(claim, "How slow it is", "python -m x", "abc", where, [measured])

    results.write(tmp_path / "speed-cpu.json", [entry("grown-inference", 1.0, "cpu")])
    tables.write_page(page, tmp_path)
    assert "GPU" not in page.read_text()
    card = [entry("grown-inference", 9.0, "A card"), entry("cuda-graphs", 0.8, "A card")]
    results.write(tmp_path / "speed-cuda.json", card)
    tables.notes_of(tmp_path / "speed-cuda.json").write_text('{"bf16": "no time was left"}')
    tables.write_page(page, tmp_path)
    text = page.read_text()
    assert "| on the GPU | verdict there |" in text
    assert "| a net | 1.000 | 1.05 | met | plain 3.0 ms |  | 9.000; plain 3.0 ms | BROKEN |" in text
    assert "| a net |  | 0.85 |  |  |  | 0.800; plain 3.0 ms | met |" in text
    assert "bf16: no time was left" in text
    assert "A card" in text

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from helpers import assert_equal
from safetensors.torch import load_file
from torch import nn

import splitgrow
from splitgrow.cli.main import main

CODE = """
import torch
from torch import nn

def make():
    print("made a net")
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
"""


def build() -> Any:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.fixture
def grown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(CODE)
    model: Any = splitgrow.growable(build(), torch.ones(2, 3))
    model.expand_layer("0", 2)
    for parameter in model.parameters():
        parameter.data.normal_()
    splitgrow.save(model, tmp_path / "run.safetensors")
    return model


def export(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["export", "nets.py:make", "run.safetensors", *arguments])


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_the_merged_tensors_need_no_splitgrow(grown: Any, suffix: str) -> None:
    done = export(f"plain{suffix}")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "0: 4 x 3 -> 6 x 3",
        "2: 2 x 4 -> 2 x 6",
        f"plain{suffix}: Sequential, 38 parameters.",
    ]
    path = Path(f"plain{suffix}")
    state = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    plain = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    plain.load_state_dict(state)
    assert torch.equal(plain(X), splitgrow.merge(grown)(X))


def test_a_program_runs_without_the_class_and_for_any_batch(grown: Any) -> None:
    done = export("plain.pt2")
    assert done.exit_code == 0, done.output
    program = torch.export.load("plain.pt2").module()
    assert_equal(program(X), splitgrow.merge(grown)(X))


def test_an_earlier_generation_can_be_exported(grown: Any) -> None:
    done = export("plain.pt", "--generation", "0")
    assert done.exit_code == 0, done.output
    plain = build()
    plain.load_state_dict(torch.load("plain.pt", weights_only=True))
    assert torch.equal(plain(X), splitgrow.merge(grown, 0)(X))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("plain.onnx",), "plain.onnx ends in .onnx; known are .safetensors, .pt, .pth, .pt2"),
        (("plain",), "plain ends in nothing"),
        (("plain.pt", "--generation", "7"), "no generation 7"),
        (("nowhere/plain.pt",), "cannot write"),
        (("nowhere/plain.safetensors",), "cannot save"),
        (("nets.py",), "ends in .py"),
        (("run.safetensors",), "is there already; --force replaces it"),
    ],
)
def test_bad_input_is_told_and_writes_nothing(
    grown: Any, arguments: tuple[str, ...], error: str
) -> None:
    before = {file.name: file.read_bytes() for file in Path().iterdir() if file.is_file()}
    done = export(*arguments)
    assert done.exit_code == 1
    assert error in done.output
    after = {file.name: file.read_bytes() for file in Path().iterdir() if file.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("target", "checkpoint", "error"),
    [
        ("nets.py:make", "missing.safetensors", "No such file"),
        ("nets.py:make", "nets.py", "is no checkpoint"),
        ("nets.py:other", "run.safetensors", "has no 'other'"),
        ("nets", "run.safetensors", "MODULE:FACTORY"),
    ],
)
def test_what_cannot_be_loaded_is_told(
    grown: Any, target: str, checkpoint: str, error: str
) -> None:
    done = CliRunner().invoke(main, ["export", target, checkpoint, "plain.pt"])
    assert done.exit_code != 0
    assert error in done.output
    assert not Path("plain.pt").exists()


def test_force_replaces_what_is_there(grown: Any) -> None:
    Path("plain.pt").write_text("old")
    assert export("plain.pt").exit_code == 1
    assert Path("plain.pt").read_text() == "old"
    assert export("plain.pt", "--force").exit_code == 0
    assert len(torch.load("plain.pt", weights_only=True)) == 4


KEYWORDS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, batch, scale=1.0, *, mask=None, **more):
        return self.b(self.a(batch["x"]).relu()) * scale + mask + more["y"]
"""


def test_a_program_takes_keywords_and_containers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(KEYWORDS)
    made: dict[str, Any] = {}
    exec(KEYWORDS, made)
    x, mask, y = torch.randn(5, 3), torch.randn(5, 2), torch.randn(5, 2)
    model: Any = splitgrow.growable(made["Net"](), ({"x": x},), {"mask": mask, "y": y})
    model.expand_layer("a", 2)
    for parameter in model.parameters():
        parameter.data.normal_()
    splitgrow.save(model, tmp_path / "run.safetensors")
    done = CliRunner().invoke(main, ["export", "nets.py:Net", "run.safetensors", "a.pt2"])
    assert done.exit_code == 0, done.output
    program = torch.export.load("a.pt2").module()
    assert_equal(program({"x": x}, mask=mask, y=y), model({"x": x}, mask=mask, y=y))
    few = program({"x": x[:3]}, mask=mask[:3], y=y[:3])
    assert_equal(few, model({"x": x[:3]}, mask=mask[:3], y=y[:3]))


GRAPH = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x, y):
        return self.a(x) + self.b(y).relu()

def make():
    return torch.fx.symbolic_trace(Net())
"""


def test_keywords_of_a_graph_keep_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(GRAPH)
    made: dict[str, Any] = {}
    exec(GRAPH, made)
    x, y = torch.randn(2, 5, 3)
    model: Any = splitgrow.growable(made["make"](), {"y": y, "x": x})
    splitgrow.save(model, tmp_path / "run.safetensors")
    done = CliRunner().invoke(main, ["export", "nets.py:make", "run.safetensors", "a.pt2"])
    assert done.exit_code == 0, done.output
    assert_equal(torch.export.load("a.pt2").module()(y=y, x=x), model(x, y))

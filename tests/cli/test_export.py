from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from helpers import assert_equal
from safetensors.torch import load_file
from torch import nn

import splitgrow
from benchmarks.vision import torchvision
from splitgrow.cli import programs
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


def test_the_format_may_be_chosen_whatever_the_suffix(grown: Any) -> None:
    done = export("plain.bin", "--format", "safetensors")
    assert done.exit_code == 0, done.output
    assert load_file("plain.bin")["0.weight"].shape == (6, 3)
    assert export("plain.x", "--format", "xyz").exit_code == 2


def test_without_onnxscript_the_extra_is_named_and_nothing_is_written(
    grown: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitgrow.cli.programs.find_spec", lambda _: None)
    done = export("plain.onnx")
    assert done.exit_code == 1
    assert "pip install splitgrow[onnx]" in done.output
    assert not Path("plain.onnx").exists()


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arguments", [("plain.onnx",), ("plain.bin", "--format", "onnx")])
def test_onnx_runtime_computes_what_the_grown_model_does(
    grown: Any, arguments: tuple[str, ...]
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    done = export(*arguments)
    assert done.exit_code == 0, done.output
    assert "  0      4 x 3 -> 6 x 3\n" in done.output
    assert "inputs: input: any0 x 3\n" in done.output
    assert "torch.onnx" not in done.output
    session = runtime.InferenceSession(arguments[0])
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    (made,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert (torch.from_numpy(made) - grown(x)).abs().max() < 1e-5


VISION = """
from torch import nn

class Convolutions(nn.Sequential):
    def __init__(self):
        norm = nn.BatchNorm2d(4)
        super().__init__(nn.Conv2d(3, 4, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(4, 2, 1))

class Flat(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2))
"""


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize(
    ("name", "dynamic", "shape"),
    [
        ("Convolutions", "batch", "any0 x 3 x 8 x 8"),
        ("Convolutions", "sizes", "any0 x 3 x any2 x any3"),
        ("Convolutions", "none", "1 x 3 x 8 x 8"),
        ("Flat", "sizes", "any0 x 3 x 8 x 8"),
    ],
)
def test_sizes_vary_where_the_network_lets_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dynamic: str, shape: str, fuse: bool
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vision.py").write_text(VISION)
    made: dict[str, Any] = {}
    exec(VISION, made)
    model: Any = splitgrow.growable(made[name]().eval(), torch.randn(1, 3, 8, 8))
    model.expand_layer("0", 2)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.5)
    splitgrow.save(model, "run.safetensors")
    more = ("--dynamic", dynamic, "--json", *(("--fuse",) if fuse else ()))
    done = CliRunner().invoke(
        main, ["export", f"vision.py:{name}", "run.safetensors", "a.onnx", *more]
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["way"], told["format"]) == ("fused" if fuse else "merged", "onnx")
    assert told["notes"][0] == f"inputs: input: {shape}"
    assert ("1x3x8x8; 5x3x8x8" in told["notes"][1]) == (dynamic != "none")
    assert ("2x3x16x16" in told["notes"][1]) == ("any2" in shape)
    session = runtime.InferenceSession("a.onnx")
    for size in (8, 12) if "any2" in shape else (8,):
        x = torch.randn(1 if dynamic == "none" else 4, 3, size, size)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert (torch.from_numpy(found) - model(x)).abs().max() < 1e-4


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
def test_a_program_that_computes_something_else_is_not_written(
    grown: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check compares with the network itself: here with one that gives twice as much."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    original = programs.check_onnx

    def twice(path: Path, plain: nn.Module, program: programs.Program) -> str:
        return original(path, _Twice(plain), program)

    monkeypatch.setattr("splitgrow.cli.export.check_onnx", twice)
    done = export("plain.onnx")
    assert done.exit_code == 1
    assert "ONNX Runtime computes something else for inputs" in done.output
    assert not Path("plain.onnx").exists()
    assert export("plain.onnx", "--no-check").exit_code == 0


class _Twice(nn.Module):
    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own = own

    def forward(self, *args: Any) -> Any:
        return 2 * self.own(*args)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("a.pt", "--dynamic", "sizes"), "--dynamic is for programs"),
        (("a.pt2", "--no-check"), "--check and --no-check are for --format onnx"),
        (("a", "--format", "hf", "--fuse"), "--fuse leaves no class of transformers"),
    ],
)
def test_options_of_other_formats_are_refused(
    grown: Any, arguments: tuple[str, ...], error: str
) -> None:
    done = export(*arguments)
    assert done.exit_code == 2
    assert error in done.output


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
def test_a_model_of_transformers_is_exported_as_from_pretrained_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own directory, without any code: class and config are known from there."""
    torchvision()
    import transformers as hf  # noqa: PLC0415

    hf.logging.set_verbosity_error()
    monkeypatch.chdir(tmp_path)
    config = hf.GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    hf.GPT2LMHeadModel(config).save_pretrained("before")
    ids = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(1))
    model: Any = splitgrow.growable(hf.GPT2LMHeadModel.from_pretrained("before").eval(), ids)
    model.insert_layer("transformer.h.0", "block")
    splitgrow.save(model, "run.safetensors")
    arguments = ["export", "before", "run.safetensors", "after", "--format", "hf"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    again = hf.GPT2LMHeadModel.from_pretrained("after").eval()
    assert again.config.n_layer == 3
    assert_equal(again(ids).logits, model(ids).logits)
    assert CliRunner().invoke(main, arguments).exit_code == 1
    seen = CliRunner().invoke(main, ["inspect", "before"])
    assert seen.exit_code == 0, seen.output
    assert "layers can grow" in seen.output
    assert "transformer.h.1.mlp.c_fc" in seen.output


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ("{}", "names no class under `architectures`"),
        ("[]", "names no class under `architectures`"),
        ("{", "cannot read"),
        ('{"architectures": ["Nothing"]}', "know no Nothing"),
    ],
)
@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
def test_directories_that_are_no_models_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, error: str
) -> None:
    torchvision()
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    (Path("model") / "config.json").write_text(config)
    done = CliRunner().invoke(main, ["inspect", "model"])
    assert done.exit_code == 1
    assert error in done.output
    Path("empty").mkdir()
    done = CliRunner().invoke(main, ["inspect", "empty"])
    assert done.exit_code == 2
    assert "there is no config.json in empty" in done.output


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_the_merged_tensors_need_no_splitgrow(grown: Any, suffix: str) -> None:
    done = export(f"plain{suffix}")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "  layer          weight",
        " ───────────────────────",
        "  0      4 x 3 -> 6 x 3",
        "  2      2 x 4 -> 2 x 6",
        "",
        f"plain{suffix}: Sequential, merged, 38 parameters.",
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


ALONE = """
import torch
from torch import nn

class Any(nn.Linear):
    def forward(self, x):
        return super().forward(x)

class One(nn.Linear):
    def forward(self, x):
        return super().forward(x.reshape(1, 3))
"""


@pytest.mark.parametrize("name", ["Any", "One"])
def test_a_program_of_an_example_of_one_sample_takes_any_batch_that_the_model_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alone.py").write_text(f"{ALONE}\ndef make():\n    return {name}(3, 4)\n")
    made: dict[str, Any] = {}
    exec(ALONE, made)
    model: Any = splitgrow.growable(made[name](3, 4), X[:1])
    splitgrow.save(model, "run.safetensors")
    done = CliRunner().invoke(main, ["export", "alone.py:make", "run.safetensors", "a.pt2"])
    assert done.exit_code == 0, done.output
    program = torch.export.load("a.pt2").module()
    for batch in (X[:1],) if name == "One" else (X[:1], X):
        assert_equal(program(batch), model(batch))


def test_an_earlier_generation_can_be_exported(grown: Any) -> None:
    done = export("plain.pt", "--generation", "0")
    assert done.exit_code == 0, done.output
    plain = build()
    plain.load_state_dict(torch.load("plain.pt", weights_only=True))
    assert torch.equal(plain(X), splitgrow.merge(grown, 0)(X))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("plain.bin",), "plain.bin ends in .bin; known are .safetensors, .pt, .pth, .pt2, .onnx"),
        (("plain.bin", "--format", "hf"), "models of transformers"),
        (("plain",), "plain ends in nothing"),
        (("plain.pt", "--generation", "7"), "no generation 7"),
        (("nowhere/plain.pt",), "there is no folder nowhere for plain.pt"),
        (("nowhere/plain.safetensors",), "there is no folder nowhere"),
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

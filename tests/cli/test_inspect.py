from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from splitgrow.cli.main import main
from splitgrow.cli.shapes import Shape, parse_shape
from splitgrow.cli.ways import KEEPING, LEARNING

MODELS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.skip = nn.Conv2d(3, 8, 1)
        self.last = nn.Linear(8, 5)

    def forward(self, x):
        y = torch.relu(self.grouped(self.first(x))) + self.skip(x)
        return self.last(y.mean((2, 3)))

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.mix = nn.Linear(6, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, words, extra):
        return self.out(self.mix(self.embed(words)) + extra)

class Branching(nn.Linear):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x

class Thin(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.thin, self.last = nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(1, 2)

    def forward(self, x):
        return self.last(self.thin(self.wide(x)))

class Holder:
    @staticmethod
    def make():
        return Net()

def make():
    print("made a net")
    return Net()

def branching():
    return Branching(3, 3).to("meta")

def broken():
    raise ValueError("no such weights\\nand more")

def leaving():
    raise SystemExit(3)

def needy(width):
    return Net()

net = Net()
number = 3
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The path of a file of models, in the current directory."""
    (tmp_path / "some_models.py").write_text(MODELS)
    (tmp_path / "syntax.py").write_text("def (")
    (tmp_path / "needs.py").write_text("import not_installed_anywhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "some_models.py"
    for name in ("some_models", "syntax", "needs"):
        sys.modules.pop(name, None)


def _inspect(*arguments: str) -> tuple[int, str, str]:
    outcome = CliRunner().invoke(main, ["inspect", *arguments])
    return outcome.exit_code, outcome.stdout, outcome.stderr


def _layers(*arguments: str) -> dict[str, dict[str, object]]:
    code, printed, errors = _inspect(*arguments, "--json")
    assert code == 0, errors
    return {layer["name"]: layer for layer in json.loads(printed)["layers"]}


@pytest.mark.parametrize(
    "target",
    [
        "some_models.py:make",
        "some_models.py:Net",
        "some_models.py:net",
        "some_models:make",
        "some_models:Holder.make",
        "./some_models.py:make",
    ],
)
def test_a_model_is_found_by_file_or_module_and_by_function_class_or_itself(
    models: str, target: str
) -> None:
    layers = _layers(target, "--input", "1,3,8,8")
    assert list(layers) == ["first", "grouped", "skip", "last"]


def test_both_ways_to_grow_are_told(models: str) -> None:
    _, printed, _ = _inspect(f"{models}:make", "--input", "1,3,8,8")
    assert f"{LEARNING} `splitgrow grow` shows it.\n" in printed
    assert f"{KEEPING} `splitgrow demo` shows it.\n" in printed


def test_a_layer_is_told_with_what_grows_along_and_what_reads_it(models: str) -> None:
    layers = _layers(f"{models}:make", "--input", "1,3,8,8")
    first = layers["first"]
    assert (first["index"], first["kind"], first["width"], first["step"]) == (0, "Conv2d", 8, 1)
    assert first["growable"] is True
    assert set(first["group"]) == {"grouped", "skip"}
    assert "last" in first["readers"]
    assert layers["last"]["readers"] == []


def test_a_layer_that_cannot_grow_says_why(models: str) -> None:
    layers = _layers(f"{models}:Pair", "--input", "1,7:int64", "--input", "1,7,4")
    mix = layers["mix"]
    assert mix["growable"] is False
    assert "extra" in str(mix["reason"])
    assert layers["out"]["growable"] is True


def test_layers_that_can_grow_are_told_that_can_shrink_and_those_that_cannot(models: str) -> None:
    _, printed, _ = _inspect(f"{models}:make", "--input", "1,3,8,8")
    assert "All layers that can grow can shrink: `splitgrow prune`.\n" in printed
    layers = _layers(f"{models}:Thin", "--input", "1,3")
    assert {name: layer["shrinkable"] for name, layer in layers.items()} == {
        "wide": True,
        "thin": False,
        "last": True,
    }
    assert layers["thin"]["growable"] is True
    _, printed, _ = _inspect(f"{models}:Thin", "--input", "1,3")
    assert "Of the layers that can grow, 2 can shrink: `splitgrow prune`. These cannot:" in printed
    assert "  thin: 1 of the 1 channels of `thin` cannot go: " in printed


def test_a_layer_that_cannot_grow_cannot_shrink_either(models: str) -> None:
    """The list holds what the library does: the control is a layer that can."""
    layers = _layers(f"{models}:Pair", "--input", "1,7:int64", "--input", "1,7,4")
    assert (layers["mix"]["shrinkable"], layers["out"]["shrinkable"]) == (False, True)


def test_inputs_are_given_by_keyword(models: Path) -> None:
    placed = _layers(f"{models}:Pair", "--input", "1,7:int64", "--input", "1,7,4")
    both = ("--input", "extra=1,7,4", "--input", "words=1,7:int64")
    assert _layers(f"{models}:Pair", *both) == placed
    assert _layers(f"{models}:Pair", "--input", "1,7:int64", "--input", "extra=1,7,4") == placed


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["1,7:int64", "other=1,7,4"], "its arguments are: words, extra"),
        (["extra=1,7,4", "extra=1,7,4"], "extra is given more than once"),
        (["1,7:int64", "a b=1,7,4"], "'a b'"),
    ],
)
def test_keywords_that_are_none_are_refused(models: Path, given: list[str], words: str) -> None:
    options = [part for shape in given for part in ("--input", shape)]
    code, _, errors = _inspect(f"{models}:Pair", *options)
    assert code != 0
    assert words in " ".join(errors.split())


def test_the_table_has_a_row_a_layer_and_a_summary(models: str) -> None:
    code, printed, _ = _inspect(f"{models}:Pair", "--input", "1,7:int64", "--input", "1,7,4")
    assert code == 0
    assert "Pair" in printed
    for text in ("mix", "Linear", "no", "  mix: ", "extra", "out", "yes"):
        assert text in printed
    assert "2 of 3 layers can grow; 98 parameters.\n" in printed


def test_json_is_all_that_goes_to_stdout(models: str) -> None:
    code, printed, errors = _inspect(f"{models}:make", "--input", "1,3,8,8", "--json")
    assert code == 0
    document = json.loads(printed)
    assert document["model"] == "Net"
    assert document["inputs"] == ["1,3,8,8"]
    assert document["parameters"] == 381
    assert "made a net" in errors


BAD_TARGETS = {
    "some_models.py:makes": r"Error: some_models.py has no 'makes'; is it make?",
    "some_models.py:zzz": r"Error: some_models.py has no 'zzz'",
    "some_models:Holder.mak": "Error: some_models has no 'mak'; is it make?",
    "nowhere_at_all:make": "Error: cannot import nowhere_at_all: ModuleNotFoundError: No module",
    "nowhere.py:make": "Error: there is no file nowhere.py",
    "syntax.py:make": "Error: cannot import syntax.py: SyntaxError: ",
    "needs:make": "Error: cannot import needs: ModuleNotFoundError: No module named 'not_inst",
    "some_models.py:broken": "failed when it was called: ValueError: no such weights\n",
    "some_models.py:leaving": "failed when it was called: SystemExit: 3\n",
    "some_models.py:needy": "failed when it was called: TypeError: needy() missing 1",
    "some_models.py:number": "some_models.py:number is a int, neither a model nor a function",
    "some_models.py:Holder": "some_models.py:Holder returned a Holder, not a torch.nn.Module",
}


@pytest.mark.parametrize("target", BAD_TARGETS)
def test_a_target_that_is_no_model_is_told_on_one_line(models: str, target: str) -> None:
    code, printed, errors = _inspect(target, "--input", "1,3,8,8")
    assert (code, printed) == (1, "")
    assert BAD_TARGETS[target] in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("target", ["make", ":make", "some_models.py:", ":"])
def test_a_target_without_module_or_factory_is_a_usage_error(models: str, target: str) -> None:
    code, _, errors = _inspect(target, "--input", "1,3,8,8")
    assert code == 2
    assert "MODULE:FACTORY form" in errors


def test_an_input_is_required(models: str) -> None:
    code, _, errors = _inspect(f"{models}:make")
    assert code == 2
    assert "--input" in errors


BAD_INPUTS = {
    "1,5,8,8": "5 channels",
    "3": "with inputs 3: ",
    "1,3,8,8:int64": "with inputs 1,3,8,8:int64: ",
    "9999999,9999999,9999999": "cannot make inputs",
}


@pytest.mark.parametrize("shape", BAD_INPUTS)
def test_a_shape_that_the_model_rejects_is_told(models: str, shape: str) -> None:
    code, printed, errors = _inspect(f"{models}:Net", "--input", shape)
    assert (code, printed) == (1, "")
    assert errors.startswith("Error: ")
    assert BAD_INPUTS[shape] in errors
    assert "Traceback" not in errors


def test_a_surplus_input_is_told(models: str) -> None:
    code, _, errors = _inspect(f"{models}:Net", "--input", "1,3,8,8", "--input", "1,3,8,8")
    assert code == 1
    assert errors.startswith("Error: with inputs 1,3,8,8 1,3,8,8: ")


def test_a_model_that_cannot_be_followed_is_told(models: str) -> None:
    code, printed, errors = _inspect(f"{models}:branching", "--input", "1,3")
    assert (code, printed) == (1, "")
    assert errors.startswith("Error: ")
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,3,224,224", Shape((1, 3, 224, 224))),
        ("7", Shape((7,))),
        (" 1, 16:int64", Shape((1, 16), "int64")),
        ("2,2:bool", Shape((2, 2), "bool")),
        ("x=1,3", Shape((1, 3), keyword="x")),
        (" words = 1,16:int64", Shape((1, 16), "int64", "words")),
    ],
)
def test_a_shape_is_read(text: str, expected: Shape) -> None:
    assert parse_shape(text) == expected
    assert parse_shape(str(expected)) == expected


@pytest.mark.parametrize("text", ["", "1,", "1,x", "0,3", "-1,3", "1 3", "1.5", "1,3:", "1:float"])
def test_a_text_that_is_no_shape_is_a_usage_error(models: str, text: str) -> None:
    code, _, errors = _inspect(f"{models}:Net", f"--input={text}")
    assert code == 2
    assert "Invalid value for '--input'" in errors


def test_a_model_that_has_grown_in_depth_lists_what_was_inserted(models: str) -> None:
    Path(models).write_text(
        MODELS
        + """
def deeper():
    import splitgrow
    model = splitgrow.growable(Net(), torch.zeros(1, 3, 8, 8))
    splitgrow.handle(model).insert_layer(("first", "grouped"), "residual")
    return model
"""
    )
    layers = _layers(f"{models}:deeper", "--input", "1,3,8,8")
    inserted = [name for name in layers if "inserted1" in name]
    assert len(inserted) == 2
    assert all(layers[name]["growable"] for name in inserted)
    assert inserted[1] in layers[inserted[0]]["readers"]

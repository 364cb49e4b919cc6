from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from click.testing import CliRunner
from helpers import assert_equal
from safetensors.torch import save_file
from torch import Tensor, nn

import splitgrow
from benchmarks.vision import torchvision
from splitgrow.cli.main import main
from splitgrow.cli.prune_settings import (
    CRITERION_NAMES,
    DATA_CRITERIA,
    SCOPE_NAMES,
    TARGET_NAMES,
    PruneOptions,
)
from splitgrow.pruning import CRITERIA
from splitgrow.pruning import target as targets
from splitgrow.pruning.choosing import PruneScope
from splitgrow.pruning.methods import PruneMethods

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.middle = nn.Linear(6, 16), nn.Linear(16, 12)
        self.norm, self.last = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x):
        return self.last(self.norm(self.middle(self.first(x).relu())).relu())

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(9, 8), nn.Linear(8, 8)
        self.last = nn.Linear(8, 9)
        self.last.weight = self.embed.weight

    def forward(self, words):
        return self.last(self.mix(self.embed(words)).relu())

class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.only = nn.Linear(6, 4)

    def forward(self, x):
        return self.only(x)

def make():
    print("made a net")
    return Net()

def broken():
    raise RuntimeError("out of order\\nand more")
"""
MAKE, INPUT = "prunable_nets.py:make", ("--input", "2,6")
X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The classes of a file of models, in the current directory."""
    (tmp_path / "prunable_nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    made: dict[str, Any] = {"__name__": "prunable_nets"}
    exec(CODE, made)
    yield made
    sys.modules.pop("prunable_nets", None)


@pytest.fixture
def weights(nets: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of a net, in a file."""
    torch.manual_seed(3)
    state: dict[str, Tensor] = nets["Net"]().state_dict()
    torch.save(state, "weights.pt")
    return state


def _prune(*arguments: str, target: str = MAKE) -> tuple[int, str, str]:
    outcome = CliRunner().invoke(main, ["prune", target, *arguments])
    return outcome.exit_code, outcome.stdout, outcome.stderr


def _document(*arguments: str, target: str = MAKE) -> Any:
    code, printed, errors = _prune(*arguments, "--json", target=target)
    assert code == 0, errors
    return json.loads(printed)


def _widths(document: Any) -> dict[str, tuple[int, int]]:
    return {row["layer"]: (row["before"], row["after"]) for row in document["layers"]}


def _files() -> set[str]:
    return {path.name for path in Path().iterdir() if path.is_file()}


# The options


def test_the_names_are_those_of_the_library() -> None:
    assert {*CRITERION_NAMES} == {*CRITERIA}
    assert {*SCOPE_NAMES} == {*get_args(PruneScope)}
    assert {*TARGET_NAMES} == {each.name for each in fields(splitgrow.Target)}


@pytest.mark.parametrize("name", DATA_CRITERIA)
def test_criteria_that_look_at_data_need_them(nets: dict[str, Any], name: str) -> None:
    model = splitgrow.growable(nets["Net"](), X)
    with pytest.raises(ValueError, match="needs data"):
        model.prune(0.3, criterion=name)


@pytest.mark.parametrize("name", ["criterion", "scope", "steps", "keep", "round_to", "refit"])
def test_the_defaults_are_those_of_the_library(name: str) -> None:
    assert getattr(PruneOptions, name) == signature(PruneMethods.prune).parameters[name].default


def test_the_widths_are_printed_within_80_columns(weights: dict[str, Tensor]) -> None:
    before = _files()
    options = ("--checkpoint", "weights.pt", *INPUT, "--target", "params=0.5")
    code, printed, progress = _prune(*options)
    assert code == 0
    assert "first   Linear     16 -> " in printed
    assert "last" not in printed
    assert "parameters: 392 -> 1" in printed
    assert "nothing is written: --out FILE keeps the smaller model" in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert "made a net" in progress
    assert _files() == before


def test_the_model_in_the_file_is_that_of_the_library(
    nets: dict[str, Any], weights: dict[str, Tensor]
) -> None:
    """The oracle is the call in Python, on the same weights."""
    options = ("--checkpoint", "weights.pt", *INPUT, "--target", "params=0.5", "--steps", "2")
    code, printed, errors = _prune(*options, "--out", "smaller.safetensors")
    assert code == 0, errors
    oracle: Any = nets["Net"]()
    oracle.load_state_dict(weights)
    oracle = splitgrow.growable(oracle.eval(), torch.ones(2, 6))
    oracle.prune(target=splitgrow.Target(params=0.5), steps=2)
    loaded = nets["Net"]()
    splitgrow.load(loaded, "smaller.safetensors")
    assert_equal(loaded(X), oracle(X))
    assert sum(each.numel() for each in loaded.parameters()) <= 392 / 2
    assert f"splitgrow export {MAKE} smaller.safetensors plain.pt2" in printed
    exported = CliRunner().invoke(main, ["export", MAKE, "smaller.safetensors", "plain.pt2"])
    assert exported.exit_code == 0, exported.output
    assert_equal(torch.export.load("plain.pt2").module()(X), oracle(X))
    plain = nets["Net"]()
    plain.load_state_dict(weights)
    assert (plain(X) - oracle(X)).abs().max() > 1e-3  # control: units that counted have gone


@pytest.mark.parametrize(
    ("options", "widths"),
    [
        (["--scope", "layer"], {"first": 8, "middle": 6, "norm": 6}),
        (["--scope", "layer", "--keep", "0.9"], {"first": 15, "middle": 11, "norm": 11}),
        (["--scope", "layer", "--round-to", "4"], {"first": 8, "middle": 8, "norm": 8}),
        (["--scope", "layer", "--only", "first"], {"first": 8}),
        (
            ["--scope", "layer", "--only", "f*", "--only", "mid*", "--except", "first"],
            {"middle": 6},
        ),
        (["--scope", "layer", "--except", "middle"], {"first": 8}),
        (["--scope", "layer", "--only", "*"], {"first": 8, "middle": 6, "norm": 6}),
        (["--scope", "layer", "--only", "last"], {"last": 2}),
        (["--scope", "layer", "--steps", "2"], {"first": 8, "middle": 6, "norm": 6}),
    ],
)
def test_options_choose_the_units(options: list[str], widths: dict[str, int]) -> None:
    found = _widths(_document(*INPUT, "--amount", "0.5", *options))
    found.pop("norm", None)
    widths.pop("norm", None)
    assert {name: after for name, (_, after) in found.items()} == widths


@pytest.mark.parametrize("criterion", ["l1", "l2", "random"])
def test_each_criterion_of_weights_is_taken(criterion: str) -> None:
    document = _document(*INPUT, "--amount", "0.3", "--criterion", criterion)
    assert document["options"]["criterion"] == criterion
    widths = _widths(document)
    assert sum(widths.get(name, (0, 0))[1] for name in ("first", "middle")) < 28


def test_random_numbers_are_drawn_by_the_seed() -> None:
    options = (*INPUT, "--amount", "0.5", "--criterion", "random")
    found = [_widths(_document(*options, "--seed", seed)) for seed in "1121345"]
    assert found[0] == found[1] == found[3]
    assert any(each != found[0] for each in found)


@pytest.mark.parametrize(
    ("texts", "target"),
    [
        (["params=0.5"], {"params": 0.5}),
        (["params=1_00"], {"params": 100}),
        (["params=1e2", "macs=.9"], {"params": 100, "macs": 0.9}),
        ([" macs = 99999999999999999999 "], {"macs": 99999999999999999999}),
    ],
)
def test_a_target_is_a_share_or_a_count(texts: list[str], target: dict[str, float]) -> None:
    given = [part for text in texts for part in ("--target", text)]
    document = _document(*INPUT, *given, "--plan")
    assert document["options"]["target"] == target
    assert document["after"]["parameters"] <= 392 * target.get("params", 392)


def test_a_latency_can_be_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts parameters."""

    def seconds(model: nn.Module) -> float:
        return float(sum(parameter.numel() for parameter in model.parameters()))

    monkeypatch.setattr(targets, "_seconds", seconds)
    document = _document(*INPUT, "--target", "latency=0.6", "--plan")
    assert document["options"]["target"] == {"latency": 0.6}
    assert 0.3 * 392 < document["after"]["parameters"] <= 0.6 * 392


def test_a_target_that_is_met_takes_nothing() -> None:
    code, printed, _ = _prune(*INPUT, "--target", "params=1e6", "--out", "same.safetensors")
    assert code == 0
    assert "Net meets the target already: nothing goes" in printed
    assert Path("same.safetensors").exists()
    assert _document(*INPUT, "--target", "params=1e6")["layers"] == []


BAD = {
    (): "give either --target, such as macs=0.5, or --amount",
    ("--amount", "0.5", "--target", "macs=0.5"): "give either --target",
    ("--amount", "0"): "--amount",
    ("--amount", "1"): "--amount",
    ("--amount", "nan"): "'nan' is not a number",
    ("--target", "macs"): "'macs' has no NAME=VALUE form, such as macs=0.5",
    ("--target", "flops=0.5"): "with a NAME of macs, params, latency",
    ("--target", "macs="): "macs= is no number",
    ("--target", "macs=half"): "macs=half is no number",
    ("--target", "macs=nan"): "macs=nan is no positive number",
    ("--target", "macs=inf"): "macs=inf is no positive number",
    ("--target", "macs=-1"): "macs=-1 is no positive number",
    ("--target", "macs=0"): "macs=0 is no positive number",
    ("--target", "macs=1.0"): "macs=1 is all of it",
    ("--target", "params=1.5"): "neither a share below 1, such as 0.5, nor a whole number",
    ("--target", "latency=20"): "latency is a share of today's below 1",
    ("--target", "macs=0.5", "--target", "macs=0.6"): "macs is given twice",
    ("--amount", "0.5", "--criterion", "nothing"): "--criterion",
    ("--amount", "0.5", "--scope", "nothing"): "--scope",
    ("--amount", "0.5", "--steps", "0"): "--steps",
    ("--amount", "0.5", "--keep", "1"): "--keep",
    ("--amount", "0.5", "--keep", "nan"): "'nan' is not a number",
    ("--amount", "0.5", "--round-to", "0"): "--round-to",
    ("--amount", "0.5", "--seed", "-1"): "--seed",
    ("--amount", "0.5", "--refit"): "--refit looks at data",
    ("--amount", "0.5", "--criterion", "taylor"): "--criterion taylor looks at data: give an image",
    ("--amount", "0.5", "--epochs", "3"): "--epochs is for --data PATH",
    ("--amount", "0.5", "--batch-size", "3"): "--batch-size is for --data PATH",
    ("--amount", "0.5", "--size", "8"): "--size is for --data PATH",
}


@pytest.mark.parametrize("options", BAD, ids=" ".join)
def test_wrong_options_are_usage_errors_before_any_work(options: tuple[str, ...]) -> None:
    code, printed, errors = _prune(*options, target="no.such.module:make")
    assert (code, printed) == (2, "")
    assert BAD[options] in " ".join(errors.split())


def test_an_input_is_needed() -> None:
    code, _, errors = _prune("--amount", "0.5")
    assert code == 2
    assert "--input 1,3,224,224" in errors


REFUSED = {
    ("--amount", "0.5", "--only", "nothing"): "no layer 'nothing'",
    ("--amount", "0.5", "--only", "x*"): "x*",
    ("--amount", "0.5", "--only", "norm*"): "norm*",
    (
        "--amount",
        "0.5",
        "--only",
        "first",
        "--except",
        "first",
    ): "`first` is both among --only and among --except",
    ("--amount", "0.001"): "leaves every layer as it is",
    ("--target", "params=5"): "cannot get so small",
    (
        "--amount",
        "0.5",
        "--criterion",
        "scale",
        "--only",
        "first",
    ): "has no scores for the units of `first`",
    ("--amount", "0.5", "--checkpoint", "missing.pt"): "cannot read missing.pt: No such file",
    (
        "--amount",
        "0.5",
        "--checkpoint",
        "prunable_nets.py",
    ): "is neither a state_dict by torch",
    ("--amount", "0.5", "--out", "nowhere/x.safetensors"): "there is no folder nowhere",
    ("--amount", "0.5", "--out", "prunable_nets.py"): "is there already; --force replaces it",
    ("--amount", "0.5", "--picture", "prunable_nets.py"): "is there already; --force replaces it",
    ("--amount", "0.5", "--picture", "widths.xyz"): "pictures end in .png",
    ("--amount", "0.5", "--picture", "widths"): "ends in nothing",
}


@pytest.mark.parametrize("options", REFUSED, ids=" ".join)
def test_what_the_model_or_a_file_does_not_allow_is_told_on_one_line(
    options: tuple[str, ...],
) -> None:
    before = _files()
    code, printed, errors = _prune(*INPUT, *options)
    assert (code, printed) == (1, "")
    told = errors.removeprefix("made a net\n")
    assert told.startswith("Error: ")
    assert REFUSED[options] in told
    assert told.count("\n") == 1
    assert _files() == before


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("prunable_nets.py:makes", "is it make?"),
        ("prunable_nets.py:broken", "failed when it was called: RuntimeError: out of order\n"),
        ("prunable_nets.py:Fixed", "no layer may lose units"),
    ],
)
def test_a_target_that_cannot_be_pruned_is_told(target: str, error: str) -> None:
    code, _, errors = _prune(*INPUT, "--amount", "0.5", target=target)
    assert code == 1
    assert error in errors


def test_an_input_that_does_not_fit_is_told() -> None:
    code, _, errors = _prune("--input", "2,7", "--amount", "0.5")
    assert code == 1
    assert "with inputs 2,7: " in errors or "Error: " in errors


# The weights


def _wrapped(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "form", ["state_dict", "safetensors", "inside", "parallel", "compiled", "own", "own and input"]
)
def test_the_weights_may_come_in_any_usual_file(
    nets: dict[str, Any], weights: dict[str, Tensor], form: str
) -> None:
    inputs: tuple[str, ...] = INPUT
    if form == "safetensors":
        save_file(weights, "weights.pt")
    elif form == "inside":
        torch.save({"epoch": 3, "net": weights, "optimizer": {"state": {}}}, "weights.pt")
    elif form in ("parallel", "compiled"):
        prefix = "module." if form == "parallel" else "_orig_mod."
        torch.save(_wrapped(weights, prefix), "weights.pt")
    elif form.startswith("own"):
        model = nets["Net"]()
        model.load_state_dict(weights)
        splitgrow.save(splitgrow.growable(model, X), "weights.pt")
        inputs = INPUT if "input" in form else ()
    options = (*inputs, "--checkpoint", "weights.pt", "--amount", "0.3", "--out", "smaller")
    code, _, errors = _prune(*options)
    assert code == 0, errors
    oracle: Any = nets["Net"]()
    oracle.load_state_dict(weights)
    oracle = splitgrow.growable(oracle, X)
    oracle.prune(0.3)
    loaded = nets["Net"]()
    splitgrow.load(loaded, "smaller")
    assert_equal(loaded(X), oracle(X))


def test_tied_weights_may_be_in_a_file_once(nets: dict[str, Any]) -> None:
    state = nets["Tied"]().state_dict()
    del state["last.weight"]
    save_file(state, "weights.safetensors")
    options = ("--input", "1,3:int64", "--checkpoint", "weights.safetensors", "--amount", "0.3")
    code, _, errors = _prune(*options, target="prunable_nets.py:Tied")
    assert code == 0, errors


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda state: state.pop("first.bias"), "it lacks first.bias"),
        (lambda state: state.update(more=torch.ones(2)), "the model has no more"),
        (
            lambda state: state.update({"first.bias": torch.ones(2)}),
            "first.bias is 2, and 16 in the model",
        ),
    ],
)
def test_weights_that_do_not_fit_are_told_on_one_line(
    weights: dict[str, Tensor], change: Any, error: str
) -> None:
    change(weights)
    torch.save(weights, "weights.pt")
    code, _, errors = _prune(*INPUT, "--checkpoint", "weights.pt", "--amount", "0.3")
    assert code == 1
    assert "weights.pt does not fit the model: " in errors
    assert error in errors
    assert errors.removeprefix("made a net\n").count("\n") == 1


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ({"model": {"a": torch.ones(2)}, "ema": {"a": torch.ones(2)}}, "state_dicts model, ema"),
        ({"epoch": 3}, "has no state_dict"),
        ([torch.ones(2)], "has no state_dict"),
    ],
)
def test_a_file_with_no_state_dict_or_several_is_told(content: Any, error: str) -> None:
    torch.save(content, "weights.pt")
    code, _, errors = _prune(*INPUT, "--checkpoint", "weights.pt", "--amount", "0.3")
    assert code == 1
    assert error in errors


def test_closed_generations_stay_unless_they_are_given_up(nets: dict[str, Any]) -> None:
    model: Any = splitgrow.growable(nets["Net"](), X)
    model.next_generation()
    splitgrow.save(model, "closed.safetensors")
    options = ("--checkpoint", "closed.safetensors", "--amount", "0.3", "--out", "smaller")
    code, _, errors = _prune(*options)
    assert code == 1
    assert "generation" in errors
    assert not Path("smaller").exists()
    code, _, errors = _prune(*options, "--give-up")
    assert code == 0, errors


# What is written


def test_a_plan_has_the_same_table_and_writes_nothing(weights: dict[str, Tensor]) -> None:
    before = _files()
    options = ("--checkpoint", "weights.pt", *INPUT, "--amount", "0.4", "--steps", "2")
    out = ("--out", "smaller", "--picture", "widths.png")
    code, planned, _ = _prune(*options, *out, "--plan")
    assert code == 0
    assert planned.endswith("a plan: nothing is written\n")
    assert _files() == before
    code, printed, _ = _prune(*options, *out)
    assert code == 0
    table = planned.removesuffix("a plan: nothing is written\n")
    assert printed.startswith(table)
    assert _files() == before | {"smaller", "widths.png"}
    assert Path("widths.png").read_bytes().startswith(b"\x89PNG")


def test_force_replaces_what_is_there() -> None:
    Path("smaller").write_text("old")
    assert _prune(*INPUT, "--amount", "0.3", "--out", "smaller")[0] == 1
    assert Path("smaller").read_text() == "old"
    code, _, errors = _prune(*INPUT, "--amount", "0.3", "--out", "smaller", "--force")
    assert code == 0, errors
    assert Path("smaller").read_bytes() != b"old"


def test_without_matplotlib_the_extra_is_named_before_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, errors = _prune(*INPUT, "--amount", "0.3", "--picture", "widths.png")
    assert code == 1
    assert "splitgrow[demo]" in errors
    assert "made a net" not in errors


def test_json_is_all_that_goes_to_stdout() -> None:
    document = _document(*INPUT, "--amount", "0.5", "--scope", "layer", "--out", "smaller")
    assert document["version"] == 1
    assert document["model"] == "Net"
    assert document["before"]["parameters"] == 392
    assert document["after"]["parameters"] == 150
    assert document["macs"] == [336, 120]
    assert document["out"] == "smaller"
    assert document["accuracy"] is None
    assert document["options"]["except"] == []
    assert sum(step["parameters"] for step in document["steps"]) == 150 - 392
    assert document["layers"][0] == {"layer": "first", "kind": "Linear", "before": 16, "after": 8}


def test_quiet_is_quiet() -> None:
    amount = (*INPUT, "--amount", "0.5", "--quiet")
    assert _prune(*amount) == (0, "", "made a net\n")
    assert _prune(*amount, "--out", "smaller") == (0, "smaller\n", "made a net\n")


def test_ctrl_c_ends_with_130_and_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PruneMethods, "prune", interrupted)
    before = _files()
    code, printed, errors = _prune(*INPUT, "--amount", "0.5", "--out", "smaller")
    assert (code, printed) == (130, "")
    assert errors.endswith("Interrupted: nothing is written.\n")
    assert _files() == before


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
def test_a_directory_of_transformers_is_pruned_with_the_weights_there() -> None:
    torchvision()
    import transformers as hf  # noqa: PLC0415

    hf.logging.set_verbosity_error()
    config = hf.GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model = hf.GPT2LMHeadModel(config)
    model.save_pretrained("there")
    options = ("--only", "*.c_fc", "--amount", "0.5", "--out", "smaller")
    code, _, errors = _prune(*options, target="there")
    assert code == 0, errors
    loaded: Any = hf.GPT2LMHeadModel(config)
    splitgrow.load(loaded, "smaller")
    assert loaded.transformer.h[0].mlp.c_fc.weight.shape == (16, 32)
    assert_equal(loaded.transformer.wte.weight, model.transformer.wte.weight)
    Path("there/model.safetensors").unlink()
    code, _, errors = _prune(*options, "--force", target="there")
    assert code == 1
    assert "there are no weights in there (--checkpoint takes others)" in errors


def test_modules_of_the_wrong_kind_are_told(nets: dict[str, Any]) -> None:
    model = splitgrow.growable(nn.Linear(2, 3), torch.ones(1, 2))
    splitgrow.save(model, "other.safetensors")
    code, _, errors = _prune("--checkpoint", "other.safetensors", "--amount", "0.5")
    assert code == 1
    assert errors.startswith("made a net\nError: ")
    assert errors.count("\n") == 2

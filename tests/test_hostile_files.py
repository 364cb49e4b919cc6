"""Files that are broken or malicious: refused, with nothing changed, executed or blown up."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import runs
from hostile.mutations import (
    change_journal_,
    put_together,
    seal,
    taken_apart,
    with_contents,
    with_header,
)
from hostile.trials import all_of, loaded
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshots import differences
from torch import nn

import splitgrow
from splitgrow import CheckpointError
from splitgrow.handle import handle

ROOT = Path(__file__).parent.parent
Contents = dict[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Checkpoints that are whole, by name."""
    directory = tmp_path_factory.mktemp("whole")
    runs.files(directory)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def assert_refused(raw: bytes, directory: Path, reason: str | None = None) -> None:
    path = directory / "broken.safetensors"
    path.write_bytes(raw)
    run = runs.again()
    before = all_of(run)
    with pytest.raises(CheckpointError, match=reason):
        loaded(run, path)
    assert not differences(before, all_of(run))


# -- many files ----------------------------------------------------------------------------------


def test_hundreds_of_broken_files_are_refused_or_load_whole() -> None:
    """In a process of its own, which forks: the tests' own has threads."""
    command = [sys.executable, "-m", "hostile", "--mutants", "80", "--first", "1000000"]
    found = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"tests{os.pathsep}."},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "80 files, 0 with a fault" in found.stdout
    assert " refused" in found.stdout
    assert " loaded" in found.stdout


CONTROL = """
import sys, tempfile
from pathlib import Path
import torch
from hostile.mutations import Mutant
from hostile.trials import Trials, loaded
import splitgrow

def raises(run, path):
    raise KeyError(path)

def hangs(run, path):
    while True: pass

def allocates(run, path):
    torch.empty(2**28)
    raise splitgrow.CheckpointError

def half(run, path):
    run.model.stem.weight.data += 1
    raise splitgrow.CheckpointError

def crashes(run, path):
    import ctypes; ctypes.string_at(0)

def dice(run, path):
    torch.rand(1)
    raise splitgrow.CheckpointError

def other(run, path):
    loaded(run, path)
    run.model.head.weight.data += 1

torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as directory:
    trials = Trials(Path(directory))
    one = trials.originals[2]
    for load in (loaded, raises, hangs, allocates, half, crashes, dice, other):
        trials.load, trials.seconds = load, 1.0 if load is hangs else 60.0
        trial = trials.of(Mutant("", True, one.main, {**one.files}))
        print(load.__name__, trials.is_bad(trial), trial.outcome, trial.memory, sep="|")
"""


def test_what_watches_the_loading_sees_every_kind_of_fault() -> None:
    found = subprocess.run(
        [sys.executable, "-c", CONTROL],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"tests{os.pathsep}."},
        capture_output=True,
        text=True,
        check=True,
    )
    told = dict(line.split("|", 1) for line in found.stdout.splitlines())
    assert told.pop("loaded").startswith("False|loaded|")
    assert told.pop("allocates").startswith("True|refused|")
    for name, outcome in {
        "raises": "KeyError at ",
        "hangs": "hang",
        "half": "half-loaded: stem: tensor weight",
        "crashes": "ended with -",
        "dice": "half-loaded: torch random state",
        "other": "loaded, but not `head.weight`",
    }.items():
        assert told.pop(name).startswith(f"True|{outcome}"), name
    assert not told


def test_a_healthy_file_loads_also_with_its_checksum_made_anew(
    whole: dict[str, bytes], tmp_path: Path
) -> None:
    """So what refuses the others is not how they were made."""
    for name in ("whole.safetensors", "young.safetensors", "small.safetensors"):
        header, data = taken_apart(whole[name])
        path = tmp_path / name
        path.write_bytes(seal(put_together(header, data)))
        loaded(runs.again(), path)


def test_a_sealed_value_is_loaded_and_an_unsealed_one_is_not(
    whole: dict[str, bytes], tmp_path: Path
) -> None:
    raw = bytearray(whole["small.safetensors"])
    header, _ = taken_apart(bytes(raw))
    start = 8 + int.from_bytes(raw[:8], "little")
    start += header["model.head.bias"]["data_offsets"][0]
    raw[start : start + 4] = struct.pack("<f", 4321.0)
    assert_refused(bytes(raw), tmp_path, "its checksum is not that of its contents")
    path = tmp_path / "sealed.safetensors"
    path.write_bytes(seal(bytes(raw)))
    run = runs.again()
    loaded(run, path)
    assert run.model.head.bias[0] == 4321.0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.data())
def test_any_bit_and_any_length_is_noticed(
    whole: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    data: st.DataObject,
) -> None:
    raw = bytearray(whole["young.safetensors"])
    if data.draw(st.booleans()):
        raw[seed % len(raw)] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del raw[seed % len(raw) :]
    path = tmp_path_factory.mktemp("bits") / "x.safetensors"
    path.write_bytes(bytes(raw))
    with pytest.raises(CheckpointError):
        splitgrow.load(runs.again().model, path)


# -- one by one ----------------------------------------------------------------------------------


def at(*keys: Any, value: Any) -> Callable[[Contents], None]:
    """Puts a value at a place in the contents."""

    def change(contents: Contents) -> None:
        tree: Any = contents
        for key in keys[:-1]:
            tree = tree[key]
        tree[keys[-1]] = value

    return change


def edit_of(contents: Contents, kind: str) -> Any:
    """The first edit of a kind: of what it inserts, or the name of what it has."""
    for edit in contents["journal"]["edits"]:
        if edit.get(kind) or any(item["kind"] == kind for item in edit["inserted"]):
            return edit
    raise AssertionError(kind)


def inserted(which: str, **values: Any) -> Callable[[Contents], None]:
    """Says other things of the first insertion of a kind."""

    def change(contents: Contents) -> None:
        edit_of(contents, which)["inserted"][0].update(values)

    return change


def layer(name: str, **options: Any) -> Any:
    return {"type": name, "args": options}


def _twice_inserted(contents: Contents) -> None:
    edit = edit_of(contents, "gate")
    edit["inserted"] *= 2


def _twice_changed(contents: Contents) -> None:
    edit = edit_of(contents, "changes")
    edit["changes"] += edit["changes"][:1]


def _wide(contents: Contents) -> None:
    change = edit_of(contents, "changes")["changes"][0]
    change["width"][1] += 2**40
    change["outs"][0][1] += 2**40


def _wide_input(contents: Contents) -> None:
    edit = edit_of(contents, "inputs")
    edit["inputs"][0]["width"][1] = 2**40
    contents["inputs"] = None


def _number(contents: Contents) -> None:
    edit_of(contents, "numbers")["numbers"][0]["value"][1] = 2**39


def _negative(contents: Contents) -> None:
    edit_of(contents, "numbers")["numbers"][0]["value"][1] = -5


def _joined_original(contents: Contents) -> None:
    edit_of(contents, "joined")["joined"][0]["edits"] = [0]


def _joined_early(contents: Contents) -> None:
    joined = edit_of(contents, "joined")["joined"][0]
    joined["edits"] = joined["edits"][:1]


def _many_tensors(contents: Contents) -> None:
    contents["extra"] = [{"tensor": "model.stem.0.weight"}] * 1000


def _weight_of_its_own(contents: Contents) -> None:
    contents["own"] = [*contents["own"], "head.weight"]


def _deep(contents: Contents) -> None:
    contents["extra"] = "@deep@700"


def _parameter_twice(contents: Contents) -> None:
    groups = contents["optimizers"][0]["groups"]
    groups[1]["params"][0] = groups[0]["params"][0]


def _option(name: str, value: Any) -> Callable[[Contents], None]:
    def change(contents: Contents) -> None:
        (tree,) = contents["optimizers"][0]["groups"][1]["options"].values()
        tree[:] = [[key, value if key == name else old] for key, old in tree]

    return change


def _no_option(contents: Contents) -> None:
    (tree,) = contents["optimizers"][0]["groups"][1]["options"].values()
    tree[:] = [pair for pair in tree if pair[0] != "betas"]


def _state(key: str, found: Callable[[Any], Any] | None) -> Callable[[Contents], None]:
    def change(contents: Contents) -> None:
        (tree,) = contents["optimizers"][0]["states"][0]["state"].values()
        tree[:] = [
            [name, found(value) if found and name == key else value]
            for name, value in tree
            if found or name != key
        ]

    return change


def _scheduler(name: str, value: Any, number: int = 0) -> Callable[[Contents], None]:
    def change(contents: Contents) -> None:
        (tree,) = contents["schedulers"][number]["state"].values()
        tree[:] = [pair for pair in tree if pair[0] != name] + [[name, value]]

    return change


def _inner_scheduler(contents: Contents) -> None:
    (tree,) = contents["schedulers"][0]["state"].values()
    (inner,) = (value for name, value in tree if name == "_schedulers")
    (state,) = inner[0].values()
    state.append(["step", 5])


def _randomness(name: str, change: Callable[[Any], Any]) -> Callable[[Contents], None]:
    def changed(contents: Contents) -> None:
        (tree,) = contents["random"].values()
        tree[:] = [[key, change(value) if key == name else value] for key, value in tree]

    return changed


def _numpys(state: Any) -> Any:
    state["tuple"][2] = 10**6  # numpy itself takes it, and reads beyond the end of its numbers
    return state


def _many_generations(contents: Contents) -> None:
    contents["journal"]["generation"] = 10**12


HARMFUL: dict[str, Callable[[Contents], None]] = {
    "a version to come": at("version", value=2),
    "no version": at("version", value=None),
    "a journal to come": at("journal", "version", value=2),
    "no journal": at("journal", value=[]),
    "more generations than anybody closes": _many_generations,
    "a generation that was never closed": at("journal", "frozen", value={"99": []}),
    "a fade that is nowhere": at("journal", "shares", value={"0": [{"path": "x", "alpha": 0.5}]}),
    "a fade beyond its end": at("journal", "shares", value={"0": [{"path": "x", "alpha": 7.0}]}),
    "a frozen parameter that is none": at("journal", "fixed", value=["stem.weight.__class__"]),
    "a held module that is none": at("journal", "held", value=["../x"]),
    "more width than there are numbers": _wide,
    "an input wider than anything": _wide_input,
    "a number larger than anything": _number,
    "a number below zero": _negative,
    "a layer that changes twice in one edit": _twice_changed,
    "something inserted twice in one edit": _twice_inserted,
    "an original block that is joined": _joined_original,
    "blocks that are joined out of order": _joined_early,
    "one tensor named a thousand times": _many_tensors,
    "data nested too deep": _deep,
    "another host": inserted("gate", host="stem"),
    "the model as host": inserted("gate", host=""),
    "another name": inserted("gate", name="head.weight"),
    "a kind that is none": inserted("gate", kind="__init__"),
    "parameters that are not made": inserted("gate", parameters=0),
    "a recipe that is none": inserted("gate", recipe={}),
    "a recipe for a loop": inserted("block", recipe={"copy": ""}),
    "a recipe of something that is not there": inserted("block", recipe={"copy": "x"}),
    "a module that was given": inserted("fade", recipe={"given": "Mine"}),
    "a type that is no layer": inserted("fade", recipe=layer("functional")),
    "a type that is private": inserted("fade", recipe=layer("__class__")),
    "a type that holds others": inserted("fade", recipe=layer("ModuleList")),
    "a lazy layer": inserted("fade", recipe=layer("LazyLinear", out_features=3)),
    "a recurrent layer": inserted("fade", recipe=layer("LSTM", input_size=3, hidden_size=3)),
    "options that are no data": inserted("fade", recipe=layer("Conv2d", kernel_size={"a": 1})),
    "options that are missing": inserted("fade", recipe=layer("Conv2d")),
    "a layer of absurd size": inserted(
        "fade", recipe=layer("Linear", in_features=2**30, out_features=2**30)
    ),
    "a layer of a size that overflows": inserted(
        "fade", recipe=layer("Linear", in_features=2**62, out_features=2**62)
    ),
    "a layer of as many parts as fit": inserted(
        "fade", parameters=0, recipe={"parts": [layer("ReLU")] * 5000}
    ),
    "a layer of copies": inserted("fade", recipe={"parts": [{"copy": "block"}] * 5000}),
    "padding that nobody could hold": inserted(
        "fade",
        parameters=0,
        recipe={
            "parts": [
                layer("ConstantPad2d", padding=[9000] * 4, value=0.0),
                layer("ConstantPad2d", padding=[-9000] * 4, value=0.0),
            ]
        },
    ),
    "a weight that the model makes itself": _weight_of_its_own,
    "a parameter in two groups": _parameter_twice,
    "a learning rate that is a text": _option("lr", "fast"),
    "a learning rate below zero": _option("lr", -1.0),
    "betas that are none": _option("betas", 3),
    "no betas": _no_option,
    "a state without its average": _state("exp_avg", None),
    "a state of another shape": _state("exp_avg", lambda _: {"tensor": "model.head.bias"}),
    "a state that is a number": _state("exp_avg", lambda _: 3),
    "a state that is a text": _state("step", lambda _: "x"),
    "a scheduler's method": _scheduler("step", 5),
    "a scheduler's class": _scheduler("__class__", "x"),
    "a scheduler's optimizer": _scheduler("optimizer", 5, 1),
    "a scheduler's epoch as text": _scheduler("last_epoch", "x"),
    "a scheduler's patience as list": _scheduler("patience", [], 1),
    "a scheduler's own schedulers": _scheduler("_schedulers", []),
    "an inner scheduler's method": _inner_scheduler,
    "a fade of no steps": _scheduler("steps", 0, 2),
    "a generator of numpy's beyond its end": _randomness("numpy", _numpys),
    "a generator of torch's of one byte": _randomness("torch", lambda _: [1]),
    "a generator of Python's that is none": _randomness(
        "python", lambda _: {"tuple": [3, [], None]}
    ),
    "an execution mode that is none": at("execution", value="__import__"),
    "inputs that are none": at("inputs", value=[1]),
    "inputs of another shape": at("inputs", value={"tuple": [{"tensor": "model.head.bias"}]}),
    "an extra state that is refused": at("states", "counted", value={"dict": [["seen", -1]]}),
    "an extra state of another module": at("states", "stem", value={"dict": []}),
    "an object that nothing stands for": at("extra", value={"object": "Function"}),
    "a number that is none": at("extra", value={"float": "1e999999"}),
    "bytes that are none": at("extra", value={"bytes": "xy"}),
    "a device that is none": at("extra", value={"device": "cuda:99999999999999999999"}),
    "a dtype that is none": at("extra", value={"dtype": "__doc__"}),
    "a key that is none": at("extra", value={"dict": [[[], 1]]}),
    "a tie that is none": at("ties", value={"stem.bias": "head.bias"}),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_contents_that_mean_harm_are_refused(
    name: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    raw = with_contents(whole["whole.safetensors"], HARMFUL[name])
    if name == "a weight that the model makes itself":
        raw = with_header(raw, lambda header: header["model.head.weight"].update(dtype="I32"))
    assert_refused(raw, tmp_path)


def _complex_of_texts(header: Contents) -> None:
    header["__metadata__"]["complex"] = "[[1]]"


def _complex_of_floats(header: Contents) -> None:
    header["__metadata__"]["complex"] = '["model.head.weight"]'


def _absurd_shape(header: Contents) -> None:
    header["model.head.weight"]["shape"] = [2**62, 2**62]


def _overlapping(header: Contents) -> None:
    header["model.head.weight"]["data_offsets"] = header["model.head.bias"]["data_offsets"]


def _digest_twice(header: Contents) -> None:
    header["sha256"] = "0" * 64


def _shards(*names: str) -> Callable[[Contents], None]:
    def change(header: Contents) -> None:
        shards = [{"name": name, "sha256": "0" * 64} for name in names]
        header["__metadata__"]["shards"] = json.dumps(shards)

    return change


HEADERS: dict[str, Callable[[Contents], Any]] = {
    "complex numbers of lists": _complex_of_texts,
    "complex numbers of floats": _complex_of_floats,
    "a shape that overflows": _absurd_shape,
    "two tensors at one place": _overlapping,
    "two checksums": _digest_twice,
    "no metadata": lambda header: header.pop("__metadata__") and None,
    "metadata that are no texts": lambda header: header["__metadata__"].update(x=3),
    "a list": lambda header: [header["__metadata__"]["sha256"]],
    "contents that are no JSON": lambda header: header["__metadata__"].update(splitgrow="{"),
    "contents nested too deep": lambda header: header["__metadata__"].update(splitgrow="[" * 10**6),
    "a number of a million digits": lambda header: header["__metadata__"].update(
        splitgrow=f'{{"version":{"1" * 10**6}}}'
    ),
    "a shard further up": _shards("../whole-00000000-00001-of-00001.safetensors"),
    "a shard of the system": _shards("/etc/whole-00000000-00001-of-00001.safetensors"),
    "a shard that is missing": _shards("whole-00000000-00001-of-00001.safetensors"),
    "a shard twice": _shards(*["whole-00000000-00001-of-00001.safetensors"] * 2),
    "a shard of a name of its own": _shards("whole.safetensors"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_mean_harm_are_refused(
    name: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    assert_refused(with_header(whole["whole.safetensors"], HEADERS[name]), tmp_path)


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "loop", "another", "text"])
def test_what_is_no_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "another":
        torch.save({"model": 1}, path)
    elif kind == "text":
        path.write_text("Dear reader, " * 100)
    with pytest.raises(CheckpointError):
        splitgrow.load(runs.fresh().model, path)


def test_a_shard_may_be_a_link_but_not_another_file(
    whole: dict[str, bytes], tmp_path: Path
) -> None:
    """Whoever may write to the directory may link there; what counts is the checksum."""
    names = [name for name in whole if name.startswith("shared")]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in names:
        (elsewhere / name).write_bytes(whole[name])
        if name == "shared.safetensors":
            (tmp_path / name).write_bytes(whole[name])
        else:
            (tmp_path / name).symlink_to(elsewhere / name)
    loaded(runs.again(), tmp_path / "shared.safetensors")
    one, other = (name for name in sorted(names)[:2])
    (elsewhere / one).write_bytes(whole[other])
    with pytest.raises(CheckpointError, match="is not the file that belongs to"):
        loaded(runs.again(), tmp_path / "shared.safetensors")


def test_many_edits_are_put_back_in_little_time(tmp_path: Path) -> None:
    """Each of them once took as long as all before it together: 400 took 25 seconds."""
    made: Any = splitgrow.growable(
        nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), torch.ones(1, 2)
    )
    made.expand_layer("0", 1)
    path = tmp_path / "x.safetensors"
    splitgrow.save(made, path)

    def change(contents: Contents) -> None:
        (first,) = contents["journal"]["edits"]
        for index in range(2, 401):
            edit = json.loads(json.dumps({**first, "index": index, "closes": None}))
            for layer in edit["changes"]:
                for sizes, places in (("in_width", "ins"), ("width", "outs")):
                    if layer[places]:
                        layer[sizes] = [index + 2, index + 3]
                        layer[places] = [[index + 2, 1]]
            contents["journal"]["edits"].append(edit)

    path.write_bytes(with_contents(path.read_bytes(), change))
    began = time.process_time()
    with pytest.raises(CheckpointError, match=r"`0\.2\.weight` is missing in the file"):
        splitgrow.load(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), path)
    assert time.process_time() - began < 8


# -- journals in a state_dict --------------------------------------------------------------------


def journal_of(state: dict[str, Any]) -> Any:
    return json.loads(bytes(state["_extra_state"].tolist()))


def with_journal(state: dict[str, Any], journal: Any) -> dict[str, Any]:
    text = json.dumps(journal).encode()
    return {**state, "_extra_state": torch.tensor([*text], dtype=torch.uint8)}


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    return runs.grown().model.state_dict()


def growable() -> nn.Module:
    return splitgrow.growable(runs.Network(), torch.ones(1, 3, 4, 4))


@pytest.mark.parametrize("seed", range(40))
def test_a_broken_journal_in_a_state_dict_changes_nothing(state: Any, seed: int) -> None:
    journal = journal_of(state)
    change_journal_(journal, random.Random(seed))
    model: Any = growable()
    before = all_of(runs.Run(model, torch.optim.SGD(model.parameters(), lr=1.0), []))
    try:
        model.load_state_dict(with_journal(state, journal))
    except CheckpointError:
        after = all_of(runs.Run(model, torch.optim.SGD(model.parameters(), lr=1.0), []))
        changed = differences(before, after)
        assert not [name for name in changed if not name.startswith("optimizer")]
    else:
        assert len(handle(model).edits) == len(journal["edits"])
        for name, value in model.state_dict().items():
            if isinstance(value, torch.Tensor) and name != "_extra_state":
                assert torch.equal(value, state[name]), name


def test_a_healthy_journal_in_a_state_dict_is_done(state: Any) -> None:
    model: Any = growable()
    model.load_state_dict(with_journal(state, journal_of(state)))
    assert len(handle(model).edits) == 13


@pytest.mark.parametrize(
    "journal",
    [
        torch.zeros(3),
        torch.zeros(2, 2, dtype=torch.uint8),
        torch.tensor([255], dtype=torch.uint8),
        torch.tensor([*b"[" * 100_000], dtype=torch.uint8),
        "x",
        {"splitgrow": 3, "extra_state": 4},
    ],
    ids=["floats", "two dimensions", "no text", "nested", "a text", "two texts"],
)
def test_what_is_no_journal_is_refused(state: Any, journal: Any) -> None:
    model: Any = growable()
    with pytest.raises(CheckpointError):
        model.load_state_dict({**state, "_extra_state": journal})


def test_inside_another_module_a_broken_journal_is_torchs_error(state: Any) -> None:
    journal = journal_of(state)
    journal["edits"][0]["changes"][0]["width"][1] = 2**60
    inside = {f"0.{name}": value for name, value in with_journal(state, journal).items()}
    model = nn.Sequential(growable())
    with pytest.raises(RuntimeError, match="the widths of `stem` contradict each other"):
        model.load_state_dict(inside)
    assert not handle(model[0]).edits


def test_one_number_that_claims_to_be_a_large_tensor_makes_none(state: Any) -> None:
    journal = journal_of(state)
    name = "block.inserted5.conv1.weight"
    claimed = torch.zeros(1).expand(state[name].shape)
    model: Any = growable()
    with pytest.raises(CheckpointError, match="one number at many places"):
        model.load_state_dict({**with_journal(state, journal), name: claimed})

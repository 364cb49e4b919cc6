"""Growing a model in one role, saving it, and comparing it with what is read back."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import splitgrow
from benchmarks.coverage.catalogues import Subject
from benchmarks.coverage.findings import LONG, Findings, tidy
from benchmarks.coverage.preparing import prepare
from benchmarks.coverage.roles import grow, layers_by_role
from benchmarks.coverage.values import ids_of, randomise

WAYS = (
    *("MLP", "heads", "stream", "stream and heads", "vocabulary", "head", "depth", "experts"),
    "all",
)
"""What grows. "stream and heads": both to twice their width, as classes without a head_dim need;
"all": all of them that can be saved by themselves."""
_READ = 1e-5
"""A plain model that is read back with a larger difference tells nothing of grown ones."""
_UNCALLED = "forward does not call it"
EQUAL = {torch.float64: 1e-12, torch.float32: 1e-5}
"""The largest difference that counts as equal, relative to the largest output."""


class Reader:
    """A process that cannot import splitgrow and reads checkpoints."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "benchmarks.pretrained.reader"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def read(self, folder: Path, kind: str, told: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint computes.

        Args:
            folder: Where it lies, in ``checkpoint``.
            kind: The name of the model's class.
            told: The inputs.

        Raises:
            RuntimeError: If the process could not read it.
        """
        torch.save(told, folder / "inputs")
        request = {
            "directory": str(folder / "checkpoint"),
            "class": kind,
            "inputs": str(folder / "inputs"),
            "answer": str(folder / "answer"),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        while line and not line.startswith("{"):
            line = self._process.stdout.readline()
        error = json.loads(line or '{"error": "the process ended"}')["error"]
        if error:
            raise RuntimeError(error)
        found: dict[str, Any] = torch.load(folder / "answer", weights_only=False)
        return found

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


@contextmanager
def reader() -> Iterator[Reader]:
    """A reader, for as long as a ``with`` block."""
    made = Reader()
    try:
        yield made
    finally:
        made.close()


def tried(subject: Subject, apart: Reader) -> dict[str, dict[str, Any]]:
    """What was found for each way in which a model grows: its "result", and why or how far.

    Results: "equal"; "unread", where the library does not read back its own plain model either;
    "refused", with the reason; "no", where nothing of that role can grow; "none",
    where there is no such role; "wrong".
    """
    found: dict[str, dict[str, Any]] = {}
    saved = [way for way in WAYS if way != "all"]
    for way in WAYS:
        if way == "all":
            ways = [w for w in saved if found[w]["result"] == "equal"]
            both = "stream and heads"
            ways = [w for w in ways if both not in ways or w not in ("stream", "heads")]
        else:
            ways = [way]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[way] = _tried(subject, ways, apart, "zero")
            if found[way]["result"] == "refused" and "eps" in found[way]["reason"]:
                found[way] = _tried(subject, ways, apart, "duplicate")
    return found


def _tried(subject: Subject, ways: list[str], apart: Reader, initializer: str) -> dict[str, Any]:
    prepared = prepare(subject, Findings(subject.library, subject.name))
    assert prepared.dtype is not None
    model: Any = splitgrow.growable(prepared.model, prepared.inputs)
    before, layers = ids_of(model), _Layers.of(model)
    for way in ways:
        try:
            there = _grow(model, way, layers, initializer)
        except (splitgrow.SplitGrowError, ValueError) as error:
            return {"result": "no", "reason": tidy(str(error), LONG)}
        if not there:
            return {"result": "none"}
    if not ways:
        return {"result": "none"}
    randomise(model, before)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        try:
            splitgrow.save_pretrained(model, folder / "checkpoint")
        except splitgrow.ExportError as error:
            return {"result": "refused", "reason": tidy(str(error), LONG)}
        except splitgrow.SplitGrowError as error:
            return {"result": "wrong", "reason": tidy(str(error), LONG)}
        generates = _generates(model)
        told = {"inputs": prepared.inputs, "dtype": prepared.dtype, "generates": generates}
        try:
            answer = apart.read(folder, subject.build.args[0].model, told)
        except RuntimeError as error:
            return {"result": "wrong", "reason": tidy(str(error), LONG)}
        found = _compared(model, prepared.inputs, prepared.dtype, answer)
        if (found["result"] == "wrong" and "text" not in found) or found.get("text"):
            found |= _beside_plain(subject, prepared.dtype, apart, found)
        return found


def _beside_plain(
    subject: Subject, dtype: torch.dtype, apart: Reader, found: dict[str, Any]
) -> dict[str, Any]:
    """Whether a model is read as well as the plain one that its library saves by itself.

    Some make buffers anew in another dtype when they are read.
    """
    if found["result"] != "wrong":
        return {}
    prepared = prepare(subject, Findings(subject.library, subject.name))
    plain: Any = prepared.model
    randomise(plain)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        plain.save_pretrained(folder / "checkpoint")
        told = {"inputs": prepared.inputs, "dtype": dtype, "generates": False}
        answer = apart.read(folder, subject.build.args[0].model, told)
        before = _compared(plain, prepared.inputs, dtype, answer)["difference"]
    if before > _READ:
        return {"result": "unread", "before growth": before}
    fine = found["difference"] <= 4 * before
    return {"result": "equal" if fine else "wrong", "before growth": before}


@torch.no_grad()
def _compared(
    model: Any, inputs: tuple[Any, ...], dtype: torch.dtype, answer: dict[str, Any]
) -> dict[str, Any]:
    found = model(*inputs)
    kept = ("logits", "last_hidden_state", "pooler_output")
    ours = [found[name] for name in kept if found.get(name) is not None]
    gap = max(map(_gap, answer["outputs"], ours))
    result: dict[str, Any] = {"difference": gap}
    if "text" in answer:
        options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
        text = model.generate(inputs[0], pad_token_id=0, **options)
        result["text"] = bool(torch.equal(text, answer["text"]))
    equal = gap <= EQUAL[dtype] and result.get("text", True)
    return {"result": "equal" if equal else "wrong", **result}


def _gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max()) if one.shape == other.shape else 9.9


def _generates(model: Any) -> bool:
    try:
        options = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
        model.generate(torch.ones(1, 3, dtype=torch.long), **options)
    except Exception:  # noqa: BLE001 - it writes no text, or none without arguments of its own
        return False
    return True


@dataclass(frozen=True)
class _Layers:
    """The layers of a model before it grows, by name and by role."""

    by_name: dict[str, Any]
    by_role: dict[str, list[str]]

    @classmethod
    def of(cls, model: Any) -> _Layers:
        layers = {layer.name: layer for layer in splitgrow.handle(model).layers}
        called = [name for name, layer in layers.items() if _UNCALLED not in layer.reason]
        return cls(layers, layers_by_role(model, called))

    def members(self, role: str) -> list[Any]:
        """The layers of a role.

        Raises:
            ValueError: If one of them cannot grow.
        """
        found = [self.by_name[name] for name in self.by_role[role] if name in self.by_name]
        if role == "heads":
            found = [layer for layer in found if layer.step != 1]
        for layer in found:
            if not layer.growable:
                raise ValueError(layer.reason)
        return found


def _grow(model: Any, way: str, layers: _Layers, initializer: str) -> bool:
    """Grows a model in one way; returns whether it has such layers.

    Args:
        model: A growable model.
        way: One of `WAYS`.
        layers: Its layers before.
        initializer: That of the stream's new channels.
    """
    growing = splitgrow.handle(model)
    if way in ("depth", "experts"):
        return _deepen(model) if way == "depth" else _more_experts(growing)
    if way == "vocabulary":
        if layers.by_role[way]:
            growing.expand_vocabulary(3, embedding=layers.by_role[way][0])
        return bool(layers.by_role[way])
    if way in ("MLP", "head"):
        members = layers.members(way)
        if members:
            grow(model, members)
        return bool(members)
    # Classes with a head_dim of their own take streams and heads of many widths, others only some.
    roles = ("stream", "heads") if way == "stream and heads" else (way,)
    known: set[str] = set()
    for role in roles:
        members = layers.members(role)
        if not members:
            return False
        _double(growing, members, known, initializer if role == "stream" else "zero")
    if len(roles) > 1:  # a pooler, say, which has the stream's width and is not of it
        width = layers.members("stream")[0].width
        others = [each for each in layers.by_name.values() if each.width == width and each.growable]
        hidden = {layer.name for layer in layers.members("MLP")}
        _double(growing, [each for each in others if each.name not in hidden], known, "zero")
    return True


def _double(growing: Any, members: list[Any], known: set[str], initializer: str) -> None:
    """Doubles the widths of layers, but of those that have grown with others already."""
    request: dict[str, int] = {}
    for layer in members:
        if not known & {layer.name, *layer.group}:
            request[layer.name] = layer.width
        known.update((layer.name, *layer.group))
    if request:
        growing.expand(request, initializer=initializer, freeze=False)


def _deepen(model: Any) -> bool:
    """Inserts a copy behind the first block of each list of like blocks."""
    lists = [
        (path, blocks)
        for path, blocks in model.named_modules()
        if type(blocks) is nn.ModuleList
        and len(blocks) > 1
        and len({type(block) for block in blocks}) == 1
        and sum(1 for _ in blocks[0].modules()) > 4
    ]
    outer = [path for path, _ in lists if not any(path.startswith(f"{p}.") for p, _ in lists)]
    for path in outer:
        splitgrow.handle(model).insert_layer(f"{path}.0", "block", freeze=False)
    return bool(outer)


def _more_experts(growing: Any) -> bool:
    """Doubles the experts of each mixture."""
    counts = {mixture.path: mixture.count for mixture in growing.mixtures()}
    for count in set(counts.values()):
        same = [path for path, own in counts.items() if own == count]
        for path in [None] if len(same) == len(counts) else same:
            growing.expand_experts(count, path, freeze=False)
    return bool(counts)

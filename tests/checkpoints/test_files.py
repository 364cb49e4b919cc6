"""A file is opened once and read as it was found; what is no plain file is left alone."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import splitgrow
from splitgrow import CheckpointError
from splitgrow.checkpoints import archives, files
from splitgrow.checkpoints.archives import Archive
from splitgrow.checkpoints.asides import write_aside, write_bytes
from splitgrow.checkpoints.files import STORED_DTYPES, numbered
from splitgrow.checkpoints.writing import write_archive, write_plain

# -- reading -------------------------------------------------------------------------------------


def written(path: Path, tensors: dict[str, Tensor], largest: int = 2**40) -> Path:
    write_archive(path, tensors, {}, keep=1, largest=largest)
    return path


@pytest.mark.parametrize("largest", [2**40, 100])
def test_tensors_of_every_kind_come_back_to_the_bit(tmp_path: Path, largest: int) -> None:
    torch.manual_seed(0)
    tensors = {
        str(dtype): torch.randint(0, 2, (3, 5)).to(dtype) for dtype in STORED_DTYPES.values()
    }
    tensors |= {
        "complex": torch.randn(2, 3, dtype=torch.complex128),
        "number": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "large": torch.randn(1_000_003),
        "strided": torch.randn(4, 6).t(),
    }
    with Archive(written(tmp_path / "a.safetensors", tensors, largest)) as archive:
        for name, tensor in tensors.items():
            found = archive.tensor(name)
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
            one, other = (t.contiguous().reshape(-1).view(torch.uint8) for t in (found, tensor))
            assert torch.equal(one, other)
            assert archive.tensor(name).data_ptr() != found.data_ptr() or not found.numel()


def test_a_default_device_or_dtype_does_not_count(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", {"a": torch.arange(3.0)})
    with Archive(path) as archive, torch.device("meta"):
        assert archive.tensor("a").tolist() == [0, 1, 2]


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[:-4000],
    "emptied": lambda data: b"",
    "a bit": lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:],
    "zeros": lambda data: data[:-8000] + bytes(8000),
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_file_that_is_changed_in_place_is_refused(tmp_path: Path, how: str) -> None:
    """What the reader has found whole is what it reads, or it says so; it does not die."""
    path = written(tmp_path / "a.safetensors", {"a": torch.ones(4000), "b": torch.ones(4000)})
    with Archive(path) as archive:
        changed = CHANGES[how](path.read_bytes())
        with path.open("r+b") as file:
            file.write(changed)
            file.truncate()
        with pytest.raises(CheckpointError, match=r"a.safetensors was changed while it was read"):
            [archive.tensor(name) for name in ("a", "b")]


def test_a_file_that_is_replaced_is_read_on(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", {"a": torch.zeros(4000)}, 100)
    with Archive(path) as archive:
        written(path, {"a": torch.ones(4000)}, 100)
        assert archive.tensor("a").eq(0).all()
    with Archive(path) as archive:
        assert archive.tensor("a").eq(1).all()


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", {"a": torch.zeros(40), "b": torch.ones(40)}, 200)
    part = next(tmp_path.glob("*-00002-of-*"))
    part.unlink()
    with pytest.raises(CheckpointError, match=rf"not whole: \S*{part.name}, .* is missing"):
        Archive(path)


def test_parts_that_go_while_they_are_opened_are_looked_for_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a.safetensors", {"a": torch.zeros(40)}, 8)
    shards_in, times = archives.shards_in, [0]

    def slow(*args: Any) -> list[archives.Shard]:
        if times[0] < 3:
            times[0] += 1
            written(path, {"a": torch.full((40,), float(times[0]))}, 8)
        return shards_in(*args)

    monkeypatch.setattr(archives, "shards_in", slow)
    with Archive(path) as archive:
        assert archive.tensor("a").eq(3).all()
    times[0] = -1000
    with pytest.raises(CheckpointError, match="was replaced 100 times while it was opened"):
        Archive(path)


BROKEN = {
    "a hole": {"data_offsets": [8, 16]},
    "too long": {"data_offsets": [0, 16]},
    "too short": {"data_offsets": [0, 4]},
    "backwards": {"data_offsets": [8, 0]},
    "another shape": {"shape": [3]},
    "huge": {"shape": [0, 2**62, 2**62], "data_offsets": [0, 0]},
    "three places": {"data_offsets": [0, 4, 8]},
    "no places": {"data_offsets": None},
    "fractions": {"data_offsets": [0, 8.0]},
    "another type": {"dtype": "F4"},
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_header_that_does_not_describe_the_bytes_is_refused(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(2)}, path, {"sha256": files.NO_DIGEST})
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["a"] |= BROKEN[how]
    raw = json.dumps(header, separators=(",", ":")).encode()
    data = len(raw).to_bytes(8, "little") + raw + data[8 + length :]
    path.write_bytes(data)
    head = data[: 8 + len(raw)]
    with path.open("rb") as file:
        file.seek(len(head))
        digest = files.hashed(head, file, ())[-1].hexdigest()
    path.write_bytes(data.replace(files.NO_DIGEST.encode(), digest.encode()))
    with pytest.raises(CheckpointError, match=r"damaged|does not know"):
        Archive(path)


# -- what is no plain file -----------------------------------------------------------------------


def make_socket(path: Path) -> None:
    """Bound from inside of the directory, since names of sockets are short."""
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


SPECIAL: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a socket": make_socket,
    "a directory": Path.mkdir,
    "a link to a pipe": lambda path: (os.mkfifo(f"{path}.to"), path.symlink_to(f"{path}.to")),
    "a link to a directory": lambda path: (
        Path(f"{path}.to").mkdir(),
        path.symlink_to(f"{path}.to"),
    ),
    "a loop": lambda path: path.symlink_to(path),
}


def model() -> Any:
    return splitgrow.growable(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), torch.ones(1, 2))


WRITERS: dict[str, Callable[[Path], object]] = {
    "save": lambda path: splitgrow.save(model(), path),
    "save, keep": lambda path: splitgrow.save(model(), path, keep=3),
    "save, shards": lambda path: splitgrow.save(model(), path, shard_bytes=8),
    "archive": lambda path: written(path, {"a": torch.ones(2)}),
    "plain": lambda path: write_plain(path, {"a": torch.ones(2)}, {}),
    "aside": lambda path: write_aside(path, lambda aside: torch.save({}, aside)),
    "bytes": lambda path: write_bytes(path, b"report"),
}


@contextmanager
def nothing_changes(directory: Path) -> Iterator[None]:
    def seen() -> dict[str, tuple[int, int]]:
        every = {each.name: each.lstat() for each in directory.rglob("*")}
        return {name: (state.st_ino, state.st_mode) for name, state in every.items()}

    before = seen()
    yield
    assert seen() == before


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_takes_the_place_of_what_is_no_file(tmp_path: Path, kind: str, writer: str) -> None:
    path = tmp_path / "x.safetensors"
    SPECIAL[kind](path)
    with nothing_changes(tmp_path), pytest.raises(CheckpointError, match=r"x\.safetensors"):
        WRITERS[writer](path)


@pytest.mark.parametrize("kind", [*SPECIAL, "a link to nothing"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_nothing_is_pushed_on_that_is_no_file(tmp_path: Path, kind: str, number: int) -> None:
    path = tmp_path / "x.safetensors"
    splitgrow.save(model(), path)
    splitgrow.save(model(), path, keep=3)
    make = SPECIAL.get(kind, lambda path: path.symlink_to("nowhere"))
    numbered(path, number).unlink(missing_ok=True)
    make(numbered(path, number))
    with nothing_changes(tmp_path), pytest.raises(CheckpointError, match=rf"x\.{number}\.safe"):
        splitgrow.save(model(), path, keep=3)
    splitgrow.save(model(), path)  # which keeps none, and so touches none


@pytest.mark.parametrize("kind", [*SPECIAL, "a link to nothing", "nothing"])
def test_what_is_no_file_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.safetensors"
    if kind != "nothing":
        SPECIAL.get(kind, lambda path: path.symlink_to("nowhere"))(path)
    with nothing_changes(tmp_path), pytest.raises(CheckpointError, match=r"x\.safetensors|nowhere"):
        splitgrow.load(nn.Linear(2, 3), path)


def test_a_pipe_that_comes_between_two_looks_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    os.mkfifo(path)
    monkeypatch.setattr(files, "check_regular", lambda path: True)
    with pytest.raises(CheckpointError, match="is a pipe"):
        Archive(path)


def test_a_pipe_with_the_number_of_an_old_file_does_not_keep_rests(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    splitgrow.save(model(), path, shard_bytes=8)
    os.mkfifo(numbered(path, 9))
    old = {each.name for each in tmp_path.glob("*-of-*")}
    splitgrow.save(model(), path, shard_bytes=8)
    assert not old & {each.name for each in tmp_path.iterdir()}


def test_a_file_that_may_not_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    splitgrow.save(model(), path)

    def refuse(name: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr(files.os, "open", refuse)  # an administrator may read all
    with pytest.raises(CheckpointError, match=r"x\.safetensors: Permission denied"):
        splitgrow.load(nn.Linear(2, 3), path)


@pytest.mark.parametrize("parent", ["missing", "file"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_parent_that_is_no_directory_is_told(tmp_path: Path, parent: str, writer: str) -> None:
    (tmp_path / "file").write_text("mine")
    path = tmp_path / parent / "x.safetensors"
    with nothing_changes(tmp_path), pytest.raises(CheckpointError, match=r"x\.safetensors: "):
        WRITERS[writer](path)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: "):
        splitgrow.load(nn.Linear(2, 3), path)


def test_a_link_to_a_file_stays_one_and_the_file_is_replaced(tmp_path: Path) -> None:
    """The control: what may be written to is written to, a link to a free place included."""
    (tmp_path / "run").mkdir()
    for name, writer in WRITERS.items():
        path, real = tmp_path / f"{name}.safetensors", tmp_path / "run" / f"{name}.safetensors"
        path.symlink_to(real)
        for _ in range(2):
            WRITERS[name](path)
            assert path.is_symlink()
            assert real.is_file()
        assert writer is WRITERS[name]

"""A load beside a process that saves has one save or the other, never parts of both."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers import MANY
from torch import nn

import splitgrow
from splitgrow.checkpoints.files import TensorFile

LOADS = int(20 * MANY)
"""By SPLITGROW_MANY=50, a thousand."""

SAVING = """
import sys, torch
from torch import nn
import splitgrow
torch.set_num_threads(1)
path, shard_bytes, keep = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = splitgrow.growable(nn.Sequential(nn.Linear(2, 30), nn.Linear(30, 2)), torch.ones(1, 2))
number = 0
while True:
    number += 1
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(number % 251)
    splitgrow.save(model, path, extra=number, keep=keep, shard_bytes=shard_bytes)
    print(number, flush=True)
"""


@contextmanager
def saver(path: Path, shard_bytes: int, keep: int) -> Iterator[None]:
    """A process that saves one numbered model after the other, as fast as it can."""
    command = [sys.executable, "-c", SAVING, str(path), str(shard_bytes), str(keep)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        try:
            yield
        finally:
            process.kill()


def load(path: Path) -> tuple[int, set[float]]:
    """The number of a save, and the values of its parameters."""
    with torch.device("meta"):
        fresh = nn.Sequential(nn.Linear(2, 30), nn.Linear(30, 2))
    number = splitgrow.load(fresh, path, training=False)
    return number, {v for p in fresh.parameters() for v in p.detach().flatten().tolist()}


@pytest.mark.parametrize(("shard_bytes", "keep"), [(2**40, 1), (8, 1), (8, 3)])
def test_every_load_beside_a_saver_has_one_save(
    tmp_path: Path, shard_bytes: int, keep: int
) -> None:
    path, numbers = tmp_path / "run.safetensors", list[int]()
    with saver(path, shard_bytes, keep):
        while len(numbers) < LOADS or numbers[-1] == numbers[0]:  # until it has saved meanwhile
            number, values = load(path)
            assert values == {number % 251}
            numbers.append(number)
    assert numbers == sorted(numbers)


def test_a_path_that_is_opened_twice_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: tensors that are read of the path, instead of the file that was opened."""

    path, other = tmp_path / "run.safetensors", tmp_path / "other.safetensors"
    for name, value in ((path, 1.0), (other, 2.0)):
        model = splitgrow.growable(
            nn.Sequential(nn.Linear(2, 30), nn.Linear(30, 2)), torch.ones(1, 2)
        )
        for parameter in model.parameters():
            nn.init.constant_(parameter, value)
        splitgrow.save(model, name, extra=int(value))
    assert load(path) == (1, {1.0})

    def again(self: TensorFile, name: str) -> torch.Tensor:
        other.replace(path) if other.exists() else None
        with path.open("rb") as file:
            return read(TensorFile(file, path), name)

    read = TensorFile.read
    monkeypatch.setattr(TensorFile, "read", again)
    assert load(path) == (1, {2.0})

"""Data that give many examples at once, for a tensor of indices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from splitgrow.continual import METHODS, Task, Training
from splitgrow.continual.tasks import Batches, joined, share_of, takes_tensors, with_validation

CPU = torch.device("cpu")


class Doubled(Dataset[Any]):
    """Twice the numbers from a first one on; counts how often it is asked."""

    takes_tensors = True

    def __init__(self, length: int = 23, first: int = 0) -> None:
        self.length, self.first, self.asked = length, first, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        self.asked += 1
        numbers = torch.arange(self.first, self.first + self.length)[index]
        return 2.0 * numbers[..., None], numbers % 3


class Singly(Doubled):
    takes_tensors = False


def _read(data: Any, size: int = 5, seed: int | None = None) -> tuple[Tensor, Tensor]:
    batches = Batches(data, size, CPU)
    drawn = iter(batches) if seed is None else batches.drawn(torch.Generator().manual_seed(seed))
    x, y = zip(*drawn, strict=True)
    assert len(x) == len(batches)
    return torch.cat(x), torch.cat(y)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_batches_are_the_same_whether_examples_come_singly_or_not(seed: int | None) -> None:
    once, singly = Doubled(), Singly()
    for one, other in zip(_read(once, seed=seed), _read(singly, seed=seed), strict=True):
        assert torch.equal(one, other)
    assert once.asked == 5  # for 23 examples in batches of 5
    assert singly.asked == 23


def test_only_what_says_so_is_given_tensors_of_indices() -> None:
    tensors = TensorDataset(torch.zeros(3, 1), torch.zeros(3))

    class Reading(TensorDataset):
        """A subclass may do anything with an index."""

    assert takes_tensors(tensors)
    assert takes_tensors(Doubled())
    for data in (Singly(), Subset(tensors, [0]), Reading(*tensors.tensors), object()):
        assert not takes_tensors(data)


@pytest.mark.parametrize("kind", [Doubled, Singly])
def test_a_part_reads_as_the_whole_does(kind: Any) -> None:
    data, indices = kind(), torch.tensor([7, 3, 3, 22, 0, 11])
    part: Any = share_of(data, indices)
    assert takes_tensors(part) == takes_tensors(data)
    x, y = _read(part, 4)
    assert torch.equal(x.flatten(), 2.0 * indices)
    assert torch.equal(y, indices % 3)
    assert part[3][0] == 44.0
    assert data.asked == (3 if kind is Doubled else 7)


def test_a_part_of_a_part_is_a_part_of_the_whole() -> None:
    part: Any = share_of(share_of(Doubled(), torch.arange(23).flip(0)), torch.tensor([0, 2]))
    assert _read(part)[0].flatten().tolist() == [44.0, 40.0]


def test_validation_data_are_set_apart_without_being_read() -> None:
    data = Doubled(30)
    task = with_validation(Task("numbers", 3, data), 0.2, torch.Generator().manual_seed(0))
    assert data.asked == 0
    kept, apart = (_read(half)[0].flatten().tolist() for half in (task.train, task.validation))
    assert len(apart) == 6
    assert sorted(kept + apart) == [2.0 * number for number in range(30)]


def _tensors(length: int, first: int) -> TensorDataset:
    return TensorDataset(*Doubled(length, first)[torch.arange(length)])


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_joined_parts_read_as_one(seed: int | None) -> None:
    lengths = (4, 1, 9, 2)
    firsts = (0, 4, 5, 14)
    parts = [
        (Doubled if at % 2 else _tensors)(length, first)
        for at, (length, first) in enumerate(zip(lengths, firsts, strict=True))
    ]
    one, whole = joined(parts), Doubled(16)
    assert takes_tensors(one)
    assert len(one) == 16
    for found, expected in zip(_read(one, 3, seed), _read(whole, 3, seed), strict=True):
        assert torch.equal(found, expected)


def test_parts_are_joined_singly_if_one_comes_singly() -> None:
    one = joined([Doubled(4), Singly(3, 4)])
    assert isinstance(one, ConcatDataset)
    assert torch.equal(_read(one)[0], _read(Doubled(7))[0])


class Images(Dataset[Any]):
    def __init__(self, x: Tensor, y: Tensor, *, at_once: bool) -> None:
        self.x, self.y, self.takes_tensors = x, y, at_once

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


@pytest.mark.parametrize("method", ["joint", "cpg", "ewc"])
def test_a_method_learns_the_same_bit_for_bit_from_all_forms_of_data(method: str) -> None:
    def logits(form: str) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        tasks = []
        for name in "ab":
            x = torch.randn(24, 5, generator=generator)
            y = (x[:, 0] > 0).long()
            data: Any = (x, y) if form == "tensors" else Images(x, y, at_once=form == "at once")
            tasks.append(Task(name, 2, data))
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
        learner = METHODS[method](model, x[:2], training=Training(epochs=2, batch_size=7))
        learner.learn_all(tasks)
        return torch.cat([learner.predict(x, task=name) for name in "ab"])

    expected = logits("tensors")
    assert torch.equal(logits("at once"), expected)
    assert torch.equal(logits("singly"), expected)

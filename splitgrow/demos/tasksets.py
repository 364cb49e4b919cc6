"""Makes tasks of a data set: parts of its classes, or variants of all of its images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from splitgrow.continual import Data, Task
from splitgrow.demos.datasets import Dataset, sample
from splitgrow.demos.rawdata import DatasetError
from splitgrow.demos.variants import Change, Permuted, Rotated, Variant

_CLASSES, _PIXELS, _TRAIN, _TEST = range(4)
"""The uses of seeds."""
_SHORT = 32  # characters of a task's name that lists its classes

_Groups: TypeAlias = "list[tuple[str, tuple[int, ...]]]"
"""The name and the classes of each task."""
_Changes: TypeAlias = "list[tuple[str, Change | None]]"
"""The name of each task, and the change of its images."""


def tasks_of(
    dataset: Dataset,
    kind: str,
    count: int | None,
    *,
    seed: int = 0,
    shuffled: bool = False,
    limit: int | None = None,
    test_limit: int | None = None,
) -> tuple[Task, ...]:
    """The data set as tasks, with labels 0, 1, ... in each and the images as they are normalised.

    Args:
        dataset: The data.
        kind: "classes": each task has an equal part of the classes. "superclasses": each has the
            classes of one superclass. "permuted": each has all classes, with the pixels in an order
            of its own; the first has them as they are. "rotated": each has all classes, turned by
            equal steps from 0 to below 180 degrees.
        count: How many tasks; None for as many as there are superclasses.
        seed: Of all that is drawn: orders of classes and of pixels, and which images are kept.
        shuffled: Whether the classes or superclasses come in an order that is drawn.
        limit: The largest number of training images of a task; the classes stay in proportion.
        test_limit: The same for its test images.

    Raises:
        DatasetError: If the data do not make such tasks.
        ValueError: If the arguments make no sense together.
    """
    if kind not in TASK_KINDS:
        raise ValueError(f"tasks are made of {', '.join(TASK_KINDS)}, not of {kind!r}")
    if count is None and kind != "superclasses":
        raise ValueError(f"{kind} tasks need a number of tasks")
    if count is not None and count < 1:
        raise ValueError(f"there must be at least 1 task, not {count}")
    if shuffled and kind in _CHANGES:
        raise ValueError(f"shuffled is for classes and superclasses: {kind} tasks have all of them")
    parts = _Parts(dataset, seed, limit, test_limit)
    if kind in _CHANGES:
        return _variants(parts, _CHANGES[kind](dataset, count or 1, seed))
    groups = _GROUPS[kind](dataset, count, _generator(seed, _CLASSES) if shuffled else None)
    return tuple(
        Task(name, len(members), parts.train(name, members, at), parts.test(name, members, at))
        for at, (name, members) in enumerate(groups)
    )


def _generator(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@dataclass(frozen=True)
class _Parts:
    """The images of some classes, with labels that begin at 0."""

    dataset: Dataset
    seed: int
    limit: int | None
    test_limit: int | None

    def train(self, task: str, members: Sequence[int], at: int) -> tuple[Tensor, Tensor]:
        x, y = self.dataset.x_train, self.dataset.y_train
        kept, labels = self._numbered(y, members)
        chosen = self._chosen(task, labels, self.limit, "--limit", (self.seed, _TRAIN, at))
        return _taken(x, kept[chosen]), labels[chosen]

    def test(self, task: str, members: Sequence[int], at: int) -> tuple[Tensor, Tensor]:
        x, y = self.dataset.x_test, self.dataset.y_test
        kept, labels = self._numbered(y, members)
        chosen = self._chosen(task, labels, self.test_limit, "test_limit", (self.seed, _TEST, at))
        return _taken(x, kept[chosen]), labels[chosen]

    def _numbered(self, y: Tensor, members: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Where the members' images are, and their labels among the members."""
        numbers = torch.full((len(self.dataset.classes),), -1)
        numbers[list(members)] = torch.arange(len(members))
        labels = numbers[y]
        kept = (labels >= 0).nonzero().flatten()
        return kept, labels[kept]

    def _chosen(
        self, task: str, labels: Tensor, limit: int | None, option: str, seed: Sequence[int]
    ) -> Tensor:
        source = f"{self.dataset.name}, task {task!r}"
        return torch.from_numpy(sample(source, labels.numpy(), limit, seed, option))


def _taken(x: Tensor, indices: Tensor) -> Tensor:
    """The images at indices that ascend; the tensor itself if these are all."""
    return x if len(indices) == len(x) else x[indices]


# Parts of the classes


def _class_groups(
    dataset: Dataset, count: int | None, generator: np.random.Generator | None
) -> _Groups:
    """The classes in as many parts.

    Raises:
        DatasetError: if these cannot be of one size.
    """
    number, count = len(dataset.classes), count or 1
    if number % count:
        fitting = ", ".join(str(each) for each in range(1, number + 1) if number % each == 0)
        problem = f"{number} classes cannot be {count} tasks of one size"
        if count > number:
            problem = f"{number} classes are too few for {count} tasks"
        raise DatasetError(dataset.name, problem, f"{fitting} tasks")
    order = range(number) if generator is None else generator.permutation(number).tolist()
    size = number // count
    groups = [tuple(order[at : at + size]) for at in range(0, number, size)]
    names = [_group_name(dataset, members) for members in groups]
    if None in names or len(set(names)) < count:
        names = [f"part {at} of the classes" for at in range(1, count + 1)]
    return [(str(name), members) for name, members in zip(names, groups, strict=True)]


def _group_name(dataset: Dataset, members: tuple[int, ...]) -> str | None:
    """The classes' names if they are short, else their numbers; None if these are many."""
    names = ", ".join(dataset.classes[member] for member in members)
    if len(names) <= _SHORT and names.isprintable():
        return names
    if members == tuple(range(members[0], members[-1] + 1)):
        return f"classes {members[0]}-{members[-1]}" if len(members) > 1 else f"class {members[0]}"
    numbers = f"classes {', '.join(map(str, members))}"
    return numbers if len(numbers) <= _SHORT else None


def _superclass_groups(
    dataset: Dataset, count: int | None, generator: np.random.Generator | None
) -> _Groups:
    """The classes of each superclass.

    Raises:
        DatasetError: if there are none, or not as many.
    """
    groups = list(dataset.superclasses.items())
    if not groups:
        raise DatasetError(
            dataset.name,
            "it has no superclasses",
            "data that do, as CIFAR-100 or folders TASK/CLASS",
        )
    if count not in {None, len(groups)}:
        problem = f"{len(groups)} superclasses are not {count} tasks"
        raise DatasetError(dataset.name, problem, f"{len(groups)} tasks")
    for name, members in groups:
        if len(members) < 2:
            only = dataset.classes[members[0]]
            raise DatasetError(dataset.name, f"{name} has one class, {only}", "two or more a task")
    if generator is not None:
        groups = [groups[at] for at in generator.permutation(len(groups))]
    return groups


# Variants of all images


def _variants(parts: _Parts, changes: _Changes) -> tuple[Task, ...]:
    """A task for each change; they share the memory of the images."""
    everything = range(len(parts.dataset.classes))
    train, test = (each("all", everything, 0) for each in (parts.train, parts.test))
    return tuple(
        Task(name, len(everything), _changed(train, change), _changed(test, change))
        for name, change in changes
    )


def _changed(data: tuple[Tensor, Tensor], change: Change | None) -> Data:
    return data if change is None else Variant(*data, change)


def _permutations(dataset: Dataset, count: int, seed: int) -> _Changes:
    height, width = dataset.size
    orders = (
        torch.from_numpy(_generator(seed, _PIXELS, at).permutation(height * width))
        for at in range(1, count)
    )
    permuted = [(f"permutation {at}", Permuted(order)) for at, order in enumerate(orders, start=1)]
    return [("not permuted", None), *permuted]


def _rotations(_dataset: Dataset, count: int, _seed: int) -> _Changes:
    angles = [180 * at / count for at in range(count)]
    names = [f"{angle:.1f}".removesuffix(".0") for angle in angles]
    if len(set(names)) < count:
        names = [repr(angle) for angle in angles]
    return [
        (f"{name} degrees", Rotated(angle) if angle else None)
        for name, angle in zip(names, angles, strict=True)
    ]


_GROUPS: dict[str, Callable[[Dataset, int | None, np.random.Generator | None], _Groups]] = {
    "classes": _class_groups,
    "superclasses": _superclass_groups,
}
_CHANGES: dict[str, Callable[[Dataset, int, int], _Changes]] = {
    "permuted": _permutations,
    "rotated": _rotations,
}
TASK_KINDS = (*_GROUPS, *_CHANGES)

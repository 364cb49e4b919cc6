"""Tasks: labelled data for learning, for decisions, and for tests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

Data: TypeAlias = "Dataset[Any] | DataLoader[Any] | tuple[Tensor, Tensor]"
"""Inputs with labels: a data set of pairs, a loader of batches of them, or two tensors.

A data set's batches are put together from single pairs, unless it `takes_tensors`.
"""

Protocol: TypeAlias = Literal["validation", "test"]
"""The data for decisions: when to grow, how far to prune, which state to keep.

"validation" is a part of the training data that no training uses. "test" is the test data, as in
the code of Hung et al.; accuracies on these data are then too optimistic.
"""


@dataclass(frozen=True, eq=False)  # tensors have no single truth value to compare by
class Task:
    """A classification task.

    Attributes:
        name: Its name; no other task that is learned has it.
        classes: The number of classes. Labels are 0, 1, ... below it.
        train: The data to learn from.
        test: The data to test on; None for no tests.
        validation: The data for decisions. None: a part of `train`, which is then not used for
            training.

    Example:
        >>> import torch
        >>> from splitgrow.continual import Task
        >>> x, y = torch.randn(64, 4), torch.arange(64) % 2
        >>> Task("odd or even", 2, (x, y)).classes
        2
    """

    name: str
    classes: int
    train: Data
    test: Data | None = None
    validation: Data | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a task's name must be a text, got {self.name!r}")
        number = isinstance(self.classes, int) and not isinstance(self.classes, bool)
        if not number or self.classes < 1:
            raise ValueError(
                f"task {self.name!r} has {self.classes!r} classes; it needs at least 1"
            )
        for part in ("train", "test", "validation"):
            data = getattr(self, part)
            if data is None and part != "train":
                continue
            try:
                data = checked(data)
                if type(data) is TensorDataset and len(data.tensors) == 2:
                    _check_range(labels(data.tensors[1]), self.classes)
                object.__setattr__(self, part, data)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{part} data of task {self.name!r}: {error}") from error


def checked(data: Any) -> Data:
    """Data in a form that `Batches` takes.

    Raises:
        TypeError: If they are of another type.
        ValueError: If they are empty, or there are not as many labels as inputs.
    """
    if isinstance(data, (tuple, list)) and len(data) == 2:
        x, y = data
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            raise TypeError(f"two tensors are needed, got {type(x).__name__}, {type(y).__name__}")
        if not x.dim() or y.dim() != 1 or len(x) != len(y):
            raise ValueError(f"inputs {tuple(x.shape)} and labels {tuple(y.shape)} do not fit")
        data = TensorDataset(x, y)
    if isinstance(data, IterableDataset):
        raise TypeError("a data set without indices cannot be drawn from; give a DataLoader of it")
    if not isinstance(data, (Dataset, DataLoader)):
        raise TypeError(f"it must be a Dataset, a DataLoader or two tensors, got {data!r}"[:200])
    if _length(data) == 0:
        raise ValueError("it is empty")
    return data


def labels(given: Tensor) -> Tensor:
    """Labels of examples in the form of the losses: `(N,)`, 64-bit integers.

    Raises:
        TypeError: If they are no integers.
        ValueError: If there is not one for each example.
    """
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise TypeError(f"labels must be integers from 0 on, got {given.dtype}")
    if given.dim() != 1:
        raise ValueError(f"labels must be one integer an example, got {tuple(given.shape)}")
    return given.to(torch.int64)


def _check_range(found: Tensor, classes: int) -> None:
    least, most = int(found.min()), int(found.max())
    if least < 0 or most >= classes:
        raise ValueError(f"labels from {least} to {most} are not those of {classes} classes")


def _length(data: Any) -> int | None:
    """The number of examples; None if that is not known before they are read."""
    try:
        return len(data)
    except TypeError:
        return None


def with_validation(task: Task, share: float, generator: torch.Generator) -> Task:
    """The task with data for decisions: its own, or a random part of its training data.

    Raises:
        ValueError: If its training data cannot be divided.
    """
    if task.validation is not None:
        return task
    if isinstance(task.train, DataLoader):
        raise ValueError(
            f"task {task.name!r} has a loader to train on, which cannot be divided: give it "
            f'`validation` data, or learn with decide_on="test"'
        )
    data = cast("Dataset[Any]", task.train)
    length = len(cast("Sized", data))
    taken = math.ceil(share * length)
    if not 0 < taken < length:
        raise ValueError(f"task {task.name!r} has too few examples ({length}) to set some apart")
    order = torch.randperm(length, generator=generator)
    return replace(
        task,
        train=share_of(data, order[taken:]),
        validation=share_of(data, order[:taken]),
    )


def takes_tensors(data: Any) -> bool:
    """Whether a tensor of indices gives the inputs and labels of all these examples at once.

    It is true for tensors, and for a `Dataset` with an attribute `takes_tensors = True`: its
    batches are then not put together from single examples.
    """
    return type(data) is TensorDataset or getattr(data, "takes_tensors", False) is True


def share_of(data: Dataset[Any], indices: Tensor) -> Dataset[Any]:
    """Some of the examples; those of tensors are copied, and lie together afterwards."""
    if type(data) is TensorDataset:
        return TensorDataset(*(tensor[indices] for tensor in data.tensors))
    if takes_tensors(data):
        return _Part(data, indices)
    return Subset(data, cast("Sequence[int]", indices.tolist()))


def joined(parts: Sequence[Dataset[Any]]) -> Dataset[Any]:
    """The examples of all parts, one part behind the other."""
    return _Joined(parts) if all(map(takes_tensors, parts)) else ConcatDataset(parts)


class _Part(Dataset[Any]):
    """Some of the examples of data that take a tensor of indices; so does it."""

    takes_tensors = True

    def __init__(self, data: Dataset[Any], indices: Tensor) -> None:
        self._data, self._indices = data, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        return self._data[self._indices[index]]


class _Joined(Dataset[Any]):
    """The examples of several data that take a tensor of indices; so does it, and nothing else."""

    takes_tensors = True

    def __init__(self, parts: Sequence[Dataset[Any]]) -> None:
        self._parts = parts
        lengths = torch.tensor([len(cast("Sized", part)) for part in parts])
        self._ends = lengths.cumsum(0)
        self._begins = self._ends - lengths

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        owners = torch.bucketize(indices, self._ends, right=True)
        places, found = [], []
        for owner in sorted(set(owners.tolist())):
            mine = (owners == owner).nonzero().flatten()
            places.append(mine)
            found.append(self._parts[owner][indices[mine] - self._begins[owner]])
        order = torch.cat(places).argsort()
        x, y = zip(*found, strict=True)
        return torch.cat(x)[order], torch.cat(y)[order]


class Batches:
    """Batches of a task's data, in a new order at every pass.

    Args:
        data: The data.
        size: The number of examples in a batch; a loader has its own size.
        device: The device of the batches.
    """

    def __init__(self, data: Data, size: int, device: torch.device) -> None:
        self._data, self._size, self._device = data, size, device

    def __len__(self) -> int:
        if isinstance(self._data, DataLoader):
            return len(self._data)
        return math.ceil(len(cast("Sized", self._data)) / self._size)

    @property
    def known(self) -> bool:
        """Whether the number of batches is known."""
        try:
            return bool(len(self))
        except TypeError:
            return False

    def drawn(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """All examples once, in a random order; a loader's come in its own."""
        if isinstance(self._data, DataLoader):
            yield from self._placed(self._data)
            return
        order = torch.randperm(len(cast("Sized", self._data)), generator=generator)
        yield from self._in_order(order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All examples once, in their own order."""
        if isinstance(self._data, DataLoader):
            yield from self._placed(self._data)
        else:
            yield from self._in_order(torch.arange(len(cast("Sized", self._data))))

    def _in_order(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        if takes_tensors(self._data):
            data: Any = self._data
            pairs: Any = (data[part] for part in torch.split(order, self._size))
        else:
            part: Any = Subset(cast("Dataset[Any]", self._data), cast("Any", order.tolist()))
            # A generator of its own keeps it from drawing from torch's.
            own = torch.Generator()
            pairs = DataLoader(part, batch_size=self._size, generator=own)
        yield from self._placed(pairs)

    def _placed(self, pairs: Any) -> Iterator[tuple[Tensor, Tensor]]:
        for pair in pairs:
            x, y = pair
            yield x.to(self._device), labels(y).to(self._device)

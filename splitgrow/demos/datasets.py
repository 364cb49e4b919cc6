"""Loads labelled images: the digits of scikit-learn, or a file of the user's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from splitgrow.cli import arguments
from splitgrow.cli.settings import MOST_GB
from splitgrow.demos import bundles, cifar, idx, imagefolder, npz
from splitgrow.demos.rawdata import (
    DatasetError,
    Images,
    Integers,
    RawData,
    Room,
    Track,
)

FORMATS = (
    "an .npz file (x_train, y_train, x_test, y_test), a folder or .zip of pictures"
    " (train/CLASS/*.jpg and test/CLASS/*.jpg, or TASK/CLASS/*.jpg), a folder of MNIST-style idx"
    " files, or the folder or .tar.gz of CIFAR-10 or CIFAR-100"
)


@dataclass(frozen=True, eq=False)  # tensors have no single truth value to compare by
class Dataset:
    """Labelled images, normalised by the training images' mean and deviation in each channel."""

    name: str
    x_train: Tensor  # (N, C, H, W), float32
    y_train: Tensor  # (N,), int64, indices into `classes`
    x_test: Tensor
    y_test: Tensor
    classes: tuple[str, ...]
    superclasses: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The classes in each superclass, by its name, as indices into `classes`; most data have none.
    """
    folders: bool = False
    """Whether the superclasses are folders, which lie there as tasks."""

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for coloured ones."""
        return self.x_train.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every image."""
        return self.x_train.shape[2], self.x_train.shape[3]


def load_dataset(
    path: Path | None,
    *,
    seed: int = 0,
    limit: int | None = None,
    size: int | None = None,
    track: Track | None = None,
    max_gb: float = MOST_GB,
) -> Dataset:
    """The data set at `path`, or the digits that come with scikit-learn if it is None.

    `limit` keeps that many training images, chosen by `seed` with the classes in proportion; the
    test images stay whole, so that accuracies remain comparable. `size` resizes picture files, and
    `track` is wrapped around the reading of them to show its progress. `max_gb` bounds the memory
    of the data as their files hold them, in units of 10**9 bytes; pixels of one byte take four
    times as much once they are normalised.

    Raises:
        DatasetError: if the data cannot be used; it gives the reason and the expected data.
        ValueError: if `size` is given for the digits.
    """
    if path is None and size is not None:
        raise ValueError("size is for picture files; the digits have 8x8 pixels")
    source = "digits" if path is None else str(path)
    raw = _digits(seed) if path is None else _read(path, size, track or _untracked, Room(max_gb))
    values, y_train, y_test = _encode(source, raw)
    kept = sample(source, y_train, limit, seed)
    x_train, x_test = _standardise(
        source, raw.train.images(kept), raw.test.images(np.arange(len(y_test)))
    )
    return Dataset(
        source if path is None else _name(path),
        x_train,
        torch.from_numpy(y_train[kept]),
        x_test,
        torch.from_numpy(y_test),
        tuple(raw.classes[value] if raw.classes else str(value) for value in values),
        _present(raw.superclasses, values),
        raw.folders,
    )


def _name(path: Path) -> str:
    name = path.resolve().name
    ends = [end for end in bundles.SUFFIXES if name.lower().endswith(end)]
    return name[: -len(ends[0])] if ends else path.resolve().stem


def _present(
    superclasses: Mapping[str, tuple[int, ...]], values: Integers
) -> dict[str, tuple[int, ...]]:
    """The superclasses of which there are images, with indices instead of labels."""
    index = {int(value): at for at, value in enumerate(values)}
    found = {
        name: tuple(index[label] for label in labels if label in index)
        for name, labels in superclasses.items()
    }
    return {name: members for name, members in found.items() if members}


def _untracked(names: Sequence[str], _label: str) -> Iterable[str]:
    return names


def _digits(seed: int) -> RawData:
    """Read where they are asked for: scikit-learn takes seconds to import."""
    raw: RawData = arguments.load_module("splitgrow.demos.digits").read(seed)
    return raw


def _holds_cifar(path: Path) -> bool:
    return cifar.holds_cifar(path) and not (path.is_dir() and idx.holds_idx(path))


def _holds_pictures(path: Path) -> bool:
    if path.is_dir():
        return not idx.holds_idx(path) and not _holds_cifar(path)
    return path.suffix.lower() == ".zip"


def _read(path: Path, size: int | None, track: Track, room: Room) -> RawData:
    """The data, by the reader for this kind of `path`.

    Raises:
        DatasetError: if there is no such reader, or it refuses.
    """
    if not path.exists():
        raise DatasetError(path, "there is no such file or folder", FORMATS)
    if _holds_pictures(path):
        return imagefolder.read(path, size=size, track=track, room=room)
    if not path.is_dir() and not _holds_cifar(path) and path.suffix.lower() != ".npz":
        raise DatasetError(path, "it is of no known kind", FORMATS)
    if size is not None:
        raise DatasetError(path, "its images cannot be resized", "picture files, for --size")
    if _holds_cifar(path):
        return cifar.read(path)
    return idx.read(path, room) if path.is_dir() else npz.read(path, room)


def _encode(source: str, raw: RawData) -> tuple[Integers, Integers, Integers]:
    """The labels that there are, and those of both halves as indices into them.

    Raises:
        DatasetError: if a half is empty, or the two do not have the same two or more classes.
    """
    for name, split in (("training", raw.train), ("test", raw.test)):
        if len(split.labels) == 0:
            raise DatasetError(source, f"no {name} images", "at least one image a class")
    values = np.unique(raw.train.labels)
    differing = np.setxor1d(values, raw.test.labels)
    if len(differing):
        raise DatasetError(
            source,
            f"labels that are only in train or only in test: {', '.join(map(str, differing[:10]))}",
            "the same classes in both",
        )
    if len(values) < 2:
        raise DatasetError(source, "all images are of one class", "two or more classes")
    return (
        values,
        np.searchsorted(values, raw.train.labels),
        np.searchsorted(values, raw.test.labels),
    )


def sample(
    source: str,
    labels: Integers,
    limit: int | None,
    seed: int | Sequence[int],
    option: str = "--limit",
) -> Integers:
    """The indices, in order, of the `limit` images to keep; every class keeps some.

    Raises:
        DatasetError: if there are more classes than images to keep.
    """
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    counts = np.bincount(labels)
    if limit < len(counts):
        raise DatasetError(
            source, f"{option} {limit} is less than its {len(counts)} classes", "an image a class"
        )
    # Shuffle, then take the classes in turn by their rank within the class: image r of a class of
    # n comes at (r + 0.5) / n, so that any first part of the order holds the classes in proportion.
    # The first of each class come before all others, so that none is lost.
    order = np.random.default_rng(seed).permutation(len(labels))
    grouped = order[np.argsort(labels[order], kind="stable")]
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    rank = np.arange(len(labels)) - starts
    place = np.where(rank == 0, -1.0, (rank + 0.5) / np.repeat(counts, counts))
    return np.sort(grouped[np.argsort(place, kind="stable")[:limit]])


def _standardise(source: str, train: Images, test: Images) -> tuple[Tensor, Tensor]:
    """Both as float32, with the training images' mean 0 and deviation 1 in each channel.

    Raises:
        DatasetError: if there are values that float32 cannot hold.
    """
    if _colourless(train) and _colourless(test):
        train, test = train[:, :1], test[:, :1]
    halves = [
        torch.from_numpy(np.ascontiguousarray(half)).to(torch.float32) for half in (train, test)
    ]
    # One value that is not finite shows in the deviation, so no mask of all pixels is needed.
    deviations, means = zip(*(_moments(half) for half in halves), strict=True)
    if not all(bool(torch.isfinite(deviation).all()) for deviation in deviations):
        raise DatasetError(source, "its pixels are not finite, or too large", "values like 0-255")
    deviation, mean = deviations[0], means[0]
    deviation[deviation == 0] = 1.0  # a channel that is constant stays so
    return halves[0].sub_(mean).div_(deviation), halves[1].sub_(mean).div_(deviation)


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    return torch.std_mean(images, dim=(0, 2, 3), keepdim=True, correction=0)


def _colourless(images: Images) -> bool:
    """Whether RGB images show nothing but grey, as grey picture files do after decoding."""
    red = images[:, 0]
    return images.shape[1] == 3 and all(np.array_equal(red, images[:, at]) for at in (1, 2))

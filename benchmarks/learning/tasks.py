"""The tasks: data, a network small and large, and how well it does."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.learning.networks import Gpt, ResNet, Vgg, Vit
from splitgrow.demos.datasets import load_dataset

Batch = tuple[Tensor, Tensor]
CONTEXT = 64
BUDGETS = ("short", "long")


@dataclass(frozen=True)
class Data:
    """Samples to train on, to choose settings by, and to test on.

    Attributes:
        train: Inputs and targets; for text all bytes, twice.
        validation: Those by which settings are chosen.
        test: Those that count.
        text: Whether they are bytes, of which stretches are drawn.
    """

    train: Batch
    validation: Batch
    test: Batch
    text: bool = False

    def batches(self, size: int, seed: int) -> Iterator[Batch]:
        """Batches without end: pictures in random order, stretches of text at random places."""
        draw = torch.Generator().manual_seed(seed)
        x, y = self.train
        span = torch.arange(CONTEXT)
        while self.text:
            at = torch.randint(len(x) - CONTEXT - 1, (size, 1), generator=draw) + span
            yield x[at], x[at + 1]
        while True:
            order = torch.randperm(len(x), generator=draw)
            for part in order.split(size):
                if len(part) == size:
                    yield _moved(x[part], draw), y[part]


def _moved(x: Tensor, draw: torch.Generator) -> Tensor:
    """Pictures moved by up to two pixels."""
    dx, dy = torch.randint(-2, 3, (2,), generator=draw).tolist()
    return torch.roll(x, (dy, dx), (2, 3))


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: Its name.
        says: The network and the data, in words.
        small: Makes the small network, given the number of classes.
        large: Makes the large one.
        data: Reads the data from a folder.
        budgets: The budgets, in multiply-adds of training, in billions: short, and long.
        batches: The sizes of batches that are tried.
        rates: The rates that are tried.
        error: Whether the score is a loss, rather than an accuracy.
        copied: The blocks of the small network behind which a copy comes at the first growth.
    """

    name: str
    says: str
    small: Callable[[], nn.Module]
    large: Callable[[], nn.Module]
    data: Callable[[Path], Data]
    budgets: tuple[float, float]
    batches: tuple[int, int, int]
    rates: tuple[float, float, float]
    error: bool = False
    copied: tuple[str, ...] = ()

    def better(self, one: float, other: float) -> bool:
        """Whether a score is better than, or as good as, another."""
        return one <= other if self.error else one >= other


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """The cross entropy on a batch."""
    x, y = batch
    scores = model(x)
    return F.cross_entropy(scores.flatten(0, -2), y.flatten())


@torch.no_grad()
def score_of(model: nn.Module, task: Task, batch: Batch) -> float:
    """The accuracy in percent, or the loss in nats, in evaluation mode."""
    model.eval()
    x, y = batch
    if task.error:
        parts = [loss_of(model, (a, b)) for a, b in zip(x.split(64), y.split(64), strict=True)]
        found = float(torch.stack(parts).mean())
    else:
        parts = [model(part).argmax(1) for part in x.split(500)]
        found = 100 * float((torch.cat(parts) == y).double().mean())
    model.train()
    return found


def prepare(path: Path, kept: Path) -> None:
    """Reads pictures as splitgrow's demos do, and keeps them as tensors.

    Args:
        path: A data set in one of the layouts that `splitgrow demo --data` reads.
        kept: The file to write.
    """
    found = load_dataset(path, seed=0)
    kept.parent.mkdir(parents=True, exist_ok=True)
    torch.save((found.x_train, found.y_train, found.x_test, found.y_test), kept)


@cache
def glyphs(folder: Path) -> Data:
    """Glyph-100: characters in typefaces, 32x32."""
    return _pictures(folder / "glyph100.pt", validation=1500, test=5000)


@cache
def photos(folder: Path) -> Data:
    """CIFAR-10, 32x32."""
    return _pictures(folder / "cifar10.pt", validation=1000, test=3000)


def _pictures(path: Path, *, validation: int, test: int) -> Data:
    x, y, x_test, y_test = torch.load(path, weights_only=True)
    if x.shape[1] == 1:
        x, x_test = x.expand(-1, 3, -1, -1), x_test.expand(-1, 3, -1, -1)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held, rest = order[:validation], order[validation:]
    last = torch.randperm(len(x_test), generator=torch.Generator().manual_seed(0))[:test]
    return Data((x[rest], y[rest]), (x[held], y[held]), (x_test[last], y_test[last]))


@cache
def sources(_: Path) -> Data:
    """The sources of Python's standard library as bytes, split by file."""
    root = Path(sysconfig.get_path("stdlib"))
    parts: tuple[list[bytes], list[bytes], list[bytes]] = ([], [], [])
    for index, path in enumerate(sorted(root.glob("*.py"))):
        place = {0: 1, 1: 2}.get(index % 20, 0)
        parts[place].append(path.read_bytes())
    whole = [torch.frombuffer(bytearray(b"\n".join(p)), dtype=torch.uint8).long() for p in parts]
    held = [_stretches(bytes_, 400) for bytes_ in whole[1:]]
    return Data((whole[0], whole[0]), held[0], held[1], text=True)


def _stretches(bytes_: Tensor, count: int) -> Batch:
    draw = torch.Generator().manual_seed(0)
    at = torch.randint(len(bytes_) - CONTEXT - 1, (count, 1), generator=draw)
    at = at + torch.arange(CONTEXT)
    return bytes_[at], bytes_[at + 1]


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "gpt",
            "a GPT over bytes (stream 48 to 96, heads of 16 from 3 to 6, MLPs 96 to 384, 2 to 4 "
            "blocks) on the sources of Python's standard library",
            lambda: Gpt((48, 3, 96, 2), CONTEXT),
            lambda: Gpt((96, 6, 384, 4), CONTEXT),
            sources,
            (1200.0, 6400.0),
            (4, 8, 16),
            (1e-3, 2e-3, 4e-3),
            error=True,
            copied=("blocks.0", "blocks.1"),
        ),
        Task(
            "vgg-glyph100",
            "six convolutions with batch norms (24-24-48-48-96-96, from half of it) on Glyph-100",
            lambda: Vgg((12, 12, 24, 24, 48, 48), 100),
            lambda: Vgg((24, 24, 48, 48, 96, 96), 100),
            glyphs,
            (700.0, 4000.0),
            (16, 32, 64),
            (1e-3, 3e-3, 1e-2),
        ),
        Task(
            "vgg-cifar10",
            "the same on CIFAR-10",
            lambda: Vgg((12, 12, 24, 24, 48, 48), 10),
            lambda: Vgg((24, 24, 48, 48, 96, 96), 10),
            photos,
            (700.0, 4000.0),
            (16, 32, 64),
            (1e-3, 3e-3, 1e-2),
        ),
        Task(
            "resnet-cifar10",
            "a ResNet of basic blocks (16-32-64, from half of it, 2 blocks a stage) on CIFAR-10",
            lambda: ResNet((8, 16, 32), 2, 10),
            lambda: ResNet((16, 32, 64), 2, 10),
            photos,
            (900.0, 5000.0),
            (16, 32, 64),
            (1e-3, 3e-3, 1e-2),
        ),
        Task(
            "vit-cifar10",
            "a vision transformer (stream 48 to 96, heads of 16 from 3 to 6, MLPs 96 to 384, 4 "
            "blocks, patches of 4x4) on CIFAR-10",
            lambda: Vit((48, 3, 96, 4), 32, 10),
            lambda: Vit((96, 6, 384, 4), 32, 10),
            photos,
            (1500.0, 8000.0),
            (16, 32, 64),
            (5e-4, 1e-3, 2e-3),
        ),
    )
}

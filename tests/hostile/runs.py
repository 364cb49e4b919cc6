"""A training run whose checkpoint has some of everything, and the run that loads it."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

import splitgrow
from splitgrow.handle import handle


class Counted(nn.Module):
    """Scales by a parameter, and keeps a number that only its extra state has."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x * self.scale

    def get_extra_state(self) -> Any:
        return {"seen": self.seen}

    def set_extra_state(self, state: Any) -> None:
        seen = state["seen"]
        if type(seen) is not int or seen < 0:
            raise ValueError(f"seen must be a number of calls, got {seen!r}")
        self.seen = seen


class Heads(nn.Module):
    """Works on heads, whose number it holds."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.rise, self.fall = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.rise(x).view(x.size(0), self.num_heads, self.head_dim)
        return self.fall(torch.tanh(heads).flatten(1))


class Residual(nn.Module):
    """Adds what two convolutions make."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        made = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(made)))


class Network(nn.Module):
    """Convolutions, norms, a residual block, heads, a shared layer; buffers of several kinds."""

    steps: Tensor
    phase: Tensor
    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.block = Residual(4)
        self.heads, self.counted = Heads(4, 2), Counted(4)
        self.tail = nn.Linear(4, 4)
        self.again = self.tail
        self.head = nn.Linear(4, 2)
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("phase", torch.ones(2, dtype=torch.complex128))
        self.register_buffer("mask", torch.ones(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.act(self.norm(self.stem(x)))).mean((2, 3))
        x = self.counted(self.heads(x) * self.mask)
        return self.head(self.again(torch.relu(self.tail(x))))


@dataclass
class Run:
    """A model with all that trains it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedulers: list[Any]

    @property
    def given(self) -> dict[str, Any]:
        """What `save` and `load` are given besides the model."""
        return {"optimizer": self.optimizer, "scheduler": self.schedulers}


def fresh() -> Run:
    """A run before anything has happened."""
    model = Network()
    rest = [p for name, p in model.named_parameters() if not name.startswith("stem")]
    groups = [{"params": [*model.stem.parameters()], "lr": 1e-2}, {"params": rest}]
    optimizer = torch.optim.Adam(groups, lr=1e-3, amsgrad=True)
    warm = lr_scheduler.LinearLR(optimizer, total_iters=3)
    then = lr_scheduler.MultiStepLR(optimizer, [4, 6])
    schedule: Any = lr_scheduler.SequentialLR(optimizer, [warm, then], [3])
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer)
    return Run(model, optimizer, [schedule, plateau])


def grown() -> Run:
    """A run that has grown in every way there is, and trained in between."""
    torch.manual_seed(0)
    run = fresh()
    model: Any = splitgrow.growable(run.model, torch.randn(2, 3, 4, 4))
    own = handle(model)
    optimizer = run.optimizer
    images = torch.randn(2, 3, 4, 4)
    train(run, images)
    own.expand_layer("stem", 2, optimizer=optimizer)
    own.expand_input(1, optimizer=optimizer)
    images = torch.randn(2, 4, 4, 4)
    train(run, images)
    own.insert_layer("block.conv1", "identity", optimizer=optimizer)
    own.insert_layer("stem", "residual", form="bottleneck", optimizer=optimizer)
    own.insert_layer("block", "block", optimizer=optimizer)
    train(run, images)
    own.next_generation()
    faded = nn.Sequential(nn.Conv2d(6, 6, 1), nn.Tanh())
    own.insert_layer("stem", "fade", module=faded, optimizer=optimizer)
    own.insert_layer("head", "gate", optimizer=optimizer)
    other = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 4))
    own.insert_layer("heads.fall", "replacement", module=other, optimizer=optimizer)
    run.schedulers.append(splitgrow.FadeSchedule(model, steps=5))
    train(run, images)
    own.expand_layer("heads.rise", 2, optimizer=optimizer)
    own.expand_layer("block.conv1", 1, optimizer=optimizer)
    own.next_generation()
    for _ in range(2):
        own.expand_layer("block.conv1", 1, optimizer=optimizer)
        train(run, images)
    own.consolidate(optimizer=optimizer)
    train(run, images)
    return run


def again() -> Run:
    """What the checkpoint of a run that has grown is loaded into."""
    run = fresh()
    fade = splitgrow.FadeIn(nn.Identity(), nn.Identity())
    run.schedulers.append(splitgrow.FadeSchedule(fade, steps=2))
    return run


def train(run: Run, images: Tensor) -> None:
    """One step of everything."""
    run.model.train()
    run.optimizer.zero_grad()
    loss = run.model(images).square().mean()
    loss.backward()
    run.optimizer.step()
    for scheduler in run.schedulers:
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(float(loss.detach()))
        else:
            scheduler.step()
    run.optimizer.zero_grad()


def extra() -> Any:
    """Plain data of every kind."""
    return {
        "epoch": 3,
        "history": [0.5, float("inf"), float("nan")],
        "counts": Counter({1: 2, "one": 3}),
        "order": OrderedDict([("last", (1, 2)), ("first", None)]),
        "bytes": b"\x00\xff",
        "tensors": (torch.arange(6).view(2, 3), torch.zeros(0, 3), torch.tensor(True)),
        "kinds": [torch.bfloat16, torch.device("cpu"), 1 + 2j],
        "generator": torch.Generator().manual_seed(3).get_state(),
    }


def files(directory: Path) -> list[Path]:
    """Checkpoints: of a run that has grown, of the same in several files, and of younger ones."""
    run = grown()
    names = ("whole", "shared", "young", "small")
    whole, shared, young, small = (directory / f"{name}.safetensors" for name in names)
    splitgrow.save(run.model, whole, **run.given, extra=extra())
    splitgrow.save(run.model, shared, **run.given, extra=extra(), shard_bytes=20_000)
    run = again()
    splitgrow.growable(run.model, torch.ones(1, 3, 4, 4))
    splitgrow.save(run.model, young, **run.given)
    own = handle(run.model)
    own.expand({"stem": 1, "heads.rise": 2}, optimizer=run.optimizer)
    own.insert_layer("head", "residual", optimizer=run.optimizer)
    splitgrow.save(run.model, small, **run.given)
    return [whole, shared, young, small]

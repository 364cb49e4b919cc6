"""A training run that saves at every step, and continues from its file after any stop."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import splitgrow
from splitgrow.handle import handle

STEPS = 16
KEEP = 3
SHARD_BYTES = 1500


class Net(nn.Module):
    """Small, with a norm and dropout, so that statistics and random numbers count."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x))).mean((2, 3))
        return self.head(self.drop(x))


def go_on(path: Path, steps: int = STEPS) -> str:
    """Trains from the file, or from the beginning, to the last step; returns a digest of it all."""
    torch.manual_seed(0)
    model: Any = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    given: dict[str, Any] = {"optimizer": optimizer, "scheduler": scheduler}
    done = 0
    if path.exists():
        done = splitgrow.load(model, path, **given)["step"]
    else:
        splitgrow.growable(model, torch.zeros(1, 2, 4, 4))
    own = handle(model)
    keep = {"keep": KEEP, "shard_bytes": SHARD_BYTES}
    if done == steps:  # killed after its last file took its name: the next save clears up
        splitgrow.save(model, path, **given, extra={"step": done}, **keep)
    for step in range(done + 1, steps + 1):
        if step in {3, 7, 8}:
            own.expand_layer("stem", 1, optimizer=optimizer)
        elif step == 5:
            own.insert_layer("head", "residual", optimizer=optimizer)
        elif step == 10:
            own.next_generation()
            own.expand_layer("stem", 2, optimizer=optimizer)
        train(model, optimizer)
        scheduler.step()
        splitgrow.save(model, path, **given, extra={"step": step}, **keep)
    return digest_of(model, optimizer)


def train(model: nn.Module, optimizer: Any) -> None:
    """A step on random data."""
    model.train()
    loss = model(torch.randn(8, 2, 4, 4)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def digest_of(model: nn.Module, optimizer: Any) -> str:
    """All bits of a model, its optimizer and the random numbers to come."""
    found = hashlib.sha256(repr(torch.get_rng_state().tolist()).encode())
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(repr(tensor.tolist()).encode())
    for state in optimizer.state.values():
        found.update(repr({k: v.tolist() for k, v in state.items()}).encode())
    return found.hexdigest()


def kept(path: Path) -> list[Path]:
    """The checkpoints that are there, the newest first."""
    pattern = f"{path.stem}*{path.suffix}"
    found = [each for each in path.parent.glob(pattern) if "-of-" not in each.name]
    return sorted(found, key=lambda each: (len(each.name), each.name))


def left_behind(path: Path) -> list[str]:
    """The files that belong to no checkpoint that is kept."""
    text = b"".join(each.read_bytes() for each in kept(path))
    known = {each.name for each in kept(path)}
    return [
        each.name
        for each in path.parent.iterdir()
        if each.name not in known and each.name.encode() not in text
    ]

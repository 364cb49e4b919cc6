"""Stops a run that has grown, resumes it in a fresh model, and ends in the same bits."""

import os
import tempfile
from pathlib import Path

import torch
from torch import nn

import splitgrow

STEPS = 3 if os.environ.get("SPLITGROW_EXAMPLE") == "small" else 50

x, y = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2


def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    loss = torch.tensor(0.0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    return loss.item()


model, optimizer = fresh()
train(model, optimizer)
model = splitgrow.growable(model, x[:1])
model.expand_layer("0", 16, freeze=False, optimizer=optimizer)
train(model, optimizer)

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "run.safetensors"
    splitgrow.save(model, path, optimizer=optimizer, extra={"epoch": 2})
    print(f"saved; without a stop the loss ends at {train(model, optimizer)!r}")

    # In a new process: the class, the optimizer, and the file.
    resumed, other = fresh()
    extra = splitgrow.load(resumed, path, optimizer=other)
    print(f"resumed after epoch {extra['epoch']}, it ends at  {train(resumed, other)!r}")

pairs = zip(model.parameters(), resumed.parameters(), strict=True)
print("the same bits:", all(torch.equal(one, two) for one, two in pairs))

"""Inserts an identity, a residual branch and a gate into a trained network, one by one."""

import os

import torch
from sklearn.datasets import load_digits
from torch import nn

import splitgrow

EPOCHS = 1 if os.environ.get("SPLITGROW_EXAMPLE") == "small" else 10

torch.manual_seed(0)
pixels, classes = load_digits(return_X_y=True)
x = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
y = torch.tensor(classes)

model = nn.Sequential(
    nn.Conv2d(1, 8, 3),
    nn.BatchNorm2d(8),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(8 * 6 * 6, 20),
    nn.ReLU(),
    nn.Linear(20, 10),
)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)


def train() -> None:
    model.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(1400).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    model.eval()


def accuracy() -> float:
    with torch.no_grad():
        return (model(x[1400:]).argmax(1) == y[1400:]).float().mean().item()


train()
print(f"trained: {accuracy():.3f}")
model = splitgrow.growable(model, x[:2])
for place, kind in (("4", "identity"), ("0", "residual"), ("0", "gate")):
    before = model(x[:64])
    edit = model.insert_layer(place, kind, freeze=False, optimizer=optimizer)
    moved = (model(x[:64]) - before).abs().max()
    print(f"{edit}\n  outputs moved by {moved:.1e}")
    train()
    print(f"  trained on: {accuracy():.3f}")

plain = splitgrow.merge(model)
fused = splitgrow.fuse(model)
print(f"fused and merged differ by {(fused(x[:64]) - plain(x[:64])).abs().max():.1e}")

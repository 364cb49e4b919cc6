"""Makes an MLP wider in the middle of its training, and plain again at the end."""

import os

import torch
from sklearn.datasets import load_digits
from torch import nn

import splitgrow

EPOCHS = 1 if os.environ.get("SPLITGROW_EXAMPLE") == "small" else 20

torch.manual_seed(0)
pixels, classes = load_digits(return_X_y=True)
x = torch.tensor(pixels, dtype=torch.float32) / 16
y = torch.tensor(classes)
train_x, train_y, test_x, test_y = x[:1400], y[:1400], x[1400:], y[1400:]

model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)


def train(epochs: int) -> None:
    for _ in range(epochs):
        for batch in torch.randperm(len(train_x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(train_x[batch]), train_y[batch]).backward()
            optimizer.step()


def accuracy(network: nn.Module) -> float:
    with torch.no_grad():
        return (network(test_x).argmax(1) == test_y).float().mean().item()


train(EPOCHS)
print(f"8 hidden units: {accuracy(model):.3f}")

before = model(test_x)
model = splitgrow.growable(model, train_x[:1])
print(model.expand_layer("0", 24, freeze=False, optimizer=optimizer))
print(f"outputs moved by {(model(test_x) - before).abs().max():.1e}")

train(EPOCHS)
print(f"32 hidden units: {accuracy(model):.3f}")

plain = splitgrow.merge(model)
print(plain, f"{accuracy(plain):.3f}")

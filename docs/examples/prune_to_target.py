"""Prunes a trained CNN to half its multiply-adds in steps, and trains it after each."""

import os

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import splitgrow

EPOCHS = 1 if os.environ.get("SPLITGROW_EXAMPLE") == "small" else 5

torch.manual_seed(0)
pixels, classes = load_digits(return_X_y=True)
x = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
y = torch.tensor(classes)

model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(32, 32, 3, padding=1),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(32 * 4 * 4, 10),
)
model = splitgrow.growable(model, x[:2])
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)


def loss_of(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    return nn.functional.cross_entropy(network(images), labels)


def train(epochs: int) -> None:
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(1400).split(64):
            optimizer.zero_grad()
            loss_of(model, (x[batch], y[batch])).backward()
            optimizer.step()
    model.eval()


def accuracy() -> float:
    with torch.no_grad():
        return (model(x[1400:]).argmax(1) == y[1400:]).float().mean().item()


def recover(edit: splitgrow.Edit) -> None:
    print(edit)
    pruned = accuracy()
    train(EPOCHS)
    print(f"  {pruned:.3f} after pruning, {accuracy():.3f} after training")


train(EPOCHS)
print(f"whole: {accuracy():.3f}")
model.prune(
    target=splitgrow.Target(macs=0.5),
    criterion="taylor",
    loss=loss_of,
    batches=[(x[start : start + 64], y[start : start + 64]) for start in (0, 64, 128)],
    steps=2,
    recover=recover,
    optimizer=optimizer,
)
print(splitgrow.merge(model))

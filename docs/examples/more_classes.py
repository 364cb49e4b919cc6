"""Gives a trained ResNet two more classes and an input channel; old scores stay as they are."""

import os

import torch
from torch import Tensor, nn

import splitgrow

STEPS = 2 if os.environ.get("SPLITGROW_EXAMPLE") == "small" else 100


class Block(nn.Module):
    """Two convolutions with batch norms, added onto the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (x + out).relu()


class ResNet(nn.Module):
    """A stem, two blocks and a head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(Block(16), Block(16))
        self.fc = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, channels: int, classes: int) -> None:
    for _ in range(STEPS):
        labels = torch.randint(classes, (16,))
        images = torch.randn(16, channels, 16, 16) + labels.view(-1, 1, 1, 1) / 2
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


torch.manual_seed(0)
model = ResNet(classes=3)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
train(model, optimizer, channels=3, classes=3)

images = torch.randn(4, 3, 16, 16)
model = splitgrow.growable(model.eval(), images)
before = model(images)

print(model.expand_layer("fc", 2, freeze=False, optimizer=optimizer))
print(f"old scores moved by {(model(images)[:, :3] - before).abs().max():.1e}")

print(model.expand_input(1, freeze=False, optimizer=optimizer))
with_depth = torch.cat([images, torch.randn(4, 1, 16, 16)], 1)
print(f"old scores moved by {(model(with_depth)[:, :3] - before).abs().max():.1e}")

# A quarter wider, but not the outputs: all in one edit.
print(model.expand(splitgrow.Factor(1.25).request(model), freeze=False, optimizer=optimizer))
train(model.train(), optimizer, channels=4, classes=5)
print(splitgrow.merge(model.eval()).stem)

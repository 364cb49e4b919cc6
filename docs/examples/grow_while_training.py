"""A policy grows a small CNN to twice its widths while it trains."""

import os

import torch
from sklearn.datasets import load_digits
from torch import nn

import splitgrow

STEPS = 12 if os.environ.get("SPLITGROW_EXAMPLE") == "small" else 600

torch.manual_seed(0)
pixels, classes = load_digits(return_X_y=True)
x = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
y = torch.tensor(classes)

model = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1),
    nn.BatchNorm2d(8),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(8, 8, 3, padding=1),
    nn.BatchNorm2d(8),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(8 * 4 * 4, 10),
)
model = splitgrow.growable(model, x[:2])
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
grower = splitgrow.Grower(
    model,
    optimizer,
    to=splitgrow.Factor(2.0),
    when=splitgrow.Every(STEPS // 4),
    steps=3,
)
print(grower.plan())

for step in range(STEPS):
    batch = torch.randint(1400, (64,))
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
    loss.backward()
    optimizer.step()
    scheduler.step()
    edit = grower.step()
    if edit is not None:
        print(f"step {step + 1}, loss {loss.item():.3f}: {edit}")

model.eval()
accuracy = (model(x[1400:]).argmax(1) == y[1400:]).float().mean()
print(f"accuracy {accuracy:.3f}, {grower.macs_spent:.3g} multiply-adds")

"""Learns the digits two by two with DEN, and tells how much of each task is forgotten."""

import os

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from splitgrow.continual import DEN, Finetuning, Learner, Task, Training

SMALL = os.environ.get("SPLITGROW_EXAMPLE") == "small"

pixels, classes = load_digits(return_X_y=True)
x = torch.tensor(pixels, dtype=torch.float32) / 16
y = torch.tensor(classes)


def pair(first: int) -> tuple[Tensor, Tensor]:
    """The digits `first` and `first` + 1, as classes 0 and 1."""
    chosen = (y == first) | (y == first + 1)
    return x[chosen], y[chosen] - first


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10)]
    return nn.Sequential(*layers)


def run(learner: Learner) -> None:
    """Learns all tasks, and prints each one's accuracy when it was learned and at the end."""
    learned = {}
    for first in (0, 2) if SMALL else (0, 2, 4, 6, 8):
        data, labels = pair(first)
        name, test = f"{first} or {first + 1}", (data[280:], labels[280:])
        learner.learn(Task(name, 2, (data[:280], labels[:280]), test))
        learned[name] = test, learner.evaluate(test, task=name)
    print(learner.report())
    for name, (test, accuracy) in learned.items():
        print(f"  {name}: {accuracy:.3f} when learned, {learner.evaluate(test, task=name):.3f} now")


training = Training(epochs=2 if SMALL else 10, lr=0.05)
run(DEN(network(), x[:1], training=training, threshold=0.97, drift=0.1, units=4))
run(DEN(network(), x[:1], training=training, threshold=0.97, drift=0.0, units=4))
run(Finetuning(network(), x[:1], training=training))

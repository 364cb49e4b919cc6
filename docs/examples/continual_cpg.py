"""Learns the digits two by two with CPG: each task keeps its network, bit for bit."""

import os

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from splitgrow.continual import CPG, EpochDone, Event, Grown, Judged, Task, Training

SMALL = os.environ.get("SPLITGROW_EXAMPLE") == "small"

torch.manual_seed(0)
pixels, classes = load_digits(return_X_y=True)
x = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
y = torch.tensor(classes)


def pair(first: int) -> tuple[Tensor, Tensor]:
    """The digits `first` and `first` + 1, as classes 0 and 1."""
    chosen = (y == first) | (y == first + 1)
    return x[chosen], y[chosen] - first


def tell(event: Event) -> None:
    """Prints decisions and growths."""
    if isinstance(event, Judged):
        print(f"  {event.stage}: {event.accuracy:.3f}, goal {event.goal:.3f}")
    elif isinstance(event, Grown):
        print(f"  grown to {event.expansion:.2f} times the weights")
    elif isinstance(event, EpochDone) and event.epoch == 1 and event.stage == "train":
        print(event.task)


network = nn.Sequential(
    nn.Conv2d(1, 8, 3),
    nn.ReLU(),
    nn.Conv2d(8, 16, 3),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(16 * 16, 10),
)
learner = CPG(
    network,
    x[:1],
    goal=0.97,
    training=Training(epochs=2 if SMALL else 10, lr=0.05),
    callbacks=[tell],
)
answers = {}
for first in (0, 2) if SMALL else (0, 2, 4, 6, 8):
    images, labels = pair(first)
    name = f"{first} or {first + 1}"
    learner.learn(Task(name, 2, (images[:280], labels[:280]), (images[280:], labels[280:])))
    answers[name] = images, learner.predict(images, task=name)

print(learner.report())
for name, (images, answer) in answers.items():
    same = torch.equal(learner.predict(images, task=name), answer)
    print(f"{name}: {'unchanged' if same else 'CHANGED'}")

"""Shared by the tests of continual learning: small models, tasks and learners."""

from __future__ import annotations

from typing import Any

import torch
from cases import CASES
from torch import Tensor, nn

from splitgrow.continual import METHODS, Learner, Task, Training
from splitgrow.continual.body import Body

MASKED = ("packnet", "piggyback", "progressive", "pack-and-expand", "cpg")
"""The methods whose tasks own weights."""
SHARING = ("finetuning", "ewc", "lwf")
"""The methods whose tasks go on with the same weights."""

BODIES = tuple(case for case in CASES if case.name != "projected")
"""The models whose every weight makes units of others, as the methods by units need it."""

OPTIONS: dict[str, dict[str, Any]] = {
    "packnet": {"prune": 0.6},
    "progressive": {"column": 0.5},
    "pack-and-expand": {"sparsities": (0.3, 0.6), "goal": 0.99, "expected_tasks": 3},
    "cpg": {"sparsities": (0.3, 0.6), "goal": 0.99, "expected_tasks": 3, "largest": 2.0},
    "den": {"units": 2, "threshold": 1.0, "drift": 0.05, "l1": 1e-3, "group_lasso": 0.05},
    "ewc": {"samples": 8},
}
"""Options with which a method does all that it can do, in little time."""


class Net(nn.Module):
    """Convolutions with norms, an addition, a hidden layer, dropout and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(6)
        self.hidden = nn.Linear(6 * 4, 8)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.norm2(self.inner(x)))
        x = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.head(self.drop(torch.relu(self.hidden(x))))


class Featured(nn.Module):
    """Any model, with its first output pooled to features."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        y = self.model(x)
        while not isinstance(y, Tensor):
            y = next(iter(y.values())) if isinstance(y, dict) else y[0]
        return y.flatten(2).mean(2) if y.dim() > 2 else y


@torch.no_grad()
def scattered(body: Body, seed: int = 0) -> Body:
    """A body with random values in all of its tensors, of which none is zero."""
    torch.manual_seed(seed)
    for name, slot in body.slots.items():
        tensor = slot.tensor
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, dtype=tensor.dtype)
            tensor.copy_(values.abs() + 0.5 if "running_var" in name else values * 0.5)
    return body


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Net()


def images(seed: int, number: int = 48) -> Tensor:
    return torch.randn(number, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def task(index: int, number: int = 48, classes: int = 2) -> Task:
    """A task that can be learned: in which part of the picture there is most light."""
    x, test = images(100 + index, number), images(200 + index, 32)
    direction = torch.randn(classes, 2, 6, 6, generator=torch.Generator().manual_seed(index))

    def labels(pictures: Tensor) -> Tensor:
        return (pictures.flatten(1) @ direction.flatten(1).T).argmax(1)

    return Task(f"task {index}", classes, (x, labels(x)), (test, labels(test)))


def learner(method: str, **more: Any) -> Learner:
    given: dict[str, Any] = {**OPTIONS.get(method, {}), **more}
    quick = Training(epochs=2, batch_size=16, weight_decay=0.1, score_lr=0.005)
    given.setdefault("training", quick)
    return METHODS[method](net(), images(0, 2), **given)


def learned(method: str, tasks: int = 3, **more: Any) -> Learner:
    made = learner(method, **more)
    for index in range(tasks):
        made.learn(task(index))
    return made


def outputs(made: Learner) -> dict[str, Tensor]:
    """What every task's network gives for the same pictures, made anew."""
    made._networks.clear()
    return {name: made.predict(images(7), task=name) for name in made.tasks}

"""Training runs that can be stopped and continued at any step, and all differences of two."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from helpers import tensors_of
from torch import Tensor, nn

import splitgrow
from splitgrow.layers.execution import execution_mode
from splitgrow.layers.freezing import held

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, weight_decay=1e-4),
    "nesterov": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True, foreach=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-4, momentum=0.5, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-3),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-3),
}
if hasattr(torch.optim, "Adafactor"):  # from torch 2.5 on
    OPTIMIZERS["Adafactor"] = lambda p: torch.optim.Adafactor(p, lr=1e-3)
SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.7),
    "milestones": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [1, 3, 4], 0.5),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(
        o, 1e-2, total_steps=1000, cycle_momentum=False
    ),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "one after the other": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=2),
            torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        ],
        milestones=[2],
    ),
}


@dataclass
class Run:
    """A model in training.

    Attributes:
        model: The model.
        optimizer: Its optimizer.
        scheduler: Its scheduler.
        inputs: The example inputs of the ungrown model.
    """

    model: Any
    optimizer: Any
    scheduler: Any
    inputs: tuple[Any, ...]

    @classmethod
    def of(cls, model: nn.Module, inputs: tuple[Any, ...], how: tuple[str, str]) -> Run:
        """A run with an optimizer of two param groups, and a scheduler."""
        weights = [p for p in model.parameters() if p.dim() > 1]
        others = [p for p in model.parameters() if p.dim() < 2]
        groups = [{"params": weights}, {"params": others, "lr": 5e-4}] if others else weights
        optimizer = OPTIMIZERS[how[0]](groups)
        return cls(model, optimizer, SCHEDULERS[how[1]](optimizer), inputs)

    def train(self, steps: int = 2) -> list[float]:
        """Some steps, with dropout, on random data; the losses."""
        losses = []
        self.model.train()
        for _ in range(steps):
            self.optimizer.zero_grad()
            inputs = [_like(x) for x in splitgrow.handle(self.model)._history.inputs.args]
            outputs = tensors_of(self.model(*inputs))
            loss = sum(output.square().mean() for output in outputs)
            if loss.requires_grad:  # what grew may be read by nothing
                loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss.item())
        return losses

    def save(self, path: Any, **options: Any) -> None:
        splitgrow.save(
            self.model, path, optimizer=self.optimizer, scheduler=self.scheduler, **options
        )

    def load(self, path: Any, **options: Any) -> Any:
        return splitgrow.load(
            self.model, path, optimizer=self.optimizer, scheduler=self.scheduler, **options
        )


def _like(x: Any) -> Any:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return x + torch.randn_like(x) * random.random()


def differences(one: Run, other: Run) -> list[str]:
    """The names of all that differs between two runs, bit for bit."""
    found = []
    mine, theirs = _all_of(one), _all_of(other)
    for name in {**mine, **theirs}:
        if not _same(mine.get(name), theirs.get(name)):
            found.append(name)
    return found


def _all_of(run: Run) -> dict[str, Any]:
    model, history = run.model, splitgrow.handle(run.model)._history
    named = dict(model.named_parameters(remove_duplicate=False))
    names = {id(parameter): name for name, parameter in named.items()}
    found: dict[str, Any] = {
        "modules": [(name, type(module).__name__) for name, module in model.named_modules()],
        "held": [name for name, module in model.named_modules() if held(module)],
        "random numbers": torch.get_rng_state(),
        "Python's random numbers": random.getstate(),
        "execution": execution_mode(),
        "edits": list(history.edits),
        "generations": (history.generation, history.exact_from, sorted(history.frozen)),
        "scheduler": {k: v for k, v in run.scheduler.state_dict().items() if not callable(v)},
        "inputs": (history.inputs.args, history.inputs.kwargs),
        "layers": [
            (layer.name, layer.width, layer.step, layer.group, layer.readers, layer.growable)
            for layer in model.layers
        ],
    }
    for name, parameter in named.items():
        found[f"parameter {name}"] = parameter.detach()
        found[f"{name} trains"] = parameter.requires_grad
        found[f"state of {name}"] = dict(run.optimizer.state.get(parameter, {}))
    found.update((f"buffer {name}", buffer) for name, buffer in model.named_buffers())
    for index, group in enumerate(run.optimizer.param_groups):
        found[f"group {index}"] = {k: v for k, v in group.items() if k != "params"}
        found[f"parameters of group {index}"] = [names[id(p)] for p in group["params"]]
    return found


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)

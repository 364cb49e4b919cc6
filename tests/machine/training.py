"""Optimizers of a life, with the parameters that each is to train."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from resuming import OPTIMIZERS
from torch import nn

import splitgrow

# Without Adagrad: its small eps makes steps of a bias's rounding noise in front of a batch norm.
CLASSES = ("SGD", "nesterov", "AdamW", "fused", "RMSprop", "NAdam")
GROUPINGS: dict[str, Callable[[Any], Any]] = {
    "one": lambda m: list(m.parameters()),
    "named": lambda m: list(m.named_parameters()),
    "dims": lambda m: [
        {"params": [p for p in m.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in m.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ],
    "generations": lambda m: splitgrow.handle(m).param_groups({0: {"lr": 1e-3}, 2: {"lr": 2e-3}}),
    "trainable": lambda m: [p for p in m.parameters() if p.requires_grad] or list(m.parameters()),
}


class Trained:
    """An optimizer, its scheduler, and what it was told.

    Attributes:
        expected: The parameters that it has to have, by id.
        names_hold: Whether it was told of all growth, so that torch's names are those of today.
    """

    def __init__(self, how: str, grouping: str, model: Any, *, by_name: bool) -> None:
        self.how, self.grouping, self.by_name = how, grouping, by_name
        self.optimizer = OPTIMIZERS[how](GROUPINGS[grouping](model))
        if by_name:
            splitgrow.by_name(self.optimizer, model)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.7)
        self.expected = {id(p): p for p in self.listed()}
        self.names_hold = True

    def listed(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def told(self, new: Iterable[nn.Parameter], gone: Iterable[int] = ()) -> None:
        for key in gone:
            self.expected.pop(key, None)
        self.expected.update((id(p), p) for p in new)

    def lacks(self, model: nn.Module) -> bool:
        """Whether it does not train all of a model."""
        own = {id(p) for p in self.listed()}
        return any(id(p) not in own for p in model.parameters())

    def lie_as_parameters(self) -> None:
        """Lays its tensors out in memory as the parameters, which torch's fused ones count on."""
        for parameter, state in self.optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    state[key] = torch.empty_like(parameter.detach(), dtype=value.dtype).copy_(
                        value
                    )

    def assert_told(self, model: nn.Module) -> None:
        """Each parameter once, in the model's order, under its own name."""
        listed = self.listed()
        assert len({id(p) for p in listed}) == len(listed), "a parameter twice in an optimizer"
        assert {id(p) for p in listed} == self.expected.keys(), "an optimizer's parameters"
        order = {id(p): n for n, p in enumerate(model.parameters())}
        names = {id(p): name for name, p in model.named_parameters()}
        for group in self.optimizer.param_groups:
            places = [order[id(p)] for p in group["params"]]
            assert places == sorted(places), "not in the model's order"
            if "param_names" in group and self.names_hold:
                assert group["param_names"] == [names[id(p)] for p in group["params"]]
            if self.grouping == "dims" and group["weight_decay"] == 0.1:
                assert all(p.dim() > 1 for p in group["params"]), "a vector among the matrices"

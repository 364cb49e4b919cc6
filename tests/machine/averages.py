"""Averaged copies of a model, beside averages that are computed by the parameters' identity."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

DECAY = 0.75


class ByHand(nn.Module):
    """An average as people write it: a deep copy, moved by ``.data``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.shadow = copy.deepcopy(model).requires_grad_(False)

    def update_by_hand(self, model: nn.Module) -> None:
        for own, other in zip(self.shadow.parameters(), model.parameters(), strict=True):
            own.data.mul_(DECAY).add_(other.data, alpha=1 - DECAY)
        for own, other in zip(self.shadow.buffers(), model.buffers(), strict=True):
            own.data.copy_(other)


MAKERS = {
    "EMA": lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True),
    "SWA": AveragedModel,
    "by hand": ByHand,
}


class Averaged:
    """An average and the values that it should have.

    Attributes:
        follows: Whether `splitgrow.follow` was told of it.
        behind: Whether the model has grown since, without it.
        values: The expected average of each parameter of the model, by the parameter's id.
    """

    def __init__(self, kind: str, model: nn.Module) -> None:
        self.kind = kind
        self.object: Any = MAKERS[kind](model)
        self.follows = self.behind = False
        self.updates = 0
        self.values = {id(p): p.detach().clone() for p in model.parameters()}
        self._alive = list(model.parameters())  # so that no other gets one of these ids

    @property
    def copied(self) -> Any:
        return self.object.shadow if self.kind == "by hand" else self.object.module

    def catches_up(self, model: nn.Module) -> None:
        """New parameters begin with the model's present values."""
        self.behind = False
        for parameter in model.parameters():
            self.values.setdefault(id(parameter), parameter.detach().clone())
        self.keeps(model.parameters())

    def keeps(self, parameters: Iterable[nn.Parameter]) -> None:
        """Parameters whose ids are known live on."""
        self._alive += parameters

    def update(self, model: nn.Module) -> None:
        if self.kind == "by hand":
            self.object.update_by_hand(model)
        else:
            self.object.update_parameters(model)
        for parameter in model.parameters():
            self.values[id(parameter)] = self._next(
                self.values[id(parameter)], parameter.detach().clone()
            )
        self.updates += 1

    def _next(self, old: Tensor, new: Tensor) -> Tensor:
        if self.kind != "by hand" and not self.updates:
            return new
        share = 1 / (self.updates + 1) if self.kind == "SWA" else 1 - DECAY
        return old + (new - old) * share

    def cast(self, dtype: torch.dtype) -> None:
        self.object.to(dtype)
        self.values = {key: value.to(dtype) for key, value in self.values.items()}

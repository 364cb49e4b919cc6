"""A trained network pruned to a share of its multiply-adds, by splitgrow or by torch-pruning."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import splitgrow

KEEP = 0.1
"""The share of each layer's units that stays in any case, in both."""
_STEPS = 400
"""Steps of torch-pruning towards all units, as in its own benchmark; it stops at the target."""

CRITERIA = ("group", "l1", "taylor", "random")

Batch = tuple[Tensor, Tensor]


def multiply_adds(model: nn.Module, example: Tensor) -> int:
    """The multiply-adds of a forward pass, counted by torch."""
    training = model.training
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example)
    model.train(training)
    return int(counter.get_total_flops()) // 2


def pruned(
    tool: str,
    model: nn.Module,
    batches: Sequence[Batch],
    criterion: str,
    scope: str,
    share: float,
    *,
    refit: bool = False,
) -> nn.Module:
    """The model without the weakest units, of that share of its multiply-adds.

    Args:
        tool: "splitgrow" or "torch-pruning".
        model: A trained network; it is changed.
        batches: Training data for the criteria that need some, and for refitting.
        criterion: One of `CRITERIA`.
        scope: "global" to compare the units of all layers, "layer" to take the same of each.
        share: The share of the multiply-adds that stays.
        refit: Whether splitgrow fits the readers.
    """
    if tool == "splitgrow":
        return _by_splitgrow(model, batches, criterion, scope, share, refit=refit)
    return _by_torch_pruning(model, batches, criterion, scope, share)


def _by_splitgrow(
    model: nn.Module,
    batches: Sequence[Batch],
    criterion: str,
    scope: str,
    share: float,
    *,
    refit: bool,
) -> nn.Module:
    model = splitgrow.growable(model.eval(), batches[0][0][:2])
    handle: Any = splitgrow.handle(model)
    handle.prune(
        target=splitgrow.Target(macs=share),
        criterion=criterion,
        scope=scope,
        keep=KEEP,
        refit=refit,
        loss=_loss,
        batches=batches,
    )
    return splitgrow.merge(model)


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _by_torch_pruning(
    model: nn.Module, batches: Sequence[Batch], criterion: str, scope: str, share: float
) -> nn.Module:
    tp = import_module("torch_pruning")
    example = batches[0][0][:2]
    model.eval()
    if criterion == "taylor":
        for batch in batches:  # it sums their gradients
            _loss(model, batch).backward()
    importance = {
        "taylor": tp.importance.GroupTaylorImportance,
        "group": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "l1": lambda: tp.importance.MagnitudeImportance(p=1, group_reduction="first"),
        "random": tp.importance.RandomImportance,
    }[criterion]()
    wanted = share * multiply_adds(model, example)
    head: Any = model.get_submodule("head")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.MetaPruner(
            model,
            example,
            importance,
            global_pruning=scope == "global",
            pruning_ratio=1.0,
            max_pruning_ratio=1 - KEEP,
            iterative_steps=_STEPS,
            ignored_layers=[head],
        )
        for _ in range(_STEPS):
            if multiply_adds(model, example) <= wanted:
                break
            pruner.step()
    return model

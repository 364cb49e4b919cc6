"""Measures of the values that layers read: units that never change, and their effective rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from splitgrow.analysis.units import UnitNumbers
from splitgrow.growth.history import History
from splitgrow.growth.input_moments import input_moments
from splitgrow.utils.rollback import Undo

_DEAD = 1e-6
"""The spread of a unit that counts as none, relative to the largest of its layer."""


def covariances(
    undo: Undo, history: History, groups: Iterable[int], run: Callable[[], object]
) -> dict[int, list[Tensor]]:
    """For each group the covariances of its units, as the layers that read it see them.

    Args:
        undo: Removes the hooks.
        history: The model's history.
        groups: The groups.
        run: Runs the model.
    """
    graph, wanted = history.graph, {*groups}
    found: dict[int, list[Tensor]] = {group: [] for group in wanted}
    for name, moments in input_moments(undo, history, wanted, run).items():
        whole = moments.covariance
        numbers = UnitNumbers(graph.groups)
        on_axis = numbers.on(graph.nodes[name].ins).tolist()
        order = numbers.order
        for group in wanted:
            at = [n for n, number in enumerate(on_axis) if order[number].home == group]
            if at:
                index = torch.tensor(at, device=whole.device)
                found[group].append(whole[index][:, index])
    return found


def dead_share(covariance: Tensor) -> float:
    """The share of units that have the same value for all inputs."""
    spread = covariance.diagonal().clamp_min(0)
    if not bool(spread.max() > 0):
        return 1.0
    return float((spread <= _DEAD * spread.max()).double().mean())


def rank_share(covariance: Tensor) -> float:
    """The effective rank, as a share of the width.

    It is the exponential of the entropy of the eigenvalues, as shares of their sum (Roy & Vetterli
    2007, "The effective rank", definition 1).
    """
    values = torch.linalg.eigvalsh(covariance).clamp_min(0)
    total = values.sum()
    if not bool(total > 0):
        return 0.0
    shares = values / total
    entropy = -(shares * shares.clamp_min(torch.finfo(shares.dtype).tiny).log()).sum()
    return float(entropy.exp()) / len(values)

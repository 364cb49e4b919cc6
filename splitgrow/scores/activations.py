"""Measures of the values that layers read: units that never change, and their effective rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from splitgrow.analysis.channels.channel_axes import groups_of
from splitgrow.analysis.units import UnitNumbers
from splitgrow.growth.history import History
from splitgrow.layers.split_layer import stock
from splitgrow.layers.tensor_holder import layer_at
from splitgrow.layers.types import known_layer_type
from splitgrow.utils.rollback import Undo

_DEAD = 1e-6
"""The spread of a unit that counts as none, relative to the largest of its layer."""


class _Moments:
    """First and second moments of the values that one layer reads of some units."""

    def __init__(self, dim: int) -> None:
        self.dim, self.count = dim, 0
        self.sums: Tensor | None = None
        self.products: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Adds the values of a call: each position beside the channels is a sample."""
        rows = x.detach().movedim(self.dim, -1).flatten(0, -2).double()
        sums, products = rows.sum(0), rows.T @ rows
        self.count += len(rows)
        self.sums = sums if self.sums is None else self.sums + sums
        self.products = products if self.products is None else self.products + products

    def covariance(self) -> Tensor:
        """The covariance of the channels."""
        assert self.sums is not None
        assert self.products is not None
        mean = self.sums / self.count
        return self.products / self.count - torch.outer(mean, mean)


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
    seen: dict[str, _Moments] = {}
    for node in graph.nodes.values():
        if not node.sized or node.use is not None or node.looks_up:
            continue
        module = layer_at(history.modules, node.name, node.use)
        layer = stock(module)
        entry = known_layer_type(layer)
        if entry.diagonal(layer) or wanted.isdisjoint(groups_of(graph.groups.resolve(node.ins))):
            continue
        seen[node.name] = _Moments(entry.channel_dim(layer))
        undo.on_failure(module.register_forward_pre_hook(_seeing(seen[node.name])).remove)
    run()
    found: dict[int, list[Tensor]] = {group: [] for group in wanted}
    for name, moments in seen.items():
        if not moments.count:
            continue
        whole = moments.covariance()
        numbers = UnitNumbers(graph.groups)
        on_axis = numbers.on(graph.nodes[name].ins).tolist()
        order = numbers.order
        for group in wanted:
            at = [n for n, number in enumerate(on_axis) if order[number].home == group]
            if at:
                index = torch.tensor(at, device=whole.device)
                found[group].append(whole[index][:, index])
    return found


def _seeing(moments: _Moments) -> Callable[[nn.Module, tuple[object, ...]], None]:
    def see(module: nn.Module, args: tuple[object, ...]) -> None:  # noqa: ARG001
        if args and isinstance(args[0], Tensor):
            moments.add(args[0])

    return see


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

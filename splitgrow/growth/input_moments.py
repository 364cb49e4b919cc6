"""First and second moments of the values that layers read, from runs of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from splitgrow.analysis.channels.channel_axes import groups_of
from splitgrow.growth.history import History
from splitgrow.growth.probe import mean_of
from splitgrow.layers.split_layer import stock
from splitgrow.layers.tensor_holder import layer_at
from splitgrow.layers.types import LayerType, known_layer_type
from splitgrow.utils.rollback import Undo

_MOST = 8192
"""The largest number of channels whose moments in pairs are taken: half a GiB."""


class InputMoments:
    """First and second moments of the values that one layer reads.

    Args:
        dim: The dimension of the channels.
        pairs: Whether `products` and `covariance` are wanted, or those of each channel with itself.

    Attributes:
        count: The number of samples: each position beside the channels is one. Of several processes
            the mean, as of all sums.
    """

    def __init__(self, dim: int, *, pairs: bool = True) -> None:
        self.dim, self.count, self._pairs = dim, 0.0, pairs
        self._sums: Tensor | None = None
        self._products: Tensor | None = None
        self._zeros: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Adds the values of a call."""
        rows = x.detach().movedim(self.dim, -1).flatten(0, -2)
        zeros = (rows == 0).sum(0).double()
        rows = rows.double()
        sums = rows.sum(0)
        products = rows.T @ rows if self._pairs else rows.square().sum(0)
        self.count += len(rows)
        self._sums = sums if self._sums is None else self._sums + sums
        self._products = products if self._products is None else self._products + products
        self._zeros = zeros if self._zeros is None else self._zeros + zeros

    def pool(self, width: int) -> None:
        """Takes the samples of all processes that run the model together.

        Args:
            width: The number of channels, for a process that has seen none.
        """
        if self._sums is None or self._products is None or self._zeros is None:
            shape = (width, width) if self._pairs else (width,)
            self._sums = torch.zeros(width, dtype=torch.float64)
            self._zeros, self._products = self._sums, torch.zeros(shape, dtype=torch.float64)
        count = self._sums.new_tensor([self.count])
        pooled = mean_of(torch.cat([self._sums, self._zeros, count]))
        self._sums, self._zeros = pooled[:width], pooled[width:-1]
        self._products, self.count = mean_of(self._products), float(pooled[-1])

    @property
    def mean(self) -> Tensor:
        """The mean of each channel."""
        assert self._sums is not None
        return self._sums / self.count

    @property
    def products(self) -> Tensor:
        """The mean product of each pair of channels; without pairs the mean squares."""
        assert self._products is not None
        return self._products / self.count

    @property
    def squares(self) -> Tensor:
        """The mean square of each channel."""
        return self.products.diagonal() if self._pairs else self.products

    @property
    def zeros(self) -> Tensor:
        """The share of samples in which each channel is zero."""
        assert self._zeros is not None
        return self._zeros / self.count

    @property
    def covariance(self) -> Tensor:
        """The covariance of the channels."""
        return self.products - torch.outer(self.mean, self.mean)


def input_moments(
    undo: Undo,
    history: History,
    groups: Iterable[int],
    run: Callable[[], object],
    *,
    pairs: bool = True,
) -> dict[str, InputMoments]:
    """The moments of the inputs of all layers that read some groups by weights, by name.

    A convolution's kernel reads each place; its padding does not count.

    Args:
        undo: Removes the hooks.
        history: The model's history.
        groups: The groups.
        run: Runs the model.
        pairs: As in `InputMoments`.

    Raises:
        ValueError: If the moments of all pairs of a layer's inputs would take too much memory.
    """
    graph, wanted = history.graph, {*groups}
    seen: dict[str, InputMoments] = {}
    for node in graph.nodes.values():
        if not node.sized or node.use is not None or node.looks_up:
            continue
        module = layer_at(history.modules, node.name, node.use)
        layer = stock(module)
        entry = known_layer_type(layer)
        if entry.diagonal(layer) or wanted.isdisjoint(groups_of(graph.groups.resolve(node.ins))):
            continue
        width = graph.groups.length(node.ins)
        if pairs and width > _MOST:
            raise ValueError(
                f"`{node.name}` reads {width:,} channels, whose second moments would take "
                f"{8 * width**2 / 2**30:.1f} GiB; leave out the layers in front of it, or ask for "
                f"what needs no moments of pairs"
            )
        seen[node.name] = InputMoments(entry.channel_dim(layer), pairs=pairs)
        hook = _seeing(seen[node.name], entry)
        undo.on_failure(module.register_forward_pre_hook(hook).remove)
    run()
    for name, moments in seen.items():
        moments.pool(graph.groups.length(graph.nodes[name].ins))
    return {name: moments for name, moments in seen.items() if moments.count}


def _seeing(
    moments: InputMoments, entry: LayerType
) -> Callable[[nn.Module, tuple[object, ...]], None]:
    def see(module: nn.Module, args: tuple[object, ...]) -> None:  # noqa: ARG001
        read = entry.input_of(args[0]) if args else None
        if isinstance(read, Tensor):
            moments.add(read)

    return see

"""How much a model grows or shrinks: by a factor or to widths."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from splitgrow.grower.candidates import layer_named
from splitgrow.grower.ladder import WidthRule
from splitgrow.grower.scope import Scope, plan_growths
from splitgrow.grower.where import All, Where
from splitgrow.growth.initializers import Initializer, chosen_initializer
from splitgrow.growth.layer_list import Layer
from splitgrow.growth.planning import checked_rounding


class To(ABC):
    """How much a model grows or shrinks. Subclass it for a rule of your own.

    Attributes:
        exact: Whether the last widths must be the goals. Otherwise they are the widths nearest to
            these that fit.
        growths: The number of growths and shrinks that it sets; None if it sets none.
    """

    exact: bool = False
    growths: int | None = None

    def named(self, layers: Sequence[Layer]) -> frozenset[str]:
        """The layers that are asked for by name, so that they change even if they are outputs."""
        del layers
        return frozenset()

    @abstractmethod
    def goals(self, scope: Scope) -> Mapping[str, float]:
        """The width in the end of layers by name; layers that it leaves out stay as they are.

        Args:
            scope: The layers that may grow, and the sizes that come of goals.
        """

    def legs(self, scope: Scope) -> Sequence[Mapping[str, float]]:
        """The widths by layer that the model has one after the other; the last are the goals.

        Args:
            scope: As in `goals`.
        """
        return [self.goals(scope)]

    def request(
        self,
        model: nn.Module,
        *,
        where: Where | None = None,
        round_to: int = 1,
        initializer: str | Initializer = "zero",
    ) -> dict[str, int]:
        """The units that each layer gains if all is grown at once, for `model.expand`.

        Args:
            model: A growable model.
            where: The layers that may grow; by default all but the model's outputs.
            round_to: The number of which new widths are multiples.
            initializer: The initializer that is to be used; streams grow by its way.

        Raises:
            FixedWidthError: If no layer may grow.
            ValueError: If widths do not fit, or layers would shrink.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(
            ...     torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
            ... )
            >>> net = splitgrow.growable(net, torch.ones(1, 2))
            >>> edit = net.expand(splitgrow.Factor(1.25).request(net))
            >>> net[0].out_features, net(torch.ones(1, 2)).shape
            (10, torch.Size([1, 1]))
        """
        request = self._at_once(model, where, round_to, initializer)
        if min(request.values(), default=0) < 0:
            raise ValueError(
                f"{self!r} is smaller than the model; `surplus` tells the units for `model.shrink`"
            )
        return request

    def surplus(
        self, model: nn.Module, *, where: Where | None = None, round_to: int = 1
    ) -> dict[str, int]:
        """The units that each layer has too many, for `model.shrink`.

        Args:
            model: A growable model.
            where: The layers that may shrink; by default all but the model's outputs.
            round_to: The number of which the widths that stay are multiples.

        Raises:
            FixedWidthError: If no layer may shrink.
            ValueError: If widths do not fit, or layers would grow.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(
            ...     torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
            ... )
            >>> net = splitgrow.growable(net, torch.ones(1, 2))
            >>> edit = net.shrink(splitgrow.Factor(0.5).surplus(net))
            >>> net[0].out_features, net(torch.ones(1, 2)).shape
            (4, torch.Size([1, 1]))
        """
        request = self._at_once(model, where, round_to, "zero")
        if max(request.values(), default=0) > 0:
            raise ValueError(
                f"{self!r} is larger than the model; `request` tells the units for `model.expand`"
            )
        return {name: -units for name, units in request.items()}

    def _at_once(
        self, model: nn.Module, where: Where | None, round_to: int, init: str | Initializer
    ) -> dict[str, int]:
        """The units that layers gain, or lose, on the way to the goals.

        Raises:
            ValueError: If there are several goals, one after the other.
        """
        fit = WidthRule(chosen_initializer(init), checked_rounding(round_to))
        rungs = plan_growths(model, self, All() if where is None else where, 1, fit).rungs
        if len(rungs) > 1:
            raise ValueError(f"{self!r} takes several growths and shrinks, not one")
        return dict(rungs[0].request)


class Factor(To):
    """Every layer grows or shrinks to a multiple of its width.

    Args:
        factor: The multiple: above 1 to grow, below 1 to shrink.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is 1, not positive, or not finite.

    Example:
        >>> import splitgrow
        >>> splitgrow.Factor(1.5)
        Factor(1.5)
    """

    def __init__(self, factor: float) -> None:
        if isinstance(factor, bool) or not isinstance(factor, (int, float)):
            raise TypeError(f"factor must be a number, got {factor!r}")
        if not (math.isfinite(factor) and factor > 0) or factor == 1:
            raise ValueError(
                f"factor must be above 1 to grow, or between 0 and 1 to shrink, got {factor!r}"
            )
        self.factor = float(factor)

    def goals(self, scope: Scope) -> Mapping[str, float]:
        """The multiples of the widths."""
        return scope.scaled(self.factor)

    def __repr__(self) -> str:
        return f"Factor({self.factor:g})"


class ToWidths(To):
    """Layers grow or shrink to given widths; others stay, unless they are tied to these.

    Args:
        widths: A width for each layer, by name or index: a number, or a function of the layer. Or
            a function of a `splitgrow.Layer` that returns a width, or None to leave it as it is.

    Raises:
        TypeError: If it is of another type. With the model: `ValueError` if there is no such layer,
            the width does not fit, or some would grow and others shrink.

    Example:
        >>> import torch, splitgrow
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Linear(8, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))
        >>> splitgrow.ToWidths({"0": 12}).request(net)
        {'0': 4}
        >>> triple = splitgrow.ToWidths(lambda layer: 3 * layer.width if layer.readers else None)
        >>> triple.request(net)
        {'0': 16}
    """

    exact = True

    def __init__(
        self,
        widths: Mapping[int | str, int | Callable[[Layer], int]] | Callable[[Layer], int | None],
    ) -> None:
        if not callable(widths) and not isinstance(widths, Mapping):
            raise TypeError(f"widths map layers to widths, or are a function, got {widths!r}")
        if not callable(widths) and not widths:
            raise ValueError("widths name no layer")
        self.widths = widths if callable(widths) else dict(widths)

    def named(self, layers: Sequence[Layer]) -> frozenset[str]:
        """The layers that have a width to go to."""
        return frozenset(self._wanted(layers))

    def goals(self, scope: Scope) -> Mapping[str, float]:
        """The given widths."""
        return {name: float(width) for name, width in self._wanted(scope.every).items()}

    def _wanted(self, layers: Sequence[Layer]) -> dict[str, int]:
        if callable(self.widths):
            asked = [(layer, self.widths(layer)) for layer in layers if layer.growable]
        else:
            asked = [
                (layer, width(layer) if callable(width) else width)
                for key, width in self.widths.items()
                for layer in [layer_named(key, layers)]
            ]
        wanted: dict[str, int] = {}
        for layer, width in asked:
            if width is None:
                continue
            if isinstance(width, bool) or not isinstance(width, int):
                raise TypeError(f"the width of `{layer.name}` must be an int, got {width!r}")
            if layer.name in wanted:
                raise ValueError(f"`{layer.name}` is given two widths")
            wanted[layer.name] = width
        return wanted

    def __repr__(self) -> str:
        if callable(self.widths):
            return f"ToWidths({getattr(self.widths, '__qualname__', 'function')})"
        shown = (
            f"{key!r}: {getattr(width, '__qualname__', 'function') if callable(width) else width}"
            for key, width in self.widths.items()
        )
        return f"ToWidths({{{', '.join(shown)}}})"

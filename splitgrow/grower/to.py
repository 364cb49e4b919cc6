"""How much a model grows: by a factor, to widths, or up to a budget."""

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

_LARGEST = 2.0**20
"""The factor above which a budget is taken for a mistake."""


class To(ABC):
    """How much a model grows. Subclass it for a rule of your own.

    Attributes:
        exact: Whether the last widths must be the goals. Otherwise they are the widths nearest to
            these that fit.
    """

    exact: bool = False

    def named(self, layers: Sequence[Layer]) -> frozenset[str]:
        """The layers that are asked for by name, so that they grow even if they are outputs."""
        del layers
        return frozenset()

    @abstractmethod
    def goals(self, scope: Scope) -> Mapping[str, float]:
        """The width in the end of layers by name; layers that it leaves out stay as they are.

        Args:
            scope: The layers that may grow, and the sizes that come of goals.
        """

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
            ValueError: If widths do not fit.

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
        fit = WidthRule(chosen_initializer(initializer), checked_rounding(round_to))
        where = All() if where is None else where
        (edit,) = plan_growths(model, self, where, 1, fit).edits
        return dict(edit.request)


class Factor(To):
    """Every layer grows to a multiple of its width.

    Args:
        factor: The multiple, above 1.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not above 1, or not finite.

    Example:
        >>> import splitgrow
        >>> splitgrow.Factor(1.5)
        Factor(1.5)
    """

    def __init__(self, factor: float) -> None:
        if isinstance(factor, bool) or not isinstance(factor, (int, float)):
            raise TypeError(f"factor must be a number, got {factor!r}")
        if not (math.isfinite(factor) and factor > 1):
            raise ValueError(f"factor must be above 1 and finite, got {factor!r}")
        self.factor = float(factor)

    def goals(self, scope: Scope) -> Mapping[str, float]:
        """The multiples of the widths."""
        return scope.scaled(self.factor)

    def __repr__(self) -> str:
        return f"Factor({self.factor:g})"


class ToWidths(To):
    """Layers grow to given widths; those that are not named stay, unless they are tied to them.

    Args:
        widths: A width for each layer, by name or index: a number, or a function of the layer. Or
            a function of a `splitgrow.Layer` that returns a width, or None to leave it as it is.

    Raises:
        TypeError: If it is of another type. With the model: `ValueError` if there is no such layer,
            it is wider already, or the width does not fit.

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
        """The layers that have a width to grow to."""
        return frozenset(self._wanted(layers))

    def goals(self, scope: Scope) -> Mapping[str, float]:
        """The given widths.

        Raises:
            ValueError: If a layer is wider already.
        """
        wanted = self._wanted(scope.every)
        known = {layer.name: layer for layer in scope.every}
        wider = [f"`{n}` has {known[n].width}" for n, w in wanted.items() if w < known[n].width]
        if wider:
            raise ValueError(f"layers only grow, and {', '.join(wider)} units already")
        return {name: float(width) for name, width in wanted.items()}

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


class Budget(To):
    """Every layer grows by the same factor, the largest with which the model fits a budget.

    Widths are whole and have to fit each other, so the model comes near the budget and never
    exceeds it. The factor is in the plan.

    Args:
        macs: The multiply-adds of one forward pass for one sample.
        params: The number of parameters. With both given, both hold.

    Raises:
        TypeError: If one is no number.
        ValueError: If none is given, or one is not positive. With the model: if it exceeds the
            budget already.

    Example:
        >>> import torch, splitgrow
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Linear(8, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))
        >>> splitgrow.Budget(params=100).request(net)  # 4 parameters for each unit, and 1
        {'0': 16}
    """

    def __init__(self, *, macs: float | None = None, params: float | None = None) -> None:
        if macs is None and params is None:
            raise ValueError("a budget has `macs`, `params` or both")
        for name, value in (("macs", macs), ("params", params)):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value!r}")
        self.macs, self.params = macs, params

    def goals(self, scope: Scope) -> Mapping[str, float]:
        """The widths times the largest factor that fits.

        Raises:
            ValueError: If the model exceeds the budget already, or no factor would.
        """
        if self._share(scope, scope.scaled(1.0)) > 1:
            raise ValueError(f"the model is larger than {self!r} already: {self._sizes(scope)}")
        low, high = 1.0, 2.0
        while self._share(scope, scope.scaled(high)) <= 1:
            low, high = high, 2 * high
            if high > _LARGEST:
                raise ValueError(f"{self!r} would let the layers grow more than {low:,.0f} times")
        # A width of w units tells factors apart that differ by 1 / w.
        finest = 0.25 / max(layer.width for layer in scope.layers)
        best = _last_that_fits(lambda f: self._share(scope, scope.scaled(f)), low, high, finest)
        return scope.scaled(best)

    def _share(self, scope: Scope, goals: Mapping[str, float]) -> float:
        """The share of the budget that a model with some goals takes, of what it is shortest of."""
        parameters = 0.0 if self.params is None else scope.parameters(goals) / self.params
        if parameters > 1 or self.macs is None:
            return parameters  # nothing need be measured
        return max(parameters, scope.macs(goals) / self.macs)

    def _sizes(self, scope: Scope) -> str:
        goals = scope.scaled(1.0)
        told = [] if self.params is None else [f"{scope.parameters(goals):,} parameters"]
        return ", ".join([*told, *([] if self.macs is None else [f"{scope.macs(goals):,} macs"])])

    def __repr__(self) -> str:
        given = (("macs", self.macs), ("params", self.params))
        return f"Budget({', '.join(f'{name}={value:g}' for name, value in given if value)})"


def _last_that_fits(
    share: Callable[[float], float], low: float, high: float, finest: float
) -> float:
    """The largest factor whose share of a budget is at most 1, up to a difference.

    Sizes go nearly by a power of the factor, so every other guess is by that; the rest halve the
    interval, which ends in any case.

    Args:
        share: The share of the budget by factor; it never falls.
        low: A factor that fits.
        high: One that does not.
        finest: The difference.
    """
    below, above = share(low), share(high)
    by_power = True
    while high - low > finest:
        middle = (low + high) / 2
        if by_power and 0 < below < above:
            power = math.log(high / low) / math.log(above / below)
            guess = low * (1 / below) ** power if below < 1 else low + finest / 2
            middle = min(max(guess, low + finest / 2), high - finest / 2)
        by_power = not by_power
        found = share(middle)
        low, below = (middle, found) if found <= 1 else (low, below)
        high, above = (high, above) if found <= 1 else (middle, found)
    return low

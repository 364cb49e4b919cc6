"""Models that fit a budget: by one factor for all layers, or by growing and pruning in turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from splitgrow.grower.scope import Scope
from splitgrow.grower.to import Factor, To
from splitgrow.pruning.target import Target
from splitgrow.utils.arguments import positive_int

_LARGEST = 2.0**20
"""The factor above which a budget is taken for a mistake."""


class Budget(To):
    """Every layer changes by the same factor, the largest with which the model fits a budget.

    A model that is smaller grows, one that is larger shrinks.

    Widths are whole and have to fit each other, so the model comes near the budget and never
    exceeds it. The factor is in the plan.

    Args:
        macs: The multiply-adds of one forward pass for one sample.
        params: The number of parameters. With both given, both hold.

    Raises:
        TypeError: If one is no number.
        ValueError: If none is given, or one is not positive. With the model: if no widths fit.

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
            ValueError: If none does, or all do.
        """
        low, high = 1.0, 2.0
        if self._share(scope, scope.scaled(1.0)) > 1:
            high = 1.0
            low = 0.5 / max(layer.width for layer in scope.layers)
            if self._share(scope, scope.scaled(low)) > 1:
                now, least = (self._sizes(scope, scope.scaled(factor)) for factor in (1.0, low))
                raise ValueError(
                    f"the model is larger than {self!r} with any widths: it has {now}, and with "
                    f"the smallest widths {least}"
                )
        while high > 1 and self._share(scope, scope.scaled(high)) <= 1:
            low, high = high, 2 * high
            if high > _LARGEST:
                raise ValueError(f"{self!r} would let the layers grow more than {low:,.0f} times")
        # A width of w units tells factors apart that differ by 1 / w.
        finest = 0.25 / max(layer.width for layer in scope.layers)
        best = _last_that_fits(lambda f: self._share(scope, scope.scaled(f)), low, high, finest)
        return scope.scaled(best)

    @property
    def target(self) -> Target:
        """The budget as a target of pruning."""
        macs, params = (None if n is None else int(n) for n in (self.macs, self.params))
        return Target(macs=macs, params=params)

    def _share(self, scope: Scope, goals: Mapping[str, float]) -> float:
        """The share of the budget that a model with some goals takes, of what it is shortest of."""
        parameters = 0.0 if self.params is None else scope.parameters(goals) / self.params
        if parameters > 1 or self.macs is None:
            return parameters  # nothing need be measured
        return max(parameters, scope.macs(goals) / self.macs)

    def _sizes(self, scope: Scope, goals: Mapping[str, float]) -> str:
        told = [] if self.params is None else [f"{scope.parameters(goals):,} parameters"]
        return ", ".join([*told, *([] if self.macs is None else [f"{scope.macs(goals):,} macs"])])

    def __repr__(self) -> str:
        given = (("macs", self.macs), ("params", self.params))
        return f"Budget({', '.join(f'{name}={value:g}' for name, value in given if value)})"


class Cycles(To):
    """The model grows beyond a budget and is pruned back to it, again and again.

    Each cycle is a growth and, at the next moment, a shrink. The growth takes every layer to a
    multiple of the width with which the model fits the budget. The shrink takes out the weakest
    units of all layers together, by the policy's criterion, until the model fits. So units move
    from where they do little to where they are needed, as in NeST (Dai et al. 2019,
    https://arxiv.org/abs/1711.02017) and SENN (Mitchell et al. 2023,
    https://arxiv.org/abs/2307.04526).

    Args:
        budget: The size after each cycle.
        grow: The multiple to which layers grow, above 1. Multiply-adds go nearly with its square.
        times: The number of cycles.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If `grow` is not above 1, or `times` is not positive.

    Example:
        >>> import splitgrow
        >>> splitgrow.Cycles(splitgrow.Budget(macs=4e6), grow=1.25, times=2)
        Cycles(Budget(macs=4e+06), grow=1.25, times=2)
    """

    def __init__(self, budget: Budget, *, grow: float = 1.5, times: int = 3) -> None:
        if not isinstance(budget, Budget):
            raise TypeError(f"cycles go round a splitgrow.Budget, got {budget!r}")
        self.growth = Factor(grow)
        if self.growth.factor < 1:
            raise ValueError(f"grow must be above 1, got {grow!r}")
        self.budget, self.times = budget, positive_int("times", times)
        self.growths = 2 * self.times

    def goals(self, scope: Scope) -> Mapping[str, float]:
        """The widths with which the model fits the budget."""
        return self.budget.goals(scope)

    def legs(self, scope: Scope) -> Sequence[Mapping[str, float]]:
        """The widths beyond the budget and at it, for each cycle, if all layers shrink alike."""
        goals = self.goals(scope)
        beyond = scope.scaled(self.growth.factor, goals)
        # A model that is beyond already does not grow before it is pruned.
        first = {layer.name: max(beyond[layer.name], layer.width) for layer in scope.layers}
        return [first, goals, *[beyond, goals] * (self.times - 1)]

    def __repr__(self) -> str:
        return f"Cycles({self.budget!r}, grow={self.growth.factor:g}, times={self.times})"


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

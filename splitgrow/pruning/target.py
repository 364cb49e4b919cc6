"""Targets of pruning, and the share of units that must go for one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils.benchmark import Timer

from splitgrow.analysis.output_comparison import fitting
from splitgrow.errors import SplitGrowError
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.multiply_adds import multiply_adds, samples_of, untold_copy
from splitgrow.pruning.choosing import Request
from splitgrow.pruning.shrinking.copies import shrink_copy_
from splitgrow.pruning.shrinking.shrinking import plan_shrinking
from splitgrow.utils.rollback import Undo


@dataclass(frozen=True, kw_only=True)
class Target:
    """How small a model must become: it is met in all that is given.

    Attributes:
        macs: The multiply-adds of a forward pass on the example inputs, as torch counts them: a
            float up to 1 is the share of today's, an int the number for one sample.
        params: The number of parameters, as a share or as an int.
        latency: The seconds of a forward pass on the example inputs in evaluation mode, measured on
            the model's device as it is used now: a share of today's.

    Raises:
        TypeError: If one is of another type.
        ValueError: If none is given, or one is out of range.

    Example:
        >>> import splitgrow
        >>> splitgrow.Target(macs=0.5, params=1_000_000)
        Target(macs=0.5, params=1000000)
    """

    macs: float | int | None = None
    params: float | int | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in self._given() if value is not None}
        if not given:
            raise ValueError("a target has `macs`, `params` or `latency`")
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if isinstance(value, int) and name == "latency":
                raise TypeError(f"latency must be a share of today's, such as 0.5, got {value!r}")
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value!r}")
            if isinstance(value, float) and value > 1:
                raise ValueError(
                    f"{name} (={value:g}) is a share of today's and at most 1; give an int for a "
                    f"number"
                )

    def _given(self) -> list[tuple[str, Any]]:
        return [(each.name, getattr(self, each.name)) for each in fields(self)]

    def __repr__(self) -> str:
        given = (f"{name}={value!r}" for name, value in self._given() if value is not None)
        return f"Target({', '.join(given)})"


class Sizes:
    """The sizes of a model, as it is and without some channels.

    Args:
        model: A growable model. It stays as it is.
        give_up: Whether closed generations may lose channels.
    """

    def __init__(self, model: nn.Module, *, give_up: bool = False) -> None:
        self._model, self._give_up = model, give_up
        self._history = history_of(model)

    @cached_property
    def _counted(self) -> tuple[nn.Module, int]:
        """A copy without values, where the model runs on one, else the model; its multiply-adds."""
        try:
            copied = untold_copy(self._model, device="meta")
            return copied, multiply_adds(copied)
        except Exception:  # noqa: BLE001 - whatever forward, or a module's copy, raises there
            return self._model, multiply_adds(self._model)

    @property
    def macs(self) -> int:
        """The multiply-adds of a forward pass on the example inputs.

        Raises:
            SplitGrowError: If the model does not run on them.
        """
        return self._counted[1]

    @property
    def macs_of_one(self) -> int | None:
        """The multiply-adds for one sample; None if they cannot be counted."""
        try:
            return round(self.macs / max(self.samples, 1))
        except SplitGrowError:
            return None

    @property
    def samples(self) -> int:
        """The number of samples in the example inputs."""
        return samples_of(self._model)

    @property
    def params(self) -> int:
        """The number of parameters."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    @cached_property
    def latency(self) -> float:
        """The seconds of a forward pass on the example inputs."""
        return _seconds(self._model)

    def macs_without(self, request: Request) -> int:
        """The multiply-adds without some channels."""
        return multiply_adds(self._without(self._counted[0], request))

    def params_without(self, request: Request) -> int:
        """The number of parameters without some channels."""
        if not request:
            return self.params
        edit = plan_shrinking(
            Undo(), self._model, self._history, request, round_to=1, give_up=self._give_up
        )
        return self.params - sum(removal.parameters for removal in edit.removed)

    def latency_without(self, request: Request) -> float:
        """The seconds without some channels."""
        return _seconds(self._without(self._model, request))

    def _without(self, model: nn.Module, request: Request) -> nn.Module:
        copied = untold_copy(model)
        if request:
            shrink_copy_(copied, request, give_up=self._give_up)
        return copied


def _seconds(model: nn.Module) -> float:
    """The seconds of a forward pass on the example inputs, in evaluation mode."""
    inputs = fitting(model, history_of(model).inputs)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            timer = Timer("call(model)", globals={"call": inputs.run, "model": model})
            timer.timeit(1)
            return float(timer.blocked_autorange(min_run_time=0.2).median)
    finally:
        for module, training in modes:
            module.training = training


Goals = Mapping[str, float]
"""By "macs", "params" or "latency" the largest number that a model may have."""


def goals_of(target: Target, sizes: Sizes) -> dict[str, tuple[float, float]]:
    """What the model has of all that a target names, and what it may have in the end.

    The multiply-adds are those of all samples of the example inputs.
    """
    found = {}
    if target.params is not None:
        share = target.params * sizes.params if isinstance(target.params, float) else target.params
        found["params"] = float(sizes.params), float(share)
    if target.macs is not None:
        times = sizes.macs if isinstance(target.macs, float) else sizes.samples
        found["macs"] = float(sizes.macs), float(target.macs * times)
    if target.latency is not None:
        found["latency"] = sizes.latency, target.latency * sizes.latency
    return found


def share_for(goals: Goals, sizes: Sizes, request: Callable[[float], Request], units: int) -> float:
    """The smallest share of units without which the model meets goals.

    Args:
        goals: The goals.
        sizes: The sizes of the model.
        request: The channels that go, by the share of units.
        units: The number of units of which it is a share.
    """
    low, high = 0, units
    if _excess(goals, sizes, request(0.0)) <= 1:
        return 0.0
    while high - low > 1:
        middle = (low + high) // 2
        fits = _excess(goals, sizes, request(middle / units)) <= 1
        low, high = (low, middle) if fits else (middle, high)
    return high / units


def check_reachable(goals: Goals, sizes: Sizes, smallest: Request, stay: Sequence[str]) -> None:
    """Makes sure that a model can meet goals.

    Args:
        goals: The goals.
        sizes: The sizes of the model.
        smallest: All channels that may go.
        stay: The layers whose units have no scores.

    Raises:
        ValueError: If it cannot.
    """
    least = _excess(goals, sizes, smallest)
    if least > 1:
        wanted = ", ".join(f"{name} {value:,.4g}" for name, value in goals.items())
        names = ", ".join(f"`{name}`" for name in stay)
        unscored = f" (the criterion has no scores for the units of {names})" if stay else ""
        raise ValueError(
            f"the model cannot get so small ({wanted}): with the smallest widths that are allowed "
            f"it still has {least:.3g} times that; let more layers shrink{unscored}, or lower "
            f"`keep`"
        )


def _excess(goals: Goals, sizes: Sizes, request: Request) -> float:
    """How many times too large the model would be, in the worst of all that is wanted."""
    worst = 0.0
    for name, measure in (
        ("params", sizes.params_without),  # what costs least to know first
        ("macs", sizes.macs_without),
        ("latency", sizes.latency_without),
    ):
        if name in goals and worst <= 1:
            worst = max(worst, measure(request) / max(goals[name], 1e-12))
    return worst

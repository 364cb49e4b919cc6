"""The learning rates of new parameters: a scale and a warm-up, relative to their param group's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from splitgrow.errors import OptimizerError

RATES = "splitgrow_rates"
"""Where a param group has the rates of its parameters, in their order, as plain data."""


@dataclass(frozen=True)
class Rates:
    """The learning rate of a parameter, relative to that of its param group.

    Attributes:
        scale: The factor on the group's rate.
        warmup: The number of optimizer steps over which the rate rises to that, linearly.
        steps: The number of these that are done.
    """

    scale: float = 1.0
    warmup: int = 0
    steps: int = 0

    @property
    def own(self) -> bool:
        """Whether the rate is another than the group's, now or still."""
        return self.scale != 1.0 or self.steps < self.warmup

    @property
    def factor(self) -> float:
        """The factor on the group's rate in the coming step."""
        return self.scale * min(1.0, (self.steps + 1) / max(1, self.warmup))

    def after_step(self) -> Rates:
        """The rate once a further step is done."""
        return replace(self, steps=self.steps + 1) if self.steps < self.warmup else self

    @classmethod
    def of(cls, lr_scale: object, warmup: object, scheduler: object = None) -> Rates:
        """The rates for the arguments of a call.

        Args:
            lr_scale: A positive number.
            warmup: A number of steps.
            scheduler: A scheduler, several, or None. It is only made sure that they are some: the
                rates follow that of the group, whoever sets it.

        Raises:
            TypeError: If one is of another type.
            ValueError: If one is out of range.
        """
        if isinstance(lr_scale, bool) or not isinstance(lr_scale, (int, float)):
            raise TypeError(f"lr_scale must be a number, got {lr_scale!r}")
        if not (math.isfinite(lr_scale) and lr_scale > 0):
            raise ValueError(f"lr_scale must be positive and finite, got {lr_scale!r}")
        if isinstance(warmup, bool) or not isinstance(warmup, int):
            raise TypeError(f"warmup must be a number of steps, got {warmup!r}")
        if warmup < 0:
            raise ValueError(f"warmup must be at least 0 steps, got {warmup!r}")
        several = isinstance(scheduler, Iterable) and not hasattr(scheduler, "step")
        for one in scheduler if several else (scheduler,):  # type: ignore[attr-defined]
            if one is not None and not callable(getattr(one, "step", None)):
                raise TypeError(f"scheduler must be a learning rate scheduler, got {one!r}")
        made = cls(float(lr_scale), warmup)
        return AS_THE_GROUP if made == AS_THE_GROUP else made


AS_THE_GROUP = Rates()
"""The rates of parameters that join a group and have its rate."""

WITHOUT_OPTIMIZER = (
    "`lr_scale` and `warmup` are for the optimizer that trains the new parameters: pass it as "
    "`optimizer=`"
)


def rates_in(group: Mapping[str, Any]) -> list[Rates]:
    """The rate of each parameter of a param group, in their order.

    Raises:
        OptimizerError: If the group's data say nothing that could be meant.
    """
    found, count = group.get(RATES), len(group["params"])
    if found is None:
        return [AS_THE_GROUP] * count
    if not isinstance(found, list) or len(found) != count:
        told = f"{len(found)} rates" if isinstance(found, list) else repr(found)
        raise OptimizerError(
            f"a param group has {count} parameters, and {told} in `{RATES}`, which has one for "
            f"each of them: whoever changes the list of parameters changes both"
        )
    return [AS_THE_GROUP if item is None else _rates_from(item) for item in found]


def _rates_from(data: Any) -> Rates:
    try:
        made = Rates.of(data["scale"], data["warmup"])
        steps = data["steps"]
        if type(steps) is int and 0 <= steps <= made.warmup:
            return replace(made, steps=steps)
    except (TypeError, KeyError, ValueError):
        pass
    raise OptimizerError(f"a param group has {data!r} in `{RATES}`, which is no learning rate")


def rates_as_data(rates: list[Rates]) -> list[dict[str, float] | None] | None:
    """The rates of a group's parameters as plain data; None if all have the group's."""
    if all([item is AS_THE_GROUP for item in rates]):  # noqa: C419 - as most are
        return None
    known: dict[Rates, dict[str, float] | None] = {
        item: asdict(item) if item.own else None for item in rates
    }
    return [known[item] for item in rates] if any(known.values()) else None


def check_rated(rates: Rates, optimizer: object, group: Mapping[str, Any]) -> None:
    """Makes sure that parameters of a group can have such rates.

    Raises:
        OptimizerError: If the group has no rate, or the optimizer runs no hooks of torch's.
    """
    if not rates.own:
        return
    kind = type(optimizer)
    if not isinstance(group.get("lr"), (int, float, Tensor)):
        raise OptimizerError(
            f"`lr_scale` and `warmup` are relative to the learning rate of a param group, and one "
            f"of this {kind.__name__} has {group.get('lr')!r}"
        )
    if not getattr(kind.step, "hooked", False):  # type: ignore[attr-defined]
        raise OptimizerError(
            f"`lr_scale` and `warmup` are set by torch's hooks on steps, which the `step` of "
            f"{kind.__name__} does not run; grow without them"
        )

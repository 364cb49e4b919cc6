"""When a model grows: at steps, at shares of the arithmetic, or when metrics say so."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from splitgrow.utils.arguments import positive_int

MetricMode = Literal["min", "max"]


@dataclass
class Progress:
    """The training so far, as a policy sees it after an optimizer step.

    Attributes:
        step: The number of optimizer steps.
        growths: The number of growths.
        macs_spent: The multiply-adds of the training so far.
        metrics: The metrics of this step; None if there are none.
        notes: Plain data that the rule keeps from step to step. A growth clears it.
    """

    step: int
    growths: int
    macs_spent: int
    metrics: Mapping[str, float] | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Moment:
    """The moment of a growth, as far as it is known before the training.

    Attributes:
        words: The moment in words.
        step: The optimizer step after which the model grows; None if that is not known.
        macs: The multiply-adds of the training by then; None if these are not known.
    """

    words: str
    step: int | None = None
    macs: int | None = None


class When(ABC):
    """When a model grows. Subclass it for a rule of your own.

    Attributes:
        observes: Whether it looks at metrics, or at the arithmetic so far. If several processes
            train the model, the first one's count then, at each step.
        growths: The number of growths that it sets; None if it sets none.
        metrics: The names of the metrics that it looks at.
    """

    observes: bool = True
    growths: int | None = None
    metrics: tuple[str, ...] = ()

    @abstractmethod
    def due(self, now: Progress) -> bool:
        """Whether the model grows now; asked once after each optimizer step, until all is grown.

        Args:
            now: The training so far. It may write into the notes, which are saved with the
                grower's state.
        """

    def moment(self, growth: int) -> Moment:
        """The moment of a growth, as far as it is known.

        Args:
            growth: The number of the growth, from 1.
        """
        del growth
        return Moment(f"when {self!r} says so")


class Every(When):
    """Grows every k optimizer steps, for the first time at step k.

    Args:
        steps: The number of steps, k.

    Raises:
        TypeError: If it is no int.
        ValueError: If it is not positive.

    Example:
        >>> import splitgrow
        >>> splitgrow.Every(100).moment(2).step
        200
    """

    observes = False

    def __init__(self, steps: int) -> None:
        self.steps = positive_int("steps", steps)

    def due(self, now: Progress) -> bool:
        """Whether the next multiple of k is reached."""
        return now.step >= self.steps * (now.growths + 1)

    def moment(self, growth: int) -> Moment:
        """The step of a growth."""
        return Moment(f"step {self.steps * growth:,}", step=self.steps * growth)

    def __repr__(self) -> str:
        return f"Every({self.steps})"


class ComputeShares(When):
    """Grows at shares of the arithmetic that the whole training may take.

    Args:
        shares: The shares, rising, between 0 and 1; as many as there are growths.
        macs: The multiply-adds of the whole training, as `Grower.macs_spent` counts them: three
            forward passes for each sample.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If the shares do not rise, or one is not between 0 and 1, or `macs` is not
            positive.

    Example:
        >>> import splitgrow
        >>> splitgrow.ComputeShares([0.2, 0.5], macs=1e12).moment(2)
        Moment(words='50 % of the arithmetic', step=None, macs=500000000000)
    """

    def __init__(self, shares: Iterable[float], *, macs: float) -> None:
        self.shares = tuple(_number("shares", share) for share in shares)
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise ValueError(f"shares must lie between 0 and 1, got {list(self.shares)}")
        if list(self.shares) != sorted(set(self.shares)):
            raise ValueError(f"shares must rise, got {list(self.shares)}")
        self.macs = _number("macs", macs)
        if not (self.macs > 0 and math.isfinite(self.macs)):
            raise ValueError(f"macs must be positive and finite, got {macs!r}")
        self.growths = len(self.shares)

    def due(self, now: Progress) -> bool:
        """Whether the next share is spent."""
        return now.macs_spent >= self.shares[now.growths] * self.macs

    def moment(self, growth: int) -> Moment:
        """The share of a growth."""
        share = self.shares[growth - 1]
        return Moment(f"{100 * share:.3g} % of the arithmetic", macs=round(share * self.macs))

    def __repr__(self) -> str:
        return f"ComputeShares({list(self.shares)}, macs={self.macs:g})"


class Plateau(When):
    """Grows when a metric has not become better for a number of observations in a row.

    A step with metrics is an observation; a step without is none. The best value starts anew after
    each growth.

    Args:
        metric: The name of the metric.
        patience: The number of observations in a row that are not better than the best one.
        min_delta: By how much a better one must be better.
        mode: "min" if lower is better, "max" if higher is.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If `patience` is not positive, `min_delta` is negative, or `mode` is another.

    Example:
        >>> import splitgrow
        >>> from splitgrow.grower import Progress
        >>> plateau, notes = splitgrow.Plateau("loss", patience=2), {}
        >>> losses = [1.0, 0.5, 0.6, 0.5]
        >>> [plateau.due(Progress(n, 0, 0, {"loss": x}, notes)) for n, x in enumerate(losses)]
        [False, False, False, True]
    """

    def __init__(
        self, metric: str, patience: int = 3, min_delta: float = 0.0, mode: MetricMode = "min"
    ) -> None:
        self.metric = _name("metric", metric)
        self.metrics = (self.metric,)
        self.patience = positive_int("patience", patience)
        self.min_delta = _number("min_delta", min_delta)
        if not self.min_delta >= 0:
            raise ValueError(f"min_delta must be at least 0, got {min_delta!r}")
        if mode not in {"min", "max"}:
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
        self.mode = mode

    def due(self, now: Progress) -> bool:
        """Whether the metric has stalled."""
        return self.stalled(now)

    def stalled(self, now: Progress) -> bool:
        """Whether the metric has not become better for long enough, with this observation.

        Raises:
            ValueError: If the metrics do not have it, or it is not finite.
        """
        if now.metrics is None:
            return False
        value = observed(now.metrics, self.metric)
        best = now.notes.get("best")
        if best is None or self._gain(value, best) > self.min_delta:
            now.notes.update(best=value, waited=0)
        else:
            now.notes["waited"] += 1
        return bool(now.notes["waited"] >= self.patience)

    def _gain(self, value: float, best: float) -> float:
        """By how much a value is better than another."""
        return best - value if self.mode == "min" else value - best

    def moment(self, growth: int) -> Moment:
        """When that is, in words."""
        del growth
        return Moment(f"{self.metric} stalls for {self.patience}")

    def __repr__(self) -> str:
        more = f", min_delta={self.min_delta:g}, mode={self.mode!r}"
        return f"{type(self).__name__}({self.metric!r}, patience={self.patience}{more})"


class Gap(Plateau):
    """Grows when the training metric has stalled and validation is hardly worse: it underfits.

    With both metrics at hand the gap is how much worse the model does on data that it did not train
    on: validation - training for a loss, training - validation for an accuracy. The model grows
    when the training metric has not become better for `patience` observations in a row, as in
    `Plateau`, and the gap at the last of them is at most `threshold`. Where it is larger the model
    overfits, and lacks data rather than units; it is then looked at again at each observation.

    Args:
        train_metric: The name of the metric on the training data.
        validation_metric: The name of the same metric on other data.
        threshold: The largest gap at which it grows, in the metric's unit.
        patience: As in `Plateau`, for the training metric.
        min_delta: As in `Plateau`.
        mode: As in `Plateau`.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: As in `Plateau`, or if both metrics have one name.

    Example:
        >>> import splitgrow
        >>> from splitgrow.grower import Progress
        >>> gap, notes = splitgrow.Gap("train", "val", threshold=0.1, patience=1), {}
        >>> seen = [(0.5, 0.5), (0.5, 0.9), (0.5, 0.55)]
        >>> [gap.due(Progress(0, 0, 0, {"train": t, "val": v}, notes)) for t, v in seen]
        [False, False, True]
    """

    def __init__(
        self,
        train_metric: str,
        validation_metric: str,
        threshold: float,
        patience: int = 3,
        min_delta: float = 0.0,
        mode: MetricMode = "min",
    ) -> None:
        super().__init__(train_metric, patience, min_delta, mode)
        self.validation_metric = _name("validation_metric", validation_metric)
        if validation_metric == train_metric:
            raise ValueError(f"the metrics of a gap are two, and both are named {train_metric!r}")
        self.metrics = (train_metric, validation_metric)
        self.threshold = _number("threshold", threshold)

    def due(self, now: Progress) -> bool:
        """Whether the training metric has stalled while the gap is small.

        Raises:
            ValueError: If the metrics lack one of the two, or it is not finite.
        """
        if now.metrics is None:
            return False
        validation = observed(now.metrics, self.validation_metric)
        stalled = self.stalled(now)
        gap = self._gain(observed(now.metrics, self.metric), validation)
        return stalled and gap <= self.threshold

    def moment(self, growth: int) -> Moment:
        """When that is, in words."""
        del growth
        return Moment(
            f"{self.metric} stalls for {self.patience}, {self.validation_metric} within "
            f"{self.threshold:g}"
        )

    def __repr__(self) -> str:
        return (
            f"Gap({self.metric!r}, {self.validation_metric!r}, threshold={self.threshold:g}, "
            f"patience={self.patience}, min_delta={self.min_delta:g}, mode={self.mode!r})"
        )


def observed(metrics: Mapping[str, float], name: str) -> float:
    """The value of a metric.

    Raises:
        ValueError: If there is none of that name, or it is not finite.
    """
    if name not in metrics:
        raise ValueError(
            f"the metrics of this step have no {name!r}; they have {', '.join(metrics) or 'none'}. "
            f"Leave metrics out in a step that has no new ones"
        )
    value = metrics[name]
    if not math.isfinite(value):
        raise ValueError(f"the metric {name!r} is {value}: growth cannot be decided by it")
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if math.isnan(value):
        raise ValueError(f"{name} is not a number")
    return float(value)


def _name(argument: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{argument} must be the name of a metric, got {value!r}")
    return value

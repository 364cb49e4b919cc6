"""The settings of a policy, checked before any training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from splitgrow.errors import OptimizerError
from splitgrow.grower.held_model import HeldModel
from splitgrow.grower.ladder import WidthRule
from splitgrow.grower.to import To
from splitgrow.grower.when import When
from splitgrow.grower.where import Where
from splitgrow.growth.edits import Edit
from splitgrow.growth.initializers import Initializer, chosen_initializer
from splitgrow.growth.optimizers import listed
from splitgrow.growth.planning import checked_rounding
from splitgrow.growth.rates import Rates
from splitgrow.layers.tensor_holder import layer_at

PASSES_OF_STEP = 3
"""The forward passes that a training step costs: one, and a backward pass of two."""
STEPS = 3
"""The number of growths, if nothing else sets it."""


@dataclass(frozen=True)
class GrowerSettings:
    """How a policy grows a model, beside where and when.

    Attributes:
        init: The initializer of new blocks.
        optimizer: One or several optimizers, or None.
        lr_scale: The rate of new parameters, relative to that of their group.
        warmup: The number of optimizer steps over which it rises to that.
        scheduler: The schedulers of the optimizer.
        round_to: The number of which widths are multiples.
        freeze: Whether the first growth closes generation 0.
        absorb: Whether grown layers become plain again.
        loss: A closure that returns a loss, for an initializer that needs data.
    """

    init: str | Initializer
    optimizer: Any
    lr_scale: float
    warmup: int
    scheduler: Any
    round_to: int
    freeze: bool
    absorb: bool
    loss: Callable[[], Tensor] | None

    @property
    def fit(self) -> WidthRule:
        """The widths that fit."""
        return WidthRule(chosen_initializer(self.init), self.round_to)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of `expand`, without those that say nothing."""
        given = {
            "lr_scale": None if self.lr_scale == 1 else self.lr_scale,
            "warmup": self.warmup or None,
            "loss": self.loss,
        }
        own = {"initializer": self.init, "freeze": self.freeze, "optimizer": self.optimizer}
        return own | {name: value for name, value in given.items() if value is not None}

    def check(self, held: HeldModel) -> None:
        """Makes sure that the settings fit each other and the model.

        Raises:
            TypeError: If one is of another type.
            ValueError: If they do not fit each other, or the initializer needs a loss.
            OptimizerError: If the optimizer cannot take new parameters.
        """
        listed(self.optimizer)
        Rates.of(self.lr_scale, self.warmup, self.scheduler)
        checked_rounding(self.round_to)
        initializer = chosen_initializer(self.init)
        if self.loss is not None and not callable(self.loss):
            raise TypeError(f"loss must be a function that returns a loss, got {self.loss!r}")
        if initializer.needs_data and self.loss is None:
            raise ValueError(f"initializer {initializer.name!r} needs data: give it a `loss`")
        if self.freeze and initializer.needs_unfrozen:
            raise ValueError(
                f"initializer {initializer.name!r} changes values that exist, which freeze=True "
                f"freezes"
            )
        if self.freeze and self.absorb:
            raise ValueError(
                "absorb=True gives closed generations up, and freeze=True closes them: to grow "
                "without forgetting, pass absorb=False"
            )
        if self.absorb and held.handle.generation:
            raise ValueError(
                "absorb=True would give up the closed generations of this model; pass "
                "absorb=False, and new parameters keep blocks of their own"
            )

    def check_trained(self, held: HeldModel, edits: Iterable[Edit]) -> None:
        """Makes sure that the optimizer trains the layers that will grow.

        Raises:
            OptimizerError: If it does not; the layers are named.
        """
        optimizers = listed(self.optimizer)
        trained = {
            id(p) for each in optimizers for group in each.param_groups for p in group["params"]
        }
        changes = {change.name: change.use for edit in edits for change in edit.changes}
        modules = held.history.modules
        missing = [
            name
            for name, use in changes.items()
            if optimizers and not _is_trained(layer_at(modules, name, use), trained)
        ]
        if missing:
            raise OptimizerError(
                f"the optimizer does not train {', '.join(missing[:5])}, which will grow; make it "
                f"of model.parameters(), or pass all optimizers in a list"
            )


def _is_trained(layer: nn.Module, trained: set[int]) -> bool:
    """Whether new parameters of a layer would find a group; true of one that has none."""
    own = [*layer.parameters()]
    fixed = not any(parameter.requires_grad for parameter in own)
    return not own or fixed or any(id(parameter) in trained for parameter in own)


def check_policy(to: object, when: object, where: object) -> None:
    """Makes sure that the parts of a policy are such.

    Raises:
        TypeError: If one is not.
    """
    for name, value, kind, known in (
        ("to", to, To, "Factor, ToWidths or Budget"),
        ("when", when, When, "Every, ComputeShares, Plateau or Gap"),
        ("where", where, Where, "All or Score"),
    ):
        if not isinstance(value, kind):
            raise TypeError(
                f"{name} must be {known} of splitgrow, or a subclass of splitgrow.grower."
                f"{kind.__name__}, got {value!r}"
            )


def number_of_growths(steps: object, when: When) -> int:
    """The number of growths.

    Raises:
        TypeError: If `steps` is no int.
        ValueError: If it is not positive, or `when` sets another number.
    """
    if steps is None:
        return STEPS if when.growths is None else when.growths
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps must be an int, the number of growths, got {steps!r}")
    if steps < 1:
        raise ValueError(f"steps (={steps}) must be at least 1")
    if when.growths is not None and steps != when.growths:
        raise ValueError(f"steps (={steps}) contradicts {when!r}, which has {when.growths} growths")
    return steps


def plain_metrics(metrics: object) -> dict[str, float] | None:
    """Metrics as numbers by name.

    Raises:
        TypeError: If they are no mapping from names to numbers or tensors of one number.
    """
    if metrics is None:
        return None
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics map names to numbers, got {metrics!r}")
    found: dict[str, float] = {}
    for name, value in metrics.items():
        try:
            found[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"the metric {name!r} must be one number, got {value!r}") from None
    return found

"""The settings of a policy, checked before any training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from splitgrow.errors import OptimizerError, UnsupportedModelError
from splitgrow.grower.held_model import HeldModel
from splitgrow.grower.ladder import WidthRule
from splitgrow.grower.scope import Climb
from splitgrow.grower.to import To
from splitgrow.grower.when import When
from splitgrow.grower.where import Where
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.initializers import Initializer, chosen_initializer
from splitgrow.growth.optimizers import listed
from splitgrow.growth.planning import checked_rounding
from splitgrow.growth.rates import Rates
from splitgrow.layers.tensor_holder import layer_at
from splitgrow.pruning.criteria.criterion import Criterion, UnitsInView
from splitgrow.pruning.criteria.registry import chosen_criterion
from splitgrow.pruning.criteria.unit_parameters import ParametersOfUnits
from splitgrow.pruning.prune import scores_in
from splitgrow.utils.preserve import keep_random_states_
from splitgrow.utils.rollback import Undo, temporarily
from splitgrow.utils.schedulers import Schedulers

PASSES_OF_STEP = 3
"""The forward passes that a training step costs: one, and a backward pass of two."""
STEPS = 3
"""The number of growths or shrinks, if nothing else sets it."""


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
        criterion: The scores of units, of which the lowest go.
    """

    init: str | Initializer
    optimizer: Optimizer | Sequence[Optimizer] | None
    lr_scale: float
    warmup: int
    scheduler: Schedulers | None
    round_to: int
    freeze: bool
    absorb: bool
    loss: Callable[[], Tensor] | None
    criterion: str | Criterion

    @property
    def fit(self) -> WidthRule:
        """The widths that fit."""
        return WidthRule(chosen_initializer(self.init), self.round_to)

    @property
    def units_to_go(self) -> Criterion:
        """The scores of units."""
        return chosen_criterion(self.criterion)

    @property
    def loss_on(self) -> Callable[[nn.Module, object], Tensor] | None:
        """The loss as criteria ask for it; the closure itself has the batch."""
        loss = self.loss
        return None if loss is None else lambda _model, _batch: loss()

    @property
    def batches(self) -> tuple[None, ...]:
        """As many batches as the loss is called for."""
        return () if self.loss is None else (None,)

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
        chosen_criterion(self.criterion)
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

    def check_planned(self, held: HeldModel, climb: Climb, where: Where, *, moves: bool) -> None:
        """Makes sure that the settings allow what is planned.

        Args:
            held: The model.
            climb: What is planned.
            where: Where it changes.
            moves: Whether the criterion looks at all layers together.

        Raises:
            ValueError: If units would go that have to stay, or a score would choose those that go.
            OptimizerError: If the optimizer does not train layers that will grow; they are named.
        """
        if any(units < 0 for rung in climb.rungs for units in rung.request.values()):
            if self.freeze or held.handle.generation:
                raise ValueError(
                    "units would go, and those of closed generations have to stay: pass "
                    "freeze=False, or use `model.shrink(..., give_up=True)`"
                )
            if where.chooses and not moves:
                raise ValueError(
                    f"{where!r} chooses where a model grows, and this one shrinks: the criterion "
                    f"says which units go; name layers by All(only=...)"
                )
            self._check_criterion(held, climb)
        self._check_trained(held, climb)

    def _check_criterion(self, held: HeldModel, climb: Climb) -> None:
        """Makes sure that the criterion has scores for the units that may go.

        Raises:
            ValueError: If it has none, or needs a loss that there is none of.
            UnsupportedModelError: If it needs one, and several processes train the model.
        """
        name, own = self.units_to_go.name, climb.candidates.groups
        groups = [group for each in own.values() for group in each]
        known = held.decided(lambda model: _groups_scored(model, groups, self.units_to_go))
        if known is None and self.loss is None:
            raise ValueError(f"criterion {name!r} needs data: give it a `loss`")
        if known is None and held.several:
            raise UnsupportedModelError(
                f"criterion {name!r} needs data, which each of several processes has of its own; "
                f"choose one that looks at weights, such as 'group'"
            )
        missing = [n for n, each in own.items() if known is not None and not {*each} <= {*known}]
        if missing:
            raise ValueError(
                f"criterion {name!r} has no scores for the units of {', '.join(missing[:5])}: "
                f"choose another one, or leave these layers out by All(except_=...)"
            )

    def _check_trained(self, held: HeldModel, climb: Climb) -> None:
        optimizers = listed(self.optimizer)
        trained = {
            id(p) for each in optimizers for group in each.param_groups for p in group["params"]
        }
        grown = {name: use for rung in climb.rungs for name, use in rung.grown.items()}
        modules = held.history.modules
        missing = [
            name
            for name, use in grown.items()
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


@temporarily
def _groups_scored(
    undo: Undo, model: nn.Module, groups: list[int], criterion: Criterion
) -> list[int] | None:
    """The groups whose units a criterion scores by weights alone; None if it needs data."""
    keep_random_states_(model.modules(), undo)
    history = history_of(model)
    units = ParametersOfUnits(history.graph, history.modules, groups)
    try:
        return [*scores_in(UnitsInView(model, history, units), criterion)]
    except ValueError:
        return None


def check_policy(to: object, when: object, where: object) -> None:
    """Makes sure that the parts of a policy are such.

    Raises:
        TypeError: If one is not.
    """
    for name, value, kind, known in (
        ("to", to, To, "Factor, ToWidths, Budget or Cycles"),
        ("when", when, When, "Every, ComputeShares, Plateau or Gap"),
        ("where", where, Where, "All or Score"),
    ):
        if not isinstance(value, kind):
            raise TypeError(
                f"{name} must be {known} of splitgrow, or a subclass of splitgrow.grower."
                f"{kind.__name__}, got {value!r}"
            )


def number_of_changes(steps: object, when: When, to: To) -> int:
    """The number of growths and shrinks.

    Raises:
        TypeError: If `steps` is no int.
        ValueError: If it is not positive, or the policy sets other numbers.
    """
    if steps is not None:
        if isinstance(steps, bool) or not isinstance(steps, int):
            raise TypeError(f"steps must be an int, the number of growths, got {steps!r}")
        if steps < 1:
            raise ValueError(f"steps (={steps}) must be at least 1")
    own = {repr(rule): rule.growths for rule in (when, to) if rule.growths is not None}
    known = {**own, "steps": steps} if isinstance(steps, int) else own
    if len({*known.values()}) > 1:
        told = ", ".join(f"{rule} has {count}" for rule, count in own.items())
        given = "" if steps is None else f"steps (={steps}) contradicts "
        raise ValueError(f"{given}{told} growths and shrinks")
    return next(iter(known.values()), STEPS)


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

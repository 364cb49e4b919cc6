"""The policy that the options of `splitgrow grow` mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from splitgrow.cli.grow_settings import GrowSettings
from splitgrow.demos.arms import VALIDATION_LOSS, ArmCourse
from splitgrow.demos.training import logits_of
from splitgrow.grower import All, Budget, ComputeShares, Every, Factor, Grower, Plateau
from splitgrow.grower.to import To
from splitgrow.grower.when import When
from splitgrow.grower.where import Score, Where
from splitgrow.growth.initializers import chosen_initializer

_PROBE = 256  # images that initializers and scores look at


def policy_of(model: nn.Module, course: ArmCourse, optimizer: Any, when: When) -> Grower:
    """The policy by which a growable model grows on a course.

    Raises:
        ValueError: If the model would shrink.
        TypeError, SplitGrowError: If the model does not allow it; also ValueError.
    """
    settings = course.settings
    to = _how_much(settings)
    grower = Grower(
        model,
        optimizer,
        to=to,
        when=when,
        where=_where(course),
        steps=settings.steps,
        init=settings.init,
        lr_scale=settings.lr_scale,
        warmup=settings.warmup,
        round_to=settings.round_to,
        freeze=settings.freeze,
        absorb=not settings.freeze,
        loss=probe_loss(model, course),
    )
    if any(change.shrinks for change in grower.plan().growths):
        raise ValueError(f"the network is larger than {to!r} already, and would shrink")
    return grower


def chosen_when(settings: GrowSettings, macs: int) -> When:
    """When it grows, if the training has so many multiply-adds."""
    if settings.plateau is not None:
        return Plateau(VALIDATION_LOSS, patience=settings.plateau)
    if settings.every is not None:
        return Every(settings.every)
    return ComputeShares(settings.shares, macs=macs)


def probe_loss(model: nn.Module, course: ArmCourse) -> Callable[[], Tensor] | None:
    """A closure that gives the loss on some training images; None if new units need no data."""
    if not chosen_initializer(course.settings.init).needs_data:
        return None
    return lambda: _loss(model, _probe(course))


def _how_much(settings: GrowSettings) -> To:
    if settings.factor is not None:
        return Factor(settings.factor)
    return Budget(macs=settings.macs, params=settings.params)


def _where(course: ArmCourse) -> Where:
    settings = course.settings
    only = settings.only or None
    if not settings.score:
        return All(only, except_=settings.except_)
    return Score(
        settings.score,
        loss=_loss,
        batches=[_probe(course)],
        share=settings.share,
        only=only,
        except_=settings.except_,
    )


def _probe(course: ArmCourse) -> tuple[Tensor, Tensor]:
    return course.dataset.x_train[:_PROBE], course.dataset.y_train[:_PROBE]


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(logits_of(model(batch[0])), batch[1])

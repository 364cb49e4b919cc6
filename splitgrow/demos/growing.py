"""Growing to learn, compared with the large network from the start. It prints nothing."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import click
import torch
from torch import Tensor, nn

import splitgrow
from splitgrow.cli.grow_settings import GrowSettings
from splitgrow.cli.targets import attempt
from splitgrow.demos.arm_results import (
    GROWN,
    LARGE,
    SMALL,
    ArmEvaluation,
    ArmGrowth,
    ArmOutcome,
    ArmStep,
    GrowResult,
    Lead,
)
from splitgrow.demos.arms import Arm, ArmCourse
from splitgrow.demos.chosen_network import MakeNetwork, check_classifier
from splitgrow.demos.chosen_policy import chosen_when, policy_of, probe_loss
from splitgrow.demos.datasets import Dataset, sample
from splitgrow.demos.fresh_start import Moments, moments_of, restart_
from splitgrow.demos.training import Watch
from splitgrow.errors import SplitGrowError
from splitgrow.grower import Every, Schedule
from splitgrow.grower.settings import PASSES_OF_STEP
from splitgrow.growth.multiply_adds import MacsCounter

_HELD_OUT = 10  # one of so many training images


@dataclass(frozen=True)
class ArmStudy:
    """A comparison, prepared: nothing is trained yet.

    Attributes:
        course: The common course of the arms.
        start: The growable network that all arms come from.
        grown: The arm that grows.
        plan: The plan of the growths.
        moments: Those of the parameters that the network came with.
        redrawn: The names of the parameters that no `reset_parameters` initialises.
    """

    course: ArmCourse
    start: nn.Module
    grown: Arm
    plan: Schedule
    moments: Moments
    redrawn: tuple[str, ...]


def run(make: MakeNetwork, dataset: Dataset, settings: GrowSettings, watch: Watch) -> GrowResult:
    """Trains a network that grows, the large one and the small one, for the same arithmetic.

    `watch` is called with every event as it happens. The same seed gives the same run, and the
    state of torch's own random numbers is left as it was.

    Raises:
        click.UsageError: If the network does not allow the settings.
        click.ClickException: If it does not take the images, or cannot grow.
        FloatingPointError: If the training diverges.
    """
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        study = prepare_arms(make, dataset, settings, watch)
        _train(study.grown)
        large = _grown(study)
        arms = {
            study.grown: study.grown.model,
            _plain_arm(study, LARGE, large, watch): large,
            _plain_arm(study, SMALL, study.start, watch): study.start,
        }
        for arm in [*arms][1:]:
            _train(arm)
        judged = [arm.outcome(_widths(model)) for arm, model in arms.items()]
    events = [event for arm in arms for event in arm.events]
    return GrowResult(
        dataset=dataset.name,
        images=(len(study.course.dataset.x_train), len(dataset.x_test)),
        held_out=len(dataset.x_train) - len(study.course.dataset.x_train),
        settings=settings,
        plan=study.plan,
        macs=study.course.macs,
        steps=tuple(event for event in events if isinstance(event, ArmStep)),
        evaluations=tuple(event for event in events if isinstance(event, ArmEvaluation)),
        growths=tuple(event for event in events if isinstance(event, ArmGrowth)),
        arms=tuple(outcome for outcome, _ in judged),
        leads=tuple(_lead(judged[0], other) for other in judged[1:]),
        redrawn=study.redrawn,
        seconds=time.perf_counter() - started,
    )


def prepare_arms(
    make: MakeNetwork, dataset: Dataset, settings: GrowSettings, watch: Watch
) -> ArmStudy:
    """Makes the network and its policy, and plans the growths; the seed of torch is set.

    Raises:
        click.UsageError: If the network does not allow the settings.
        click.ClickException: If it does not take the images, or cannot grow.
    """
    torch.manual_seed(settings.seed)
    network = make(dataset, settings)
    check_classifier(network, dataset)
    moments = moments_of(network)
    name = type(network).__name__
    redrawn = attempt(f"cannot initialise {name} anew", lambda: restart_(network, moments))
    learned, held_out = _split(dataset, settings)
    try:
        # A step costs what it costs for as many images as the example inputs have.
        start = splitgrow.growable(network, learned.x_train[: settings.batch_size])
        course, final = _course(start, learned, held_out, settings)
        grown = copy.deepcopy(start)
        arm = Arm(GROWN, grown, course, final.start.macs, watch)
        arm.grower = policy_of(grown, course, arm.optimizer, chosen_when(settings, course.macs))
    except SplitGrowError as error:
        raise click.ClickException(str(error)) from error
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    plan = arm.grower.plan()
    last = plan.stages[-1]
    if last.step is not None and (last.macs_spent or 0) >= course.macs:
        raise click.UsageError(
            f"--every {settings.every} puts growth {last.index} behind the end of the training, of "
            f"which it leaves nothing: give a smaller number, fewer --steps or more --epochs"
        )
    return ArmStudy(course, start, arm, plan, moments, redrawn)


def _split(
    dataset: Dataset, settings: GrowSettings
) -> tuple[Dataset, tuple[Tensor, Tensor] | None]:
    """The data without those that are held out to decide by, and these.

    Raises:
        click.UsageError: If none would be left.
    """
    if settings.plateau is None:
        return dataset, None
    count = len(dataset.x_train)
    held = sample(
        dataset.name,
        dataset.y_train.numpy(),
        max(len(dataset.classes), count // _HELD_OUT),
        settings.seed,
        option="a tenth for --plateau:",
    )
    kept = torch.ones(count, dtype=torch.bool)
    kept[torch.from_numpy(held)] = False
    if not kept.any():
        raise click.UsageError("--plateau holds out an image of each class, and leaves none here")
    learned = replace(dataset, x_train=dataset.x_train[kept], y_train=dataset.y_train[kept])
    return learned, (dataset.x_train[~kept], dataset.y_train[~kept])


def _course(
    start: nn.Module,
    learned: Dataset,
    held_out: tuple[Tensor, Tensor] | None,
    settings: GrowSettings,
) -> tuple[ArmCourse, Schedule]:
    """The arithmetic of the large network's epochs, and the plan that tells how large that is.

    Raises:
        ValueError: If the network would not grow, or has no arithmetic that torch counts.
    """
    free = ArmCourse(learned, held_out, settings, macs=1)
    plan = policy_of(copy.deepcopy(start), free, None, Every(1)).plan()
    if not any(growth.request for growth in plan.growths):
        raise ValueError("nothing would grow: no larger widths fit")
    images = settings.epochs * len(learned.x_train)
    macs = PASSES_OF_STEP * plan.stages[-1].macs * images
    if not macs:
        raise ValueError("torch counts no multiply-adds in this network")
    return replace(free, macs=macs), plan


def _train(arm: Arm) -> None:
    torch.manual_seed(arm.settings.seed)  # so that no arm depends on those before it
    arm.train()


def _requests(study: ArmStudy) -> list[Mapping[str, int]]:
    """The growths that lead from the start to the large network's widths.

    A score chooses layers during the training, so those widths are known only after it.
    """
    if not study.plan.at_most:
        return [growth.request for growth in study.plan.growths if growth.request]
    growths = (event for event in study.grown.events if isinstance(event, ArmGrowth))
    return [growth.edit.request for growth in growths]


def _grown(study: ArmStudy) -> nn.Module:
    """The network of the start with the large network's widths, and values of no meaning."""
    model = copy.deepcopy(study.start)
    for request in _requests(study):
        splitgrow.handle(model).expand(
            dict(request.items()),
            initializer=study.course.settings.init,  # its way to grow streams sets the widths
            freeze=False,
            loss=probe_loss(model, study.course),
        )
    return model


def _plain_arm(study: ArmStudy, name: str, model: nn.Module, watch: Watch) -> Arm:
    """An arm with a plain network of the widths of a growable one, from scratch."""
    network = splitgrow.merge(model)
    if model is not study.start:
        torch.manual_seed(study.course.settings.seed)
        restart_(network, study.moments)
    return Arm(name, network, study.course, MacsCounter(model).macs, watch)


def _widths(model: nn.Module) -> list[tuple[str, int]]:
    return [(layer.name, layer.width) for layer in splitgrow.handle(model).layers]


def _lead(grown: tuple[ArmOutcome, Tensor], other: tuple[ArmOutcome, Tensor]) -> Lead:
    """The grown arm's lead over another; image by image, since both are judged by the same."""
    difference = 100 * (grown[1].double() - other[1].double())
    error = difference.std(correction=0).item() / math.sqrt(len(difference))
    return Lead(other[0].arm, difference.mean().item(), error)

"""From planned changes to the whole plan: moments, widths, parameters, multiply-adds."""

from __future__ import annotations

from collections.abc import Iterator

from splitgrow.grower.held_model import HeldModel
from splitgrow.grower.ladder import growing_part
from splitgrow.grower.planned_growth import PlannedGrowth
from splitgrow.grower.schedule import Schedule
from splitgrow.grower.scope import Climb, change_of
from splitgrow.grower.settings import PASSES_OF_STEP, GrowerSettings
from splitgrow.grower.when import Moment, When
from splitgrow.grower.where import Where
from splitgrow.growth.multiply_adds import MacsCounter


def make_schedule(
    held: HeldModel,
    climb: Climb,
    settings: GrowerSettings,
    measure: MacsCounter,
    rules: tuple[When, Where],
    *,
    moves: bool,
) -> Schedule:
    """The whole plan of a policy.

    Args:
        held: The model.
        climb: Its changes, planned.
        settings: The settings of the policy.
        measure: Measures the model's multiply-adds.
        rules: When and where it changes.
        moves: Whether units move from layer to layer.
    """
    when, where = rules
    graph = held.history.graph
    parts = {name: growing_part(graph, graph.nodes[name]) for name in climb.goals}
    factors = {round((climb.goals[n] - still) / own, 9) for n, (still, own) in parts.items()}
    way = settings.fit.initializer.way
    changes = (change_of(rung.request, way) for rung in climb.rungs)
    counts = [measure.macs, *measure.after(changes)]
    parameters = sum(parameter.numel() for parameter in held.model.parameters())
    a_step = PASSES_OF_STEP * measure.samples * held.processes
    moments = [
        Moment("before training", step=0, macs=0),
        *(when.moment(n + 1) for n in range(len(climb.rungs))),
    ]
    spent = _spent(moments, [a_step * count for count in counts])
    now = {layer.name: layer.width for layer in held.handle.layers}
    stages = [PlannedGrowth(0, moments[0].words, 0, {}, {}, now, parameters, counts[0], 0)]
    for index, rung in enumerate(climb.rungs, 1):
        parameters += rung.parameters
        widths = {name: rung.widths.get(name, width) for name, width in now.items()}
        stages.append(
            PlannedGrowth(
                index=index,
                moment=moments[index].words,
                step=moments[index].step,
                request=rung.request,
                targets={name: widths[name] for name in climb.goals},
                widths=widths,
                parameters=parameters,
                macs=counts[index],
                macs_spent=next(spent),
            )
        )
    return Schedule(
        start=stages[0],
        growths=tuple(stages[1:]),
        factor=factors.pop() if len(factors) == 1 else None,
        at_most=where.chooses,
        moves=moves,
        left=dict(climb.candidates.left),
    )


def _spent(moments: list[Moment], costs: list[int]) -> Iterator[int | None]:
    """The multiply-adds of the training at each growth, where that is known.

    Args:
        moments: The start, and the moment of each growth.
        costs: The multiply-adds of a training step at the start and after each growth.
    """
    total: int | None = 0
    for before, moment, cost in zip(moments, moments[1:], costs, strict=False):
        if moment.macs is not None:
            total = moment.macs
        elif total is None or before.step is None or moment.step is None:
            total = None
        else:
            total += cost * (moment.step - before.step)
        yield total

"""The comparison of networks at equal arithmetic, in words and as tables."""

from __future__ import annotations

from collections.abc import Iterator

from splitgrow.cli.grow_settings import GrowSettings
from splitgrow.cli.screen_tables import ScreenTable
from splitgrow.demos.arm_results import GROWN, LARGE, ArmGrowth, GrowResult, Lead
from splitgrow.demos.augmentation import augmented
from splitgrow.demos.tables import what
from splitgrow.grower.planned_growth import shortened
from splitgrow.grower.schedule import Schedule, plan_head, plan_left, plan_moments, plan_widths

ARM_HEAD = (
    "network",
    "test accuracy",
    "test loss",
    "parameters",
    "multiply-adds",
    "steps",
    "processor seconds",
)
_DROPS = {"test loss": 1, "steps": 2, "processor seconds": 3}
"""The columns that stay away on narrow screens, and in which order."""


def growth(event: ArmGrowth) -> str:
    """One line on a growth, as it happens."""
    before, after = event.parameters
    return (
        f"grown at step {event.step:,}: {what(event.edit)}, {before:,} -> {after:,} parameters,"
        f" in {event.growing:.2f} s"
    )


def arm_rows(result: GrowResult) -> list[tuple[str, ...]]:
    """The cells below `ARM_HEAD`."""
    return [
        (
            arm.arm,
            f"{arm.accuracy:.2%}",
            f"{arm.loss:.4f}",
            f"{arm.parameters:,}",
            shortened(arm.macs),
            f"{arm.steps:,}",
            f"{arm.seconds:.1f}",
        )
        for arm in result.arms
    ]


def arms(result: GrowResult) -> ScreenTable:
    """The three networks in the end."""
    table = ScreenTable(f"{result.dataset}: three networks, each trained for the same arithmetic")
    for name in ARM_HEAD:
        drop = _DROPS.get(name, 0)
        table.add_column(name, "name" if name == "network" else "number", drop)
    for row in arm_rows(result):
        table.add_row(*row)
    return table


def plan_parts(plan: Schedule) -> Iterator[ScreenTable | str]:
    """A plan, before any training: a line, tables and lines."""
    yield plan_head(plan)
    head, *rows = plan_moments(plan)
    table = ScreenTable()
    table.add_column(head[0])
    table.add_column(head[1])
    for name in head[2:]:
        table.add_column(name, "number")
    for row in rows:
        table.add_row(*row)
    yield table
    head, *rows = plan_widths(plan)
    table = ScreenTable()
    table.add_column(head[0], "name")
    for at, name in enumerate(head[1:]):
        between = 0 < at < len(head) - 2
        table.add_column(name, "number", drop=at if between else 0)
    for row in rows:
        table.add_row(*row)
    yield table
    yield from plan_left(plan)


def plan_lines(result: GrowResult) -> list[tuple[str, ...]]:
    """The cells below `PLAN_HEAD`."""
    start = result.plan.start
    rows: list[tuple[str, ...]] = [
        ("start", start.moment, "", "", f"{start.parameters:,}", shortened(start.macs))
    ]
    for stage, event in zip(result.plan.growths, _events(result), strict=True):
        if event is None:
            rows.append((str(stage.index), stage.moment, "did not come", "", "", ""))
            continue
        rows.append(
            (
                str(stage.index),
                stage.moment,
                f"{event.step:,}",
                f"{event.macs / result.macs:.1%}",
                f"{event.parameters[1]:,}",
                shortened(event.macs_an_image),
            )
        )
    return rows


PLAN_HEAD = (
    "growth",
    "planned",
    "after step",
    "arithmetic by then",
    "parameters",
    "multiply-adds of an image",
)


def _events(result: GrowResult) -> list[ArmGrowth | None]:
    """The event of each planned growth, in order; None for one that gains nothing or did not come.

    A growth in which no layer gains a unit passes without an event.
    """
    left = list(result.growths)
    return [left.pop(0) if stage.request and left else None for stage in result.plan.growths]


def width_rows(result: GrowResult) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The head and the rows of a table of widths: before, in the plan, and in the end."""
    stages = result.plan.stages
    planned = [f"after growth {stage.index}" for stage in stages[1:]]
    head = ("layer", "start", *planned, "grown, in the end", "large")
    grown, large = result.arm(GROWN).widths, result.arm(LARGE).widths
    rows = [
        (name, *(f"{s.widths[name]:,}" for s in stages), f"{grown[name]:,}", f"{large[name]:,}")
        for name in stages[0].widths
    ]
    return head, rows


def verdict(result: GrowResult) -> str:
    """Which network is ahead, by how much, and how little one run says; whichever it is."""
    words = [
        f"{_lead(lead)} the {lead.other} one ({result.arm(lead.other).accuracy:.2%})"
        for lead in result.leads
    ]
    unsure = [lead.other for lead in result.leads if 0 < abs(lead.points) < 2 * lead.standard_error]
    told = [
        f"At equal multiply-adds the grown network ({result.arm(GROWN).accuracy:.2%} of"
        f" {result.images[1]:,} test images) ends {' and '.join(words)}.",
        "Behind ± is the standard error over the test images.",
    ]
    if unsure:
        differences = "Both differences are" if unsure[1:] else "The second difference is"
        if [lead.other for lead in result.leads[:1]] == unsure:
            differences = "The first difference is"
        told.append(f"{differences} below two of them, and may be chance.")
    taken = [f"{arm.seconds:.1f} s for the {arm.arm} one" for arm in result.arms]
    told.append(f"Training took {', '.join(taken[:-1])} and {taken[-1]}.")
    told.append("Another seed moves such differences too: one run says little.")
    came, planned = len(result.growths), sum(1 for g in result.plan.growths if g.request)
    if came < planned and not result.plan.at_most:
        told.append(
            f"Only {came} of {planned} growths came before the arithmetic was spent, so the grown "
            f"network is smaller than the large one."
        )
    if result.settings.freeze:
        told.append(
            "This run froze all that existed at the first growth (--freeze). That is growing "
            "without forgetting, and not for growing towards a size: without --freeze everything "
            "trains on."
        )
    return " ".join(told)


def _lead(lead: Lead) -> str:
    if not lead.points:
        return f"level (±{lead.standard_error:.2f} points) with"
    word = "ahead of" if lead.points > 0 else "behind"
    return f"{abs(lead.points):.2f} ±{lead.standard_error:.2f} points {word}"


def epochs(settings: GrowSettings) -> str:
    """The training of the large network, in words."""
    plural = "" if settings.epochs == 1 else "s"
    return f"{settings.epochs} epoch{plural} of the large network"


def remarks(result: GrowResult) -> list[str]:
    """All that a reader has to know of the run besides, a sentence or two each."""
    settings = result.settings
    growing = sum(event.growing for event in result.growths)
    told = [
        f"The arithmetic is that of {epochs(settings)}: "
        f"{shortened(result.macs)} multiply-adds, three forward passes for each image and step. "
        f"Each network stops at the step that is nearest. Seconds are processor time of training, "
        f"of all threads together; {growing:.1f} of the grown network's are for growing itself.",
        "All networks start from scratch by the same rule, the `reset_parameters` of each layer, "
        f"and see the images in one order, with a peak learning rate of {settings.learning_rate:g} "
        "and one cycle of the rate. Other rates suit other sizes.",
    ]
    if result.settings.augment:
        told.append(f"{augmented(result.settings.augment)}, alike for all networks.")
    if result.redrawn:
        named = ", ".join(result.redrawn[:4]) + (", ..." if result.redrawn[4:] else "")
        told.append(
            f"No `reset_parameters` initialises {named}: drawn from a normal distribution with the "
            f"mean and deviation that they came with."
        )
    if result.plan.at_most:
        told.append(
            "A score chose the layers. The large network has the widths that the grown one ended "
            "with; the arithmetic is that of the largest network that the plan allows."
        )
    if result.settings.freeze:
        told.append(
            "A step of the grown network counts as three forward passes also where frozen layers "
            "need less."
        )
    if result.held_out:
        told.append(
            f"{result.held_out:,} training images are held out to decide when to grow. Looking at "
            f"them counts neither as arithmetic nor as time."
        )
    return told

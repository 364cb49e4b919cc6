"""The demos as the commands show them: how each is run, and how each part is presented."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from splitgrow.cli.grow_settings import RESIDUAL, GrowSettings
from splitgrow.cli.settings import DemoSettings, suited_width
from splitgrow.demos import arm_tables, deeper, demo, growing, progressive, tables
from splitgrow.demos.bars import ArmBars, Bars, ClassifierBars, LevelBars
from splitgrow.demos.chosen_network import RESIDUAL_WIDTH, MakeNetwork, network_maker
from splitgrow.demos.datasets import Dataset
from splitgrow.demos.deeper_report import write_deeper_report
from splitgrow.demos.grow_report import write_grow_report
from splitgrow.demos.networks import stages_for
from splitgrow.demos.progressive_report import write_progressive_report
from splitgrow.demos.report import write_report
from splitgrow.demos.results import DeeperResult, Outcome, ProgressiveResult, Result
from splitgrow.demos.training import Watch


@dataclass(frozen=True)
class DemoView:
    """A demo, and how it is shown.

    Attributes:
        run: Runs it on some data, with its settings.
        settings: Its settings for some data, from the chosen options.
        bars: Makes its progress bars, from the console and its settings.
        report: Writes the report into a folder; returns its path.
        details: Are printed at the end, unless `--quiet` is given.
        results: Are printed at the end.
        broken: The broken promise of growth; empty if it kept all.
    """

    run: Callable[[Dataset, Any, Watch], Any]
    settings: Callable[[Dataset, Mapping[str, Any]], Any]
    bars: Callable[[Console, Any], Bars]
    report: Callable[[Any, Path], Path]
    details: Callable[[Any], Sequence[RenderableType]]
    results: Callable[[Any], Sequence[RenderableType]]
    broken: Callable[[Any], str]


def _wider_details(result: Result) -> Sequence[RenderableType]:
    return tables.edits(result.growths), tables.recoveries(result.recoveries)


def _deeper_details(result: DeeperResult) -> Sequence[RenderableType]:
    return (
        tables.edits(result.growths),
        tables.deepenings(result.growths),
        tables.recoveries(result.recoveries),
    )


def _classifier_results(result: Outcome) -> Sequence[RenderableType]:
    speed = tables.speed(result.measurements)
    return tables.measurements(result), speed, tables.fusion(result)


def _deeper_results(result: DeeperResult) -> Sequence[RenderableType]:
    return *_classifier_results(result), tables.removed_identities(result.vanished)


def _lost(result: Outcome) -> str:
    if all(recovery.exact for recovery in result.recoveries):
        return ""
    return "an old network was not recovered bit for bit"


def _moved(result: ProgressiveResult) -> str:
    if not all(growth.exact for growth in result.growths):
        return "growth changed what the network gives"
    return "" if result.fusion.old_path_gone else "the old path is still in the fused network"


def _phases(
    count: Callable[[Dataset], int],
) -> Callable[[Dataset, Mapping[str, Any]], DemoSettings]:
    """Makes the settings of a demo with so many phases of training."""

    def settings(dataset: Dataset, chosen: Mapping[str, Any]) -> DemoSettings:
        images, side = len(dataset.x_train), max(dataset.size)
        return DemoSettings.suited_to(images, side, phases=count(dataset), **chosen)

    return settings


def grow_view(make: MakeNetwork) -> DemoView:
    """The comparison of a network that grows with the large one from the start."""
    return DemoView(
        run=lambda dataset, settings, watch: growing.run(make, dataset, settings, watch),
        settings=lambda dataset, chosen: GrowSettings.suited_to(len(dataset.x_train), **chosen),
        bars=lambda console, _: ArmBars(console),
        report=write_grow_report,
        details=lambda _: (),
        results=lambda result: (arm_tables.arms(result), arm_tables.verdict(result)),
        broken=lambda _: "",
    )


def _growing_settings(dataset: Dataset, chosen: Mapping[str, Any]) -> GrowSettings:
    """The options of the demo as those of `splitgrow grow`; a width is one of channels there."""
    given = {name: value for name, value in chosen.items() if name != "by"}
    channels = given.pop("width") or suited_width(max(dataset.size))
    given |= {"network": RESIDUAL, "width": channels / RESIDUAL_WIDTH}
    return GrowSettings.suited_to(len(dataset.x_train), **given)


VIEWS = {
    "wider": DemoView(
        run=demo.run,
        settings=_phases(lambda _: 1 + demo.GENERATIONS),
        bars=lambda console, settings: ClassifierBars(console, settings.epochs),
        report=write_report,
        details=_wider_details,
        results=_classifier_results,
        broken=_lost,
    ),
    "deeper": DemoView(
        run=deeper.run,
        settings=_phases(lambda dataset: 1 + len(deeper.changes(stages_for(dataset.size)))),
        bars=lambda console, settings: ClassifierBars(console, settings.epochs),
        report=write_deeper_report,
        details=_deeper_details,
        results=_deeper_results,
        broken=_lost,
    ),
    "progressive": DemoView(
        run=progressive.run,
        settings=_phases(lambda dataset: 1 + 2 * progressive.levels_for(dataset.size)),
        bars=lambda console, settings: LevelBars(console, settings.epochs),
        report=write_progressive_report,
        details=lambda result: (tables.level_growths(result.growths),),
        results=lambda result: (tables.levels(result), tables.fade_fusion(result)),
        broken=_moved,
    ),
    "grow": replace(grow_view(network_maker(RESIDUAL)), settings=_growing_settings),
}

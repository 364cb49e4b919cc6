"""The three demos as `splitgrow demo` shows them: their modules, and how each part is presented."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console, RenderableType

from splitgrow.demos import deeper, demo, progressive, tables
from splitgrow.demos.bars import Bars, ClassifierBars, LevelBars
from splitgrow.demos.datasets import Dataset
from splitgrow.demos.deeper_report import write_deeper_report
from splitgrow.demos.networks import stages_for
from splitgrow.demos.progressive_report import write_progressive_report
from splitgrow.demos.report import write_report
from splitgrow.demos.results import DeeperResult, Outcome, ProgressiveResult, Result


@dataclass(frozen=True)
class DemoView:
    """A demo, and how it is shown.

    Attributes:
        module: Where its `run` is.
        phases: The number of phases of training that it has on some data.
        bars: Makes its progress bars.
        report: Writes the report into a folder; returns its path.
        details: Are printed at the end, unless `--quiet` is given.
        results: Are printed at the end.
        broken: The broken promise of growth; empty if it kept all.
    """

    module: ModuleType
    phases: Callable[[Dataset], int]
    bars: Callable[[Console, int], Bars]
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
    return tables.measurements(result), tables.fusion(result)


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


VIEWS = {
    "wider": DemoView(
        module=demo,
        phases=lambda _: 1 + demo.GENERATIONS,
        bars=ClassifierBars,
        report=write_report,
        details=_wider_details,
        results=_classifier_results,
        broken=_lost,
    ),
    "deeper": DemoView(
        module=deeper,
        phases=lambda dataset: 1 + len(deeper.changes(stages_for(dataset.size))),
        bars=ClassifierBars,
        report=write_deeper_report,
        details=_deeper_details,
        results=_deeper_results,
        broken=_lost,
    ),
    "progressive": DemoView(
        module=progressive,
        phases=lambda dataset: 1 + 2 * progressive.levels_for(dataset.size),
        bars=LevelBars,
        report=write_progressive_report,
        details=lambda result: (tables.level_growths(result.growths),),
        results=lambda result: (tables.levels(result), tables.fade_fusion(result)),
        broken=_moved,
    ),
}

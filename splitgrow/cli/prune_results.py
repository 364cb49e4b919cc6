"""The result of `splitgrow prune`, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click
from rich.console import RenderableType
from torch import nn

from splitgrow.cli import consoles
from splitgrow.cli.prune_settings import PruneFiles, PruneOptions
from splitgrow.cli.screen_tables import ScreenTable, fits_filter, unfitting
from splitgrow.cli.showing import Shown
from splitgrow.growth.edits import Edit
from splitgrow.growth.growable_class import original_class
from splitgrow.pruning.report import PruningReport, report


@dataclass(frozen=True)
class ModelSize:
    """The size of a model.

    Attributes:
        parameters: The number of its parameters.
        megabytes: What these and its buffers take, in units of 10**6 bytes.
    """

    parameters: int
    megabytes: float

    @classmethod
    def of(cls, model: nn.Module) -> ModelSize:
        """The size that a model has now."""
        parameters = [*model.parameters()]
        taken = sum(each.nbytes for each in (*parameters, *model.buffers()))
        return cls(sum(each.numel() for each in parameters), taken / 1e6)


@dataclass(frozen=True)
class PruneAccuracy:
    """The shares of test images that a classifier gets right.

    Attributes:
        images: The number of these images.
        before: The share before pruning.
        pruned: The share after each step.
        trained: The share after the training that followed each step; empty without.
    """

    images: int
    before: float
    pruned: tuple[float, ...]
    trained: tuple[float, ...] = ()


@dataclass(frozen=True)
class PruneResult:
    """A pruned model, and the way to it.

    Attributes:
        target: Where the model came from.
        model: The model.
        options: How it was pruned.
        before: Its size before.
        after: Its size now.
        edits: What has gone, step by step.
        accuracy: How well it does, if there were data.
    """

    target: str
    model: nn.Module
    options: PruneOptions
    before: ModelSize
    after: ModelSize
    edits: tuple[Edit, ...]
    accuracy: PruneAccuracy | None = None

    @property
    def report(self) -> PruningReport:
        """The changes of widths."""
        return report(self.edits)


def show_pruned(result: PruneResult, files: PruneFiles, shown: Shown, *, plan: bool) -> None:
    """Prints a result: as tables, as JSON, or only the paths of the files."""
    names = [row.layer for row in result.report.rows] if result.edits else []
    problem = unfitting(names, shown.patterns)
    if problem and names and not shown.quiet:
        click.echo(problem, err=True)
    if shown.as_json:
        document = _document(result, files, plan=plan)
        document["layers"] = [
            row for row in document["layers"] if fits_filter(row["layer"], shown.patterns)
        ]
        click.echo(json.dumps(document, indent=1))
        return
    if shown.quiet:
        for path in (files.out, files.picture if result.edits else None):
            if path is not None:
                click.echo(str(path))
        return
    console = consoles.results()
    for part in _parts(result, shown.patterns):
        console.print(part)
    for line in _ends(result, files, plan=plan):
        console.print(line, soft_wrap=True)


def accuracies(accuracy: PruneAccuracy, step: int) -> str:
    """The accuracy after a step, and after the training that followed."""
    trained = f" -> {accuracy.trained[step]:.1%} trained" if accuracy.trained else ""
    return f"{accuracy.pruned[step]:.1%} pruned{trained}"


def _parts(result: PruneResult, patterns: Sequence[str]) -> Iterator[RenderableType]:
    options, before, after = result.options, result.before, result.after
    name = original_class(result.model).__name__
    if not result.edits:
        yield f"{name} meets the target already: nothing goes"
        return
    first, *others = result.report.heads
    yield f"{name}, by the criterion {options.criterion}: {first}"
    yield from others
    yield _widths(result).filtered(patterns)
    yield (
        f"parameters: {before.parameters:,} -> {after.parameters:,}"
        f" ({after.parameters / before.parameters:.1%}),"
        f" {before.megabytes:,.2f} MB -> {after.megabytes:,.2f} MB"
    )
    if result.accuracy is None:
        return
    own = result.accuracy
    head = f"accuracy on {own.images:,} test images: {own.before:.1%} before"
    if len(result.edits) == 1:
        yield f"{head} -> {accuracies(own, 0)}"
        return
    yield head
    yield _steps(result, own)


def _widths(result: PruneResult) -> ScreenTable:
    table = ScreenTable()
    head, *rows = result.report.table
    table.add_column(head[0], "name")
    table.add_column(head[1], "name", drop=1)
    for name in head[2:]:
        table.add_column(name, "number")
    for row in rows:
        table.add_row(*row)
    return table


def _steps(result: PruneResult, accuracy: PruneAccuracy) -> ScreenTable:
    trained = accuracy.trained
    table = ScreenTable()
    for name in (
        "step",
        "parameters",
        "multiply-adds",
        "pruned",
        *(["trained"] if trained else ()),
    ):
        table.add_column(name, "number")
    left = result.before.parameters
    for step, edit in enumerate(result.edits):
        left -= sum(removal.parameters for removal in edit.removed)
        macs = "" if edit.macs is None else f"{edit.macs[1]:,}"
        row = (str(step + 1), f"{left:,}", macs, f"{accuracy.pruned[step]:.1%}")
        table.add_row(*row, *([f"{trained[step]:.1%}"] if trained else ()))
    return table


def _ends(result: PruneResult, files: PruneFiles, *, plan: bool) -> list[str]:
    """The files that were written, and the way on."""
    found = []
    if files.out is not None:
        found = [
            f"{files.out}: the smaller model, by splitgrow.save; make it plain by",
            f"  splitgrow export {result.target} {files.out} plain.pt2",
        ]
    elif plan and result.options.epochs and len(result.edits) > 1:
        found = ["a plan: nothing is written; after training, later steps may take other units"]
    elif plan:
        found = ["a plan: nothing is written"]
    else:
        found = ["nothing is written: --out FILE keeps the smaller model"]
    if files.picture is not None and result.edits:
        found.append(f"{files.picture}: the widths before and after")
    return found


def _document(result: PruneResult, files: PruneFiles, *, plan: bool) -> dict[str, Any]:
    told = result.report if result.edits else None
    options = {**asdict(result.options), "except": result.options.except_}
    del options["except_"]
    return {
        "version": 1,
        "model": original_class(result.model).__name__,
        "options": options,
        "plan": plan,
        "before": asdict(result.before),
        "after": asdict(result.after),
        "macs": None if told is None or told.macs is None else list(told.macs),
        "layers": [] if told is None else [asdict(row) for row in told.rows],
        "steps": [
            {
                "parameters": -sum(removal.parameters for removal in edit.removed),
                "macs": None if edit.macs is None else list(edit.macs),
                "moved": edit.moved,
            }
            for edit in result.edits
        ],
        "accuracy": None if result.accuracy is None else asdict(result.accuracy),
        "out": None if files.out is None else str(files.out),
        "picture": None if files.picture is None else str(files.picture),
    }

"""Writes the report of a run."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from splitgrow.cli.continual_settings import RunSettings
from splitgrow.demos import pages
from splitgrow.demos.augmentation import augmented
from splitgrow.demos.continual import figures
from splitgrow.demos.continual.comparison import duration
from splitgrow.demos.continual.outcome import RunOutcome


def write_report(outcome: RunOutcome, folder: Path) -> Path:
    """Writes matrix.png, growth.png and report.html into `folder`.

    Returns:
        The path of the HTML file.
    """
    drawings = {
        "matrix": pages.Drawing(
            lambda theme: figures.matrix(outcome, theme),
            "The test accuracy of every task after each task was learned, as a matrix",
        ),
        "growth": pages.Drawing(
            lambda theme: figures.growth(outcome, theme),
            "Accuracy and number of weights over the tasks",
        ),
    }
    title = f"splitgrow continual: {outcome.settings.method} on {outcome.dataset}"
    return pages.write_page(folder, title, drawings, lambda images: _body(outcome, images))


def _body(outcome: RunOutcome, images: dict[str, str]) -> str:
    settings = outcome.settings
    train, test = outcome.images
    remembered = all(outcome.unchanged)
    verdict = pages.yes_or_no(
        "the same as when it was learned, bit for bit" if remembered else "others by now",
        good=remembered,
    )
    return f"""<h1>{len(outcome.tasks)} tasks learned by {escape(settings.method)}</h1>
<p class="soft">{escape(outcome.dataset)}: {train:,} training and {test:,} test images in
{len(outcome.tasks)} tasks ({escape(settings.split)}); {escape(settings.backbone)} of width
{settings.width:g}, {settings.epochs} epochs, seed {settings.seed}, {duration(outcome.seconds)}
of learning. Decisions were made on {settings.decide_on} data{_warning(settings.decide_on)}.
{_origins(settings)}</p>

<h2>In the end</h2>
{_summary(outcome)}
<p>After the last task, the outputs of every task's network are {verdict}.</p>

<h2>Accuracy of each task over time</h2>
<figure>{images["matrix"]}
<figcaption>A row after each task, a column for each task. A column that keeps its colour
downwards is a task that is not forgotten.</figcaption></figure>

<h2>Accuracy and size</h2>
<figure>{images["growth"]}
<figcaption>Accuracies on test data; weights as multiples of those that the network had at
first.</figcaption></figure>

<h2>The tasks</h2>
{_tasks(outcome)}

<h2>Their networks, made plain</h2>
<p>Every task's network is a plain model of its own. Units that nothing reads or that are always
zero are then taken out. The last task's, with all of its units, is the whole network: it has
{outcome.networks[-1].parameters:,} parameters.</p>
{_networks(outcome)}"""


def _origins(settings: RunSettings) -> str:
    """Where the first weights came from, and how images were changed."""
    told = [f"{augmented(settings.augment)}."] if settings.augment else []
    if settings.checkpoint:
        told.append(f"The first weights came from {escape(settings.checkpoint)}.")
    return " ".join(told)


def _warning(decide_on: str) -> str:
    return ", so the accuracies flatter" if decide_on == "test" else ""


def _summary(outcome: RunOutcome) -> str:
    rows = (
        ("mean test accuracy of all tasks", f"{outcome.mean_accuracy:.2%}"),
        ("of every task when it was learned", f"{outcome.learned_accuracy:.2%}"),
        ("forgotten, on average", f"{outcome.forgetting:.2%}"),
        ("weights, as multiples of one network's", f"{outcome.expansion:.2f}"),
        ("all tasks' networks, masks counted", f"{outcome.tasks[-1].bytes / 1e6:.2f} MB"),
    )
    return pages.table(("", ""), rows, numbers=(1,))


def _tasks(outcome: RunOutcome) -> str:
    rows = (
        (
            escape(task.name),
            f"{row[-1]:.1%}",
            f"{last:.1%}",
            f"{task.decided:.1%}",
            f"{task.weights:,}",
            f"{task.shared / outcome.first_weights:.2f}",
            duration(task.seconds),
            escape(_details(task.details)),
        )
        for task, row, last in zip(
            outcome.tasks, outcome.accuracy, outcome.accuracy[-1], strict=True
        )
    )
    head = (
        "task",
        "learned",
        "in the end",
        "decided by",
        "weights used",
        "expansion",
        "time",
        "details",
    )
    return pages.table(head, rows, numbers=range(1, 7))


def _details(details: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in details.items()
    )


def _networks(outcome: RunOutcome) -> str:
    rows = (
        (
            escape(each.task),
            f"{each.parameters:,}",
            f"{each.compact:,}",
            f"{each.whole_milliseconds:.2f}",
            f"{each.milliseconds:.2f}",
            f"{each.compact_milliseconds:.2f}",
            f"{each.difference:.0e}",
        )
        for each in outcome.networks
    )
    head = (
        "task",
        "parameters",
        "without dead units",
        "ms a batch: whole",
        "this",
        "without dead units",
        "difference",
    )
    return pages.table(head, rows, numbers=range(1, 7))

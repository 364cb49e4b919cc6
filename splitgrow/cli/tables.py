"""The demo's results as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from splitgrow.cli.datasets import Dataset
from splitgrow.cli.results import Growth, Recovery, Result


def summary(dataset: Dataset) -> str:
    """One line on the data."""
    height, width = dataset.size
    colour = "grey" if dataset.channels == 1 else "colour"
    return (
        f"{dataset.name}: {len(dataset.x_train):,} training and {len(dataset.x_test):,} test"
        f" images, {width}x{height}, {colour}, {len(dataset.classes)} classes"
    )


def growth(event: Growth) -> str:
    """One line on a growth, as it happens."""
    edit = event.edit
    return (
        f"grown at step {event.step:,}: {sum(edit.request.values())} units,"
        f" {edit.parameters:,} parameters; largest change of a test logit {event.disturbance:.1e}"
    )


def edits(growths: Sequence[Growth]) -> Table:
    """What each edit did to each layer."""
    table = _table("The edits")
    for name in ("edit", "generation", "layer", "type"):
        table.add_column(name, justify="left" if name in ("layer", "type") else "right")
    for name in ("units", "inputs", "parameters added"):
        table.add_column(name, justify="right")
    for event in growths:
        for at, change in enumerate(event.edit.changes):
            first = at == 0
            table.add_row(
                str(event.edit.index) if first else "",
                str(event.edit.generation) if first else "",
                change.name,
                change.kind,
                arrow(change.width),
                arrow(change.in_width),
                f"{change.parameters:,}",
            )
        table.add_row("", "", "together", "", "", "", f"{event.edit.parameters:,}", style="bold")
        table.add_section()
    return table


def arrow(sizes: tuple[int, int]) -> str:
    """A size before and after, as one number where nothing changed.

    >>> arrow((8, 12)), arrow((8, 8))
    ('8 -> 12', '8')
    """
    return f"{sizes[0]} -> {sizes[1]}" if sizes[0] != sizes[1] else str(sizes[0])


def recoveries(rows: Sequence[Recovery]) -> Table:
    """Whether the old networks are still there."""
    table = _table("The old networks, run again at the end")
    table.add_column("generation", justify="right")
    table.add_column("test accuracy", justify="right")
    table.add_column("logits, compared with those when it was closed")
    for row in rows:
        different = f"differ by up to {row.largest_difference:.1e}"
        table.add_row(
            str(row.generation),
            f"{row.accuracy:.2%}",
            "the same, bit for bit" if row.exact else different,
            style=None if row.exact else "bold red",
        )
    return table


def measurements(result: Result) -> Table:
    """The networks before growth, grown and fused."""
    table = _table(f"{result.dataset}: before growth, grown and fused")
    table.add_column("network")
    for name in ("test accuracy", "parameters", f"ms per batch of {result.settings.batch_size}"):
        table.add_column(name, justify="right")
    for row in result.measurements:
        table.add_row(
            row.network, f"{row.accuracy:.2%}", f"{row.parameters:,}", f"{row.milliseconds:.2f}"
        )
    return table


def fusion(result: Result) -> str:
    """One line on how near the fused network is to the grown one."""
    return (
        f"Largest difference of a logit, fused and grown: {result.fused_difference:.1e}"
        f" (largest logit {result.largest_logit:.1f}). {result.seconds:.0f} s in all."
    )


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")

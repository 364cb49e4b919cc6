"""The demos' results as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from splitgrow.cli.screen_tables import ScreenTable
from splitgrow.demos.datasets import Dataset
from splitgrow.demos.results import (
    Deepening,
    Growth,
    LevelGrowth,
    Measurement,
    Outcome,
    ProgressiveResult,
    Recovery,
    RemovedIdentity,
)
from splitgrow.growth.edits import Edit


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
        f"grown at step {event.step:,}: {what(edit)},"
        f" {edit.parameters:,} parameters; largest change of a test logit {event.disturbance:.1e}"
    )


def level_growth(event: LevelGrowth) -> str:
    """One line on a growth in resolution, as it happens."""
    change = "unchanged, bit for bit" if event.exact else f"changed by {event.disturbance:.1e}"
    return (
        f"grown at step {event.step:,}: to {event.resolution}x{event.resolution} pixels,"
        f" {event.parameters:,} parameters; the reconstructions {change}"
    )


def what(edit: Edit) -> str:
    """The change by an edit, in a few words."""
    if edit.inserted:
        return ", ".join(
            f"{item.kind} {'in front of' if item.before else 'behind'} {place_of(item.host)}"
            for item in edit.inserted
        )
    if edit.joined:
        return f"blocks of {len(edit.joined)} layers joined"
    if edit.absorbed:
        return f"{len(edit.absorbed)} layers made plain"
    if edit.removed_layers:
        return f"{', '.join(item.name for item in edit.removed_layers)} taken out"
    count = sum(edit.request.values())
    units = f"{abs(count)} unit{'s' if abs(count) != 1 else ''}"
    how = "fewer" if edit.removed else "more"
    if len(edit.request) == 1:
        return f"{units} {how} in {next(iter(edit.request))}"
    return f"{units} {how}" if edit.removed else units


def place_of(host: str) -> str:
    """The path of a module, or of the model itself."""
    return host or "the model"


def edit_rows(edit: Edit) -> list[tuple[str, str, str, str, str]]:
    """An edit as rows: layer, type, units, inputs, parameters added.

    There is a row for each insertion, with its path now, and a row for each layer with joined
    blocks, with the edits of their origin.
    """
    rows = [
        (item.name, f"{item.kind}: {item.type}", f"{item.width}", "", f"{item.parameters:,}")
        for item in edit.inserted
    ]
    rows += [(item.name, f"joins {_edits_of(item.edits)}", "", "", "0") for item in edit.joined]
    rows += [(name, "made plain", "", "", "0") for name in edit.absorbed]
    rows += [
        (
            change.name,
            change.kind,
            arrow(change.width),
            arrow(change.in_width),
            f"{change.parameters:,}",
        )
        for change in edit.changes
    ]
    rows += [
        (item.name, item.kind, arrow(item.width), arrow(item.in_width), f"-{item.parameters:,}")
        for item in edit.removed
    ]
    rows += [
        (item.name, f"taken out: {item.type}", "", "", f"-{item.parameters:,}")
        for item in edit.removed_layers
    ]
    return rows


def _edits_of(numbers: Sequence[int]) -> str:
    """Numbers of edits, shortened where there are many of them.

    >>> _edits_of((1, 2, 5)), _edits_of((1, 2, 3, 4, 5))
    ('edits 1, 2, 5', '5 edits from 1 to 5')
    """
    if len(numbers) < 4:
        return f"edits {', '.join(map(str, numbers))}"
    return f"{len(numbers)} edits from {min(numbers)} to {max(numbers)}"


def edits(growths: Sequence[Growth]) -> ScreenTable:
    """The effect of each edit on each layer."""
    table = ScreenTable("The edits")
    table.add_column("edit", "number")
    table.add_column("generation", "number", drop=1)
    table.add_column("layer", "name")
    table.add_column("type", "name", drop=3)
    table.add_column("units", "number")
    table.add_column("inputs", "number", drop=2)
    table.add_column("parameters added", "number")
    for event in growths:
        rows = edit_rows(event.edit)
        for cells in rows:
            table.add_row(str(event.edit.index), str(event.edit.generation), *cells)
        if len(rows) > 1:
            table.add_row(
                "", "", "together", "", "", "", f"{event.edit.parameters:,}", style="bold"
            )
        table.add_section()
    return table


def arrow(sizes: tuple[int, int]) -> str:
    """A size before and after, as one number where nothing changed.

    >>> arrow((8, 12)), arrow((8, 8))
    ('8 -> 12', '8')
    """
    return f"{sizes[0]} -> {sizes[1]}" if sizes[0] != sizes[1] else str(sizes[0])


def recoveries(rows: Sequence[Recovery]) -> ScreenTable:
    """Whether the old networks are still there."""
    table = ScreenTable("The old networks, run again at the end")
    table.add_column("generation", "number")
    table.add_column("test accuracy", "number")
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


MEASURED = ("test accuracy", "parameters", "multiply-adds")
"""The columns of a network's measurements, but for its name and its time."""


def measured(row: Measurement) -> tuple[str, ...]:
    """A network's measurements, from its name to its time."""
    sizes = f"{row.parameters:,}", f"{row.macs:,}", f"{row.milliseconds:.2f}"
    return row.network, f"{row.accuracy:.2%}", *sizes


def measurements(result: Outcome) -> ScreenTable:
    """The networks before growth, grown and fused."""
    names = [row.network for row in result.measurements]
    table = ScreenTable(f"{result.dataset}: {', '.join(names[:-1])} and {names[-1]}")
    table.add_column("network", "name")
    for name in MEASURED:
        table.add_column(name, "number")
    table.add_column(f"ms per batch of {result.settings.batch_size}", "number")
    for row in result.measurements:
        table.add_row(*measured(row))
    return table


def speed(rows: Sequence[Measurement]) -> str:
    """How much of the time is arithmetic, and how much is overhead, of the networks in a table."""
    first, grown, fused = rows
    return (
        f"The {fused.network} network has {fused.macs / max(first.macs, 1):.2f} times the "
        f"multiply-adds of the one {first.network} and takes "
        f"{fused.milliseconds / first.milliseconds:.2f} times as long. The {grown.network} one, in "
        f"blocks, takes {grown.milliseconds / fused.milliseconds:.2f} times as long as the "
        f"{fused.network} one: for their calls and for putting weights together. The smaller a "
        f"network, the more that counts; fusing takes it away."
    )


def fusion(result: Outcome) -> str:
    """One line on how near the fused network is to the grown one."""
    return (
        f"Largest difference of a logit, fused and not: {result.fused_difference:.1e}"
        f" (largest logit {result.largest_logit:.1f}). {result.seconds:.0f} s in all."
    )


def deepenings(growths: Sequence[Deepening]) -> ScreenTable:
    """The network right before and right after each edit."""
    table = ScreenTable("The effect of each edit on the network, before any training")
    table.add_column("edit", "number")
    table.add_column("change")
    for name, drop in zip(DEEPENING_HEAD, (0, 2, 0, 3, 4), strict=False):
        table.add_column(name, "number", drop)
    table.add_column(DEEPENING_HEAD[-1], drop=1)
    for event in growths:
        table.add_row(str(event.edit.index), what(event.edit), *deepening_cells(event))
    return table


DEEPENING_HEAD = (
    "test accuracy",
    "test loss",
    "largest change of a logit",
    "depth",
    "parameters",
    "fused at once",
)


def deepening_cells(event: Deepening) -> tuple[str, ...]:
    """The cells below `DEEPENING_HEAD`."""
    before, after = event.fused_parameters
    return (
        _from_to(f"{value:.2%}" for value in event.accuracy),
        _from_to(f"{value:.4f}" for value in event.loss),
        f"{event.disturbance:.1e}" if event.disturbance else "none",
        arrow(event.depth),
        _from_to(f"{value:,}" for value in event.parameters),
        "nothing is left of it" if before == after else f"{after - before:,} more",
    )


def _from_to(texts: Iterable[str]) -> str:
    return " -> ".join(dict.fromkeys(texts))


def removed_identities(rows: Sequence[RemovedIdentity]) -> str:
    """One line on the layers that fusion removed."""
    named = ", ".join(f"{row.type} {row.merged} -> {row.fused}" for row in rows)
    return f"Removed by fusion: {named or 'nothing'}."


def level_growths(growths: Sequence[LevelGrowth]) -> ScreenTable:
    """The effect of growth in resolution, by itself, on the reconstructions."""
    table = ScreenTable("The growths, before any training")
    for name in ("step", "resolution", "parameters added"):
        table.add_column(name, "number")
    table.add_column("reconstructions, compared with the enlarged ones before")
    for event in growths:
        different = f"differ by up to {event.disturbance:.1e}"
        table.add_row(
            f"{event.step:,}",
            f"{event.resolution}x{event.resolution}",
            f"{event.parameters:,}",
            "the same, bit for bit" if event.exact else different,
            style=None if event.exact else "bold red",
        )
    return table


LEVEL_HEAD = ("level", "resolution", "parameters", "test error", "test error at full size")


def level_rows(result: ProgressiveResult) -> list[tuple[str, ...]]:
    """The cells below `LEVEL_HEAD`."""
    return [
        (
            str(level.level),
            f"{level.resolution}x{level.resolution}",
            f"{level.parameters:,}",
            f"{level.error:.4f}",
            f"{level.full_error:.4f}",
        )
        for level in result.levels
    ]


def levels(result: ProgressiveResult) -> ScreenTable:
    """The network at the end of each level."""
    table = ScreenTable(f"{result.dataset}: the autoencoder at the end of each level")
    for name in LEVEL_HEAD:
        table.add_column(name, "number")
    for row in level_rows(result):
        table.add_row(*row)
    return table


def fade_fusion(result: ProgressiveResult) -> str:
    """One line on the rest of the last fade after fusion."""
    fusion = result.fusion
    left = "the new path alone" if fusion.old_path_gone else "both paths"
    return (
        f"Fused at the end of the last fade, {left} is left: {fusion.both_paths:,} ->"
        f" {fusion.fused:,} parameters; largest difference of a pixel"
        f" {fusion.largest_difference:.1e} (largest pixel {fusion.largest_pixel:.1f})."
        f" {result.seconds:.0f} s in all."
    )

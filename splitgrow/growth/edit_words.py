"""Edits in words: the rows of their tables, and the notes below them."""

from __future__ import annotations

from collections.abc import Sequence

from splitgrow.growth.edit_parts import LayerChange, NumberChange, Removal

UNITS = 3
"""The column of the numbers of units."""
WAYS_IN_WORDS = {
    "zero": "new channels of the stream are zero at birth",
    "average": "new channels of the stream have the mean of the old ones at birth",
    "duplicate": "new channels of the stream have the values of the old ones in turn at birth",
}


def _arrow(sizes: tuple[float, float]) -> str:
    """A number before and after; one number if it stays."""
    return f"{sizes[0]} -> {sizes[1]}" if sizes[0] != sizes[1] else str(sizes[0])


def rows_of_changes(changes: Sequence[LayerChange]) -> list[tuple[str, ...]]:
    """The table of the layers that gain blocks, the head first."""
    rows = [("layer", "type", "inputs", "units", "blocks", "parameters")]
    for item in changes:
        sizes = _arrow(item.in_width), _arrow(item.width)
        rows.append(
            (item.name, item.kind, *sizes, " + ".join(item.blocks), f"+{item.parameters:,}")
        )
    return [*rows]


def rows_of_removals(removed: Sequence[Removal]) -> list[tuple[str, ...]]:
    """The table of the layers that lose channels, the head first."""
    rows = [("layer", "type", "inputs", "units", "parameters")]
    for item in removed:
        sizes = _arrow(item.in_width), _arrow(item.width)
        rows.append((item.name, item.kind, *sizes, f"-{item.parameters:,}"))
    return [*rows]


def number_in_words(change: NumberChange) -> str:
    """The change of a number that a module holds."""
    path = f"{change.module}.{change.attribute}".removeprefix(".")
    return f"{path}: {_arrow(change.value)}"

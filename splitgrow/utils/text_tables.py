"""Tables of text with aligned columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def aligned(table: Sequence[tuple[str, ...]], left: int | None = None) -> Iterator[str]:
    """A table's lines, indented by two.

    Args:
        table: The rows, the head first.
        left: The number of first columns that are aligned to the left; the others are aligned to
            the right. None for all.
    """
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        cells = (
            cell.ljust(width) if left is None or column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield ("  " + "  ".join(cells)).rstrip()

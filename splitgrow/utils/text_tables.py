"""Tables of text: with aligned columns, short enough for a screen, and as HTML for notebooks.

A record that is a :class:`Tabular` says what its table holds, and is shown alike everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

Rows = Sequence[tuple[str, ...]]
"""A table: rows of cells, the head first."""

ROWS_ON_SCREEN = 20
_CELL = 36
"""The characters of the longest cell on a screen."""


class Tabular:
    """A record that is shown as a table.

    ``print`` shows it whole, a console as much as fits a screen, a notebook with bars.
    """

    __slots__ = ()

    def _head(self) -> str:
        """The lines above the table."""
        raise NotImplementedError

    def _rows(self) -> Rows:
        """The rows, the head first; empty for no table."""
        raise NotImplementedError

    def _notes(self) -> Sequence[str]:
        """The lines below the table."""
        return ()

    def _bars(self) -> Mapping[int, Sequence[tuple[int, int]]]:
        """By column, the two numbers that a notebook draws for each row."""
        return {}

    def __str__(self) -> str:
        return text_of_table(self._head(), self._rows(), self._notes())

    def __repr__(self) -> str:
        return text_of_table(self._head(), self._rows(), self._notes(), most=ROWS_ON_SCREEN)

    def _repr_html_(self) -> str:
        return html_of_table(self._head(), self._rows(), self._notes(), self._bars())


def aligned(table: Rows, left: int | None = None) -> Iterator[str]:
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


def text_of_table(
    head: str,
    table: Rows,
    notes: Sequence[str] = (),
    *,
    most: int | None = None,
) -> str:
    """A table with lines above and below it.

    Args:
        head: The lines above it.
        table: The rows, the head first; empty for no table.
        notes: The lines below it, which are indented.
        most: The number of rows, and of notes, that fit a screen, whose cells are cut, too; None
            for all.
    """
    left_out = 0 if most is None else len(table) - 1 - most
    if most is not None:
        table = [tuple(map(_cut, row)) for row in table[: most + 1]]
        notes = [*notes[:most], *(["..."] if len(notes) > most else [])]
        head = "\n".join(_cut(line, 6 * _CELL) for line in head.split("\n")[:most])
    lines = [head, *(aligned(table) if table else ())]
    if left_out > 0:
        lines.append(f"  ... and {left_out} more; print() shows all")
    return "\n".join((*lines, *(f"  {note}" for note in notes)))


def _cut(cell: str, most: int = _CELL) -> str:
    """A text without its middle, if it is long."""
    if len(cell) <= most:
        return cell
    ends = (most - 3) // 2
    return f"{cell[:ends]}...{cell[-ends:]}"


def html_of_table(
    head: str,
    table: Rows,
    notes: Sequence[str] = (),
    bars: Mapping[int, Sequence[tuple[int, int]]] | None = None,
) -> str:
    """A table as HTML, for notebooks.

    Args:
        head: The lines above it.
        table: The rows, the head first; empty for no table.
        notes: The lines below it.
        bars: By column two numbers for each row, which are drawn: today's in front of the other.
    """
    bars = bars or {}
    largest = {column: max((max(pair) for pair in own), default=1) for column, own in bars.items()}
    above = "".join(f"<div>{escape(line)}</div>" for line in head.split("\n"))
    below = "".join(f"<div>{escape(note)}</div>" for note in notes)
    if not table:
        return above + below
    names = "".join(f'<th style="text-align:left">{escape(name)}</th>' for name in table[0])
    body = ""
    for number, row in enumerate(table[1:]):
        cells = (
            f'<td style="text-align:left">{escape(cell)}'
            + (_bar(*bars[column][number], largest[column]) if column in bars else "")
            + "</td>"
            for column, cell in enumerate(row)
        )
        body += f"<tr>{''.join(cells)}</tr>"
    return (
        f'{above}<div style="max-height:30em;overflow:auto"><table><thead><tr>{names}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{below}"
    )


def _bar(before: int, after: int, largest: int) -> str:
    """Two numbers as a bar: the smaller in front of the larger."""
    change = "#f58518" if after > before else "#ccc"
    parts = ((min(before, after), "#4c78a8"), (abs(after - before), change))
    drawn = "".join(
        f'<span style="display:inline-block;height:6px;width:{100 * size / max(largest, 1):.1f}%;'
        f'background:{color}"></span>'
        for size, color in parts
        if size
    )
    return f'<div style="width:8em;line-height:6px;white-space:nowrap">{drawn}</div>'

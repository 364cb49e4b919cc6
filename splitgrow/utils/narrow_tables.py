"""Tables laid out for a width: heads wrap at words, names lose letters, columns stay away."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

from splitgrow.utils.text_tables import cut

_INDENT, _GAP = "  ", "  "
_KEPT = {"name": 16, "names": 22, "text": 16}  # letters that a cell keeps, if it has as many
_FIRST = 26  # letters that the first column of names keeps: a row is known by it
_LEAST = 6  # letters that a cell keeps where nothing else helps


@dataclass(frozen=True)
class TableColumn:
    """A column of a table.

    Attributes:
        head: Its head, whose words are never broken.
        kind: What its cells are. A "number" stands on the right, and is never shortened. A "name"
            loses letters, but no two become one. "names" are a list, whose rest is counted. A
            "text" goes on in the next line.
        drop: When the column stays away for want of room: 1 for the first; 0 for never.
    """

    head: str
    kind: Literal["number", "name", "names", "text"] = "text"
    drop: int = 0


@dataclass(frozen=True)
class TableLayout:
    """A table for a width.

    Attributes:
        head: The lines of the head.
        rows: The lines of each row.
        left_out: The heads of the columns that stay away.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_out: tuple[str, ...]


def laid_out(
    columns: Sequence[TableColumn], rows: Sequence[Sequence[str]], width: int | None
) -> TableLayout:
    r"""A table for a width: first heads wrap, then cells lose letters, then columns stay away.

    Args:
        columns: The columns.
        rows: A cell for each column.
        width: The characters of a line; None for as many as it takes.

    Example:
        >>> columns = TableColumn("layer", "name"), TableColumn("parameters added", "number")
        >>> table = laid_out(columns, [("stages.0.layers.1.conv1", "1,728")], 30)
        >>> print("\n".join((*table.head, *table.rows[0])))
                            parameters
          layer                  added
          s.0.l.1.conv1          1,728
    """
    shown = list(range(len(columns)))
    while True:
        first = next((at for at in shown if columns[at].kind == "name"), None)
        fields = [
            _Field.of(columns[at], [row[at] for row in rows], first=at == first) for at in shown
        ]
        drops = [columns[at].drop for at in shown if columns[at].drop]
        widths, fit = _widths(fields, width, last=not drops)
        if fit or not drops:
            break
        shown = [at for at in shown if columns[at].drop != min(drops)]
    placed = [(at, columns[at], size) for at, size in zip(shown, widths, strict=True)]
    head = [[*_wrapped(column.head, size)][::-1] for _, column, size in placed]
    return TableLayout(
        tuple(reversed([*_lines(placed, head)])),
        tuple(
            tuple(_lines(placed, [_fitted(row[at], column, n) for at, column, n in placed]))
            for row in rows
        ),
        tuple(each.head for at, each in enumerate(columns) if at not in shown),
    )


def shortened_name(name: str, most: int) -> str:
    """A name with its first parts as a letter each, as many as it takes, and else cut.

    Example:
        >>> shortened_name("transformer.h.11.attn.c_attn", 20)
        't.h.11.attn.c_attn'
    """
    parts = name.split(".")
    for at, part in enumerate(parts[:-1]):
        if len(".".join(parts)) <= most:
            break
        parts[at] = part if part.isdigit() else part[:1]
    return cut(".".join(parts), most)


@dataclass(frozen=True)
class _Field:
    """The widths that a column may have."""

    whole: int  # nothing wraps
    wrapped: int  # the head wraps
    kept: int  # cells lose letters
    least: int  # where nothing else helps

    @classmethod
    def of(cls, column: TableColumn, cells: Sequence[str], *, first: bool) -> _Field:
        longest = max((len(cell) for cell in cells), default=0)
        word = max((len(each) for each in column.head.split()), default=0)
        if column.kind == "number":
            kept = least = longest
        else:
            kept = min(longest, _FIRST if first else _KEPT[column.kind])
            least = min(longest, _LEAST)
        if column.kind == "text":  # lines end between words
            word_in = max((len(each) for cell in cells for each in cell.split()), default=0)
            kept = max(kept, min(word_in, _FIRST))
        if column.kind == "name":
            kept, least = (_distinct(cells, size) for size in (kept, least))
        sizes = (max(longest, len(column.head)), longest, kept, least)
        return cls(*(max(size, word) for size in sizes))


def _distinct(cells: Sequence[str], most: int) -> int:
    """The letters, at least so many, with which cells that differ stay different."""
    different = len({*cells})
    while len({shortened_name(cell, most) for cell in cells}) < different:
        most += 1
    return most


def _widths(fields: Sequence[_Field], width: int | None, *, last: bool) -> tuple[list[int], bool]:
    """The width of each column, and whether they fit.

    Args:
        fields: The columns.
        width: The characters of a line.
        last: Whether no column may stay away any more.
    """
    widths = [each.whole for each in fields]
    if width is None:
        return widths, True
    room = width - len(_INDENT) - len(_GAP) * (len(fields) - 1)
    stages = [[each.wrapped for each in fields], [each.kept for each in fields]]
    for floors in (*stages, *([[each.least for each in fields]] if last else ())):
        while sum(widths) > room:
            free = [at for at, size in enumerate(widths) if size > floors[at]]
            if not free:
                break
            widths[max(free, key=lambda at: widths[at])] -= 1
    return widths, sum(widths) <= room


def _wrapped(text: str, width: int) -> Iterator[str]:
    yield from textwrap.wrap(text, width, break_on_hyphens=False) or [""]


def _fitted(cell: str, column: TableColumn, width: int) -> list[str]:
    """The lines of a cell."""
    if column.kind == "number" or len(cell) <= width:
        return [cell]
    if column.kind == "name":
        return [shortened_name(cell, width)]
    return [*_wrapped(cell, width)] if column.kind == "text" else [_counted(cell, width)]


def _counted(cell: str, width: int) -> str:
    """A list whose first names are told, and the others counted."""
    names = cell.split(", ")
    for told in range(len(names) - 1, 0, -1):
        text = f"{', '.join(names[:told])} and {len(names) - told} more"
        if len(text) <= width:
            return text
    rest = f" and {len(names) - 1} more" if names[1:] else ""
    return f"{shortened_name(names[0], max(_LEAST, width - len(rest)))}{rest}"[:width]


def _lines(
    placed: Iterable[tuple[int, TableColumn, int]], cells: Sequence[Sequence[str]]
) -> Iterator[str]:
    """The lines of a row, whose cells may have several."""
    own = list(placed)
    for parts in zip_longest(*cells, fillvalue=""):
        texts = (
            part.rjust(size) if column.kind == "number" else part.ljust(size)
            for part, (_, column, size) in zip(parts, own, strict=True)
        )
        yield f"{_INDENT}{_GAP.join(texts)}".rstrip()

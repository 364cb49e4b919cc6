"""Tables of the commands, as wide as the screen; to a pipe they go whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from splitgrow.cli.consoles import UNBOUNDED
from splitgrow.utils.closest_names import did_you_mean
from splitgrow.utils.narrow_tables import TableColumn, laid_out


def fits_filter(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name fits one of the patterns of --filter; without any all do."""
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def unfitting(names: Iterable[str], patterns: Sequence[str]) -> str:
    """A line on patterns of --filter that no name fits; empty if all have one."""
    known = [*dict.fromkeys(names)]
    for pattern in patterns:
        if not any(fits_filter(name, [pattern]) for name in known):
            near = did_you_mean(pattern, known, "without --filter all names are shown")
            return f"nothing fits --filter {pattern}: {near}"
    return ""


class ScreenTable:
    """A table for a console; see `splitgrow.utils.narrow_tables`.

    Args:
        title: The line above it.
    """

    def __init__(self, title: str = "") -> None:
        self.title = title
        self._columns: list[TableColumn] = []
        self._rows: list[tuple[str, ...]] = []
        self._styles: dict[int, str] = {}
        self._ends: set[int] = set()

    def add_column(
        self,
        head: str,
        kind: Literal["number", "name", "names", "text"] = "text",
        drop: int = 0,
    ) -> None:
        """Adds a column, as `TableColumn` describes it."""
        self._columns.append(TableColumn(head, kind, drop))

    def add_row(self, *cells: str, style: str | None = None) -> None:
        """Adds a row: a cell for each column."""
        if style:
            self._styles[len(self._rows)] = style
        self._rows.append(cells)

    def add_section(self) -> None:
        """Parts the next row from those before."""
        self._ends.add(len(self._rows))

    @property
    def names(self) -> tuple[str, ...]:
        """The cells of the first column of names, which --filter is for."""
        at = self._name_column
        return () if at is None else tuple(row[at] for row in self._rows)

    def filtered(self, patterns: Sequence[str]) -> ScreenTable:
        """The table with the rows whose names fit; itself if it has no names."""
        if self._name_column is None or not patterns:
            return self
        found = ScreenTable(self.title)
        found._columns = self._columns
        for number, (name, row) in enumerate(zip(self.names, self._rows, strict=True)):
            if number in self._ends:
                found.add_section()
            if fits_filter(name, patterns):
                found.add_row(*row, style=self._styles.get(number))
        return found

    @property
    def _name_column(self) -> int | None:
        kinds = [column.kind for column in self._columns]
        return kinds.index("name") if "name" in kinds else None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = None if options.max_width >= UNBOUNDED else options.max_width
        table = laid_out(self._columns, self._rows, width)
        lines = [*table.head, *(line for row in table.rows for line in row)]
        if self.title:
            yield Text(self.title, "bold")
        for line in table.head:
            yield _line(line, "bold")
        yield _line(" " + ("-" if options.ascii_only else "─") * max(map(len, lines), default=1))
        for number, row in enumerate(table.rows):
            if number in self._ends:
                yield Text()
            for line in row:
                yield _line(line, self._styles.get(number, ""))
        if table.left_out:
            yield Text(f"  (no room for: {', '.join(table.left_out)}; --json has all)", "dim")
        yield Text()


def _line(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ignore")

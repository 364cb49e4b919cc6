"""How a command shows its results: tables, JSON, or nothing but a path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import RenderableType

from splitgrow.cli import consoles
from splitgrow.cli.screen_tables import ScreenTable, unfitting


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the user wants to see.

    Attributes:
        patterns: Those of --filter: the rows that tables show, by name.
        as_json: Whether JSON goes to stdout, instead of tables.
        quiet: Whether nothing is shown but a path.
    """

    patterns: Sequence[str] = ()
    as_json: bool = False
    quiet: bool = False

    def show(self, parts: Iterable[RenderableType], written: Path | None = None) -> None:
        """Prints tables and lines, and the path of what was written; with --quiet the path alone.

        Args:
            parts: The tables, of which --filter chooses rows, and lines.
            written: The path.
        """
        if self.quiet:
            if written is not None:
                click.echo(str(written))
            return
        console = consoles.results()
        found = list(parts)
        names = [name for part in found if isinstance(part, ScreenTable) for name in part.names]
        problem = unfitting(names, self.patterns)
        if problem:
            click.echo(problem, err=True)
        for part in found:
            shown = part.filtered(self.patterns) if isinstance(part, ScreenTable) else part
            console.print(shown)
        if written is not None:
            console.print(f"Report: {written}", soft_wrap=True)

    def echo_json(self, text: str) -> None:
        """Prints JSON."""
        click.echo(text)

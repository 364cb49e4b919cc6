"""Where the commands print: results to stdout, progress to stderr."""

from __future__ import annotations

import os

from rich.console import Console

_UNBOUNDED = 160  # a pipe or a file has no width of its own; rich would squeeze tables into 80


def results() -> Console:
    """Writes to stdout."""
    return _console(stderr=False, quiet=False)


def progress(*, quiet: bool) -> Console:
    """Writes to stderr, so that results can be piped away from it; or nowhere."""
    return _console(stderr=True, quiet=quiet)


def _console(*, stderr: bool, quiet: bool) -> Console:
    # Names and paths are printed as they are, never taken for markup.
    console = Console(stderr=stderr, quiet=quiet, markup=False, highlight=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _UNBOUNDED
    return console

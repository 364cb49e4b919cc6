"""Where the commands print: results to stdout, progress to stderr."""

from __future__ import annotations

import os

from rich.console import Console

UNBOUNDED = 10_000
"""The width of a pipe or a file, which has none of its own: nothing is shortened for it."""


def results(*, quiet: bool = False) -> Console:
    """Writes to stdout; or nowhere."""
    return _console(stderr=False, quiet=quiet)


def progress(*, quiet: bool) -> Console:
    """Writes to stderr, so that results can be piped away from it; or nowhere."""
    return _console(stderr=True, quiet=quiet)


def _console(*, stderr: bool, quiet: bool) -> Console:
    # Names and paths are printed as they are, never taken for markup.
    console = Console(stderr=stderr, quiet=quiet, markup=False, highlight=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = UNBOUNDED
    return console

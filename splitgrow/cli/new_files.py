"""Makes sure, before the work, that its results can be written."""

from __future__ import annotations

from pathlib import Path

import click

from splitgrow.checkpoints.files import check_regular


def check_new_file(path: Path, *, force: bool, folder: bool = False) -> None:
    """Makes sure that a file can be written.

    Args:
        path: The file.
        force: Whether one that is there may be replaced.
        folder: Whether it is a folder instead.

    Raises:
        click.ClickException: If there is no folder for it, or one is there that stays.
        CheckpointError: If something else than a file is there.
    """
    if not path.parent.is_dir():
        raise click.ClickException(f"there is no folder {path.parent} for {path.name}")
    if path.exists() and not force:
        raise click.ClickException(f"{path} is there already; --force replaces it")
    if not folder:
        check_regular(path)

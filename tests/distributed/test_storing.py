"""What no save has written is left alone, and refused, where checkpoints of processes lie."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from splitgrow import CheckpointError
from splitgrow.distributed.storing import latest, opened_manifest, prepared

SPECIAL: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a directory": Path.mkdir,
    "a file": Path.touch,
    "a loop": lambda path: path.symlink_to(path),
}


def _apart_from_reading(path: Path) -> tuple[float, ...]:
    """All that is known of a file itself, but when it was last read."""
    found = tuple(path.lstat())
    return found[: stat.ST_ATIME] + found[stat.ST_ATIME + 1 :]


@pytest.mark.parametrize("kind", ["a pipe", "a directory", "a loop"])
@pytest.mark.parametrize("name", ["latest", "latest.part"])
def test_the_file_that_names_the_checkpoint_is_a_file(tmp_path: Path, name: str, kind: str) -> None:
    SPECIAL[kind](tmp_path / name)
    before = _apart_from_reading(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"latest|symbolic"):
        prepared(tmp_path)
    if name == "latest":
        with pytest.raises(CheckpointError, match="latest"):
            latest(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert _apart_from_reading(tmp_path / name) == before


@pytest.mark.parametrize("kind", ["a pipe", "a file", "a loop"])
@pytest.mark.parametrize("name", ["000001", "000001.part", ""])
def test_a_place_that_is_no_directory_is_not_used(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / "run" / name if name else tmp_path / "run"
    path.parent.mkdir(exist_ok=True)
    SPECIAL[kind](path)
    with pytest.raises(CheckpointError, match=r"is no directory|Not a directory|symbolic"):
        prepared(tmp_path / "run")
    assert path.is_symlink() or path.exists()


def test_a_manifest_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("1")
    (tmp_path / "000001").mkdir()
    os.mkfifo(tmp_path / "000001" / "splitgrow.json")
    with pytest.raises(CheckpointError, match="is a pipe"):
        opened_manifest(tmp_path)


def test_a_free_place_is_prepared_and_rests_are_removed(tmp_path: Path) -> None:
    """The control."""
    (tmp_path / "run" / "000001.part").mkdir(parents=True)
    (tmp_path / "run" / "000001.part" / "rest").touch()
    place = prepared(tmp_path / "run")
    assert place.name == "000001.part"
    assert [*place.iterdir()] == []

"""Older files move on and none is lost, wherever a save ends and whatever the file system lacks."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from splitgrow.checkpoints.files import numbered
from splitgrow.checkpoints.rotation import drop_older_, rotate_

KEEP = 3


class Stop(BaseException):
    """Stands for a kill."""


class Operations:
    """Ends a save at one of its operations that change a directory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, links: bool) -> None:
        self.at, self.seen = -1, 0
        replace, unlink, link = Path.replace, Path.unlink, os.link

        def counted(act: Any) -> Any:
            def run(*args: Any, **kwargs: Any) -> Any:
                self.seen += 1
                if self.seen == self.at:
                    raise Stop
                return act(*args, **kwargs)

            return run

        def refuse(*args: Any) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(Path, "replace", counted(replace))
        monkeypatch.setattr(Path, "unlink", counted(unlink))
        monkeypatch.setattr(os, "link", counted(link) if links else refuse)


def save(path: Path, number: int, keep: int = KEEP) -> None:
    """As `write_archive` does it."""
    aside = path.with_name("aside")
    aside.write_text(str(number))
    rotate_(path, keep)
    aside.replace(path)
    drop_older_(path, keep)


def numbers_in(path: Path) -> list[int]:
    kept = [numbered(path, number) for number in range(9)]
    return [int(each.read_text()) for each in kept if each.exists()]


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("saved", [1, 3, 5])
def test_no_file_that_counts_is_lost_at_any_operation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: int, links: bool
) -> None:
    operations = Operations(monkeypatch, links=links)
    for at in range(1, 9):
        for then in range(1, 9):  # the next save is ended, too
            path = tmp_path / f"{at} {then}" / "run.safetensors"
            path.parent.mkdir()
            operations.at = -1
            for number in range(1, saved + 1):
                save(path, number)
            done = [*range(1, saved + 1)]
            for number, end in ((saved + 1, at), (saved + 2, then)):
                operations.at, operations.seen = end, 0
                with suppress(Stop):
                    save(path, number)
                found = numbers_in(path)
                if found[0] == number:
                    done.append(number)
                assert found[0] == done[-1]
                assert found == sorted(found, reverse=True)
                assert {*done[-KEEP:]} <= {*found}
            operations.at = -1
            save(path, 100)
            assert numbers_in(path) == [100, *done[:-KEEP:-1]]


def test_fewer_and_more_are_kept_when_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    for number in range(1, 6):
        save(path, number, 4)
    assert numbers_in(path) == [5, 4, 3, 2]
    save(path, 6, 2)
    assert numbers_in(path) == [6, 5]
    save(path, 7, 4)
    assert numbers_in(path) == [7, 6, 5]
    save(path, 8, 1)  # which touches no other file
    assert numbers_in(path) == [8, 6, 5]

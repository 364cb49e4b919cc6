"""Saving that is killed, fails, is interrupted or meets another leaves the old file or the new."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from crashes.training import kept, left_behind
from torch import nn

import splitgrow
from splitgrow import CheckpointError
from splitgrow.checkpoints import asides, writing

ROOT = Path(__file__).parents[2]


def in_process(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs Python, which forks: the tests' own process has threads."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"tests{os.pathsep}."},
        capture_output=True,
        text=True,
        check=False,
    )


def model(value: float = 0.0) -> Any:
    made = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    nn.init.constant_(made[1].bias, value)
    return splitgrow.growable(made, torch.ones(1, 2))


def value_in(path: Path) -> float:
    fresh = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    splitgrow.load(fresh, path)
    return float(fresh[1].bias.detach()[0])


@contextmanager
def refused_and_untouched(path: Path, reason: str) -> Iterator[None]:
    """Fails unless the block is refused for a reason, and the directory is as before."""
    before = {each.name: each.read_bytes() for each in path.parent.iterdir() if each.is_file()}
    names = {each.name for each in path.parent.iterdir()}
    with pytest.raises(CheckpointError, match=reason) as raised:
        yield
    assert str(path.name)[:20] in str(raised.value)
    assert {each.name for each in path.parent.iterdir()} == names
    assert before == {n: (path.parent / n).read_bytes() for n in before}


# -- dying ---------------------------------------------------------------------------------------


def test_killed_at_random_moments_every_run_comes_to_the_same_bits() -> None:
    found = in_process("-m", "crashes", "--kills", "8", "--seed", "1")
    assert found.returncode == 0, found.stdout + found.stderr
    told = re.match(r"8 kills, (\d+) of them while a file was written; (\d+) runs", found.stdout)
    assert told
    assert int(told[1]) > 0
    assert int(told[2]) > 0


def test_processes_that_save_to_one_path_are_killed_and_no_file_is_lost() -> None:
    found = in_process("-m", "crashes", "--together", "8", "--seed", "1")
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.startswith("8 kills of processes")
    assert found.stdout.endswith(" 0 faults\n")


@pytest.mark.parametrize(("how", "every"), [("dies", 7), ("fails", 11), ("is interrupted", 17)])
def test_at_operations_on_files_the_old_or_the_new_is_there(how: str, every: int) -> None:
    """At every one: ``python -m crashes --faults``."""
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from crashes.faults import faults\n"
        f"print(*faults({how!r}, {every}), sep='|')"
    )
    found = in_process("-c", code)
    assert found.returncode == 0, found.stderr
    operations, faults = found.stdout.strip().split("|", 1)
    assert int(operations) > 30  # those of three files and the renaming of two
    assert faults == "[]"


IN_PLACE = """
import os, signal, torch
from pathlib import Path
from unittest import mock
torch.set_num_threads(1)
from crashes import kills
from crashes.training import go_on
from splitgrow.checkpoints import asides, writing

def careless(path):
    # Writes into the file that is there instead of aside, and dies on the way.
    def replace(self, target):
        data = self.read_bytes()
        with open(target, "wb") as file:
            if target.name == "run.safetensors":  # the other one is the reference
                file.write(data[:len(data) // 2])
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            file.write(data)
        self.unlink()
    with mock.patch.object(Path, "replace", replace):
        return go_on(path)

def forgetful(path):
    # Goes on from the file, but with other random numbers.
    if path.stem == "run" and not path.exists():
        go_on(path, 4)
        os.kill(os.getpid(), signal.SIGKILL)
    with mock.patch("splitgrow.checkpoints.loading.set_random_states_"):
        return go_on(path)

for work in (careless, forgetful):
    print(len(kills.kill(2, 8, work).faults))
"""


def test_writing_in_place_and_forgetting_are_noticed() -> None:
    """The control: what looks for corrupt files and lost states finds them."""
    found = in_process("-c", IN_PLACE)
    assert found.returncode == 0, found.stderr
    assert all(int(line) > 0 for line in found.stdout.split()), found.stdout
    assert len(found.stdout.split()) == 2


# -- places where nothing can be written ---------------------------------------------------------


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "x.safetensors"
    with pytest.raises(CheckpointError, match=r"cannot save .*x.safetensors: No such file"):
        splitgrow.save(model(), path)
    assert not path.parent.exists()


def test_a_parent_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="Not a directory"):
        splitgrow.save(model(), tmp_path / "file" / "x.safetensors")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    with refused_and_untouched(path, "File name too long"):
        splitgrow.save(model(), path)


def test_a_name_that_is_too_long_for_its_shards_only(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 240)
    splitgrow.save(model(1.0), path)
    with refused_and_untouched(path, "File name too long"):
        splitgrow.save(model(2.0), path, shard_bytes=8)
    assert value_in(path) == 1.0


def test_a_path_that_is_a_directory(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.mkdir()
    (path / "inside").write_text("mine")
    for keep in (1, 2):
        with refused_and_untouched(path, "directory|not permitted"):
            splitgrow.save(model(), path, keep=keep)
        assert (path / "inside").read_text() == "mine"


def test_a_directory_that_may_not_be_written_to(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    splitgrow.save(model(1.0), path)
    tmp_path.chmod(0o500)
    try:
        try:
            (tmp_path / "trial").touch()
        except PermissionError:
            with refused_and_untouched(path, "Permission denied"):
                splitgrow.save(model(2.0), path)
        else:
            (tmp_path / "trial").unlink()
            pytest.skip("this user may write everywhere")
    finally:
        tmp_path.chmod(0o700)


def test_a_file_system_that_cannot_be_written_to(tmp_path: Path) -> None:
    """/proc is one for everybody, the administrator included."""
    with pytest.raises(CheckpointError, match=r"cannot save /proc/x\.safetensors: "):
        splitgrow.save(model(), "/proc/x.safetensors")


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 100_000])
def test_a_disk_that_is_full(tmp_path: Path, shard_bytes: int) -> None:
    """A limit on the size of files stands for it: writing fails halfway, as it does there."""
    path = tmp_path / "x.safetensors"
    splitgrow.save(model(1.0), path)
    wide = splitgrow.growable(nn.Sequential(nn.Linear(300, 300)), torch.ones(1, 300))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with refused_and_untouched(path, "cannot save .*(too large|os error 27)"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        try:
            splitgrow.save(wide, path, shard_bytes=shard_bytes, keep=3)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert value_in(path) == 1.0


def test_a_file_system_that_is_full(tmp_path: Path) -> None:
    """A real one, where one may be mounted."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(tmp_path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("nothing may be mounted here")
    try:
        path = tmp_path / "x.safetensors"
        splitgrow.save(model(1.0), path)
        wide = splitgrow.growable(nn.Sequential(nn.Linear(300, 300)), torch.ones(1, 300))
        for shard_bytes in (5_000_000_000, 1000):
            with refused_and_untouched(path, "No space left"):
                splitgrow.save(wide, path, shard_bytes=shard_bytes, keep=2)
        assert value_in(path) == 1.0
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_directory_that_goes_while_a_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run" / "x.safetensors"
    path.parent.mkdir()
    save_file = writing.save_file

    def slow(*args: Any) -> None:
        save_file(*args)
        for each in path.parent.glob("*/*"):
            each.unlink()
        for each in path.parent.iterdir():
            each.rmdir()
        path.parent.rmdir()

    monkeypatch.setattr(writing, "save_file", slow)
    with pytest.raises(CheckpointError, match="No such file"):
        splitgrow.save(model(), path)


def test_more_text_than_a_file_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be loaded again is not saved."""
    path = tmp_path / "x.safetensors"
    splitgrow.save(model(1.0), path)
    monkeypatch.setattr(writing, "LARGEST_HEADER", 10_000)
    splitgrow.save(model(1.0), path)
    with pytest.raises(CheckpointError, match="put long lists into tensors"):
        splitgrow.save(model(2.0), path, extra=[*range(10_000)])
    assert value_in(path) == 1.0
    assert not left_behind(path)


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    for extra in ({"\ud800": torch.ones(1)}, {"x": "\ud800"}):
        path = tmp_path / "x.safetensors"
        try:
            splitgrow.save(model(), path, extra=extra)
        except CheckpointError:
            assert not [*tmp_path.iterdir()]
        else:
            assert splitgrow.load(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), path) == extra


# -- interrupted, and together -------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, SystemExit])
def test_ctrl_c_while_a_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    path = tmp_path / "x.safetensors"
    splitgrow.save(model(1.0), path)
    names = {each.name for each in tmp_path.iterdir()}

    def interrupted(*args: Any) -> None:
        raise error

    monkeypatch.setattr(writing.os, "fsync", interrupted)
    with pytest.raises(error):
        splitgrow.save(model(2.0), path, shard_bytes=8)
    assert {each.name for each in tmp_path.iterdir()} == names
    monkeypatch.undo()
    assert value_in(path) == 1.0


TOGETHER = """
import os, sys, torch
from pathlib import Path
from torch import nn
import splitgrow
torch.set_num_threads(1)
path = Path(sys.argv[1])
model = splitgrow.growable(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), torch.ones(1, 2))
splitgrow.save(model, path, shard_bytes=8)
children = []
for number in range(3):
    child = os.fork()
    if not child:
        try:
            for _ in range(15):
                nn.init.constant_(model[1].bias, float(number))
                splitgrow.save(model, path, keep=2, shard_bytes=8)
                if number == 2:
                    # Its own file may have been replaced since, but whatever is there is whole.
                    from splitgrow.checkpoints.archives import Archive
                    while True:
                        try:
                            Archive(path)
                            break
                        except splitgrow.CheckpointError as error:
                            if "No such file" not in str(error):
                                raise
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    children.append(child)
print([os.waitpid(child, 0)[1] for child in children])
"""


def test_processes_that_write_one_file_at_once_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    found = in_process("-c", TOGETHER, str(path))
    assert found.stdout == "[0, 0, 0]\n", found.stderr
    assert value_in(path) in {0.0, 1.0, 2.0}
    assert len(kept(path)) == 2
    for each in kept(path):
        value_in(each)
    assert not left_behind(path)


def test_file_systems_without_locks_and_links_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(number: int) -> Callable[..., None]:
        def refuse(*args: Any) -> None:
            raise OSError(number, os.strerror(number))

        return refuse

    monkeypatch.setattr(asides.fcntl, "flock", refuses(errno.ENOLCK))
    monkeypatch.setattr(writing.os, "link", refuses(errno.EPERM))
    path = tmp_path / "x.safetensors"
    for number in range(4):
        splitgrow.save(model(float(number)), path, keep=3, shard_bytes=8)
    assert [value_in(each) for each in kept(path)] == [3.0, 2.0, 1.0]
    assert not left_behind(path)


def test_an_interrupt_while_the_turn_is_given_on_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    turn = path.with_name(f"{asides._beginning(path)}lock")

    def interrupted(directory: Path, **_: Any) -> None:
        if directory == turn:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(asides.shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            splitgrow.save(model(1.0), path)
    with asides._locked(turn):  # raises if anybody has the lock
        pass
    splitgrow.save(model(2.0), path)
    assert value_in(path) == 2.0


def test_an_aborted_save_is_cleared_away_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    splitgrow.save(model(1.0), path)
    for name in ("0badcafe", "lock"):
        left = path.with_name(f"{asides._beginning(path)}{name}")
        left.mkdir()
    (path.with_name(f"{asides._beginning(path)}0badcafe") / "file").write_text("half")
    unused = path.with_name("x-0badcafe-00001-of-00002.safetensors")
    unused.write_text("half")
    assert len(left_behind(path)) == 3
    splitgrow.save(model(2.0), path)
    assert not left_behind(path)
    assert value_in(path) == 2.0

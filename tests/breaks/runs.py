"""Runs the tests on a copy of the project in which one line is broken."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from breaks.catalogue import Break

ROOT = Path(__file__).parents[2]
_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.pyc")
_NO_SUCH_TESTS = {4, 5}
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """What came of one break.

    Attributes:
        number: The break's, from 1.
        file: The module that was broken.
        meaning: What is wrong then.
        state: "caught"; "survived"; "stale": its text does not occur exactly once; "hangs": the
            tests did not come to an end; "fails unbroken": what caught it fails without it as well.
        test: The test that caught it.
        seconds: How long it took.
        sources: A hash of the library and its tests, for which that holds.
    """

    number: int
    file: str
    meaning: str
    state: str
    test: str
    seconds: float
    sources: str


def sources() -> str:
    """A hash of the library and its tests."""
    found = hashlib.sha256()
    for folder in ("splitgrow", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def is_stale(change: Break, root: Path = ROOT) -> bool:
    """Whether the text that is to be broken is no longer there, or more than once."""
    path = root / "splitgrow" / change.file
    return not path.exists() or path.read_text().count(change.old) != 1


class Copy:
    """A copy of the project, in which lines are broken: never the project itself.

    Args:
        root: Where it lies.
        limit: The seconds that one run of tests may take.
        full: Whether all other tests are run where the first ones notice nothing.
    """

    def __init__(self, root: Path, *, limit: float, full: bool) -> None:
        self.root, self.limit, self.full = root, limit, full
        shutil.copytree(ROOT, root, ignore=_LEFT_OUT, dirs_exist_ok=True)

    def tried(self, number: int, change: Break, mark: str) -> Outcome:
        """What comes of one break."""
        start = time.monotonic()

        def outcome(state: str, test: str = "") -> Outcome:
            seconds = round(time.monotonic() - start, 1)
            return Outcome(number, change.file, change.meaning, state, test, seconds, mark)

        if is_stale(change, self.root):
            return outcome("stale")
        first = f"tests/{change.first}"
        for files in ([first], self._others(first)) if self.full else ([first],):
            with self._broken(change):
                code, test = self._run(files)
            if code is None:
                return outcome("hangs")
            if code:
                sound = not test or self._run([test])[0] == 0
                return outcome("caught" if sound else "fails unbroken", test)
        return outcome("survived")

    def _others(self, first: str) -> list[str]:
        """All test files; the nearest come first."""
        files = [str(path.relative_to(self.root)) for path in self.root.glob("tests/**/test_*.py")]
        near = str(Path(first).parent)
        return sorted(files, key=lambda file: (not file.startswith(near), file))

    @contextmanager
    def _broken(self, change: Break) -> Iterator[None]:
        path = self.root / "splitgrow" / change.file
        whole = path.read_text()
        path.write_text(whole.replace(change.old, change.new))
        try:
            yield
        finally:
            path.write_text(whole)

    def _run(self, files: list[str]) -> tuple[int | None, str]:
        """The exit code of the tests, None if they hang, and the test that failed.

        Raises:
            LookupError: If there are no such tests.
        """
        paths = [self.root / "tests", self.root]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "--tb", "no", "-rfE"]
        command += ["-p", "no:cacheprovider", "-p", "breaks.quick", "-m", "not zoo", *files]
        try:
            ended = subprocess.run(
                command,
                cwd=self.root,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(map(str, paths)),
                    "PYTHONDONTWRITEBYTECODE": "1",
                },
                capture_output=True,
                text=True,
                check=False,
                timeout=self.limit,
            )
        except subprocess.TimeoutExpired:
            return None, ""
        if ended.returncode in _NO_SUCH_TESTS:
            raise LookupError(f"no tests {' '.join(files)}: {ended.stdout}{ended.stderr}")
        found = _FAILED.search(ended.stdout)
        return ended.returncode, found[1] if found else ""

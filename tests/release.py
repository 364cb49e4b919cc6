"""Builds the wheel and the sdist, and uses both as strangers do: `python tests/release.py`.

It needs the extra `release`. The wheel is installed with its extra `demo` into a fresh environment
outside the tree, and runs the demo there. The tests of the sdist run from the unpacked sdist.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Collection
from email import message_from_string
from pathlib import Path

ROOT = Path(__file__).parent.parent
SDIST_TESTS = ["tests/test_api.py", "tests/test_architecture.py", "tests/test_readme.py"]
"""Tests that read every folder: the library, the tests, the pages and the benchmarks."""


def wheel_problems(names: Collection[str], metadata: str, tracked: Collection[str]) -> list[str]:
    """The files that a wheel lacks or should not have, and metadata that readers would miss."""
    sources = {name for name in tracked if name.startswith("splitgrow/")}
    files = {name for name in names if ".dist-info/" not in name}
    told = message_from_string(metadata)
    wanted = {
        "the license": any(name.endswith("licenses/LICENSE") for name in names),
        "the types' marker": "splitgrow/py.typed" in files,
        "the command": any(name.endswith("entry_points.txt") for name in names),
        "the page of the index": "Grow any PyTorch model" in str(told.get_payload()),
        "its Python": told["Requires-Python"] is not None,
    }
    return [
        *(f"wheel: {name} is missing" for name in sorted(sources - files)),
        *(f"wheel: {name} is not the library's" for name in sorted(files - sources)),
        *(f"wheel: {thing} is missing" for thing, there in wanted.items() if not there),
    ]


def sdist_problems(names: Collection[str], tracked: Collection[str]) -> list[str]:
    """The files in which an sdist differs from the repository. Its PKG-INFO is its own."""
    files = {name.partition("/")[2] for name in names} - {"PKG-INFO"}
    return [
        *(f"sdist: {name} is missing" for name in sorted(set(tracked) - files)),
        *(f"sdist: {name} is not in the repository" for name in sorted(files - set(tracked))),
    ]


def run(*command: str | Path, at: Path = ROOT) -> str:
    """Runs a command and returns its output; where it fails, this does, after its output.

    Raises:
        SystemExit: The command failed.
    """
    told = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=at, env=told, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\nfailed: {' '.join(map(str, command))}")
    return done.stdout


def build(out: Path) -> tuple[Path, Path, list[str]]:
    """Builds the sdist and from it the wheel; returns both, and the problems of both."""
    # What users get is made from the sdist. A wheel made from the tree must be the same file.
    run(sys.executable, "-m", "build", "--outdir", out)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", out / "direct")
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
    tracked = [name for name in run("git", "ls-files").splitlines() if (ROOT / name).exists()]
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (told,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        problems = wheel_problems(names, archive.read(told).decode(), tracked)
    with tarfile.open(sdist) as archive:
        problems += sdist_problems([one.name for one in archive if one.isfile()], tracked)
    if wheel.read_bytes() != (out / "direct" / wheel.name).read_bytes():
        problems.append("the wheel from the sdist differs from the wheel from the tree")
    return sdist, wheel, problems


def use_wheel(wheel: Path, place: Path) -> None:
    """Installs a wheel with its extra `demo` into an environment of its own, and runs the demo.

    Raises:
        SystemExit: The demo wrote no report, or another splitgrow ran.
    """
    venv.create(place / "venv", with_pip=True)
    bin_ = place / "venv" / "bin"
    run(bin_ / "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}[demo]", at=place)
    version = run(bin_ / "splitgrow", "--version", at=place).strip()
    where = run(bin_ / "python", "-c", "import splitgrow; print(splitgrow.__file__)", at=place)
    run(bin_ / "splitgrow", "demo", "--quiet", "--epochs", "1", "--limit", "300", at=place)
    reports = list(place.glob("*/report.html"))
    if not reports or not where.startswith(str(place)) or version.split()[1] not in wheel.name:
        sys.exit(f"{version} at {where.strip()} wrote {reports}")
    sys.stdout.write(f"{version} from {wheel.name} ran the demo\n")


def use_sdist(sdist: Path, place: Path) -> None:
    """Unpacks an sdist and runs its own tests on its own library."""
    with tarfile.open(sdist) as archive:
        archive.extractall(place, filter="data")
    (tree,) = place.iterdir()
    told = run(
        sys.executable, "-m", "pytest", "-q", "-m", "not slow and not zoo", *SDIST_TESTS, at=tree
    )
    sys.stdout.write(f"{sdist.name}: {told.strip().splitlines()[-1]}\n")


def main() -> None:
    """Builds, checks and uses both.

    Raises:
        SystemExit: Something is not as it should be.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        sdist, wheel, problems = build(out / "dist")
        if problems:
            sys.exit("\n".join(problems))
        use_wheel(wheel, out)
        use_sdist(sdist, out / "sdist")


if __name__ == "__main__":
    main()

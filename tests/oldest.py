"""The laws and the demo on another torch and another Python: `python tests/oldest.py`.

Without `--torch` it takes the oldest one that pyproject.toml allows. It installs into an
environment of its own, temporary or at `--at`, where a second run finds it. torch comes as the
package index has it: often with packages for GPUs of several gigabytes, which nothing here needs.
docs/compatibility.md lists the differences, for which tests fail there; so do tests of other
libraries, which it does not install.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
LAWS = ["test_laws.py", "test_growable.py", "deploy", "growth", "layers", "checkpoints"]


def oldest_torch(project: str) -> str:
    """The oldest torch that a project's file allows, for pip: a bound of 2.4 stands for 2.4.*."""
    bound = re.search(r'"torch>=([\d.]+)"', project)
    if bound is None:
        sys.exit("pyproject.toml has no lower bound of torch")
    return f"{bound[1]}.*" if bound[1].count(".") == 1 else bound[1]


def run(*command: str | Path, at: Path) -> None:
    """Runs a command; where it fails, this does."""
    sys.stdout.write(f"+ {' '.join(map(str, command))}\n")
    sys.stdout.flush()
    subprocess.run(command, cwd=at, check=True)


def main() -> None:
    """Installs, runs the demo, and runs the laws."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    options.add_argument("--python", default=sys.executable, help="the Python to run on")
    options.add_argument("--torch", default=oldest_torch((ROOT / "pyproject.toml").read_text()))
    options.add_argument("--at", type=Path, help="keep the environment in this folder")
    options.add_argument("tests", nargs="*", default=[f"tests/{name}" for name in LAWS])
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        environment = chosen.at or place / "venv"
        run(chosen.python, "-m", "venv", environment, at=ROOT)
        bin_ = environment.absolute() / "bin"
        run(bin_ / "pip", "install", "-q", f"torch=={chosen.torch}", "-e", ".[dev]", at=ROOT)
        run(bin_ / "python", "-c", "import torch; print('torch', torch.__version__)", at=ROOT)
        run(bin_ / "splitgrow", "demo", "--quiet", "--epochs", "1", "--limit", "300", at=place)
        run(bin_ / "pytest", "-q", *chosen.tests, at=ROOT)


if __name__ == "__main__":
    main()

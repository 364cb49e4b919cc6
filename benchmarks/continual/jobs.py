"""One run of a contestant on a suite, as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.continual.suites import Contestant, Suite

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Job:
    """A run.

    Attributes:
        suite: The tasks.
        contestant: Who learns them.
        seed: Of everything that is drawn.
        data: Where the data are.
        runs: The directory of all runs.
    """

    suite: Suite
    contestant: Contestant
    seed: int
    data: Path
    runs: Path

    @property
    def directory(self) -> Path:
        """Where the run is kept."""
        name = self.contestant.name.replace(", ", "-").replace(" ", "-")
        return self.runs / self.suite.name / name / str(self.seed)

    @property
    def results(self) -> Path:
        """The file of its results."""
        return self.directory / "results.json"

    @property
    def tasks_file(self) -> Path:
        """The tasks as arrays, for Avalanche."""
        return self.runs / self.suite.name / f"tasks-{self.seed}.npz"

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        try:
            found = json.loads(self.results.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(found.get("finished", self.contestant.peer))

    @property
    def options(self) -> dict[str, Any]:
        """What it is told: the contestant's options, and what was chosen for the suite.

        Those of the method, and `learning-rate` if it is not the suite's.
        """
        return {**self.contestant.options, **self.suite.chosen.get(self.contestant.name, {})}

    def command(self, threads: int, avalanche: str | None) -> list[str]:
        """What is to be run.

        Raises:
            ValueError: If it is Avalanche's and there is no Python with it.
        """
        suite, contestant, options = self.suite, self.contestant, dict(self.options)
        rate = options.pop("learning-rate", suite.learning_rate)
        backbone = contestant.backbone or suite.backbone
        common: dict[str, Any] = {
            "backbone": backbone,
            "width": 1.0 if contestant.backbone else suite.width,
            "epochs": suite.epochs * contestant.epochs,
            "batch-size": suite.batch_size,
            "momentum": suite.momentum,
            "seed": self.seed,
            "threads": threads,
            "method": contestant.method,
        }
        if contestant.peer:
            if avalanche is None:
                raise ValueError("Avalanche's methods need --avalanche PYTHON")
            own = {"tasks": self.tasks_file, "lr": rate, "out": self.results}
            more = round(contestant.retrains * suite.epochs)
            if more:
                common["epochs"] += more
                own["packnet-post-prune-epochs"] = more
            program = [avalanche, "-m", "benchmarks.continual.avalanche_peer"]
            flags = _options({**common, **own, **options})
            return [*program, *flags, "--nesterov", "--schedule", "cosine"]  # as ours train
        own = {
            "data": self.data,
            "tasks": suite.tasks,
            "limit": suite.limit,
            "learning-rate": rate,
            "weight-decay": 0,
            "decide-on": contestant.decide_on,
            "out": self.directory,
        }
        of_method = [
            part
            for name, value in options.items()
            for part in ("--option", f"{name}={json.dumps(value)}")
        ]
        program = [sys.executable, "-m", "splitgrow.cli", "continual"]
        return [*program, *_options({**common, **own}), *of_method]

    def start(self, threads: int, avalanche: str | None) -> subprocess.Popen[bytes]:
        """Starts the run; what it prints goes to a file beside its results."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "log.txt").open("ab") as log:
            return subprocess.Popen(
                self.command(threads, avalanche),
                cwd=_ROOT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(_ROOT)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )


def _options(given: dict[str, Any]) -> list[str]:
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]

"""Loads a broken file in a process of its own, which shows the effect on that process.

Trials run in forks of one process that has all modules imported and a fresh run made, so that they
cost milliseconds, a crash or a hang harms nobody, and the kernel tells the memory: the highest
amount of address space that the child ever had (VmPeak) beyond its first amount. That counts all
requested memory, written to or not: Python's, torch's and the mapped parts of files. A
child goes on with the next file as long as files are refused, which leaves the run as it was.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from snapshots import differences, picture

import splitgrow
from hostile import runs
from hostile.mutations import Mutant, Original, mutant, taken_apart
from splitgrow.checkpoints.training import random_states
from splitgrow.errors import CheckpointError
from splitgrow.growth.history_lookup import HISTORY
from splitgrow.layers.execution import execution_mode

SECONDS = 20.0
"""The time that a trial may take, in seconds of computing; of waiting three times as many."""

ARENA = 2**20
"""Python asks for memory in pieces of this size; one more or less of them says nothing."""

TEXT = 16
"""How much memory text takes as JSON's objects, as multiples of its size; lists of empty lists take
more."""

Load = Callable[["runs.Run", Path], Any]


@dataclass(frozen=True)
class Trial:
    """What came of one file.

    Attributes:
        outcome: "refused", "loaded", or what is wrong.
        text: The error.
        seconds: How long it took.
        memory: The most memory that it took, in bytes.
        size: The bytes of the files.
        kind: What was done to the file.
        number: The number of the mutant.
    """

    outcome: str
    text: str
    seconds: float
    memory: int
    size: int
    kind: str = ""
    number: int = -1


def loaded(run: runs.Run, path: Path) -> Any:
    """What is tried out."""
    return splitgrow.load(run.model, path, **run.given)


def lay_out(mutant: Mutant, directory: Path) -> Path:
    """Writes a broken checkpoint to a directory; returns the path of its first file."""
    for name, file in mutant.files.items():
        path = directory / name
        if isinstance(file, bytes):
            path.write_bytes(file)
        elif file == "directory":
            path.mkdir()
        elif file == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to(path)
    return directory / mutant.main


# -- in the child --------------------------------------------------------------------------------


def _peak(key: str = "VmPeak") -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(key)


def all_of(run: runs.Run) -> dict[str, object]:
    """All of a run that a refused file must leave as it was."""
    seen = picture(run.model, run.optimizer)
    for index, scheduler in enumerate(run.schedulers):
        for name, value in vars(scheduler).items():
            seen[f"scheduler {index}: {name}"] = repr(value)
    seen["execution"] = execution_mode()
    seen["numpy random state"] = repr(random_states()["numpy"])
    return seen


def _outcome(run: runs.Run, before: dict[str, object], path: Path, load: Load) -> tuple[str, str]:
    try:
        load(run, path)
    except CheckpointError as error:
        changed = differences(before, all_of(run))
        if changed:
            return f"half-loaded: {', '.join(changed[:3])}", str(error)
        return "refused", str(error)
    except BaseException as error:  # noqa: BLE001
        trace = traceback.extract_tb(error.__traceback__)
        last = [f"{Path(each.filename).name}:{each.lineno}" for each in trace[-3:]]
        return f"{type(error).__name__} at {' > '.join(last)}", str(error)[:300]
    return "loaded", ""


def _consistent(run: runs.Run, path: Path) -> tuple[str, str]:
    """Whether a model has the file's tensors and goes on training."""
    state: dict[str, Any] = dict(run.model.named_parameters(remove_duplicate=False))
    state.update(run.model.named_buffers(remove_duplicate=False))
    for name, tensor in tensors_in(path).items():
        own = name.removeprefix("model.")
        if not name.startswith("model.") or own not in state:
            continue
        if own == "mask" and tensor.shape != state[own].shape:
            continue  # the model makes it itself, of whichever shape it wants
        if state[own].is_complex():
            tensor = torch.view_as_complex(tensor)
        if not torch.equal(torch.nan_to_num(state[own].detach()), torch.nan_to_num(tensor)):
            return f"loaded, but not `{own}`", ""
    try:
        (images,) = vars(run.model)[HISTORY].inputs.args
        run.model.eval()
        run.model(images)
        runs.train(run, images)
    except BaseException as error:  # noqa: BLE001
        trace = traceback.extract_tb(error.__traceback__)
        last = [f"{Path(each.filename).name}:{each.lineno}" for each in trace[-2:]]
        return f"loaded, but does not train: {type(error).__name__} {' > '.join(last)}", str(error)
    return "loaded", ""


def tensors_in(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, read past the library."""
    header = taken_apart(path.read_bytes())[0]
    names = [
        path.name,
        *(item["name"] for item in json.loads(header["__metadata__"].get("shards", "[]"))),
    ]
    found: dict[str, torch.Tensor] = {}
    for name in names:
        with safe_open(path.with_name(name), framework="pt") as file:
            found.update((key, file.get_tensor(key)) for key in file.keys())  # noqa: SIM118
    return found


# -- in the parent -------------------------------------------------------------------------------


class Trials:
    """Loads files in forks of this process.

    Args:
        directory: Where the checkpoints that are whole lie, and where the broken ones go.
        seconds: The time that a trial may take.
        load: What is tried out.
    """

    def __init__(self, directory: Path, *, seconds: float = SECONDS, load: Load = loaded) -> None:
        self.directory, self.seconds, self.load = directory, seconds, load
        whole = directory / "whole"
        whole.mkdir()
        self.originals = []
        for path in runs.files(whole):
            further = whole.glob(f"{path.stem}-*")
            files = {each.name: each.read_bytes() for each in (path, *further)}
            self.originals.append(Original(path.name, files))
        self.run = runs.again()
        loaded(runs.again(), whole / "whole.safetensors")  # what is imported late is there then
        self.before, self.random = all_of(self.run), random.getstate()
        # The constant part: what the files that are whole take, with nothing taken off.
        healthy = [self.of(Mutant("", True, each.main, {**each.files})) for each in self.originals]
        self.healthy = healthy
        self.largest = max(trial.size for trial in healthy)
        self.allowed = max(trial.memory for trial in healthy) + 2 * ARENA

    def mutants(self, numbers: range) -> Iterator[Trial]:
        """The trials of the mutants of some numbers."""

        def made() -> Iterator[tuple[Mutant, int]]:
            return ((mutant(self.originals, number), number) for number in numbers)

        while numbers:
            done = self._trials(made())
            if not done:
                done = [Trial("hang", "", self.seconds, 0, 0, number=numbers[0])]
            for trial in done:
                # What a child had taken for the files before counts here, too: so once more, alone.
                yield (
                    self.of(mutant(self.originals, trial.number), trial.number)
                    if (self.is_large(trial))
                    else trial
                )
            numbers = numbers[len(done) :]

    def of(self, made: Mutant, number: int = -1) -> Trial:
        """The trial of a broken checkpoint, in a child of its own."""
        return self._trials(iter([(made, number)]))[0]

    def _trials(self, mutants: Iterator[tuple[Mutant, int]]) -> list[Trial]:
        """The trials of one child, until something else than a refusal happens."""
        reading, writing = os.pipe()
        ctypes.CDLL(None).malloc_trim(0)  # so that what a child takes is not there already
        child = os.fork()
        if not child:
            try:
                self._in_child(mutants, writing)
            except BaseException:  # noqa: BLE001 - a fork must not go on as the parent
                traceback.print_exc()
                os._exit(70)
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:  # noqa: PTH123
            found = [Trial(**json.loads(line)) for line in pipe.read().splitlines()]
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            timers = (-signal.SIGALRM, -signal.SIGPROF)
            name = "hang" if status in timers else f"ended with {status}"
            made, number = next(islice(mutants, len(found), None))
            found.append(Trial(name, "", self.seconds, 0, made.size, made.kind, number))
        return found

    def is_bad(self, trial: Trial) -> bool:
        """Whether a trial shows a fault."""
        return trial.outcome not in {"refused", "loaded"} or self.is_large(trial)

    def is_large(self, trial: Trial) -> bool:
        """Whether it took more memory than twice the file's size and what every load takes.

        Text becomes Python objects of many times its size; so what a file has more of it than the
        largest that is whole counts more.
        """
        text = max(0, trial.size - self.largest)
        return trial.memory > 2 * trial.size + self.allowed + TEXT * text

    def _in_child(self, mutants: Iterator[tuple[Mutant, int]], writing: int) -> None:
        random.setstate(self.random)  # a fork seeds it anew
        for each in (signal.SIGALRM, signal.SIGPROF):
            signal.signal(each, signal.SIG_DFL)
        for made, number in islice(mutants, 100):
            with self._directory() as directory:
                trial = self._trial(made, lay_out(made, directory))
            trial = Trial(**{**asdict(trial), "kind": made.kind, "number": number})
            os.write(writing, json.dumps(asdict(trial)).encode() + b"\n")
            if trial.outcome != "refused":
                return

    def _trial(self, made: Mutant, path: Path) -> Trial:
        signal.setitimer(signal.ITIMER_PROF, self.seconds)
        signal.setitimer(signal.ITIMER_REAL, self.seconds * 3)
        size, began = _peak("VmSize"), time.perf_counter()
        outcome, text = _outcome(self.run, self.before, path, self.load)
        seconds, memory = time.perf_counter() - began, _peak() - size
        if outcome == "loaded":
            outcome, text = _consistent(self.run, path)
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        return Trial(outcome, text[:500], seconds, memory, made.size)

    @contextmanager
    def _directory(self) -> Iterator[Path]:
        made = Path(tempfile.mkdtemp(dir=self.directory))
        try:
            yield made
        finally:
            with suppress(OSError):
                shutil.rmtree(made)

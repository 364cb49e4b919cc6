"""The stages of learning a task, kept on disk, so that a killed run continues where it was.

An ordinary function learns a task. Its trainings, which take the time, are stages. Each writes its
result to a file. When the function runs again from its beginning, it reads the stages that are
there already in place of training them, and continues the unfinished one from its last epoch. It
repeats all else with the same results: every stage has its own seed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from splitgrow.checkpoints.archives import Archive
from splitgrow.checkpoints.writing import write_archive
from splitgrow.continual.studies import Study
from splitgrow.continual.training import Epoch, Fit
from splitgrow.errors import CheckpointError
from splitgrow.utils.json_trees import Writer, read_tree

_TREE = "stage"


class Stages:
    """The stages of one task.

    Attributes:
        earlier: The seconds that stopped processes have trained.

    Args:
        directory: The directory of their files; None to keep nothing.
        prefix: The beginning of the files' names.
        identity: The identity of the run, as plain data: files of another are refused.
        every: The seconds after which a training in progress is written again.
    """

    def __init__(
        self, directory: Path | None, prefix: str, identity: Any, every: float = 20.0
    ) -> None:
        self._directory, self._prefix, self._every = directory, prefix, every
        self._identity = identity
        self._count = 0
        self.earlier = 0.0

    def __call__(
        self, study: Study, fit: Callable[[int], Fit], watch: Callable[[Fit, Epoch], None]
    ) -> Fit:
        """Trains, or takes over an earlier training.

        Args:
            study: The study to train.
            fit: Makes the training, given the number of the stage.
            watch: Is called after every epoch.

        Returns:
            The training, done.

        Raises:
            CheckpointError: If a file is damaged or of another run.
        """
        self._count += 1
        made, path, before = fit(self._count), self._path(), 0.0
        if path is not None and path.exists():
            state = self._read(path)
            study.restore(state["study"])
            made.set_state(state["fit"])
            before = float(state["seconds"])
            self.earlier += before
        began = written = time.monotonic()
        for epoch in made.run():
            watch(made, epoch)
            done = made.epoch == made.epochs
            now = time.monotonic()
            if path is not None and (done or now - written >= self._every):
                seconds = before + now - began
                state = {"study": study.snapshot(), "fit": made.state(), "seconds": seconds}
                self._write(path, state)
                written = time.monotonic()
        return made

    def clear(self) -> None:
        """Removes the files, once the task is learned."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        if self._directory is None:
            return []
        return sorted(self._directory.glob(f"{self._prefix}-stage-*.safetensors"))

    def _path(self) -> Path | None:
        if self._directory is None:
            return None
        return self._directory / f"{self._prefix}-stage-{self._count:03d}.safetensors"

    def _write(self, path: Path, state: Any) -> None:
        writer = Writer()
        text = json.dumps([self._identity, writer.written(state, "state")])
        write_archive(path, writer.tensors, {_TREE: text}, keep=1, largest=2**40)

    def _read(self, path: Path) -> Any:
        with Archive(path) as archive:
            try:
                identity, tree = json.loads(archive.metadata[_TREE])
            except (KeyError, ValueError, TypeError) as error:
                raise CheckpointError(f"{path} holds no stage of a learned task") from error
            if identity != self._identity:
                raise CheckpointError(
                    f"{path} is of another run, of {identity}; give another directory, or remove it"
                )
            return read_tree(tree, archive.take)


def seed_of(*parts: Any) -> int:
    """A seed that depends on its purpose only."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:7], "big")


def made(directory: Path | None) -> Path | None:
    """A directory, made if it is not there.

    Raises:
        CheckpointError: If it cannot be.
    """
    if directory is not None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot write to {directory}: {error.strerror}") from error
    return directory

"""A run that grows, once without a stop, and once killed and resumed, to the same bits.

Each run is a process of its own, forked before torch has computed anything.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from equal_widths import Block
from torch import Tensor, nn

import splitgrow

STEPS, DIES = 8, 6
"""The steps of a run, and those after which it is killed, once it has a checkpoint."""


@dataclass(frozen=True)
class How:
    """One way to run.

    Attributes:
        kind: "width", "insertion" or "both".
        fused: Whether AdamW runs fused.
        folder: Where the tool writes.
        dies: Whether the run is killed after a checkpoint.
        resumed: Whether it goes on from one.
        grows: Whether it grows; a control does not.
    """

    kind: str
    fused: bool
    folder: Path
    dies: bool = False
    resumed: bool = False
    grows: bool = True

    @property
    def growths(self) -> dict[int, Callable[[Any, Any], None]]:
        """The growths of a run, before it is killed and after it was resumed, by their steps."""
        return {3: self._grow, 7: _grow_again} if self.grows else {}

    def grow(self, step: int, model: Any, optimizer: Any) -> None:
        """Grows a model at the end of a step, if it is one of those."""
        if step in self.growths:
            self.growths[step](model, optimizer)

    def _grow(self, model: Any, optimizer: Any) -> None:
        growing = splitgrow.handle(model)
        if self.kind in {"width", "both"}:
            growing.expand_layer("stem", 6, freeze=self.kind == "both", optimizer=optimizer)
        if self.kind in {"insertion", "both"}:
            growing.insert_layer("block", "block", freeze=False, optimizer=optimizer)

    def die(self) -> None:
        """Ends the process at once, if it is to be killed."""
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)


def _grow_again(model: Any, optimizer: Any) -> None:
    splitgrow.handle(model).expand_layer("block.first", 2, freeze=False, optimizer=optimizer)


@dataclass(frozen=True)
class Trained:
    """The outcome of a run.

    Attributes:
        model: The model.
        optimizer: Its optimizer.
        average: An average of it, if the tool has one.
    """

    model: nn.Module
    optimizer: Any
    average: nn.Module | None = None

    def tensors(self) -> Result:
        """All that must be the same to the bit: parameters, optimizer states, averages."""
        named = dict(self.model.named_parameters())
        found = {name: parameter.detach() for name, parameter in named.items()}
        for name, parameter in named.items():
            state = self.optimizer.state.get(parameter, {})
            found |= {f"{key} of {name}": torch.as_tensor(state[key]) for key in sorted(state)}
        if self.average is not None:
            averages = self.average.named_parameters()
            found |= {f"average of {name}": p.detach() for name, p in averages}
        return found


Result = dict[str, Tensor]
Program = Callable[[How], Trained]
"""Trains a model in a tool."""


class Net(nn.Module):
    """Layers of equal widths, so that a state by a wrong position would fit in shape."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.block = nn.Linear(6, 6), nn.Linear(6, 6), Block(nn.LayerNorm)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.body(self.stem(x).relu())))


def network(seed: int = 0) -> nn.Module:
    """A growable network."""
    torch.manual_seed(seed)
    return splitgrow.growable(Net(), torch.randn(2, 6))


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The data of a step."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(4, 6, generator=generator), torch.randn(4, 3, generator=generator)


def result_of(program: Program, how: How) -> Result | None:
    """The tensors that a run ends with, from a process of its own; None if it was killed.

    Raises:
        RuntimeError: If the run failed.
    """
    with tempfile.NamedTemporaryFile() as file:
        child = os.fork()
        if not child:
            _run(program, how, file.name)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and how.dies:
            return None
        if status:
            raise RuntimeError(f"{how} ended with status {status}: {Path(file.name).read_text()}")
        found: Result = torch.load(file.name, weights_only=True)
        return found


def _run(program: Program, how: How, path: str) -> None:
    code = 1
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            trained = program(how)
        torch.save(trained.tensors(), path)
        code = 0
    except BaseException:  # noqa: BLE001 - told to the parent
        Path(path).write_text(traceback.format_exc())
    finally:
        sys.stderr.flush()
        os._exit(code)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def differences(program: Program, *, controls: bool = True) -> Iterator[str]:
    """All that a tool gets wrong; nothing if each resumed run ends in the same bits."""
    for kind, fused in (("width", True), ("insertion", False), ("both", True)):
        with _folder() as one, _folder() as other:
            whole = result_of(program, How(kind, fused, one))
            if result_of(program, How(kind, fused, other, dies=True)) is not None:
                yield f"{kind}, fused={fused}: the run was not killed"
                continue
            again = result_of(program, How(kind, fused, other, resumed=True))
        assert whole is not None
        assert again is not None
        if not _same(whole, again):
            wrong = [
                key for key in whole if key not in again or not torch.equal(whole[key], again[key])
            ]
            yield f"{kind}, fused={fused}: the resumed run ended with others: {wrong[:5]}"
        names = " ".join(whole)
        if ("stem.1." in names) != (kind != "insertion") or ("inserted" in names) != (
            kind != "width"
        ):
            yield f"{kind}, fused={fused}: the run has not grown"
    if controls:
        with _folder() as one, _folder() as other:
            grown = result_of(program, How("width", False, one))
            plain = result_of(program, How("width", False, other, grows=False))
        assert grown is not None
        assert plain is not None
        if torch.equal(grown["head.weight"], plain["head.weight"]):
            yield "growth made no difference to what was learned"


def _same(one: Result, other: Mapping[str, Tensor | None]) -> bool:
    pairs = [(one[key], other.get(key)) for key in one]
    return one.keys() == other.keys() and all(o is not None and torch.equal(s, o) for s, o in pairs)

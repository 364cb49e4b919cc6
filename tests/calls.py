"""How many functions of the library an operation calls, and how often it moves between modules.

``python tests/calls.py`` prints both for each operation on a small CNN, in float32 on the CPU:
three times convolution, batch norm and ReLU, then a pool and two linear layers with a ReLU between.
With an operation's name, it prints the functions and moves of that.

A move is a call whose caller, the nearest function of the library on the stack, is in another
module. A generator counts once, however often it goes on; comprehensions and lambdas do not count.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

import splitgrow

LIBRARY = str(Path(splitgrow.__file__).parent)


class Calls:
    """A context that counts the calls of the library's functions in it.

    Attributes:
        functions: How often each function was called, by module and name.
        moves: How often a function of one module called one of another, by both modules.
    """

    def __init__(self) -> None:
        self.functions: Counter[tuple[str, str]] = Counter()
        self.moves: Counter[tuple[str, str]] = Counter()
        self._begun: list[FrameType] = []

    def __enter__(self) -> Calls:
        sys.setprofile(self._seen)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        sys.setprofile(None)
        self._begun.clear()

    def _seen(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or code.co_name.startswith("<") or not _module(frame):
            return
        if code.co_flags & inspect.CO_GENERATOR:
            if any(frame is other for other in self._begun):
                return
            self._begun.append(frame)
        module = _module(frame)
        self.functions[module, code.co_qualname] += 1
        caller = frame.f_back
        while caller is not None and not _module(caller):
            caller = caller.f_back
        if caller is not None and _module(caller) != module:
            self.moves[_module(caller), module] += 1


def _module(frame: FrameType) -> str:
    """The library's module that a frame is in, or nothing."""
    name = frame.f_code.co_filename
    return name.removeprefix(LIBRARY).strip("/") if name.startswith(LIBRARY) else ""


def network() -> Any:
    """The network that is grown."""
    torch.manual_seed(0)
    widths, layers = (3, 8, 16, 16), list[nn.Module]()
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)]
    return nn.Sequential(*layers, *head)


def _example() -> torch.Tensor:
    return torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)


def prepared(model: Any) -> Any:
    """The network, made growable."""
    return splitgrow.growable(model, _example())


def _grown(model: Any) -> Any:
    prepared(model).expand_layer("3", 4)
    return model


Operation = tuple[Callable[[Any], Any], Callable[[Any], object]]
"""What is done with a network before, and what is counted."""
OPERATIONS: dict[str, Operation] = {
    "growable": (lambda model: model, prepared),
    "expand_layer": (prepared, lambda model: model.expand_layer("3", 4)),
    "expand_layer, check=False": (
        prepared,
        lambda model: model.expand_layer("3", 4, check=False),
    ),
    "insert_layer": (prepared, lambda model: model.insert_layer("3", "residual")),
    "insert_layer, check=False": (
        prepared,
        lambda model: model.insert_layer("3", "residual", check=False),
    ),
    "fuse": (_grown, splitgrow.fuse),
}


def counted(name: str) -> Calls:
    """The calls of an operation, once caches are filled."""
    prepare, operation = OPERATIONS[name]
    operation(prepare(network()))
    model = prepare(network())
    with Calls() as calls:
        operation(model)
    return calls


def main() -> None:
    """Prints the calls and moves of each operation; with a name, that operation's functions."""
    if sys.argv[1:]:
        calls = counted(sys.argv[1])
        for (module, name), count in calls.functions.most_common(80):
            print(f"{count:6} {module}: {name}")  # noqa: T201
        for (before, after), count in calls.moves.most_common(40):
            print(f"{count:6} {before} -> {after}")  # noqa: T201
        return
    for operation in OPERATIONS:
        calls = counted(operation)
        print(  # noqa: T201
            f"{operation:28}{calls.functions.total():8} calls{calls.moves.total():8} moves"
        )


if __name__ == "__main__":
    main()

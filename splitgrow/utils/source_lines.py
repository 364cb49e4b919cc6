"""Lines of the user's source: the one that calls, runs an op or raises an error."""

from __future__ import annotations

import os
import sys
import traceback
from functools import lru_cache
from pathlib import Path
from types import FrameType, TracebackType

import torch
from torch import nn

from splitgrow.utils.example_call import ExampleCall

_NOT_THE_USERS = tuple(
    str(Path(module.__file__).parent) + os.sep
    for module in (torch, sys.modules["splitgrow"])
    if module.__file__
)
_ON_THE_WAY = frozenset(
    str(Path(torch.__file__).parent / name)
    for name in (
        "overrides.py",
        "functional.py",
        "_tensor.py",
        "_jit_internal.py",
        "nn/functional.py",
    )
)
"""The code that Python runs between a call of an op and a torch function mode."""
_GROWN_LAYER = str(Path(__file__).parent.parent / "layers" / "split_layer.py")
_STANDARD = str(Path(os.__file__).parent) + os.sep
"""The folders of Python's own library; in some installations packages lie below them."""


def place_of_caller() -> str:
    """The innermost line of the user's source on the stack: ``model.py:12``."""
    frame = sys._getframe(1)  # noqa: SLF001
    while frame.f_back is not None and not is_the_users(frame.f_code.co_filename):
        frame = frame.f_back
    return _place(frame.f_code.co_filename, frame.f_lineno)


def place_of_op() -> str:
    """The user's line that calls the op that runs.

    Empty where a module of torch's calls it, or code inside of a grown layer.
    """
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001
    while frame is not None and frame.f_code.co_filename in _ON_THE_WAY:
        frame = frame.f_back
    if frame is None or not is_the_users(frame.f_code.co_filename):
        return ""
    place = _place(frame.f_code.co_filename, frame.f_lineno)
    while frame is not None and frame.f_code.co_filename != _GROWN_LAYER:
        frame = frame.f_back
    return place if frame is None else ""


def levels_to_caller() -> int:
    """The `stacklevel` with which a warning given here points to that line."""
    frame, level = sys._getframe(1), 1  # noqa: SLF001
    while frame.f_back is not None and not is_the_users(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    return level


def place_of_error(trace: TracebackType | None) -> str:
    """The innermost line of the user's source that an error passed through."""
    places = [
        _place(frame.filename, frame.lineno or 0)
        for frame in traceback.extract_tb(trace)
        if is_the_users(frame.filename)
    ]
    return places[-1] if places else "an unknown place"


def failure_of(
    model: nn.Module, inputs: ExampleCall, error: Exception, layer: str, *, training: bool
) -> str:
    """The message for a model that fails on its example inputs."""
    shapes = inputs.map(lambda tensor: tuple(tensor.shape))
    mode = "training" if training else "evaluation"
    message = str(error).replace("FakeTensor", "Tensor")
    within = f"in `{layer}`, " if layer else ""
    return (
        f"{type(model).__name__} does not run on example_inputs of shapes {shapes} in {mode} mode: "
        f"{within}{place_of_error(error.__traceback__)}: {type(error).__name__}: {message}"
    )


@lru_cache(maxsize=4096)
def is_the_users(filename: str) -> bool:
    """Whether a file is neither of torch, nor of splitgrow, nor of Python's own library."""
    own = filename.startswith(_STANDARD) and "-packages" not in filename[len(_STANDARD) :]
    return not (own or filename.startswith(_NOT_THE_USERS))


def _place(filename: str, line: int) -> str:
    return f"{_told(filename)}:{line}"


@lru_cache(maxsize=4096)
def _told(filename: str) -> str:
    """A file's path, from the folder that is the current one when it is first asked for."""
    return filename.removeprefix(os.getcwd() + os.sep)  # noqa: PTH109 - a Path takes its time

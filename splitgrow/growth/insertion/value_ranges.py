"""Between which values a recorded tensor lies, whatever the input: for activations that repeat.

An activation leaves its own results alone where it is the identity on its range, as ReLU is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from splitgrow.analysis.trace import Step, refs_in

Interval = tuple[float, float]
EVERYTHING: Interval = (-math.inf, math.inf)

_RANGES: dict[str, Interval] = {
    "relu": (0.0, math.inf),
    "relu6": (0.0, 6.0),
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
    "softplus": (0.0, math.inf),
    "square": (0.0, math.inf),
    "abs": (0.0, math.inf),
    "exp": (0.0, math.inf),
}
_PASSED_ON = """
    maxpool1d maxpool2d maxpool3d adaptivemaxpool1d adaptivemaxpool2d adaptivemaxpool3d flatten view
    reshape permute transpose contiguous identity clone squeeze unsqueeze getitem chunk split
    channelshuffle pixelshuffle unflatten expand
"""
_KEPT = frozenset(_PASSED_ON.split())
"""What passes values on as they are, or some of them."""
_AVERAGES = """
    avgpool1d avgpool2d avgpool3d adaptiveavgpool1d adaptiveavgpool2d adaptiveavgpool3d mean
    zeropad1d zeropad2d zeropad3d
"""
_WITH_ZERO = frozenset(_AVERAGES.split())
"""What makes averages, perhaps with zeros, or zeros."""
_DROPOUTS = frozenset(("dropout", "dropout1d", "dropout2d", "dropout3d"))


def _plain(name: str) -> str:
    return name.lower().replace("_", "").removesuffix("withindices")


def intervals_of(steps: Sequence[Step]) -> list[Interval]:
    """Bounds of the values of each step's result, in evaluation and in training."""
    found: list[Interval] = []
    for step in steps:
        found.append(_interval(step, [found[ref.step] for ref in refs_in(step.args)]))
    return found


def _interval(step: Step, operands: Sequence[Interval]) -> Interval:
    name = _plain(step.name)
    if name in _RANGES:
        return _RANGES[name]
    if name == "hardtanh" and step.module is None and len(step.args) == 1 and not step.kwargs:
        return -1.0, 1.0
    known = bool(operands) and (not step.kwargs or len(operands) == 1)
    return _combined(name, operands) if known else EVERYTHING


def _combined(name: str, operands: Sequence[Interval]) -> Interval:
    lows, highs = zip(*operands, strict=True)
    if name in _KEPT:
        return operands[0]
    if name in _WITH_ZERO:
        return min(lows[0], 0.0), max(highs[0], 0.0)
    if name in _DROPOUTS:  # what is kept is scaled up in training
        return (-math.inf if lows[0] < 0 else 0.0, math.inf if highs[0] > 0 else 0.0)
    if name in {"cat", "concat", "stack"}:
        return min(lows), max(highs)
    if name in {"add", "iadd"} and len(operands) == 2:
        return sum(lows), sum(highs)
    if name in {"mul", "imul"} and len(operands) == 2 and min(lows) >= 0:
        return 0.0, math.inf
    return EVERYTHING


def leaves_alone(activation: nn.Module, interval: Interval) -> bool:
    """Whether an activation is the identity on an interval."""
    low, high = interval
    if isinstance(activation, nn.Identity):
        return True
    if isinstance(activation, nn.Hardtanh):  # ReLU6 is one
        return low >= activation.min_val and high <= activation.max_val
    linear_above_zero = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU)
    return isinstance(activation, linear_above_zero) and low >= 0

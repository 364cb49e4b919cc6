"""The value ranges of traced tensors, for any input: for activations that repeat.

An activation leaves its own results as they are if it is the identity on its range, like ReLU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from splitgrow.analysis.ops import facts_of
from splitgrow.analysis.ops.facts import EVERYTHING, ValueRange
from splitgrow.analysis.trace import Step, refs_in


def value_ranges(steps: Sequence[Step], modules: Mapping[str, nn.Module]) -> list[ValueRange]:
    """The value range of each step's result, in evaluation and in training.

    Args:
        steps: A trace.
        modules: The model's modules by path.
    """
    found: list[ValueRange] = []
    for step in steps:
        module = modules[step.module] if step.module is not None else None
        operands = [found[ref.step] for ref in refs_in(step.args)]
        found.append(_range(step, module, operands))
    return found


def _range(step: Step, module: nn.Module | None, operands: Sequence[ValueRange]) -> ValueRange:
    facts = facts_of(step.target)
    known = bool(operands) and (not step.kwargs or len(operands) == 1)
    if facts.carry is not None:
        return facts.carry(operands) if known else EVERYTHING
    return facts.bounds_of(step.args, step.kwargs, module)


def leaves_alone(activation: nn.Module, bounds: ValueRange) -> bool:
    """Whether an activation is the identity on a value range."""
    low, high = bounds
    if isinstance(activation, nn.Identity):
        return True
    if isinstance(activation, nn.Hardtanh):  # ReLU6 is one
        return low >= activation.min_val and high <= activation.max_val
    linear_above_zero = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU)
    return isinstance(activation, linear_above_zero) and low >= 0

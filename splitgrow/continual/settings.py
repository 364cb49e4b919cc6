"""What learners are made with: checked, and as plain data."""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor, nn


def checked_inputs(model: Any, example_inputs: Any) -> tuple[Any, ...]:
    """The positional arguments of an example call.

    Raises:
        TypeError: If they are something else, or the model is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    if not isinstance(inputs, tuple):
        kind = type(inputs).__name__
        raise TypeError(f"example_inputs must be a tensor or a tuple, got {kind}")
    return inputs


def check_settings(decide_on: Any, validation_share: Any, seed: Any) -> None:
    """Makes sure that what every learner takes makes sense.

    Raises:
        TypeError: If the seed is no int.
        ValueError: If another one makes no sense.
    """
    if decide_on not in {"validation", "test"}:
        raise ValueError(f'decide_on must be "validation" or "test", got {decide_on!r}')
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share must lie between 0 and 1, got {validation_share!r}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int, got {seed!r}")


def plain_data(value: Any) -> Any:
    """A setting as JSON gives it back."""
    return json.loads(json.dumps(value))

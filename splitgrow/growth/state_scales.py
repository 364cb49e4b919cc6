"""Optimizer state of parameters whose values are scaled.

With w' = c w the gradient of w' is that of w over c. So what an optimizer keeps of gradients is
divided by c, what it keeps of their squares by the square of c, and what it keeps of values or of
steps is multiplied by c.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

_POWERS: dict[str, dict[str, int]] = {
    "SGD": {"momentum_buffer": -1},
    "Adam": {"exp_avg": -1, "exp_avg_sq": -2, "max_exp_avg_sq": -2},
    "AdamW": {"exp_avg": -1, "exp_avg_sq": -2, "max_exp_avg_sq": -2},
    "NAdam": {"exp_avg": -1, "exp_avg_sq": -2},
    "RAdam": {"exp_avg": -1, "exp_avg_sq": -2},
    "Adamax": {"exp_avg": -1, "exp_inf": -1},
    "Adagrad": {"sum": -2},
    "Adadelta": {"square_avg": -2, "acc_delta": 2},
    "RMSprop": {"square_avg": -2, "grad_avg": -1},  # its momentum is that of steps without a scale
    "Rprop": {"prev": -1, "step_size": 1},
    "ASGD": {"ax": 1},
}
"""For torch's optimizers, the power of the scale in each entry of a parameter's state."""


def scaled_state(
    optimizer: Optimizer, name: str, values: Sequence[Tensor | None], gains: Sequence[float]
) -> list[Tensor | None]:
    """An entry of several parameters' states, once their values are scaled.

    Entries of optimizers that are not torch's stay as they are.

    Args:
        optimizer: The optimizer.
        name: The entry's name.
        values: The entry of each parameter; None where there is none.
        gains: The factor of each parameter's values.
    """
    kind = type(optimizer)
    known = kind.__module__.startswith("torch.optim.")
    power = _POWERS.get(kind.__name__, {}).get(name, 0) if known else 0
    return [
        value if value is None or gain == 1 or not power else value * gain**power
        for value, gain in zip(values, gains, strict=True)
    ]

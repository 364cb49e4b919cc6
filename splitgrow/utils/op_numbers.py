"""The Python numbers that forward gives to its ops, which outputs need not show.

A clamp, a mask or a normalization may hide on the example inputs that a factor counts the model's
parameters. On other inputs it is not hidden. So the numbers themselves are compared.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from splitgrow.utils.source_lines import place_of_op

_ARITHMETIC = """
    add sub subtract mul multiply div divide true_divide rsub rdiv radd rmul rtruediv truediv pow
    rpow iadd isub imul itruediv ipow remainder fmod clamp clamp_min clamp_max clip where
    masked_fill fill lerp addcmul addcdiv threshold hardtanh leaky_relu full full_like new_full
    tensor as_tensor new_tensor maximum minimum lt le gt ge eq ne less less_equal greater
    greater_equal not_equal copysign heaviside xlogy float_power
"""
_TAKES_VALUES = frozenset(_ARITHMETIC.split())
"""Ops whose whole numbers are values too, where those of others may be sizes, axes or positions."""
_SIZED = {"full": 1, "new_full": 2}
"""The position of the first argument that is a value, behind a size."""

_COARSEST = 1e-4
"""Numbers that differ by more are others, unless rounding noise moves them, too."""
_SMALL = 1e-3
"""Where numbers cancel, what is left is rounding of this size."""


class Scalars(TorchFunctionMode):
    """Takes down the numbers that forward gives to ops on floating tensors, by op and line."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str], set[float]] = defaultdict(set)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        leaves = pytree.tree_leaves((args[_SIZED.get(name, 0) :], kwargs))
        kinds = (int, float) if name in _TAKES_VALUES else (float,)
        numbers = [leaf for leaf in leaves if type(leaf) in kinds and not math.isnan(leaf)]
        if numbers and any(_is_floating(value) for value in (*leaves, result)):
            place = place_of_op()
            if place:
                self._seen[name, place].update(numbers)
        return result

    def unlike(self, other: Scalars, tolerance: float, noisy: Callable[[Scalars], object]) -> str:
        """Where two runs gave an op other numbers, as a sentence; empty if nowhere.

        A line that only one of them came to is passed over, and so is how often either did.

        Args:
            other: What was taken down in the run before.
            tolerance: What is rounding, relative to a number.
            noisy: Runs the model with rounding noise. It is asked for only where numbers differ:
                those that noise alone changes are passed over.
        """
        # Where ties are broken, rounding moves outputs a long way, and tells nothing of numbers.
        tolerance = min(tolerance, _COARSEST)
        found = self._unlike(other, tolerance)
        if not found:
            return ""
        again = Scalars()
        noisy(again)
        shaky = self._unlike(again, tolerance)
        return next((told for key, told in found.items() if key not in shaky), "")

    def _unlike(self, other: Scalars, tolerance: float) -> dict[tuple[str, str], str]:
        found = {}
        for key, numbers in self._seen.items():
            theirs = other._seen.get(key, numbers)
            now, then = _without(numbers, theirs, tolerance), _without(theirs, numbers, tolerance)
            if now or then:
                told = " instead of ".join(f"{number:.6g}" for number in (*now[:1], *then[:1]))
                found[key] = f"`{key[0]}` at {key[1]} is given {told}"
        return found


def _without(numbers: set[float], others: set[float], tolerance: float) -> list[float]:
    """The numbers that are none of the others', up to rounding."""
    left = numbers - others
    return sorted(
        number
        for number in left
        if not any(
            math.isclose(number, other, rel_tol=tolerance, abs_tol=_SMALL * tolerance)
            for other in others
        )
    )


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())

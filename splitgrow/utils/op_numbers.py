"""The Python numbers that forward gives to its ops, which outputs need not show.

On the example inputs a clamp, a mask or a normalization may hide that a factor counts the model's
parameters. On other inputs it does not hide that. So the numbers themselves are compared.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
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
"""Ops whose integers are values too; those of other ops may be sizes, axes or positions."""
_SIZED = {"full": 1, "new_full": 2}
"""The position of the first argument that is a value, behind a size."""

_COARSEST = 1e-4
"""Numbers that differ by more are different, unless rounding noise moves them as well."""
_SMALL = 1e-3
"""Where numbers cancel, the rest is rounding of this size."""


class Scalars(TorchFunctionMode):
    """Notes the numbers that forward gives to ops on floating tensors, by op and line."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str], set[float]] = defaultdict(set)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        leaves = _leaves_of((args[_SIZED.get(name, 0) :], kwargs))
        kinds = (int, float) if name in _TAKES_VALUES else (float,)
        numbers = [leaf for leaf in leaves if type(leaf) in kinds and not math.isnan(leaf)]
        if numbers and any(_is_floating(value) for value in (*leaves, result)):
            place = place_of_op()
            if place:
                self._seen[name, place].update(numbers)
        return result

    def unlike(
        self,
        other: Scalars,
        tolerance: float,
        noisy: Callable[[Scalars], object],
        *,
        more: bool = False,
    ) -> str:
        """Where two runs gave an op different numbers, as a sentence; empty if nowhere.

        It passes over lines that only one of them ran, and the number of times that either ran one.

        Args:
            other: The numbers of the run before.
            tolerance: The largest difference that is rounding, relative to a number.
            noisy: Runs the model with rounding noise. It is called only where numbers differ:
                those that noise alone changes are passed over.
            more: Whether this run may have further ops, as with blocks that were inserted.
        """
        # Rounding that breaks ties moves outputs a long way, and tells nothing of the numbers.
        tolerance = min(tolerance, _COARSEST)
        found = self._unlike(other, tolerance, more=more)
        if not found:
            return ""
        again = Scalars()
        noisy(again)
        shaky = self._unlike(again, tolerance, more=False)
        return next((told for key, told in found.items() if key not in shaky), "")

    def _unlike(
        self, other: Scalars, tolerance: float, *, more: bool
    ) -> dict[tuple[str, str], str]:
        found = {}
        for key, numbers in self._seen.items():
            theirs = other._seen.get(key, numbers)
            now, then = _without(numbers, theirs, tolerance), _without(theirs, numbers, tolerance)
            if then or (now and not more):
                told = " instead of ".join(f"{number:.6g}" for number in (*now[:1], *then[:1]))
                found[key] = f"`{key[0]}` at {key[1]} is given {told}"
        return found


def _without(numbers: set[float], others: set[float], tolerance: float) -> list[float]:
    """The numbers that are not among the others, up to rounding."""
    left = numbers - others
    return sorted(
        number
        for number in left
        if not any(
            math.isclose(number, other, rel_tol=tolerance, abs_tol=_SMALL * tolerance)
            for other in others
        )
    )


def _leaves_of(value: Any) -> list[Any]:
    """The leaves that pytree finds, without its detours in the common cases."""
    kind = type(value)
    if kind is tuple or kind is list:
        return [leaf for item in value for leaf in _leaves_of(item)]
    if kind is dict:
        return [leaf for item in value.values() for leaf in _leaves_of(item)]
    return [value] if kind in _LEAVES else pytree.tree_leaves(value)


_LEAVES = frozenset((Tensor, nn.Parameter, int, float, bool, str, slice, type(None)))


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())

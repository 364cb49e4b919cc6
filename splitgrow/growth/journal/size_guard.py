"""Running a model from an untrusted description: no absurdly large tensor is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

TIMES = 1000
"""The largest result, in multiples of all that a model holds. The scores of 4,096 words with each
other in 12 heads are 200 million numbers, in a model of no less than one million."""
FEW = 2**20
"""Results of this size are allowed in any model."""


class Unbounded(BaseException):
    """A result is too large. Not an Exception, since code that runs models catches those."""


class Bounded(TorchFunctionMode):
    """Refuses results larger than in any honest model.

    A model runs without values first, where results take no memory, and on real values only if it
    needs some; so a result that is too large is found before it is made.

    Args:
        elements: The number of elements that the model holds in all.
    """

    def __init__(self, elements: int) -> None:
        super().__init__()
        self._most = TIMES * elements + FEW

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls a function of torch and checks its results.

        Raises:
            Unbounded: If a result is too large.
        """
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(each, Tensor) and each.numel() > self._most:
                raise Unbounded(f"a result has the shape {tuple(each.shape)}")
        return result

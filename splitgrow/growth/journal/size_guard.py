"""Running a model that somebody else described: nothing absurdly large is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

TIMES = 1000
"""How many times all that a model holds one result may be. The scores of 4,096 words with each
other in 12 heads are 200 million numbers, in a model of no less than one million."""
FEW = 2**20
"""As many may be in any model."""


class Unbounded(BaseException):
    """A result is too large. No Exception, since code that runs models tries again after those."""


class Bounded(TorchFunctionMode):
    """Refuses results of a size that no honest model has.

    A model is run without values first, where they take no memory, and on real values only if it
    asks for some; so whatever is too large is found before it is made.

    Args:
        elements: The number of elements of all that the model holds.
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
        """Calls a function of torch and looks at its results.

        Raises:
            Unbounded: If one is too large.
        """
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(each, Tensor) and each.numel() > self._most:
                raise Unbounded(f"a result has the shape {tuple(each.shape)}")
        return result

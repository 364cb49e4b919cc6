"""Growth at given steps of a trainer's run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

import splitgrow

WantedGrowth = Mapping[int | str, int] | Callable[[Any, Any], Any]
"""New units by layer, as `expand` takes them; or a function of the growable model, to which it is
`splitgrow.handle`, and of the optimizers. With several processes it gets the model as wrapped."""


class GrowthSteps:
    """Growths at the ends of some optimizer steps, each once.

    Args:
        growths: What to do at the end of which steps, by the number of optimizer steps so far.
        options: Further arguments of `expand`.

    Raises:
        TypeError: If a step is no int, or a growth is neither a mapping nor callable.
        ValueError: If a step is not positive.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> steps = GrowthSteps({2: {"0": 4}}, {"freeze": False})
        >>> for step in range(1, 4):
        ...     steps.grow(step, net, optimizer)
        >>> net.layers[0].width
        7
    """

    def __init__(self, growths: Mapping[int, WantedGrowth], options: Mapping[str, Any]) -> None:
        for step, growth in growths.items():
            if not isinstance(step, int) or isinstance(step, bool):
                raise TypeError(f"growths maps numbers of steps to growths, got the step {step!r}")
            if step < 1:
                raise ValueError(f"growth comes at the end of a step, counted from 1, got {step}")
            if not isinstance(growth, Mapping) and not callable(growth):
                raise TypeError(
                    f"a growth is a mapping from layers to numbers of new units, or a function of "
                    f"the model and the optimizer, got {growth!r} at step {step}"
                )
        self._growths, self._options = dict(growths), dict(options)
        self._done: set[int] = set()

    def begin(self, step: int) -> None:
        """Takes note of the growths that a resumed run has behind it."""
        self._done = {each for each in self._growths if each <= step}

    def due(self, step: int) -> list[int]:
        """The steps up to this one whose growths are still to come, in order."""
        return sorted(due for due in self._growths.keys() - self._done if due <= step)

    def grow(self, step: int, model: nn.Module, optimizer: Any, *, wrapped: bool = False) -> None:
        """Grows a model, where a growth is due.

        Args:
            step: The number of optimizer steps so far.
            model: The growable model, or its wrapper for several processes.
            optimizer: One or several optimizers.
            wrapped: Whether it is a wrapper.

        Raises:
            SplitGrowError: As the growth; the model and its optimizers stay as they are.
        """
        for due in self.due(step):
            growth: Any = self._growths[due]
            if callable(growth):
                growth(model if wrapped else splitgrow.handle(model), optimizer)
            elif wrapped:
                splitgrow.distributed.expand(model, growth, optimizer=optimizer, **self._options)
            else:
                splitgrow.handle(model).expand(growth, optimizer=optimizer, **self._options)
            self._done.add(due)

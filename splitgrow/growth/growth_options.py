"""How an edit is carried out: the new values, their learning rates, and whether it is checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from splitgrow.growth.initializers import Initializer, chosen_initializer
from splitgrow.growth.rates import AS_THE_GROUP, Rates


@dataclass(frozen=True)
class GrowthOptions:
    """How an edit is carried out.

    Attributes:
        initializer: Gives the new blocks their values.
        loss: A closure that runs the model and returns a loss, for an initializer that needs data.
        rates: The learning rates of new parameters.
        check: Whether outputs before and after are compared.
    """

    initializer: Initializer = field(default_factory=lambda: chosen_initializer("zero"))
    loss: Callable[[], Tensor] | None = None
    rates: Rates = AS_THE_GROUP
    check: bool = True

    @classmethod
    def of(
        cls,
        initializer: str | Initializer,
        loss: Callable[[], Tensor] | None,
        lr_scale: object,
        warmup: object,
        scheduler: object,
        *,
        check: bool,
    ) -> GrowthOptions:
        """The options for the arguments of a call.

        Raises:
            TypeError: If one is of another type.
            ValueError: If one is out of range.
        """
        rates = Rates.of(lr_scale, warmup, scheduler)
        return cls(chosen_initializer(initializer), loss, rates, check)

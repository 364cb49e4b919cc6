"""The named arguments that all methods of continual learning have in common."""

from __future__ import annotations

import os
from collections.abc import Sequence
from inspect import Signature, signature
from typing import ClassVar, Literal, TypedDict

from splitgrow.continual.events import Callback
from splitgrow.continual.tasks import Protocol
from splitgrow.continual.training import Training


class LearnerOptions(TypedDict, total=False):
    """The named arguments of every method: see `splitgrow.continual.Learner`."""

    head: str | Literal["auto"] | None
    training: Training | None
    decide_on: Protocol
    validation_share: float
    seed: int
    callbacks: Sequence[Callback]
    directory: str | os.PathLike[str] | None
    save_every: float


class ShowsAllOptions:
    """A class whose subclasses show the base's arguments in the place of their ``**common``."""

    __signature__: ClassVar[Signature]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = signature(cls.__init__)
        _, *named = own.parameters.values()  # without self
        found = {each.name: each for each in named}
        if "common" in found and all(each.kind is not each.VAR_POSITIONAL for each in named):
            found |= {
                name: each
                for name, each in signature(cls.__mro__[1]).parameters.items()
                if name not in found
            }
            del found["common"]
        cls.__signature__ = own.replace(parameters=[*found.values()])

"""What calls take as schedulers: those of torch and of other libraries, and one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias


class Scheduler(Protocol):
    """An object that sets learning rates when its `step` is called, as torch's schedulers do."""

    @property
    def step(self) -> Callable[..., Any]:
        """Sets the rates of the next step."""


class Stateful(Protocol):
    """An object with a state that is saved: a scheduler, a `FadeSchedule`, a GradScaler."""

    @property
    def state_dict(self) -> Callable[..., Any]:
        """Returns the state."""

    @property
    def load_state_dict(self) -> Callable[..., Any]:
        """Takes a state back."""


Schedulers: TypeAlias = Scheduler | Sequence[Scheduler]
SavedSchedulers: TypeAlias = Stateful | Sequence[Stateful]

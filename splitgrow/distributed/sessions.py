"""How processes find each other in a store that may outlive them.

After a restart a store can hold the words of earlier processes. So every process greets with a
word of its own, made when it starts, and the first one answers with the place where this run's
votes are and all the words that it has read: who finds its own among them knows that the answer is
from today.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch.distributed import distributed_c10d

_PAUSES = (0.001, 0.02)
"""Seconds between two looks into the store: at first, and at most."""
_GREETING = 0.1
"""Seconds between two looks for greetings."""


@dataclass
class Session:
    """One process's votes in one group of processes.

    Attributes:
        store: The store that holds them.
        base: Where the group's greetings are.
        rank: The process's rank in the group.
        ranks: How many processes there are.
        prefix: Where this run's votes are; empty until this process knows.
        rounds: How many votes there have been.
    """

    store: Any
    base: str
    rank: int
    ranks: int
    prefix: str = ""
    rounds: int = 0
    _read: dict[str, str] = field(default_factory=dict)
    _greeted: float = 0.0

    def join(self, seconds: float) -> bool:
        """Finds the others' votes, if this process has not yet; the next vote comes from here.

        Returns:
            Whether it has; not if the first process does not answer in time.
        """
        if self.rank == 0 and not self.prefix:
            self.prefix = f"{self.base}/{uuid.uuid4().hex}"
        elif not self.prefix:
            word = uuid.uuid4().hex
            self.store.set(f"{self.base}/hello/{self.rank}", word)
            answer = f"{self.base}/answer"

            def answered() -> bool:
                if not self.store.check([answer]):
                    return False
                found = json.loads(self.store.get(answer))
                if found["read"].get(str(self.rank)) == word:
                    self.prefix, self.rounds = found["prefix"], found["round"] - 1
                return bool(self.prefix)

            if not wait_until(answered, seconds):
                return False
        self.rounds += 1
        return True

    def greet(self) -> None:
        """Answers processes that have come since; the first one does, while it waits."""
        if self.rank or time.monotonic() - self._greeted < _GREETING:
            return
        self._greeted = time.monotonic()
        keys = {str(rank): f"{self.base}/hello/{rank}" for rank in range(1, self.ranks)}
        read = {
            rank: self.store.get(key).decode()
            for rank, key in keys.items()
            if self.store.check([key])
        }
        if read != self._read:
            answer = {"prefix": self.prefix, "round": self.rounds, "read": read}
            self.store.set(f"{self.base}/answer", json.dumps(answer))
            self._read = read

    def missing(self, keys: list[str], seconds: float) -> list[str]:
        """Waits for keys of the store; those that did not come."""
        left = list(keys)

        def come() -> bool:
            self.greet()
            left[:] = [key for key in left if not self.store.check([key])]
            return not left

        wait_until(come, seconds)
        return left


def wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    """Waits until something holds; whether it did in time."""
    deadline, pause = time.monotonic() + seconds, _PAUSES[0]
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(2 * pause, _PAUSES[1])
    return True


_SESSIONS: dict[str, Session] = {}


def session_of(group: Any, rank: int, ranks: int) -> Session:
    """The votes of this process in a group so far."""
    store = distributed_c10d._get_default_store()  # noqa: SLF001
    session = _SESSIONS.get(group.group_name)
    if session is None or session.store is not store:
        session = Session(store, f"splitgrow/{group.group_name}", rank, ranks)
        _SESSIONS[group.group_name] = session
    return session

"""Several processes agree on a step before any of them relies on it, or all of them stop.

The ballots go through the key-value store that the processes met at, not through collectives: a
collective waits for whoever does not come and cannot say who that was, and one that some processes
do not take part in leaves the others out of step for good. Whoever writes a verdict first decides;
all read that one, so that a process which gives up waiting cannot leave while others go on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch.distributed as dist
from torch.distributed import distributed_c10d

from splitgrow.distributed.sessions import session_of
from splitgrow.errors import DistributedError

_MARGIN = 5.0
"""Seconds that the others wait longer than rank 0, so that it is that which says who is missing."""
_UNANIMOUS = "!"
"""In front of a verdict: every process failed, with the same error."""
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Ballot:
    """The vote of one process on a step.

    Attributes:
        parts: The values that must be the same everywhere, in words, by name.
        error: The error here; empty if there is none.
        word: A text that may differ, of which the first process's is for all.
    """

    parts: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    word: str = ""

    def to_json(self) -> str:
        """The ballot as text: of each part its hash, and a beginning that people can read."""
        parts = {name: [digest(text), _short(text)] for name, text in self.parts.items()}
        return json.dumps({"parts": parts, "error": self.error, "word": self.word})


def digest(text: str) -> str:
    """A short hash of a text, the same in every process."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _short(text: str) -> str:
    line = text.strip().splitlines()[0] if text.strip() else ""
    return line if len(line) <= 200 else f"{line[:200]}..."


def described(error: BaseException) -> str:
    """An error in words."""
    return f"{type(error).__name__}: {error}"


class Agreement:
    """The votes of a group of processes on one call.

    Attributes:
        step: The name of the step that is being taken.

    Args:
        group: The processes; None for all.
        what: The call, as its errors name it.
        timeout: Seconds to wait for the others at each vote.

    Raises:
        DistributedError: If there is no process group, or this process is not in it.
    """

    def __init__(self, group: Any, what: str, timeout: float) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise DistributedError(
                f"{what} is for several processes, and there is no process group yet: call "
                f"torch.distributed.init_process_group first; in one process alone use the "
                f"model's own method of that name"
            )
        self.group = distributed_c10d._get_default_group() if group is None else group  # noqa: SLF001
        self.ranks = dist.get_process_group_ranks(self.group)
        if dist.get_rank() not in self.ranks:
            raise DistributedError(f"{what}: this process is not in the group that holds the model")
        self.rank = dist.get_rank(self.group)
        self.what, self.timeout = what, timeout
        self._session = session_of(self.group, self.rank, len(self.ranks))
        self._unanimous = False
        self._stopped: DistributedError | None = None
        self.step = ""

    @property
    def source(self) -> int:
        """The global rank of the group's first process, whose values count."""
        return self.ranks[0]

    def vote(self, step: str, ballot: Ballot) -> None:
        """Goes on if all processes come, nothing went wrong in any, and all parts are the same.

        Args:
            step: The next or the last action of the processes, for the error.
            ballot: This process's.

        Raises:
            DistributedError: In every process, otherwise.
        """
        try:
            verdict = self._verdict(ballot)
        except (RuntimeError, OSError) as error:  # the process that keeps the store is gone
            raise DistributedError(
                f"{self.what} was stopped while {step}, and nothing is changed here: the store "
                f"that the processes meet at does not answer ({described(error)})"
            ) from error
        if verdict:
            self._stopped = DistributedError(
                f"{self.what} was stopped on all {len(self.ranks)} ranks while {step}, and nothing "
                f"is changed on any: {verdict}"
            )
            raise self._stopped

    def attempt(self, step: str, action: Callable[[], tuple[_Made, Mapping[str, str]]]) -> _Made:
        """Does something in every process, and goes on if it succeeded in all with the same result.

        The action itself may `vote` on its way, before it waits for the others. So a process whose
        action has failed before that stops them there.

        Args:
            step: The name of the action, for the error.
            action: Does it; returns its result, and the values that must be the same everywhere, by
                name.

        Raises:
            DistributedError: In every process, if it failed in one or the parts differ.
            Exception: The action's error, if it raised the same in all of them.
        """
        return self._attempt(step, lambda: (*action(), ""))

    def first_word(self, step: str, action: Callable[[], str]) -> str:
        """The text that an action makes in the first process; else as `attempt`.

        Every process does the action, and none goes on if it failed in one. The text comes with the
        vote, so that a process which dies afterwards keeps nobody waiting.
        """

        def speak() -> tuple[None, Mapping[str, str], str]:
            own = action()  # fails here as it does there
            return None, {}, "" if self.rank else own

        self._attempt(step, speak)
        first = self._session.store.get(self._keys()[0])
        return str(json.loads(first)["word"])

    def _attempt(
        self, step: str, action: Callable[[], tuple[_Made, Mapping[str, str], str]]
    ) -> _Made:
        made: _Made | None = None
        parts: Mapping[str, str] = {}
        word, self.step = "", step
        failure: Exception | None = None
        try:
            made, parts, word = action()
        except Exception as error:  # noqa: BLE001 - the others must hear of any error
            failure = error
        except BaseException as error:
            self._leave(error)
            raise
        if self._stopped is not None:  # by a vote inside the action: all have heard
            raise self._stopped from (None if failure is self._stopped else failure)
        ballot = Ballot(parts, described(failure) if failure is not None else "", word)
        try:
            self.vote(step, ballot)
        except DistributedError as stopped:
            if failure is None:
                raise
            if self._unanimous:
                raise failure from None
            raise stopped from failure
        return cast("_Made", made)

    def all_do(self, step: str, action: Callable[[], _Made]) -> _Made:
        """Does something in every process whose result need not be the same; else as `attempt`."""
        return self.attempt(step, lambda: (action(), {}))

    def _leave(self, error: BaseException) -> None:
        """Tells the others that this process was interrupted; does not wait for them."""
        session = self._session
        with suppress(RuntimeError, OSError):
            if session.join(_MARGIN):
                ballot = Ballot(error=described(error))
                session.store.set(self._keys()[self.rank], ballot.to_json())

    def _keys(self) -> list[str]:
        """Where the ballots of this round are, by rank."""
        base = f"{self._session.prefix}/{self._session.rounds}"
        return [f"{base}/{rank}" for rank in range(len(self.ranks))]

    def _verdict(self, ballot: Ballot) -> str:
        """The decision: empty if all may go on."""
        self._unanimous = False
        session, patience = self._session, self.timeout + _MARGIN
        if not session.join(patience):
            return self._absent([0], patience)
        keys, key = self._keys(), f"{session.prefix}/{session.rounds}/verdict"
        session.store.set(keys[self.rank], ballot.to_json())
        decision = self._given_up(keys, key) if self.rank else self._judged(keys)
        if decision is not None:
            session.store.compare_set(key, "", json.dumps(decision))
        verdict = str(json.loads(session.store.get(key)))
        self._unanimous = verdict.startswith(_UNANIMOUS)
        return verdict.removeprefix(_UNANIMOUS)

    def _judged(self, keys: list[str]) -> str:
        """The first process's verdict on the ballots."""
        session = self._session
        missing = session.missing(keys, self.timeout)
        absent = [rank for rank, name in enumerate(keys) if name in missing]
        present = {rank: name for rank, name in enumerate(keys) if name not in missing}
        ballots = {rank: json.loads(session.store.get(name)) for rank, name in present.items()}
        reasons = [self._absent(absent, self.timeout)] if absent else []
        reasons += judged(ballots)
        errors = {ballot["error"] for ballot in ballots.values()}
        mark = _UNANIMOUS if not absent and len(errors) == 1 and "" not in errors else ""
        return mark + "; ".join(reasons)

    def _given_up(self, keys: list[str], verdict: str) -> str | None:
        """Waits for the verdict; if none comes, the reason for that."""
        session, patience = self._session, self.timeout + _MARGIN
        late = session.missing([verdict], patience)
        if late and session.store.check(keys[:1]):  # rank 0 is waiting for somebody else
            late = session.missing([verdict], patience)
        if not late:
            return None
        absent = [rank for rank, name in enumerate(keys) if not session.store.check([name])]
        return self._absent(absent or [0], patience)

    def _absent(self, ranks: list[int], seconds: float) -> str:
        return (
            f"{_ranks(ranks)} did not answer within {seconds:g} s: gone, stuck, or "
            f"never came to this call"
        )


def judged(ballots: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """The reasons against going on: errors, and parts that are not the same everywhere.

    Example:
        >>> parts = {"request": ["ab12", "expand a by 2"]}, {"request": ["cd34", "expand a by 3"]}
        >>> judged({rank: {"parts": part, "error": ""} for rank, part in enumerate(parts)})
        ['the request differs: rank 0 has "expand a by 2", rank 1 has "expand a by 3"']
    """
    failed = _alike({rank: ballot["error"] for rank, ballot in ballots.items() if ballot["error"]})
    reasons = [f"{_ranks(ranks)} failed with {error}" for error, ranks in failed.items()]
    sound = {rank: ballot["parts"] for rank, ballot in ballots.items() if not ballot["error"]}
    names = dict.fromkeys(name for parts in sound.values() for name in parts)
    for name in names:
        found = {rank: tuple(parts.get(name, ("", "none"))) for rank, parts in sound.items()}
        if len(set(found.values())) > 1:
            texts = [text for _, text in found.values()]
            shown = {
                # Two that begin alike are told apart by their hashes.
                rank: f'"{text}"' if len(set(texts)) == len(set(found.values())) else mark
                for rank, (mark, text) in found.items()
            }
            told = ", ".join(f"{_ranks(r)} has {text}" for text, r in _alike(shown).items())
            reasons.append(f"the {name} differs: {told}")
            break  # later parts differ on account of this
    return reasons


def _alike(found: Mapping[int, str]) -> dict[str, list[int]]:
    grouped: dict[str, list[int]] = {}
    for rank, value in found.items():
        grouped.setdefault(value, []).append(rank)
    return grouped


def _ranks(ranks: Iterable[int]) -> str:
    known = list(ranks)
    return f"rank{'s' if len(known) > 1 else ''} {', '.join(map(str, known))}"

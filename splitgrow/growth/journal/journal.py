"""The journal: every difference of a grown model from a fresh one, except tensor values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from splitgrow.errors import CheckpointError
from splitgrow.growth.edits import Edit
from splitgrow.utils.json_records import read_record, written

JOURNAL_VERSION = 1
MOST_GENERATIONS = 1_000_000
"""More generations than any model has, so that loops over them end."""


@dataclass(frozen=True)
class FadeShare:
    """A fade's alpha when a generation was closed.

    Attributes:
        path: The path of the `FadeIn`.
        alpha: Its alpha.
    """

    path: str
    alpha: float


@dataclass(frozen=True)
class Packed:
    """A tensor as data.

    Attributes:
        dtype: The name of its dtype.
        shape: Its shape.
        content: Its bytes, in base64.
    """

    dtype: str
    shape: tuple[int, ...]
    content: str


@dataclass(frozen=True)
class Held:
    """A module's state when a generation was closed, where the model does not have it.

    Attributes:
        path: The path of the module.
        values: The values by owner and name, as trees.
        gone: The names of items that it did not hold then, by owner.
        tensors: The tensors in the values, by name.
        lost: The names of items that are missing here, since they are not plain data.
    """

    path: str
    values: object
    gone: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    tensors: Mapping[str, Packed] = field(default_factory=dict, hash=False)
    lost: tuple[str, ...] = ()


@dataclass(frozen=True)
class Journal:
    """The history of a model, as data.

    Attributes:
        edits: The edits so far, in order.
        generation: The open generation.
        exact_from: The first generation whose closed state can still be recovered.
        frozen: The names of the parameters that closing a generation froze, by generation.
        fixed: The names of all parameters that do not train.
        held: The paths of the modules whose running statistics are held.
        shares: The fades' alpha when a generation was closed, by generation.
        states: The modules' state when a generation was closed, by generation.
        broken: The layers whose growth was found to change the model's function, and why.
        version: The version of the format.
    """

    edits: tuple[Edit, ...] = ()
    generation: int = 0
    exact_from: int = 0
    frozen: Mapping[int, tuple[str, ...]] = field(default_factory=dict, hash=False)
    fixed: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    shares: Mapping[int, tuple[FadeShare, ...]] = field(default_factory=dict, hash=False)
    states: Mapping[int, tuple[Held, ...]] = field(default_factory=dict, hash=False)
    broken: Mapping[str, str] = field(default_factory=dict, hash=False)
    version: int = JOURNAL_VERSION

    def to_json(self) -> str:
        """The journal as JSON."""
        return json.dumps(written(self))

    @classmethod
    def from_json(cls, text: str) -> Journal:
        """A journal from its JSON; every value is checked.

        Raises:
            CheckpointError: If it is of another version, or not a journal.
        """
        try:
            return cls.from_data(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"the journal cannot be read: {error}") from error

    @classmethod
    def from_data(cls, data: object) -> Journal:
        """A journal from parsed JSON.

        Raises:
            CheckpointError: If it is of another version, or not a journal.
        """
        version = data.get("version") if isinstance(data, dict) else None
        if version != JOURNAL_VERSION:
            raise CheckpointError(
                f"the journal is of version {version!r}; this splitgrow reads "
                f"version {JOURNAL_VERSION}"
            )
        try:
            journal: Journal = read_record(cls, data, "journal")
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"the journal cannot be read: {error}") from error
        journal._check()
        return journal

    def _check(self) -> None:
        generation = 0
        for number, edit in enumerate(self.edits, 1):
            opens = edit.closes == 0 and generation == 0 and edit.generation == 1
            fits = edit.generation in range(generation, self.generation + 1)
            if edit.index != number or not fits or not (edit.closes is None or opens):
                raise CheckpointError(f"edit {number} of the journal does not follow from the last")
            generation = edit.generation
        closed = range(self.generation)
        known = all(
            generation in closed for generation in (*self.frozen, *self.shares, *self.states)
        )
        if not 0 <= self.exact_from <= self.generation <= MOST_GENERATIONS or not known:
            raise CheckpointError("the journal's generations contradict each other")
        for share in (share for shares in self.shares.values() for share in shares):
            if not 0 <= share.alpha <= 1:
                raise CheckpointError(f"the fade `{share.path}` had come as far as {share.alpha}")

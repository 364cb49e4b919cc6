"""Closed generations that a loss of units or layers makes unrecoverable."""

from __future__ import annotations

from torch import nn

from splitgrow.errors import GenerationError
from splitgrow.growth.edits import Edit
from splitgrow.growth.history import History


def lost_generations(history: History, birth: int) -> tuple[int, ...]:
    """The closed generations that have units or layers of an edit, and can still be recovered.

    Args:
        history: The model's history.
        birth: The number of the first edit that has some that go; 0 for those of the model itself.
    """
    known = {generation for edit in history.edits for generation in edit.gives_up}
    return tuple(
        generation
        for generation in range(history.exact_from, history.generation)
        if generation not in known and birth <= history.last_edit(generation)
    )


def born_at(history: History, path: str) -> int:
    """The number of the edit that inserted a module or one around it; 0 if none did."""
    inserted = ((f"{item.name}.", e.index) for e in history.edits for item in e.inserted)
    return max((edit for name, edit in inserted if f"{path}.".startswith(name)), default=0)


def refuse_loss(lost: tuple[int, ...], what: str, way: str, *, give_up: bool) -> None:
    """Makes sure that closed generations lose nothing unless they may.

    Args:
        lost: The closed generations that would.
        what: The things of theirs that would go.
        way: The way out.
        give_up: Whether they may.

    Raises:
        GenerationError: If they would, and may not.
    """
    if lost and not give_up:
        names, them = ", ".join(map(str, lost)), "them" if len(lost) > 1 else "it"
        raise GenerationError(
            f"{what} of closed generation{'s' if len(lost) > 1 else ''} {names} would go, and `at` "
            f"could show {them} no more; pass give_up=True to give {them} up{way}"
        )


def let_go_(model: nn.Module, history: History, edit: Edit) -> None:
    """Drops all that is kept of modules that have gone, and to show generations that are given up.

    The caller keeps the history.
    """
    here = {id(module) for module in model.modules()}
    history.frozen = {
        generation: [
            (module, name)
            for module, name in owned
            if id(module) in here and getattr(module, name, None) is not None
        ]
        for generation, owned in history.frozen.items()
    }
    history.states = {g: own for g, own in history.states.items() if g not in edit.gives_up}
    history.shares = {g: own for g, own in history.shares.items() if g not in edit.gives_up}

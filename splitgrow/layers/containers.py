"""Containers of a plain model with one entry more for each inserted block, all renumbered.

In a growable model a wrapper holds what was inserted beside a module, so that paths stay. Where the
modules of an nn.ModuleList or nn.Sequential run one after the other, the plain model needs no
wrapper: the inserted block is an entry like the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from splitgrow.layers.block_numbers import configs_in, counts_of, lists_of, place_numbers
from splitgrow.layers.fade import FadeIn
from splitgrow.layers.hooks import has_hooks
from splitgrow.layers.insertion_wrapper import Inserted, InsertionWrapper
from splitgrow.layers.unwrap import arguments_of

CONTAINERS = (nn.ModuleList, nn.Sequential)


@dataclass(frozen=True)
class Entry:
    """An entry of a container.

    Attributes:
        module: The module.
        place: The place in the growable model's container of the module that it is, or beside
            which it was inserted.
        edit: The edit that inserted it; 0 for a module that was there.
        copied: Whether it is a copy of a block, which configurations count.
    """

    module: nn.Module
    place: int
    edit: int = 0
    copied: bool = False


def spread_blocks_(root: nn.Module, view: int | None) -> None:
    """Puts inserted blocks into their containers, in a model that nobody else holds.

    Wrappers stay where what they hold does not run one after the other, or has hooks.

    Args:
        root: The model.
        view: The edit after which it is shown; None for today.
    """
    for path, container in list(root.named_modules()):
        if type(container) in CONTAINERS:
            known = list(container)
            if any(isinstance(each, InsertionWrapper) for each in known):
                entries = [_entries(each, place, view) for place, each in enumerate(known)]
                if all(own is not None for own in entries):
                    found = [entry for own in entries for entry in own or ()]
                    room = sum(1 for each in known for _ in in_place_of(each))
                    _fill_(container, found)
                    _renumber_(root, path, found, (len(known), room))


def stock_block(module: nn.Module) -> nn.Module:
    """The module that was there before anything was inserted beside it."""
    return stock_block(module.wrapped) if isinstance(module, InsertionWrapper) else module


def in_place_of(module: nn.Module) -> Iterator[nn.Module]:
    """A block and all its copies that were inserted beside it, seen or not."""
    if isinstance(module, InsertionWrapper):
        copies = (module.part(i.name) for i in module.inserted if i.form == "block")
        for part in (module.wrapped, *copies):
            yield from in_place_of(part)
    else:
        yield module


def _entries(
    module: nn.Module, place: int, view: int | None, item: Inserted | None = None
) -> list[Entry] | None:
    """The modules that run one after the other in the place of one; None if they do not."""
    if not isinstance(module, InsertionWrapper):
        edit, copied = (item.edit, item.form == "block") if item is not None else (0, False)
        return [Entry(module, place, edit, copied)]
    if module.sets(view):
        return None
    before, behind = (module.seen(before=side, view=view) for side in (True, False))
    arguments = arguments_of(module.wrapped)
    forms = {"block", "chain"} if len(arguments) == 1 else {"block"}
    found: list[Entry] = []
    for inner in (*before, None, *behind):
        part = module.wrapped if inner is None else module.part(inner.name)
        fits = inner is None or (inner.form in forms and not isinstance(part, FadeIn))
        own = _entries(part, place, view, item if inner is None else inner)
        if not fits or own is None:
            return None
        found += own
    if has_hooks(module) and len(found) > 1:
        return None
    return found


def _fill_(container: nn.Module, entries: Sequence[Entry]) -> None:
    """Gives a container its entries; those that were there keep their names where they have any."""
    names = list(container._modules)  # noqa: SLF001
    numbered = names == [str(place) for place in range(len(names))]
    made: dict[str, nn.Module | None] = {}
    for place, entry in enumerate(entries):
        name = str(place) if numbered else names[entry.place]
        if not numbered and entry.edit:
            name = next(n for n in _further(name) if n not in names and n not in made)
        made[name] = entry.module
    container._modules.clear()  # noqa: SLF001
    container._modules.update(made)  # noqa: SLF001


def _further(name: str) -> Iterator[str]:
    number = 2
    while True:
        yield f"{name}_{number}"
        number += 1


def _renumber_(
    root: nn.Module, path: str, entries: Sequence[Entry], before: tuple[int, int]
) -> None:
    """Brings the numbers that a model holds of its blocks in line.

    Args:
        root: The model.
        path: The container's path.
        entries: Its entries.
        before: The number of entries that the growable model's container has, and that with all
            that was inserted. Its configurations have room for as many, or for those of the time
            that is shown: inserted blocks at the end, in the order of their edits.
    """
    known, room = before
    there = sorted((e for e in entries if not e.edit), key=lambda entry: entry.place)
    for number in place_numbers([entry.module for entry in there]):
        for place, entry in enumerate(entries):
            if number.of(entry.module) is not None:
                number.set_(entry.module, place)
    modules = dict(root.named_modules())
    copies = sorted((n for n, e in enumerate(entries) if e.copied), key=lambda n: entries[n].edit)
    ranks = {n: known + rank for rank, n in enumerate(copies)}
    places = [ranks.get(n, entry.place) for n, entry in enumerate(entries)]
    for config in configs_in(modules.values()):
        of_now = any(True for _ in counts_of(config, room, path))
        _set_(config, path, room if of_now else known + len(copies), places)
    holders = [path.rsplit(".", n)[0] for n in range(1, path.count(".") + 1)]
    for holder in ("", *holders) if path else ():
        if holder in modules:
            _set_(modules[holder], path, known, [entry.place for entry in entries])


def _set_(holder: Any, path: str, count: int, places: Sequence[int]) -> None:
    """Sets what an object holds of a number of blocks.

    Args:
        holder: The object.
        path: The path of the blocks' container.
        count: The number of blocks that it counts.
        places: For each block of now the item of its lists.
    """
    counts, lists = list(counts_of(holder, count, path)), list(lists_of(holder, count))
    for name in counts:
        vars(holder)[name] = len(places)
    for name in lists:
        value = vars(holder)[name]
        vars(holder)[name] = type(value)(value[place] for place in places)

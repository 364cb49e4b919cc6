"""Taking layers out of a model in place: what was inserted, and modules that change nothing."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from splitgrow.layers.block_numbers import configs_in, counts_of, lists_of, place_numbers
from splitgrow.layers.containers import CONTAINERS, in_place_of, stock_block
from splitgrow.layers.hooks import STORES, hand_over_, has_hooks
from splitgrow.layers.insertion_wrapper import Inserted, InsertionWrapper
from splitgrow.utils.module_slots import holders_in, put_in_place_
from splitgrow.utils.rollback import Undo


def inserted_at(model: nn.Module, name: str) -> tuple[InsertionWrapper, Inserted] | None:
    """The wrapper that holds what was inserted as a path, and its record of it; None if none does.

    Args:
        model: The model.
        name: The path.
    """
    host, _, own = name.rpartition(".")
    for path, module in model.named_modules(remove_duplicate=False):
        if path == host and isinstance(module, InsertionWrapper):
            found = next((item for item in module.inserted if item.name == own), None)
            if found is not None:
                return module, found
    return None


def take_off_(model: nn.Module, wrapper: InsertionWrapper, item: Inserted, undo: Undo) -> None:
    """Takes off what was inserted; with nothing left the wrapper goes, too.

    Args:
        model: The model.
        wrapper: The wrapper that has it.
        item: The wrapper's record of it.
        undo: Takes it back.
    """
    if item.form == "block":
        _retire_(model, wrapper.part(item.name), undo)
    modules = {each.name: wrapper.part(each.name) for each in wrapper.inserted}
    undo.on_failure(partial(wrapper.set_inserted, modules, wrapper.inserted))
    left = tuple(each for each in wrapper.inserted if each is not item)
    wrapper.set_inserted({each.name: modules[each.name] for each in left}, left)
    wrapped = wrapper.wrapped
    if left or (has_hooks(wrapper) and any(vars(wrapped)[name] for name in STORES)):
        return  # handles of hooks take these off one of the two modules
    if has_hooks(wrapper):
        hand_over_(wrapper, wrapped, undo)
    put_in_place_(holders_in(model), wrapper, wrapped, undo)


def put_identity_(model: nn.Module, module: nn.Module, undo: Undo) -> nn.Identity:
    """Puts an Identity in the place of a module, with the hooks of that; returns it."""
    identity = nn.Identity()
    identity.training = module.training
    if has_hooks(module):
        hand_over_(module, identity, undo, state=False)
    put_in_place_(holders_in(model), module, identity, undo)
    return identity


def _retire_(model: nn.Module, part: nn.Module, undo: Undo) -> None:
    """Takes back that a copy of a block was announced: its place, and what configurations count.

    Args:
        model: The model, with the copy.
        part: The copy, maybe with copies of its own beside it.
        undo: Takes it back.
    """
    modules = dict(model.named_modules())
    gone = {id(block) for block in in_place_of(part)}
    for path, container in modules.items():
        if type(container) not in CONTAINERS:
            continue
        blocks = [block for each in container for block in in_place_of(each)]
        if not any(id(block) in gone for block in blocks):
            continue
        for number in place_numbers([stock_block(each) for each in container]):
            places: list[Any] = [number.of(block) for block in blocks if id(block) in gone]
            for block in blocks:
                own = number.of(block)
                earlier = sum(p is not None and own is not None and p < own for p in places)
                if id(block) not in gone and earlier:
                    undo.keep(dict(block.named_modules())[number.path].__dict__)
                    number.set_(block, own - number.first - earlier)
        ranks = _ranks(model, blocks, len(list(container)), gone)
        for config in configs_in(modules.values()):
            held = vars(config)
            undo.keep(held)
            counts = list(counts_of(config, len(blocks), path))
            for name in list(lists_of(config, len(blocks))):
                stays = [item for n, item in enumerate(held[name]) if n not in ranks]
                held[name] = type(held[name])(stays)
            held.update(dict.fromkeys(counts, len(blocks) - len(ranks)))
        return


def _ranks(model: nn.Module, blocks: list[nn.Module], known: int, gone: set[int]) -> set[int]:
    """The items in lists of copies that go: copies have the last ones, in order of their edits."""
    births = {
        id(stock_block(wrapper.part(item.name))): item.edit
        for wrapper in model.modules()
        if isinstance(wrapper, InsertionWrapper)
        for item in wrapper.inserted
        if item.form == "block"
    }
    copies = sorted((b for b in blocks if id(b) in births), key=lambda block: births[id(block)])
    return {known + rank for rank, block in enumerate(copies) if id(block) in gone}

"""Numbers that models hold of their blocks and in configurations.

A block of a transformer knows its place (``layer_idx``), since caches have one for each block. The
model's ``config`` has the number of blocks, and lists with an item for each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

_PLACE = re.compile(r"(^|_)(idx|index|id|number|num|no)$")
_COUNT = re.compile(r"layer|block|depth")
_OTHER = re.compile(
    r"^(max|min|first|last|every|skip|moe)_|shared|kv|group|(interval|freq|step)s?$"
)
_SIDES = ("encoder", "decoder")
CONFIGS = ("config", "cfg")
"""The attributes in which modules hold their configurations."""


@dataclass(frozen=True)
class PlaceNumber:
    """An attribute that tells a block its place.

    Attributes:
        path: The path of the module that has it, in the block.
        name: The attribute's name.
        first: Its value in the first block.
    """

    path: str
    name: str
    first: int

    def of(self, block: nn.Module) -> Any:
        """Its value in a block; None if the block has none."""
        module = dict(block.named_modules()).get(self.path)
        return None if module is None else vars(module).get(self.name)

    def set_(self, block: nn.Module, place: int) -> None:
        """Tells a block its place, counted from 0."""
        dict(block.named_modules())[self.path].__dict__[self.name] = self.first + place


def place_numbers(blocks: Sequence[nn.Module]) -> list[PlaceNumber]:
    """The attributes that count on from block to block, by value and by what their names say.

    An Identity is in the place of a block that was taken out.
    """
    known = [(n, block) for n, block in enumerate(blocks) if type(block) is not nn.Identity]
    if not known:
        return []
    (start, one), *others = known
    found = [
        PlaceNumber(path, name, value - start)
        for path, module in dict(one.named_modules()).items()
        for name, value in vars(module).items()
        if type(value) is int and _PLACE.search(name)
    ]
    for place, block in others:
        modules = dict(block.named_modules())
        own = ((n, vars(modules[n.path])) for n in found if n.path in modules)
        found = [number for number, held in own if held.get(number.name) == number.first + place]
    return found


def configs_in(modules: Iterable[nn.Module]) -> list[Any]:
    """The configurations that modules hold, each once: objects with attributes."""
    held = (vars(module).get(name) for module in modules for name in CONFIGS)
    return list({id(one): one for one in held if hasattr(one, "__dict__")}.values())


LABELS = "num_labels"
"""The number of labels of a configuration, which may keep it as the labels' names."""


def set_setting_(config: Any, name: str, value: Any) -> None:
    """Sets a configuration's number; labels keep the names that they have."""
    names = vars(config).get("id2label")
    if name != LABELS or not isinstance(names, dict):
        vars(config)[name] = value
        return
    names = {n: names.get(n, f"LABEL_{n}") for n in range(value)}
    vars(config).update(id2label=names, label2id={label: n for n, label in names.items()})


def counts_of(holder: object, count: int, path: str) -> Iterator[str]:
    """The attributes of an object that hold the number of blocks.

    Args:
        holder: A configuration, or a module.
        count: The number.
        path: The path of the blocks' container, which tells an encoder from a decoder.
    """
    found = [
        name
        for name, value in vars(holder).items()
        if type(value) is int and value == count and _COUNT.search(name) and not _OTHER.search(name)
    ]
    side = next((each for each in _SIDES if each in path), "")
    of_side = [name for name in found if side and side in name]
    others = [each for each in _SIDES if each != side]
    yield from of_side or (name for name in found if not any(other in name for other in others))


def _is_plain(value: object) -> bool:
    return value is None or type(value) in (bool, int, float, str)


def lists_of(holder: object, count: int) -> Iterator[str]:
    """The attributes of an object that hold a list with a plain item for each block."""
    for name, value in vars(holder).items():
        listed = type(value) in (list, tuple) and len(value) == count
        if listed and not name.startswith("_") and all(map(_is_plain, value)):
            yield name

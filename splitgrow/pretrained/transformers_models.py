"""Models of transformers: the settings in a config, and a class made from other settings."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from splitgrow.layers.block_numbers import LABELS, set_setting_
from splitgrow.pretrained.library_model import LibraryModel

_MAY_BE_SET = re.compile(r"dim|size|inner|head|width|rank|feature|unit|channel|ffn|kv|hidden|vocab")
"""The names of settings that are not set and may be widths."""
_PART = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


def is_pretrained(model: nn.Module) -> bool:
    """Whether a model is one of transformers, by its methods."""
    return all(hasattr(model, name) for name in ("config", "save_pretrained", "from_pretrained"))


def settings_of(config: Any) -> dict[str, Any]:
    """The numbers in a config, and what may become one: by name, as ``text_config.d_model``."""
    found = dict(plain_settings(vars(config)))
    if isinstance(vars(config).get("id2label"), dict):
        found[LABELS] = len(config.id2label)
    return found


def plain_settings(held: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers among named values, and what may become one; items of lists by their index."""
    for name, value in held.items():
        path = f"{prefix}{name}"
        if name.startswith("_") or name.endswith("_token_id"):
            continue
        if type(value) in (int, float) or (value is None and _MAY_BE_SET.search(name)):
            yield path, value
        elif type(value) in (list, tuple):
            yield from ((f"{path}[{n}]", v) for n, v in enumerate(value) if type(v) is int)
        elif hasattr(value, "to_dict") and hasattr(value, "__dict__"):
            yield from plain_settings(vars(value), f"{path}.")


def set_settings_(config: Any, changes: Mapping[str, Any]) -> None:
    """Changes settings of a config, by the names that `settings_of` gives them."""
    for path, value in changes.items():
        if path == LABELS:
            set_setting_(config, path, value)
            continue
        *way, last = [name or int(index) for name, index in _PART.findall(path)]
        holder = config
        for part in way[:-1] if type(last) is int else way:
            holder = holder[part] if type(part) is int else vars(holder)[part]
        if type(last) is int:  # a list that other configs may share
            name = way[-1]
            items = list(vars(holder)[name])
            items[last] = value
            vars(holder)[name] = type(vars(holder)[name])(items)
        else:
            vars(holder)[last] = value


def made_from(kind: type[nn.Module], config: Any, changes: Mapping[str, Any]) -> nn.Module:
    """A model of a class without values, from a config with some settings changed.

    Whatever the class raises for a config that it does not take is raised.
    """
    changed = copy.deepcopy(config)
    set_settings_(changed, changes)
    with torch.device("meta"):
        return kind(changed)


_RUNS = ("attn_implementation", "experts_implementation")
"""Options of from_pretrained that tell how modules run, and that configs keep as private ones."""


class TransformersModel(LibraryModel):
    """A model of transformers, which is made of its config.

    Args:
        plain: The model.
        kind: The class of which from_pretrained makes it.
    """

    loader = "from_pretrained"

    def __init__(self, plain: Any, kind: Any) -> None:
        super().__init__(plain)
        self._kind = kind
        self.settings_name = type(plain.config).__name__

    def settings(self) -> Mapping[str, Any]:
        """As in `LibraryModel`."""
        return settings_of(self.plain.config)

    def made(self, changes: Mapping[str, Any]) -> nn.Module:
        """As in `LibraryModel`."""
        return made_from(self._kind, self.plain.config, changes)

    def set_(self, changes: Mapping[str, Any]) -> None:
        """As in `LibraryModel`."""
        set_settings_(self.plain.config, changes)

    def save(self, directory: Path, options: dict[str, Any]) -> None:
        """As in `LibraryModel`; options are those of the model's own save_pretrained.

        Raises:
            TypeError: If it is to be pushed as well.
        """
        if options.pop("push_to_hub", False):
            raise TypeError(
                "push_to_hub: save to a directory first, and push the model that from_pretrained "
                "reads there"
            )
        self.plain.save_pretrained(str(directory), **options)

    def read(self, directory: Path) -> nn.Module:
        """As in `LibraryModel`; its modules run in the ways that the config of the model names."""
        like = next(self.plain.parameters())
        held = {name: getattr(self.plain.config, f"_{name}", None) for name in _RUNS}
        options = {name: value for name, value in held.items() if isinstance(value, str)}
        again: nn.Module = self._kind.from_pretrained(
            str(directory), dtype=like.dtype, local_files_only=True, **options
        )
        return again.to(like.device)

    @property
    def saved_settings(self) -> Any:
        """The config."""
        return self.plain.config

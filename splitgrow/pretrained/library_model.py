"""A plain model as its library makes it: from settings, and from a checkpoint."""

from __future__ import annotations

import contextlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from torch import nn


class LibraryModel(ABC):
    """What saving needs to know of a library whose model is saved.

    Attributes:
        plain: The model, plain, of its library's class.
        loader: The library's function that reads a checkpoint.
        settings_name: What the settings are called there.
    """

    loader: str
    settings_name: str

    def __init__(self, plain: Any) -> None:
        self.plain = plain

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """The numbers from which the library makes the model, by name: those that may change."""

    @abstractmethod
    def made(self, changes: Mapping[str, Any]) -> nn.Module:
        """A model without values, from settings of which some are changed; may raise anything."""

    @abstractmethod
    def set_(self, changes: Mapping[str, Any]) -> None:
        """Changes settings, before the model is saved with them."""

    @abstractmethod
    def save(self, directory: Path, options: dict[str, Any]) -> None:
        """Writes a checkpoint; may raise what the library raises for settings that do not fit."""

    @abstractmethod
    def read(self, directory: Path) -> nn.Module:
        """What the library makes of a checkpoint, on the model's device and in its dtype."""

    @property
    @abstractmethod
    def saved_settings(self) -> Any:
        """The settings with which the model is saved, as users of the library know them."""


@contextlib.contextmanager
def arguments_noted(kind: Any) -> Iterator[dict[str, Any]]:
    """The arguments of the first instance of a class that is made in a ``with`` block."""
    own, seen = kind.__init__, dict[str, Any]()
    signature = inspect.signature(own)

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if not seen:
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            for name, value in bound.arguments.items():
                more = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
                seen.update(value if more else {name: value})
        own(self, *args, **kwargs)

    with mock.patch.object(kind, "__init__", init):
        yield seen

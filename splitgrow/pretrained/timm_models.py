"""Models of timm: the arguments of create_model, and checkpoints that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from splitgrow.pretrained.library_model import LibraryModel, arguments_noted
from splitgrow.pretrained.transformers_models import plain_settings


def is_of_timm(model: nn.Module) -> bool:
    """Whether timm has made a model, by what it notes there."""
    found = getattr(model, "pretrained_cfg", None)
    return isinstance(found, Mapping) and isinstance(found.get("architecture"), str)


class TimmModel(LibraryModel):
    """A model of timm, which is made by its name and arguments.

    Args:
        plain: The model.
        kind: Its class.
    """

    loader = "timm.create_model"

    def __init__(self, plain: Any, kind: type[nn.Module]) -> None:
        super().__init__(plain)
        self._kind = kind
        self._name: str = plain.pretrained_cfg["architecture"]
        self._own: dict[str, Any] = dict(getattr(plain, "_model_args", {}))
        self._own.update(_of_now(plain))
        self._changes: dict[str, Any] = {}
        self.settings_name = f"set of arguments of {self._name}"

    def settings(self) -> Mapping[str, Any]:
        """As in `LibraryModel`: the numbers that the class gets when timm makes the model."""
        return dict(plain_settings(self._arguments()))

    def _arguments(self) -> dict[str, Any]:
        """The arguments with which timm makes the class."""
        with arguments_noted(self._kind) as seen:
            self.made({})
        return seen

    def made(self, changes: Mapping[str, Any]) -> nn.Module:
        """As in `LibraryModel`."""
        import timm  # noqa: PLC0415 - not always installed

        with torch.device("meta"):
            made: nn.Module = timm.create_model(self._name, **self._with(changes))
        return made

    def _with(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments with some numbers changed, also those in lists."""
        found = dict(self._own)
        for path, value in changes.items():
            name, _, index = path.rstrip("]").partition("[")
            if not index:
                found[name] = value
                continue
            if name not in found:
                found[name] = self._arguments()[name]
            items = list(found[name])
            items[int(index)] = value
            found[name] = tuple(items)
        return found

    def set_(self, changes: Mapping[str, Any]) -> None:
        """As in `LibraryModel`."""
        self._changes = dict(changes)

    @property
    def saved_settings(self) -> dict[str, Any]:
        """The arguments for create_model."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self._new().items()}

    def _new(self) -> dict[str, Any]:
        return self._with(self._changes)

    def save(self, directory: Path, options: dict[str, Any]) -> None:
        """As in `LibraryModel`; options are those of timm's save_for_hf."""
        from timm.models import save_for_hf  # noqa: PLC0415 - not always installed

        arguments = self.saved_settings | dict(options.pop("model_args", {}))
        save_for_hf(
            self.plain,
            str(directory),
            **{"safe_serialization": True, **options},
            model_args=arguments,
        )

    def read(self, directory: Path) -> nn.Module:
        """As in `LibraryModel`."""
        import timm  # noqa: PLC0415 - not always installed

        like = next(self.plain.parameters())
        again: nn.Module = timm.create_model(f"local-dir:{directory}", pretrained=True)
        if like.dtype is torch.float64:  # timm reads all into single precision
            again.double().load_state_dict(self.plain.state_dict())
        return again.to(like.device, like.dtype).eval()


def _of_now(plain: Any) -> dict[str, int]:
    """The arguments that a model holds as numbers, and that have followed growth."""
    found = {"num_classes": getattr(plain, "num_classes", None)}
    return {name: value for name, value in found.items() if isinstance(value, int)}

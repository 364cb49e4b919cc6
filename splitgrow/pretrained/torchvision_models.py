"""Models of torchvision: the function that makes them, its arguments, and the tensors beside."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from splitgrow.errors import ExportError
from splitgrow.pretrained.library_model import LibraryModel, arguments_noted
from splitgrow.pretrained.model_form import ModelForm, distance
from splitgrow.pretrained.transformers_models import plain_settings

_CONFIG = "config.json"
_TENSORS = "model.safetensors"


def is_of_torchvision(model: nn.Module) -> bool:
    """Whether a model is of a class of torchvision's models."""
    return type(model).__module__.startswith("torchvision.models.")


class TorchvisionModel(LibraryModel):
    """A model of torchvision, which `torchvision.models.get_model` makes by name and arguments.

    torchvision has no checkpoints with settings. So a file beside the tensors has the name and the
    arguments, as get_model takes them.

    Args:
        plain: The model.
        kind: Its class.
    """

    loader = "torchvision.models.get_model"

    def __init__(self, plain: Any, kind: type[nn.Module]) -> None:
        super().__init__(plain)
        self._kind = kind
        self._name = self._nearest()
        self._changes: dict[str, Any] = {}
        self.settings_name = f"set of arguments of {self._name}"

    def _nearest(self) -> str:
        """The name of the model of this class whose tensors are most like the model's.

        Raises:
            ExportError: If torchvision makes none of this class.
        """
        from torchvision.models import get_model_builder, list_models  # noqa: PLC0415

        target = ModelForm.of(self.plain)
        near: list[tuple[Any, str]] = []
        for name in list_models():
            builder = get_model_builder(name)
            if builder.__module__ != self._kind.__module__:
                continue
            with contextlib.suppress(Exception):
                made = _made(name, {})
                if type(made) is self._kind:
                    form = ModelForm.of(made)
                    common = len(form.shapes.keys() ^ target.shapes.keys())
                    near.append(((common, *distance(form, target)), name))
        if not near:
            raise ExportError(f"torchvision makes no {self._kind.__name__} by a name of its own")
        return min(near)[1]

    def settings(self) -> Mapping[str, Any]:
        """As in `LibraryModel`: the numbers that the class gets when torchvision makes it."""
        with arguments_noted(self._kind) as seen:
            self.made({})
        return dict(plain_settings(seen))

    def made(self, changes: Mapping[str, Any]) -> nn.Module:
        """As in `LibraryModel`."""
        return _made(self._name, changes)

    def set_(self, changes: Mapping[str, Any]) -> None:
        """As in `LibraryModel`."""
        self._changes = dict(changes)

    @property
    def saved_settings(self) -> dict[str, Any]:
        """The name and the arguments for get_model."""
        return {"name": self._name, **self._changes}

    def save(self, directory: Path, options: dict[str, Any]) -> None:
        """As in `LibraryModel`.

        Raises:
            TypeError: If there are options, of which there are none.
        """
        if options:
            raise TypeError(f"a model of torchvision is saved without {', '.join(options)}")
        from safetensors.torch import save_file  # noqa: PLC0415 - not always installed

        tensors = {n: t.contiguous() for n, t in self.plain.state_dict().items()}
        save_file(tensors, directory / _TENSORS)
        (directory / _CONFIG).write_text(json.dumps(self.saved_settings, indent=2) + "\n")

    def read(self, directory: Path) -> nn.Module:
        """As in `LibraryModel`."""
        from safetensors.torch import load_file  # noqa: PLC0415 - not always installed
        from torchvision.models import get_model  # noqa: PLC0415

        like = next(self.plain.parameters())
        again: nn.Module = get_model(**json.loads((directory / _CONFIG).read_text()))
        again.to(like.device, like.dtype).load_state_dict(load_file(directory / _TENSORS))
        return again.eval()


def _made(name: str, changes: Mapping[str, Any]) -> nn.Module:
    """A model without values; lists are no arguments that torchvision's functions pass on."""
    from torchvision.models import get_model  # noqa: PLC0415

    with torch.device("meta"):
        made: nn.Module = get_model(name, **changes)
    return made

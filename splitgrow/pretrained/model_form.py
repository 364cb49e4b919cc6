"""The form of a model, without its values: the shapes of its tensors and its modules' numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

Number = tuple[str, str]
"""A module's path and the name of its attribute."""


@dataclass(frozen=True)
class ModelForm:
    """What two models must have in common to take each other's values and compute the same.

    Attributes:
        shapes: The shapes of the tensors in the state_dict, by name.
        numbers: Plain values that modules hold in attributes: numbers of heads, eps, names.
    """

    shapes: Mapping[str, tuple[int, ...]]
    numbers: Mapping[Number, Any]

    @classmethod
    def of(cls, model: nn.Module) -> ModelForm:
        """The form of a model, which may be on the meta device."""
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        numbers = {
            (path, name): value
            for path, module in model.named_modules()
            for name, value in vars(module).items()
            if _is_plain(value) and not name.startswith("_") and name != "training"
        }
        return cls(shapes, numbers)

    def unlike(self, other: ModelForm) -> list[str]:
        """The names of tensors that only one has, or that have another shape."""
        names = dict.fromkeys((*self.shapes, *other.shapes))
        return [name for name in names if self.shapes.get(name) != other.shapes.get(name)]

    def numbers_unlike(self, other: ModelForm) -> list[Number]:
        """The attributes of both that have other values there."""
        own = self.numbers
        return [key for key, value in other.numbers.items() if own.get(key, value) != value]


def _is_plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def distance(form: ModelForm, target: ModelForm) -> tuple[int, int]:
    """How far a form is from another: the tensors with other shapes, and the other lengths."""
    wrong = form.unlike(target)
    lengths = 0
    for name in wrong:
        one, two = form.shapes.get(name, ()), target.shapes.get(name, ())
        lengths += sum(a != b for a, b in zip(one, two, strict=False)) + abs(len(one) - len(two))
    return len(wrong), lengths

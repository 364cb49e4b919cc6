"""What one setting of a class does, as seen from two models that differ in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from splitgrow.pretrained.model_form import ModelForm, Number

UNSET = (8, 16, 32, 24)
"""Values to see what a setting does that is not set."""


@dataclass(frozen=True)
class SettingEffect:
    """What a setting does, as seen between two of its values.

    Attributes:
        values: The two values.
        forms: The two forms.
    """

    values: tuple[float, float]
    forms: tuple[ModelForm, ModelForm]

    def dimensions(self) -> Iterator[tuple[str, int, float, float]]:
        """Each dimension that it sets: the tensor, the dimension, the slope, the length at 0."""
        one, two = self.forms
        for name, shape in one.shapes.items():
            other = two.shapes.get(name)
            if other is None or len(other) != len(shape) or other == shape:
                continue
            for dim, (before, after) in enumerate(zip(shape, other, strict=True)):
                if before != after:
                    slope = (after - before) / (self.values[1] - self.values[0])
                    yield name, dim, slope, before - slope * self.values[0]

    def sets_numbers(self) -> Iterator[tuple[Number, float, float]]:
        """Each attribute that it sets: its place, the slope, the value at 0."""
        one, two = self.forms
        for key in one.numbers_unlike(two):
            before, after = one.numbers.get(key), two.numbers.get(key)
            if isinstance(before, (int, float)) and isinstance(after, (int, float)):
                slope = (after - before) / (self.values[1] - self.values[0])
                yield key, slope, before - slope * self.values[0]


def other_values(value: float) -> Iterator[float]:
    """Values to change a setting to, to see what it does; a class may not take all of them."""
    if type(value) is int:
        yield from (2 * value or 1, value + 1, 3 * value, value // 2)
    else:
        yield from (2 * value or 1e-3, value + 1.0)

"""The text form of a model's example input: `1,3,224,224`, or `1,16:int64`."""

from __future__ import annotations

from dataclasses import dataclass

DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "uint8", "bool")


@dataclass(frozen=True)
class Shape:
    """The sizes of an example input, and the name of its dtype."""

    sizes: tuple[int, ...]
    dtype: str = "float32"

    def __str__(self) -> str:
        text = ",".join(str(size) for size in self.sizes)
        return text if self.dtype == "float32" else f"{text}:{self.dtype}"


def parse_shape(text: str) -> Shape:
    """The shape that a text such as `1,16:int64` stands for.

    >>> parse_shape("1,16:int64")
    Shape(sizes=(1, 16), dtype='int64')

    Raises:
        ValueError: if it is not a list of positive sizes, or the dtype is not known.
    """
    sizes_text, colon, dtype = text.strip().partition(":")
    if colon and dtype not in DTYPES:
        raise ValueError(f"{dtype!r} is not one of the dtypes {', '.join(DTYPES)}")
    parts = sizes_text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{text!r} is not a list of positive sizes, such as 1,3,224,224")
    sizes = tuple(int(part) for part in parts)
    return Shape(sizes, dtype) if colon else Shape(sizes)

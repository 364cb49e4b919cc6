"""The text form of a model's example input: `1,3,224,224`, `1,16:int64` or `words=1,16:int64`."""

from __future__ import annotations

from dataclasses import dataclass

DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "uint8", "bool")


@dataclass(frozen=True)
class Shape:
    """The sizes of an example input, the name of its dtype, and its keyword if it has one."""

    sizes: tuple[int, ...]
    dtype: str = "float32"
    keyword: str = ""

    def __str__(self) -> str:
        text = ",".join(str(size) for size in self.sizes)
        text = text if self.dtype == "float32" else f"{text}:{self.dtype}"
        return f"{self.keyword}={text}" if self.keyword else text


def parse_shape(text: str) -> Shape:
    """The shape that a text such as `1,16:int64` stands for.

    >>> parse_shape("1,16:int64")
    Shape(sizes=(1, 16), dtype='int64', keyword='')
    >>> parse_shape("words=1,16:int64")
    Shape(sizes=(1, 16), dtype='int64', keyword='words')

    Raises:
        ValueError: if it is not a list of positive sizes, the dtype is not known, or the keyword is
            no name.
    """
    keyword, equals, shape_text = text.rpartition("=")
    keyword = keyword.strip()
    if equals and not keyword.isidentifier():
        raise ValueError(f"{keyword!r} in {text!r} is no name of an argument")
    sizes_text, colon, dtype = shape_text.strip().partition(":")
    if colon and dtype not in DTYPES:
        raise ValueError(f"{dtype!r} is not one of the dtypes {', '.join(DTYPES)}")
    parts = sizes_text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{text!r} is not a list of positive sizes, such as 1,3,224,224")
    sizes = tuple(int(part) for part in parts)
    return Shape(sizes, dtype if colon else "float32", keyword)

"""Makes a model growable on example inputs of the shapes that a user gives."""

from __future__ import annotations

from collections.abc import Sequence

import click
import torch
from torch import Tensor, nn

import splitgrow
from splitgrow.cli.shapes import Shape
from splitgrow.cli.targets import attempt

ExampleArguments = tuple[tuple[Tensor, ...], dict[str, Tensor]]
"""Positional and keyword arguments."""


def examples_of(inputs: Sequence[Shape]) -> ExampleArguments:
    """Example inputs of some shapes.

    Raises:
        click.ClickException: If one cannot be made.
    """
    text = _text(inputs)
    examples = attempt(f"cannot make inputs {text}", lambda: list(map(_example, inputs)))
    pairs = list(zip(inputs, examples, strict=True))
    placed = tuple(example for shape, example in pairs if not shape.keyword)
    return placed, {shape.keyword: example for shape, example in pairs if shape.keyword}


def growable_on(model: nn.Module, inputs: Sequence[Shape]) -> nn.Module:
    """The model, analysed on example inputs of some shapes.

    Raises:
        click.ClickException: If an input cannot be made, or the model does not run on them.
    """
    placed, named = examples_of(inputs)
    try:
        grown: nn.Module = splitgrow.growable(model, placed, named)
    except (TypeError, ValueError) as error:  # a SplitGrowError needs no more words
        raise click.ClickException(f"with inputs {_text(inputs)}: {error}") from error
    return grown


def _text(inputs: Sequence[Shape]) -> str:
    return " ".join(str(shape) for shape in inputs)


def _example(shape: Shape) -> Tensor:
    dtype: torch.dtype = getattr(torch, shape.dtype)
    if dtype.is_floating_point:
        return torch.rand(shape.sizes, dtype=dtype)
    return torch.zeros(shape.sizes, dtype=dtype)  # valid as indices of an embedding too

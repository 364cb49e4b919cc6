"""Finds the model of a directory that transformers have written, and example inputs for it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from torch import nn

from splitgrow.cli.shapes import Shape
from splitgrow.cli.targets import attempt, load_model

CONFIG = "config.json"


def is_directory(target: str) -> bool:
    """Whether a target is a directory with a config, rather than ``MODULE:FACTORY``."""
    return (Path(target) / CONFIG).is_file()


def load_target(target: str, *, weights: bool = False) -> nn.Module:
    """The model of a directory of transformers, or of ``MODULE:FACTORY``.

    Args:
        target: The directory, or ``MODULE:FACTORY``, which brings its weights.
        weights: Whether the weights in a directory are wanted, too.

    Raises:
        click.ClickException: As `load_directory` and `load_model`.
    """
    if is_directory(target):
        return load_directory(target, weights=weights)
    return load_model(target)


def load_directory(target: str, *, weights: bool = False) -> nn.Module:
    """The model whose config lies in a directory, in evaluation mode.

    Args:
        target: The directory.
        weights: Whether it gets the weights there; else they are random.

    Raises:
        click.ClickException: If transformers are missing, or know no such model; or if there are no
            weights.
    """
    path = Path(target) / CONFIG
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise click.ClickException(
            f"{path} is read by transformers: pip install splitgrow[transformers]"
        ) from error
    text = attempt(f"cannot read {path}", lambda: json.loads(path.read_text()))
    names = text.get("architectures") if isinstance(text, dict) else None
    if not names:
        raise click.ClickException(f"{path} names no class under `architectures`")
    kind = attempt(
        f"transformers {transformers.__version__} know no {names[0]}",
        lambda: getattr(transformers, str(names[0])),
    )
    if weights:
        filled: nn.Module = attempt(
            f"there are no weights in {target} (--checkpoint takes others)",
            lambda: kind.from_pretrained(target),
        )
        return filled.eval()
    config = attempt(f"cannot read {path}", lambda: kind.config_class.from_pretrained(target))
    model: nn.Module = attempt(f"cannot make a {names[0]} of {path}", lambda: kind(config))
    return model.eval()


def usual_inputs(model: Any) -> Sequence[Shape]:
    """The shapes of example inputs, by what the model says that its main input is.

    Args:
        model: A model of transformers.

    Raises:
        click.ClickException: If it is neither words nor pictures.
    """
    config, main = model.config, getattr(model, "main_input_name", "")
    if main == "input_ids":
        words = Shape((1, 8), "int64", "input_ids")
        pair = getattr(config, "is_encoder_decoder", False)
        return (words, Shape((1, 8), "int64", "decoder_input_ids")) if pair else (words,)
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", None)
    if main == "pixel_values" and size and channels:
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        return (Shape((1, channels, height, width), "float32", "pixel_values"),)
    raise click.ClickException(
        f"{type(model).__name__} reads `{main}`: give the shapes of its inputs by --input"
    )

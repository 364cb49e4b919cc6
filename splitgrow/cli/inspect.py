"""`splitgrow inspect`: the layers of a model, and which of them can grow."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict

import click
from rich import box
from rich.console import Console
from rich.table import Table

import splitgrow
from splitgrow.cli import consoles
from splitgrow.cli.examples import growable_on
from splitgrow.cli.hugging_face import is_directory, load_target, usual_inputs
from splitgrow.cli.shapes import Shape
from splitgrow.cli.ways import KEEPING, LEARNING
from splitgrow.errors import SplitGrowError


def inspect(target: str, inputs: Sequence[Shape], *, as_json: bool) -> None:
    """Prints the layers of the model that a target names, as a table or as JSON.

    Raises:
        click.UsageError: If no inputs are given, and the model does not say what it reads.
    """
    with redirect_stdout(sys.stderr):  # prints of the user's code are no part of the result
        model = load_target(target)
    if not inputs and is_directory(target):
        inputs = usual_inputs(model)
    if not inputs:
        raise click.UsageError("give the shape of an example input, as --input 1,3,224,224")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    handle = splitgrow.handle(growable_on(model, inputs))
    layers = handle.layers
    stays = {layer.name: _why_it_stays(handle, layer) for layer in layers if layer.growable}
    console = consoles.results()
    if as_json:
        document = {
            "version": 1,
            "model": type(model).__name__,
            "inputs": [str(shape) for shape in inputs],
            "parameters": parameters,
            "layers": [
                {
                    **asdict(layer),
                    "growable": layer.growable,
                    "shrinkable": not stays.get(layer.name, layer.reason),
                }
                for layer in layers
            ],
        }
        click.echo(json.dumps(document, indent=1))
        return
    console.print(_table(type(model).__name__, layers))
    able = sum(layer.growable for layer in layers)
    console.print(f"{able} of {len(layers)} layers can grow; {parameters:,} parameters.")
    _print_shrinking(console, stays)
    console.print(f"\n{LEARNING} `splitgrow grow` shows it.", soft_wrap=True)
    console.print(f"{KEEPING} `splitgrow demo` shows it.", soft_wrap=True)


def _why_it_stays(handle: splitgrow.Handle, layer: splitgrow.Layer) -> str:
    """Why a layer that can grow cannot shrink; empty if it can."""
    try:
        handle.plan_shrinking({layer.name: layer.step})
    except (SplitGrowError, ValueError) as error:
        return str(error)
    return ""


def _print_shrinking(console: Console, stays: Mapping[str, str]) -> None:
    """Tells which of the layers that can grow can shrink, too; `stays` has the reasons."""
    fixed = {name: reason for name, reason in stays.items() if reason}
    if not stays:
        return
    if not fixed:
        console.print("All layers that can grow can shrink: `splitgrow prune`.")
        return
    console.print(
        f"Of the layers that can grow, {len(stays) - len(fixed)} can shrink: `splitgrow prune`."
        " These cannot:",
        soft_wrap=True,
    )
    for name, reason in fixed.items():
        console.print(f"  {name}: {reason}", soft_wrap=True)


def _table(title: str, layers: Sequence[splitgrow.Layer]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("#", justify="right")
    table.add_column("layer", overflow="fold")
    table.add_column("type", no_wrap=True)
    table.add_column("width", justify="right")
    table.add_column("step", justify="right")
    table.add_column("grows with", overflow="fold")
    table.add_column("read by", overflow="fold")
    table.add_column("can grow", overflow="fold")
    for layer in layers:
        table.add_row(
            str(layer.index),
            layer.name,
            layer.kind,
            str(layer.width),
            str(layer.step) if layer.growable else "-",
            ", ".join(layer.group),
            ", ".join(layer.readers),
            "yes" if layer.growable else f"no: {layer.reason}",
            style=None if layer.growable else "dim",
        )
    return table

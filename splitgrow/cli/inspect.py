"""`splitgrow inspect`: the layers of a model, and which of them can grow."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict

import click
from rich.console import Console

import splitgrow
from splitgrow.cli import consoles
from splitgrow.cli.examples import growable_on
from splitgrow.cli.hugging_face import is_directory, load_target, usual_inputs
from splitgrow.cli.screen_tables import ScreenTable, fits_filter, unfitting
from splitgrow.cli.shapes import Shape
from splitgrow.cli.showing import Shown
from splitgrow.cli.ways import KEEPING, LEARNING
from splitgrow.errors import SplitGrowError


def inspect(target: str, inputs: Sequence[Shape], shown: Shown) -> None:
    """Prints the layers of the model that a target names, as a table, as JSON, or as names.

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
    every = handle.layers
    layers = [layer for layer in every if fits_filter(layer.name, shown.patterns)]
    console = consoles.results()
    if shown.quiet and not shown.as_json:
        for layer in layers:
            if layer.growable:
                console.print(layer.name, soft_wrap=True)
        return
    problem = unfitting((layer.name for layer in every), shown.patterns)
    if problem:
        click.echo(problem, err=True)
    stays = {layer.name: _why_it_stays(handle, layer) for layer in layers if layer.growable}
    if shown.as_json:
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
    able = sum(layer.growable for layer in every)
    console.print(f"{able} of {len(every)} layers can grow; {parameters:,} parameters.")
    _print_reasons(console, {each.name: each.reason for each in layers if not each.growable})
    _print_shrinking(console, stays)
    console.print(f"\n{LEARNING} `splitgrow grow` shows it.")
    console.print(f"{KEEPING} `splitgrow demo` shows it.")


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
        " These cannot:"
    )
    _print_reasons(console, fixed)


def _print_reasons(console: Console, reasons: Mapping[str, str]) -> None:
    """Reasons, each with the names of the layers that it is for."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    for reason, alike in names.items():
        told = ", ".join(alike[:3]) + (f" and {len(alike) - 3} more" if alike[3:] else "")
        console.print(f"  {told}: {reason}")


def _table(title: str, layers: Sequence[splitgrow.Layer]) -> ScreenTable:
    table = ScreenTable(title)
    table.add_column("#", "number")
    table.add_column("layer", "name")
    table.add_column("type", "name")
    table.add_column("width", "number")
    table.add_column("step", "number", drop=3)
    table.add_column("can grow")
    table.add_column("grows with", "names", drop=2)
    table.add_column("read by", "names", drop=1)
    for layer in layers:
        table.add_row(
            str(layer.index),
            layer.name,
            layer.kind,
            str(layer.width),
            str(layer.step) if layer.growable else "-",
            "yes" if layer.growable else "no",
            ", ".join(layer.group),
            ", ".join(layer.readers),
            style=None if layer.growable else "dim",
        )
    return table

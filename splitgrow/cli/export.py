"""`splitgrow export`: a checkpoint made plain, for those who do not have splitgrow."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from torch import Tensor, nn

import splitgrow
from splitgrow.checkpoints.asides import write_aside
from splitgrow.checkpoints.writing import write_plain
from splitgrow.cli import consoles
from splitgrow.cli.arguments import kept_nothing
from splitgrow.cli.hugging_face import load_target
from splitgrow.cli.new_files import check_new_file
from splitgrow.cli.programs import Program, check_onnx, follow_program, need_onnx, onnx_program
from splitgrow.cli.screen_tables import ScreenTable, fits_filter
from splitgrow.cli.showing import Shown
from splitgrow.growth.history_lookup import history_of
from splitgrow.utils.example_call import ExampleCall


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a checkpoint is made plain.

    Attributes:
        kind: The format; None for that of the suffix.
        generation: The generation; None for today.
        fuse: Whether norms are folded into the layers before them.
        dynamic: The sizes of inputs that may vary in a program: "batch", "sizes" or "none".
        check: Whether a program of ONNX is run and compared.
        force: Whether a file that is there may be replaced.
    """

    kind: str | None = None
    generation: int | None = None
    fuse: bool = False
    dynamic: str | None = None
    check: bool | None = None
    force: bool = False


def export(target: str, checkpoint: Path, out: Path, options: ExportOptions, shown: Shown) -> None:
    """Writes the merged network of a checkpoint to a file, or to a directory of transformers.

    Raises:
        click.UsageError: If the options do not go together.
        click.ClickException: If a file is there already, or the suffix is none that is known.
    """
    kind = _checked_kind(out, options)
    with (
        kept_nothing(),
        redirect_stdout(sys.stderr),
    ):  # prints of the user's code are no part of the result
        model: Any = load_target(target)
        before = _widths(model)
        splitgrow.load(model, checkpoint, training=False)
        try:
            make = splitgrow.fuse if options.fuse else splitgrow.merge
            plain = make(model, generation=options.generation).eval()
        except ValueError as error:  # no such generation
            raise click.ClickException(str(error)) from error
    widths = _widths(plain)
    history = history_of(model)
    told: list[str] = []
    with kept_nothing():
        if kind == "hf":
            _save_pretrained(model, out, options.generation)
        else:
            inputs = history.inputs_at(history.view_of(options.generation))
            told = _WRITERS[kind](_Writing(out, plain, inputs, widths, options))
    parameters = sum(parameter.numel() for parameter in plain.parameters())
    changed = {name: width for name, width in widths.items() if width != before.get(name)}
    way = "fused" if options.fuse else "merged"
    if shown.as_json:
        document = {
            "version": 1,
            "out": str(out),
            "format": kind,
            "way": way,
            "model": type(plain).__name__,
            "parameters": parameters,
            "layers": [
                {"layer": name, "before": _plain(before.get(name)), "after": _plain(width)}
                for name, width in changed.items()
                if fits_filter(name, shown.patterns)
            ],
            "notes": told,
        }
        shown.echo_json(json.dumps(document, indent=1))
        return
    if shown.quiet:
        click.echo(str(out))
        return
    shown.show([_table(before, changed), *told] if changed else told)
    last = f"{out}: {type(plain).__name__}, {way}, {parameters:,} parameters."
    consoles.results().print(last, soft_wrap=True)


def _checked_kind(out: Path, options: ExportOptions) -> str:
    """The format, once it is sure that a file can be written in it.

    Raises:
        click.UsageError: If the options do not go together.
        click.ClickException: If a file is there already, or the suffix is none that is known.
    """
    kind = options.kind or _SUFFIXES.get(out.suffix)
    if kind is None:
        raise click.ClickException(
            f"{out} ends in {out.suffix or 'nothing'}; known are {', '.join(_SUFFIXES)}, or choose "
            f"by --format"
        )
    if options.dynamic is not None and kind not in _PROGRAMS:
        raise click.UsageError(f"--dynamic is for programs: --format {' or '.join(_PROGRAMS)}")
    if options.check is not None and kind != "onnx":
        raise click.UsageError("--check and --no-check are for --format onnx")
    if options.fuse and kind == "hf":
        raise click.UsageError("--fuse leaves no class of transformers: choose another --format")
    check_new_file(out, force=options.force, folder=kind == "hf")
    if kind == "onnx":
        need_onnx(check=options.check is not False)
    return kind


Widths = dict[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class _Writing:
    """What a writer writes, and where."""

    path: Path
    plain: nn.Module
    inputs: ExampleCall
    widths: Widths
    options: ExportOptions

    def followed(self) -> Program:
        """The network as a program."""
        return follow_program(self.plain, self.inputs, self.options.dynamic or "batch")


_Writer = Callable[[_Writing], list[str]]


def _table(before: Widths, changed: Widths) -> ScreenTable:
    table = ScreenTable()
    table.add_column("layer", "name")
    table.add_column("weight", "number")
    for name, width in changed.items():
        table.add_row(name, f"{_shown(before.get(name))} -> {_shown(width)}")
    return table


def _plain(shape: tuple[int, ...] | None) -> list[int] | None:
    return None if shape is None else list(shape)


def _widths(model: nn.Module) -> Widths:
    """The shape of every weight, by the path of its layer."""
    named = model.named_parameters()
    return {
        name.removesuffix(".weight"): tuple(parameter.shape)
        for name, parameter in named
        if name.endswith("weight")
    }


def _shown(shape: tuple[int, ...] | None) -> str:
    return "new" if shape is None else " x ".join(map(str, shape))


def _safetensors(own: _Writing) -> list[str]:
    write_plain(
        own.path, own.plain.state_dict(), {"format": "pt", "weights": json.dumps(own.widths)}
    )
    return []


def _state_dict(own: _Writing) -> list[str]:
    state = {name: _own(value) for name, value in own.plain.state_dict().items()}
    write_aside(own.path, lambda aside: torch.save(state, aside))
    return []


def _program(own: _Writing) -> list[str]:
    """Writes the network itself, which runs wherever torch does, without its class.

    Raises:
        click.ClickException: If torch.export cannot follow it.
    """
    program = own.followed()
    write_aside(own.path, lambda aside: torch.export.save(program.exported, aside))
    return [f"inputs: {program}"]


def _onnx(own: _Writing) -> list[str]:
    """Writes the network as a program of ONNX, once ONNX Runtime has computed the same.

    Raises:
        click.ClickException: If torch cannot write it, or the two differ.
    """
    program = own.followed()
    made = onnx_program(program)
    told = [f"inputs: {program}"]
    if own.options.check is not False:
        with TemporaryDirectory() as folder:
            there = Path(folder) / "program.onnx"
            made.save(there)
            told.append(check_onnx(there, own.plain, program))
    write_aside(own.path, made.save)
    return told


def _own(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _save_pretrained(model: nn.Module, out: Path, generation: int | None) -> None:
    """Writes a directory for ``from_pretrained``.

    Raises:
        click.ClickException: If the model is none of transformers.
    """
    try:
        splitgrow.save_pretrained(model, out, generation=generation)
    except TypeError as error:
        raise click.ClickException(str(error)) from error


_WRITERS: dict[str, _Writer] = {
    "safetensors": _safetensors,
    "pt": _state_dict,
    "pt2": _program,
    "onnx": _onnx,
}
_PROGRAMS = ("onnx", "pt2")
"""The formats that are programs."""
_SUFFIXES = {
    ".safetensors": "safetensors",
    ".pt": "pt",
    ".pth": "pt",
    ".pt2": "pt2",
    ".onnx": "onnx",
}
"""The format that the suffix of a file chooses."""

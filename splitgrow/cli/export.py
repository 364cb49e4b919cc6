"""`splitgrow export`: a checkpoint made plain, for those who do not have splitgrow."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import wraps
from importlib.util import find_spec
from inspect import Parameter
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import splitgrow
from splitgrow.checkpoints.asides import write_aside
from splitgrow.checkpoints.writing import write_plain
from splitgrow.cli import consoles
from splitgrow.cli.hugging_face import load_target
from splitgrow.growth.history_lookup import history_of
from splitgrow.utils.example_call import ExampleCall


def export(
    target: str,
    checkpoint: Path,
    out: Path,
    *,
    kind: str | None,
    generation: int | None,
    force: bool,
) -> None:
    """Writes the merged network of a checkpoint to a file, or to a directory of transformers.

    Raises:
        click.ClickException: If a file is there already, or the suffix is none that is known.
    """
    kind = kind or _SUFFIXES.get(out.suffix)
    if kind is None:
        raise click.ClickException(
            f"{out} ends in {out.suffix or 'nothing'}; known are {', '.join(_SUFFIXES)}, or choose "
            f"by --format"
        )
    if out.exists() and not force:
        raise click.ClickException(f"{out} is there already; --force replaces it")
    if kind == "onnx":
        _need_onnx()
    with redirect_stdout(sys.stderr):  # prints of the user's code are no part of the result
        model: Any = load_target(target)
        before = _widths(model)
        splitgrow.load(model, checkpoint, training=False)
    try:
        plain = splitgrow.merge(model, generation)
    except ValueError as error:  # no such generation
        raise click.ClickException(str(error)) from error
    plain.eval()
    widths = _widths(plain)
    history = history_of(model)
    if kind == "hf":
        _save_pretrained(model, out, generation)
    else:
        _WRITERS[kind](out, plain, history.inputs_at(history.view_of(generation)), widths)
    console = consoles.results()
    for name, width in widths.items():
        if width != before.get(name):
            console.print(f"{name}: {_shown(before.get(name))} -> {_shown(width)}", highlight=False)
    parameters = sum(parameter.numel() for parameter in plain.parameters())
    console.print(f"{out}: {type(plain).__name__}, {parameters:,} parameters.", highlight=False)


Widths = dict[str, tuple[int, ...]]
_Writer = Callable[[Path, nn.Module, ExampleCall, Widths], None]


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


def _safetensors(path: Path, plain: nn.Module, _: ExampleCall, widths: Widths) -> None:
    write_plain(path, plain.state_dict(), {"format": "pt", "weights": json.dumps(widths)})


def _state_dict(path: Path, plain: nn.Module, _: ExampleCall, __: Widths) -> None:
    state = {name: _own(value) for name, value in plain.state_dict().items()}
    write_aside(path, lambda aside: torch.save(state, aside))


def _program(path: Path, plain: nn.Module, inputs: ExampleCall, _: Widths) -> None:
    """The network itself, which runs wherever torch does, without its class.

    Raises:
        click.ClickException: If torch.export cannot follow it.
    """
    _name_keywords_(plain, inputs)
    try:
        try:
            program = _exported(plain, inputs.map(_two))
        except Exception:  # noqa: BLE001 - a model may want just one; its own errors are of any type
            program = _exported(plain, inputs)
    except Exception as error:  # torch.export's own errors are of many types
        reason = str(error).strip().partition("\n")[0]
        raise click.ClickException(f"torch.export cannot follow the network: {reason}") from error
    write_aside(path, lambda aside: torch.export.save(program, aside))


def _exported(plain: nn.Module, inputs: ExampleCall) -> torch.export.ExportedProgram:
    given = dict(inputs.bound(plain).arguments)
    batch = pytree.tree_map(_any_batch, given)
    # Of a GraphModule, torch.export confuses keywords in another order than the signature's.
    kwargs = {name: given[name] for name in given if name in inputs.kwargs}
    return torch.export.export(plain, inputs.args, kwargs, dynamic_shapes=batch)


def _two(tensor: Tensor) -> Tensor:
    """A batch of two, if it is of one: torch.export takes a batch of one for a constant."""
    alone = tensor.dim() > 0 and tensor.size(0) == 1
    return torch.cat([tensor, tensor]) if alone else tensor


def _name_keywords_(plain: nn.Module, inputs: ExampleCall) -> None:
    """Puts the names in ``**kwargs`` into the signature: torch.export gives them no shapes else."""
    forward, bound = plain.forward, inputs.bound(plain)
    own = [p for p in bound.signature.parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
    more = [name for name in bound.kwargs if name not in {each.name for each in own}]
    named = [Parameter(name, Parameter.KEYWORD_ONLY) for name in more]
    if not more:
        return

    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    run.__signature__ = bound.signature.replace(parameters=[*own, *named])  # type: ignore[attr-defined]
    vars(plain)["forward"] = run


def _any_batch(leaf: Any) -> dict[int, Any] | None:
    """The dynamic shape of an argument, or a part of one: its first dimension may vary."""
    return {0: torch.export.Dim.AUTO} if isinstance(leaf, Tensor) and leaf.dim() else None


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


def _need_onnx() -> None:
    """Makes sure that torch can write ONNX.

    Raises:
        click.ClickException: If it cannot.
    """
    if find_spec("onnxscript") is None:
        raise click.ClickException("torch writes ONNX by onnxscript: pip install splitgrow[onnx]")


def _onnx(path: Path, plain: nn.Module, inputs: ExampleCall, _: Widths) -> None:
    """The network as an ONNX program.

    Raises:
        click.ClickException: If torch cannot write it.
    """
    _name_keywords_(plain, inputs)
    try:
        program: Any = torch.onnx.export(
            plain, inputs.args, kwargs=dict(inputs.kwargs), dynamo=True, verbose=False
        )
    except Exception as error:  # its errors are of many types
        reason = str(error).strip().partition("\n")[0]
        raise click.ClickException(f"torch cannot write the network as ONNX: {reason}") from error
    write_aside(path, program.save)


_WRITERS: dict[str, _Writer] = {
    "safetensors": _safetensors,
    "pt": _state_dict,
    "pt2": _program,
    "onnx": _onnx,
}
_SUFFIXES = {
    ".safetensors": "safetensors",
    ".pt": "pt",
    ".pth": "pt",
    ".pt2": "pt2",
    ".onnx": "onnx",
}
"""The format that the suffix of a file chooses."""

"""Programs of torch.export and ONNX: which sizes of their inputs may vary, and that they hold."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import wraps
from importlib.util import find_spec
from inspect import Parameter
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from splitgrow.utils.example_call import ExampleCall

_TOLERANCE = 1e-3
"""How far ONNX Runtime may be off, relative to the largest output: it sums in another order."""
_TIMES = (2, 3)  # how many times the example's sizes the check takes


@dataclass(frozen=True, eq=False)
class Program:
    """A network that torch.export has followed.

    Attributes:
        exported: The program.
        call: The call that it was followed with.
        varying: For each tensor of the call, in order, the dimensions whose sizes may vary, with
            the names that torch.export gives these sizes.
        names: The names of these tensors.
    """

    exported: torch.export.ExportedProgram
    call: ExampleCall
    varying: tuple[dict[int, str], ...] = ()
    names: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        told = []
        for name, dims, tensor in zip(self.names, self.varying, self.tensors, strict=True):
            sizes = (f"any{at}" if at in dims else str(n) for at, n in enumerate(tensor.shape))
            told.append(f"{name}: {' x '.join(sizes) or 'one number'}")
        return ", ".join(told)

    @property
    def groups(self) -> list[list[list[int]]]:
        """The dimensions that have one size: of each such size those of each tensor."""
        sizes = dict.fromkeys(size for dims in self.varying for size in dims.values())
        return [
            [[dim for dim, own in dims.items() if own == size] for dims in self.varying]
            for size in sizes
        ]

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of the call, in order."""
        return [leaf for leaf in _leaves(self.call) if isinstance(leaf, Tensor)]


def follow_program(plain: nn.Module, inputs: ExampleCall, dynamic: str) -> Program:
    """The program of a network, for example inputs whose sizes may vary.

    Args:
        plain: The network.
        inputs: Example inputs.
        dynamic: "batch" for the first size of each, "sizes" for all, and "none".

    Raises:
        click.ClickException: If torch.export cannot follow it.
    """
    _name_keywords_(plain, inputs)
    try:
        if dynamic == "none":
            return _program(plain, inputs, dynamic)
        try:
            return _program(plain, inputs.map(_two), dynamic)
        except Exception:  # noqa: BLE001 - a model may want just one; its own errors are of any type
            return _program(plain, inputs, dynamic)
    except Exception as error:  # torch.export's own errors are of many types
        reason = str(error).strip().partition("\n")[0]
        raise click.ClickException(f"torch.export cannot follow the network: {reason}") from error


def need_onnx(*, check: bool) -> None:
    """Makes sure that torch can write ONNX, and that ONNX Runtime can run it.

    Raises:
        click.ClickException: If one cannot.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise click.ClickException(
            f"torch writes ONNX by {' and '.join(missing)}: pip install splitgrow[onnx]"
        )
    if check and find_spec("onnxruntime") is None:
        raise click.ClickException(
            "the check needs onnxruntime: pip install splitgrow[onnx], or do without by --no-check"
        )


def onnx_program(program: Program) -> Any:
    """A program as one of ONNX.

    Raises:
        click.ClickException: If torch cannot write it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about its own code
            return torch.onnx.export(program.exported, dynamo=True, verbose=False)
    except Exception as error:  # its errors are of many types
        reason = str(error).strip().partition("\n")[0]
        raise click.ClickException(f"torch cannot write the network as ONNX: {reason}") from error


def check_onnx(path: Path, plain: nn.Module, program: Program) -> str:
    """Runs a file in ONNX Runtime at several sizes, and compares with the network.

    Returns:
        What was compared, in words.

    Raises:
        click.ClickException: If it does not run, or computes something else.
    """
    onnxruntime: Any = importlib.import_module("onnxruntime")  # optional
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its errors are of many types
        raise click.ClickException(f"ONNX Runtime cannot read it: {_line(error)}") from error
    names = [each.name for each in session.get_inputs()]
    worst, shapes = 0.0, []
    for call in _calls(plain, program):
        given = [leaf for leaf in _leaves(call) if isinstance(leaf, Tensor)]
        with torch.no_grad():
            expected = [
                leaf for leaf in pytree.tree_leaves(call.run(plain)) if isinstance(leaf, Tensor)
            ]
        shape = ", ".join("x".join(map(str, tensor.shape)) for tensor in given)
        try:
            feed = {
                name: tensor.detach().cpu().numpy()
                for name, tensor in zip(names, given, strict=len(names) == len(given))
            }
            made = session.run(None, feed)
        except Exception as error:
            raise click.ClickException(
                f"ONNX Runtime fails for inputs {shape}: {_line(error)}"
            ) from error
        off = _difference(expected, made)
        if not off <= _TOLERANCE:
            raise click.ClickException(
                f"ONNX Runtime computes something else for inputs {shape}: it is off by {off:.1e}"
                f" of the largest output; nothing is written (--no-check writes it all the same)"
            )
        worst = max(worst, off)
        shapes.append(shape)
    return f"ONNX Runtime agrees for inputs {'; '.join(shapes)}: off by {worst:.1e} at most"


def _difference(expected: Sequence[Tensor], made: Sequence[Any]) -> float:
    """The largest difference of some outputs, relative to the largest value of each."""
    if len(expected) != len(made):
        return float("inf")
    worst = 0.0
    for own, other in zip(expected, made, strict=True):
        there = torch.as_tensor(other).double()
        if own.shape != there.shape:
            return float("inf")
        if not own.numel():
            continue
        here = own.detach().cpu().double()
        scale = max(float(here.abs().max()), 1e-6)
        worst = max(worst, float((here - there).abs().max()) / scale)
    return worst


def _calls(plain: nn.Module, program: Program) -> Iterator[ExampleCall]:
    """The program's own call, and those with other sizes, where these may vary and make sense."""
    yield program.call
    batch = tuple(tuple(at for at in dims if at == 0) for dims in program.varying)
    rest = tuple(tuple(at for at in dims if at) for dims in program.varying)
    others: list[tuple[Sequence[Sequence[int]], int, int]] = []  # dimensions, times, and more
    if any(batch):
        others = [(batch, 0, 1), *((batch, times, 1) for times in _TIMES)]
    if any(rest):
        others += [(rest, times, 0) for times in _TIMES]
    for dims, times, more in others:
        call = _resized(program.call, dims, times, more)
        try:
            with torch.no_grad():
                call.run(plain)
        except Exception:  # noqa: BLE001 - the network itself takes no such sizes
            continue
        yield call


def _resized(
    call: ExampleCall, varying: Sequence[Sequence[int]], times: int, more: int
) -> ExampleCall:
    """A call with other sizes along some dimensions, and other values where they are floats."""
    generator = torch.Generator().manual_seed(0)
    dims = iter(varying)

    def change(tensor: Tensor) -> Tensor:
        for dim in next(dims):
            wanted = torch.arange(times * tensor.size(dim) + more) % tensor.size(dim)
            tensor = tensor.index_select(dim, wanted.to(tensor.device))
        if not tensor.dtype.is_floating_point:
            return tensor
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
        return tensor + noise.to(tensor)

    return call.map(change)


def _program(plain: nn.Module, inputs: ExampleCall, dynamic: str) -> Program:
    """The program of a network whose sizes vary where it lets them.

    What torch.export takes for free may be fixed all the same, by a layer that it does not look
    into. So the network itself is asked, with other sizes.
    """
    free = [_FREE[dynamic](leaf) for leaf in _leaves(inputs) if isinstance(leaf, Tensor)]
    if not any(free):
        return _exported(plain, inputs, free)
    first = _exported(plain, inputs, free)
    truly = [list(dims) for dims in first.varying]
    for alike in first.groups:
        if not any(_runs(plain, _resized(first.call, alike, *other)) for other in ((2, 0), (1, 1))):
            truly = [
                [dim for dim in dims if dim not in gone]
                for dims, gone in zip(truly, alike, strict=True)
            ]
    return (
        first if truly == [[*dims] for dims in first.varying] else _exported(plain, inputs, truly)
    )


def _exported(plain: nn.Module, inputs: ExampleCall, free: Sequence[Sequence[int]]) -> Program:
    """The program of a network with some dimensions of each tensor free."""
    given = dict(inputs.bound(plain).arguments)
    # Of a GraphModule, torch.export confuses keywords in another order than the signature's.
    kwargs = {name: given[name] for name in given if name in inputs.kwargs}
    dims = iter(free)

    def shape(leaf: Any) -> dict[int, Any] | None:
        if not isinstance(leaf, Tensor):
            return None
        return dict.fromkeys(next(dims), torch.export.Dim.AUTO) or None

    shapes = pytree.tree_map(shape, given) if any(free) else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about its own code
        exported = torch.export.export(plain, inputs.args, kwargs, dynamic_shapes=shapes)
    nodes = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    named = ((str(name), nodes.get(str(name))) for name in exported.graph_signature.user_inputs)
    found = [(name, value) for name, value in named if isinstance(value, Tensor)]
    sizes = tuple(
        {at: str(size) for at, size in enumerate(value.shape) if isinstance(size, torch.SymInt)}
        for _, value in found
    )
    return Program(
        exported, ExampleCall(inputs.args, kwargs), sizes, tuple(name for name, _ in found)
    )


def _runs(plain: nn.Module, call: ExampleCall) -> bool:
    """Whether a network takes some sizes."""
    try:
        with torch.no_grad():
            call.map(torch.clone).run(plain)
    except Exception:  # noqa: BLE001 - a user's code can raise anything
        return False
    return True


def _no_size(_: Tensor) -> list[int]:
    return []


def _first_size(tensor: Tensor) -> list[int]:
    return [0] if tensor.dim() else []


def _all_sizes(tensor: Tensor) -> list[int]:
    """All dimensions but those of one, which torch.export takes for constants."""
    return [at for at, size in enumerate(tensor.shape) if at == 0 or size > 1]


_FREE: dict[str, Callable[[Tensor], list[int]]] = {
    "none": _no_size,
    "batch": _first_size,
    "sizes": _all_sizes,
}


def _leaves(call: ExampleCall) -> list[Any]:
    return [*pytree.tree_leaves((call.args, call.kwargs))]


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


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]

"""Runs a program, and compares the results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from helpers import leading, tensors_of
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from wild.programs import Program
from wild.verdicts import Wrong, described

EVAL, TRAIN = "evaluation", "training"
ROUNDING = 1e-9
"""Largest difference, relative to the largest value, where the program is well conditioned."""


@dataclass
class Run:
    """What a series of calls gave.

    Attributes:
        outputs: Of each call, with its name.
        gradients: Those of the parameters after the last call in training mode.
    """

    outputs: list[tuple[str, list[Tensor]]] = field(default_factory=list)
    gradients: list[Tensor | None] = field(default_factory=list)


def called(model: nn.Module, inputs: tuple[Tensor, ...], seed: int = 0) -> list[Tensor]:
    """The tensors that a model gives, with the random state held."""
    torch.default_generator.manual_seed(seed)
    return [tensor.detach().clone() for tensor in tensors_of(model(*inputs))]


def evaluated(model: nn.Module, program: Program, which: int = 0, seed: int = 0) -> list[Tensor]:
    """Outputs in evaluation mode."""
    with torch.no_grad():
        return called(model.eval(), program.inputs(which), seed)


def trained(
    model: nn.Module, program: Program, parameters: list[nn.Parameter], like: Any = None
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Outputs in training mode, and gradients of parameters; the mode is put back."""
    model.train()
    torch.default_generator.manual_seed(0)
    outputs = tensors_of(model(*program.inputs()))
    kept = [tensor.detach().clone() for tensor in outputs]
    parts = outputs if like is None else leading(outputs, like)
    loss = sum(part.abs().square().sum() for part in parts if part.requires_grad)
    gradients: list[Tensor | None] = [None] * len(parameters)
    if isinstance(loss, Tensor):
        wanted = [p for p in parameters if p.requires_grad]
        found = dict(zip(map(id, wanted), torch.autograd.grad(loss, wanted, allow_unused=True),
                         strict=True)) if wanted else {}  # fmt: skip
        gradients = [found.get(id(p)) for p in parameters]
    model.eval()
    return kept, gradients


def run(
    model: nn.Module,
    program: Program,
    parameters: list[nn.Parameter],
    plan: tuple[tuple[str, int], ...],
    like: Run | None = None,
) -> Run:
    """A series of calls in evaluation and in training mode.

    Args:
        model: The program's module, grown or not.
        program: The program.
        parameters: Those whose gradients count.
        plan: The mode and the inputs of each call.
        like: The run before growth, the leading part of which is compared.
    """
    found = Run()
    for index, (mode, which) in enumerate(plan):
        old = None if like is None else like.outputs[index][1]
        if mode == EVAL:
            outputs = evaluated(model, program, which)
        else:
            outputs, found.gradients = trained(model, program, parameters, old)
        found.outputs.append((f"{mode} on inputs {which}", outputs))
    return found


def grown_run(model: nn.Module, *args: Any) -> Run:
    """As `run`; what raises is wrong.

    Raises:
        Wrong: If the model does not run any more.
    """
    try:
        return run(model, *args)
    except Exception as error:
        raise Wrong("crash", described(error)) from error


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference, relative to the largest value; infinity for NaN and other shapes."""
    if len(ours) != len(theirs):
        return float("inf")
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            return float("inf")
        if not one.numel() or torch.equal(one, other):
            continue
        one, other = (t if t.is_complex() else t.double() for t in (one, other))
        largest = max(other.nan_to_num(0, 0, 0).abs().max().item(), 1e-6)
        apart = ~((one == other) | (one.isnan() & other.isnan()))  # infinities may be equal
        here = max((one[apart] - other[apart]).abs().tolist(), default=0.0) / largest
        worst = max(worst, here if here == here else float("inf"))
    return worst


def gradient_gap(found: list[Tensor | None], expected: list[Tensor | None]) -> float:
    """The largest difference of gradients, relative to the largest one."""
    known = [t for t in expected if t is not None]
    largest = max([t.abs().max().item() for t in known if finite([t])] + [1e-6])
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        if ours is None and theirs is None:
            continue
        one = torch.zeros_like(theirs) if ours is None else ours
        other = torch.zeros_like(one) if theirs is None else theirs
        gap = (one - other).abs().max().item() / largest
        if finite([other]):
            worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def cut(ours: list[Tensor], theirs: list[Tensor]) -> list[Tensor]:
    """The leading part of each output.

    Raises:
        Wrong: If there are other outputs than before, or smaller ones.
    """
    fits = len(ours) == len(theirs) and all(
        a.dim() == b.dim() and all(m >= n for m, n in zip(a.shape, b.shape, strict=True))
        for a, b in zip(ours, theirs, strict=True)
    )
    if not fits:
        raise Wrong("outputs", f"{shapes(ours)} instead of {shapes(theirs)}")
    return leading(ours, theirs)


def shapes(tensors: list[Tensor]) -> list[tuple[int, ...]]:
    """For messages."""
    return [tuple(tensor.shape) for tensor in tensors]


def finite(tensors: list[Tensor]) -> bool:
    """Whether all values are."""
    return all(bool(t.isfinite().all()) for t in tensors if t.is_floating_point())


class _Finite(TorchFunctionMode):
    """Notices whether all results are."""

    holds = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():
            leaves = torch.utils._pytree.tree_leaves(result)
            self.holds &= finite([leaf for leaf in leaves if isinstance(leaf, Tensor)])
        return result


def finite_on_the_way(model: nn.Module, program: Program, which: int) -> bool:
    """Whether all that the plain program computes is finite: zero times infinity is no number."""
    with _Finite() as seen:
        evaluated(model, program, which)
    return seen.holds


def identical(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Whether they are equal bit for bit."""
    pairs = zip(ours, theirs, strict=False)
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in pairs)


def assert_close(kind: str, ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    """Compares outputs.

    Raises:
        Wrong: If they differ by more than rounding.
    """
    if not finite(ours) and finite(theirs):
        raise Wrong("nan" if kind == "outputs" else kind, "values that are not finite")
    gap = difference(ours, theirs)
    if gap > tolerance:
        raise Wrong(kind, f"differ by {gap:.3g}, {shapes(ours)} and {shapes(theirs)}")

"""Runs of a model that leave it as it was, and whether two runs gave the same outputs.

The dtype sets the tolerance. Where two runs differ by more, the effect of rounding on the model at
hand is measured, and sets it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from splitgrow.analysis.leaf_modules import is_leaf
from splitgrow.analysis.stand_ins import clone, tensors_held
from splitgrow.layers.execution import keep_nothing_
from splitgrow.layers.freezing import hold_statistics
from splitgrow.utils.example_call import ExampleCall
from splitgrow.utils.inert_children import keep_inert_, without_inert
from splitgrow.utils.module_slots import all_tensors
from splitgrow.utils.output_tensors import OpaqueError, tensors_in
from splitgrow.utils.preserve import (
    ignore_warnings_,
    keep_attributes_,
    keep_modes_,
    keep_random_states_,
    remove_hooks_,
    run_eagerly_,
)
from splitgrow.utils.rollback import Undo, temporarily
from splitgrow.utils.steady_runs import Noise, Steady

_BASE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""Differences, relative to the largest value, that are rounding without a measurement."""
_EXACT = 1e-12
_TIMES = 32.0
"""The multiple of the effect of one unit in the last place that still is rounding."""
_NEAR = 1e-3
"""A difference above which a tensor may be another one."""
_CHAOS = 0.3
"""Outputs that rounding alone moves by so much cannot be compared."""


class NotRunnableError(Exception):
    """The model has no values, does not run on the inputs, or its outputs cannot be looked at."""


@dataclass(frozen=True)
class Comparison:
    """Whether two runs gave the same outputs.

    Attributes:
        difference: The largest, relative to the largest value of its output; infinite where shapes
            differ, or one run gave NaN or infinity where the other did not.
        tolerance: The largest difference that is rounding.
        checkable: Whether the runs can be compared: not those of a random model, or of one that
            rounding alone moves as far.
    """

    difference: float
    tolerance: float
    checkable: bool = True

    @property
    def same(self) -> bool:
        """Whether the runs gave the same outputs up to rounding, as far as that can be told."""
        return not self.checkable or self.difference <= self.tolerance


def fitting(model: nn.Module, inputs: ExampleCall) -> ExampleCall:
    """Example inputs on the device, and in the floating dtype, that the model has today."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is None:
        return inputs

    def fit(tensor: Tensor) -> Tensor:
        dtype = parameter.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(parameter.device, dtype)

    return inputs.map(fit)


def has_values(model: nn.Module, inputs: ExampleCall) -> bool:
    """Whether all tensors have values, as against those on the meta device."""
    given = (leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))
    return not any([tensor.is_meta for tensor in (*all_tensors(model), *given)])  # noqa: C419 - fast


@temporarily
def outputs_of(  # noqa: PLR0913
    undo: Undo,
    model: nn.Module,
    inputs: ExampleCall,
    *,
    training: bool = False,
    noisy: bool = False,
    hooks: bool = True,
    watch: AbstractContextManager[Any] | None = None,
    touched: Collection[str] = (),
) -> list[Tensor]:
    """The tensors in a model's output, from a run that leaves the model as it was.

    Hooks run, since they may change the output. Random draws are constants. No gradients are
    recorded. Model, buffers, flags and random states are afterwards as they were.

    Args:
        undo: Restores all that the run disturbs.
        model: Any module.
        inputs: The example call; forward may write into copies of them.
        training: Whether to run in training mode.
        noisy: Whether every sum is moved by one unit in the last place.
        hooks: Whether the modules' hooks are to run.
        watch: Is entered around the run, once attributes are kept.
        touched: The layers whose tensors forward uses outside of their calls, and may write into.

    Raises:
        NotRunnableError: If the model does not run, or its output cannot be looked at.
        MemoryError: If there is too little memory.
    """
    modules, inert = without_inert(model)
    keep_random_states_(modules, undo)
    keep_attributes_(modules, undo, tensors=True)
    keep_inert_(inert, undo)
    keep_modes_(undo)
    ignore_warnings_()
    keep_nothing_(undo)
    torch.set_grad_enabled(False)
    run_eagerly_(modules, undo)
    if not hooks:
        remove_hooks_(modules)
    _use_copies_(model, modules, touched, training=training)
    noise = Noise()
    given = inputs.map(noise.off if noisy else torch.clone)
    torch.manual_seed(0)
    return _looked_at(model, given, (noise if noisy else nullcontext(), watch or nullcontext()))


def _looked_at(
    model: nn.Module, given: ExampleCall, within: tuple[AbstractContextManager[Any], ...]
) -> list[Tensor]:
    """The tensors in a model's output.

    Raises:
        NotRunnableError: As `outputs_of`.
        MemoryError: If there is too little memory.
    """
    outer, inner = within
    try:
        with Steady(), outer, inner:
            output = given.run(model)
        return [tensor.detach().clone() for tensor in tensors_in(output)]
    except MemoryError:
        raise
    except OpaqueError:
        raise NotRunnableError("it returns something that cannot be looked into") from None
    except Exception as error:
        raise NotRunnableError(f"{type(error).__name__}: {error}") from error


def _use_copies_(
    model: nn.Module, modules: Iterable[nn.Module], touched: Collection[str], *, training: bool
) -> None:
    """Lets forward write into copies of what some of a model's modules hold.

    Layers of a known type write into their statistics only, and large weights are not copied
    without need.
    """
    at_once = {id(m) for name, m in model.named_modules() if name in touched} if touched else ()
    for module in modules:
        own = module.__dict__
        own["training"] = training
        if module is model or id(module) in at_once or not is_leaf(module):
            held = tensors_held(module)
        else:
            buffers = own["_buffers"]
            held = [(buffers, key, t) for key, t in buffers.items() if isinstance(t, Tensor)]
        for store, key, tensor in held:
            store[key] = clone(tensor)


def hooked(model: nn.Module) -> list[str]:
    """The modules with hooks of the user that may change the result of a call."""
    names = []
    for name, module in model.named_modules():
        before = module._forward_pre_hooks.values()  # noqa: SLF001
        if module._forward_hooks or any(hook is not hold_statistics for hook in before):  # noqa: SLF001
            names.append(name or type(module).__name__)
    return names


def leading(tensors: Iterable[Tensor], like: Iterable[Tensor]) -> list[Tensor]:
    """The leading part of each tensor, as large as its partner; all of it if there is none."""
    found = []
    for tensor, other in zip(tensors, like, strict=False):
        fits = tensor.dim() == other.dim() and all(
            size >= least for size, least in zip(tensor.shape, other.shape, strict=True)
        )
        found.append(tensor[tuple(map(slice, other.shape))] if fits else tensor)
    return found


def difference(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of two lists of tensors, relative to the largest value of its tensor.

    Infinite where their number, shapes or types differ, or where one is NaN or infinite and the
    other is not the same. Integers and flags differ by the share of unequal ones.
    """
    if len(actual) != len(expected):
        return math.inf
    return max(map(_difference, actual, expected), default=0.0)


def places_of(before: Sequence[Tensor], now: Sequence[Tensor]) -> list[int]:
    """Where the tensors of an output are among those of a later one, which may have more.

    The caches of inserted blocks lie behind those of the others of their kind, of which a model may
    have several, as an encoder with a decoder has.
    """
    if len(now) <= len(before):
        return list(range(len(now)))
    found: list[int] = []
    for old in before:
        start = found[-1] + 1 if found else 0
        rest = range(start, len(now))
        near = (n for n in rest if difference(leading([now[n]], [old]), [old]) <= _NEAR)
        place = next(near, None)
        if place is None:
            return list(range(len(before)))
        found.append(place)
    return found


def order_of(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> list[int]:
    """The expected tensors' places in the order of the actual ones, where that is another one.

    A plain model has the caches of inserted blocks between those of their neighbours, a growable
    model has them at the end. The first tensor keeps its place. Where no other order fits, they
    keep theirs.
    """
    same = list(range(len(expected)))
    if len(actual) != len(expected) or difference(actual, expected) <= _NEAR:
        return same
    found = list(same)
    left = [n for n in same[1:] if _difference(actual[n], expected[n]) > _NEAR]
    free = list(left)
    for place in left:
        gaps = {n: _difference(actual[place], expected[n]) for n in free}
        best = min(gaps, key=lambda n: gaps[n])
        found[place] = best
        free.remove(best)
    fits = difference(actual, [expected[n] for n in found]) <= _NEAR
    return found if fits else same


def _difference(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape or one.dtype != other.dtype:
        return math.inf
    one, other = _plain(one), _plain(other)
    if not one.numel():
        return 0.0
    if not (one.is_floating_point() or one.is_complex()):
        return (one != other).double().mean().item()
    wide = torch.complex128 if one.is_complex() else torch.float64
    one, other = one.to(wide), other.to(wide)
    finite = other.isfinite()
    odd = ~finite | ~one.isfinite()
    if odd.any():
        ours, theirs = one[odd], other[odd]
        if not ((ours == theirs) | (ours.isnan() & theirs.isnan())).all():
            return math.inf
        one, other = one[~odd], other[~odd]
        if not one.numel():
            return 0.0
    largest = other.abs().max().item() or 1.0
    return (one - other).abs().max().item() / largest


def _plain(tensor: Tensor) -> Tensor:
    """A tensor with strides, from one of any layout."""
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor.to_dense() if tensor.layout is not torch.strided else tensor


def compared(
    actual: Sequence[Tensor], expected: Sequence[Tensor], noisy: Callable[[], list[Tensor]]
) -> Comparison:
    """Whether two runs gave the same outputs, up to rounding.

    Args:
        actual: The outputs of the one run.
        expected: The outputs of the other.
        noisy: Gives the outputs of the first run with rounding noise. It is called only where the
            runs differ by more than the dtype allows.
    """
    found = difference(actual, expected)
    dtypes = {tensor.dtype for tensor in expected}
    base = max((_BASE.get(dtype, _EXACT) for dtype in dtypes), default=_EXACT)
    if found <= base:
        return Comparison(found, base)
    try:
        noise = difference(leading(noisy(), expected), leading(actual, expected))
    except NotRunnableError:
        return Comparison(found, base)
    tolerance = max(base, _TIMES * noise)
    return Comparison(found, tolerance, checkable=noise <= _CHAOS or found > tolerance)

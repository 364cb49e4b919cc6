"""The modules that programs import: torch's list of ops, with arguments that fit their tensors."""

from __future__ import annotations

import functools
import importlib
import sys
import types
import unittest
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


@functools.cache
def op_list() -> tuple[Any, ...]:
    """torch's OpInfo entries; empty where this torch has none."""
    if "expecttest" not in sys.modules:
        stand_in: Any = types.ModuleType("expecttest")  # torch's tests import it; nothing here does
        stand_in.TestCase = unittest.TestCase
        sys.modules["expecttest"] = stand_in
    try:
        module = importlib.import_module("torch.testing._internal.common_methods_invocations")
    except ImportError:
        return ()
    return tuple(module.op_db)


@functools.cache
def _entry(name: str, variant: str) -> Any:
    return next(op for op in op_list() if op.name == name and op.variant_test_name == variant)


@functools.lru_cache(maxsize=256)
def _sample(name: str, variant: str, index: int) -> Any:
    state = torch.get_rng_state()
    torch.manual_seed(index)
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # as torch's own tests have it
    try:
        entry = _entry(name, variant)
        samples = entry.sample_inputs("cpu", torch.float64, requires_grad=False)
        return [sample for sample, _ in zip(samples, range(index + 1), strict=False)][-1]
    finally:
        torch.set_default_dtype(dtype)
        torch.set_rng_state(state)


def opinfo(name: str, variant: str, index: int, how: str) -> Callable[[Tensor], Tensor]:
    """An op of torch's list as a function of one tensor.

    Args:
        name: The op's name in torch's list.
        variant: The name of its variant.
        index: Which of its sample inputs gives the other arguments.
        how: "function" or "method".
    """
    entry, sample = _entry(name, variant), _sample(name, variant, index)
    shape = sample.input.shape if isinstance(sample.input, Tensor) else None
    function = entry.method_variant if how == "method" and entry.method_variant else entry.op

    def call(h: Tensor) -> Tensor:
        def fitting(other: Any) -> Any:
            if not isinstance(other, Tensor) or other.shape != shape:
                return other
            return h * 0.5 + 0.1 if other.is_floating_point() else h > 0

        args, kwargs = pytree.tree_map(fitting, (sample.args, sample.kwargs))
        if isinstance(sample.input, Tensor):
            out = function(h, *args, **kwargs)
        else:
            out = function([h, h * 0.5], *args, **kwargs)
        return _one(out)

    return call


def _one(out: Any) -> Tensor:
    """The first tensor of a result, as real numbers."""
    first = next(leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor))
    first = first.abs() if first.is_complex() else first
    return first if first.is_floating_point() else first.to(torch.float64)

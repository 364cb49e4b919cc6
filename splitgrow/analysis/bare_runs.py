"""Ops on tensors without values that need not go through torch's whole dispatcher.

A fake tensor's way through it takes a hundred microseconds. Fake tensors are made of tensors of the
meta device. Views are made of these directly, as on any device. Any other result, in memory of its
own, is made anew where the same op ran before on tensors of the same form.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, in_kernel_invocation_manager

from splitgrow.analysis.ops import facts_of
from splitgrow.analysis.ops.forms import forms, is_in_place_name

_NAMES = """
    transpose swapaxes swapdims permute movedim t unsqueeze squeeze expand expand_as flatten
    unflatten reshape view narrow select chunk split unbind operator.getitem
"""
_BARE = frozenset(
    form for form in forms(_NAMES) if not is_in_place_name(getattr(form, "__name__", ""))
)
"""Functions and methods whose results mostly lie in the memory of their operands."""
_PLAIN = (bool, int, float, str, type(None), type(Ellipsis), torch.dtype)

Remembered = dict[Any, tuple[torch.Size, tuple[int, ...], torch.dtype]]
"""The forms of results, by the op and the forms of its arguments."""


def result_without_values(
    func: Callable[..., Any],
    target: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    remembered: Remembered,
) -> Any:
    """The result of an op on fake tensors; None if torch has to find it.

    Args:
        func: The function.
        target: It, or the name of the method that it is.
        args: Its positional arguments.
        kwargs: Its named arguments.
        remembered: The results so far.
    """
    with torch._C.DisableTorchFunction():  # noqa: SLF001 - reads here are no ops
        tensors = _tensors_in((args, kwargs))
        first = tensors[0] if tensors else None
        if type(first) is not FakeTensor or torch.is_grad_enabled():
            return None
        mode, device = first.fake_mode, first.fake_device
        if not all(_ordinary(each, mode, device) for each in tensors):
            return None
        if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
            return None
        if _is_bare(target, args):
            return _run_bare(func, args, kwargs, first)
        if not facts_of(target).fresh or _may_write(func, args, kwargs):
            return None
        key = func, _form_of(args), _form_of(tuple(kwargs.items()))
        if None in key:
            return None
        known = remembered.get(key)
    if known is None:
        made = func(*args, **kwargs)
        if type(made) is FakeTensor and _ordinary(made, mode, device):
            with torch._C.DisableTorchFunction():  # noqa: SLF001
                remembered[key] = made.shape, made.stride(), made.dtype
        return made
    shape, stride, dtype = known
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():  # noqa: SLF001
        meta = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        return FakeTensor(mode, meta, device)


def _tensors_in(value: Any) -> list[Tensor]:
    """The tensors in tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    return [tensor for item in value for tensor in _tensors_in(item)]


def _ordinary(tensor: Any, mode: Any, device: torch.device) -> bool:
    """Whether a tensor is a fake one of a mode and device, of which nothing but its form is known.

    Torch keeps the values of constants beside their fakes, as `tensor.item()` may ask for them.
    """
    return (
        type(tensor) is FakeTensor
        and tensor.fake_mode is mode
        and tensor.fake_device == device
        and tensor.constant is None
        and tensor.layout is torch.strided
        and not (tensor.is_complex() or tensor.is_quantized)
    )


def _may_write(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call may write into one of its arguments, as ``relu(x, True)`` does."""
    return (
        is_in_place_name(func.__name__)
        or any(arg is True for arg in args)
        or kwargs.get("out") is not None
        or bool(kwargs.get("inplace"))
    )


def _is_bare(target: Any, args: tuple[Any, ...]) -> bool:
    try:
        if target not in _BARE:
            return False
    except TypeError:  # not hashable
        return False
    return target is not operator.getitem or all(
        type(index) in (int, slice, type(None), type(Ellipsis))
        for index in (args[1] if type(args[1]) is tuple else args[1:])
    )


def _run_bare(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], like: FakeTensor
) -> Any:
    """The result of an op that runs on the tensors of the meta device; None if it fails there."""
    mode = like.fake_mode
    try:
        with in_kernel_invocation_manager(mode):
            made = func(*args, **kwargs)
    except Exception:  # noqa: BLE001 - torch says in its own words what is wrong
        return None
    with torch._C._DisableTorchDispatch():  # noqa: SLF001
        if isinstance(made, Tensor):
            return _faked(made, like)
        if type(made) in (tuple, list):
            return type(made)(_faked(part, like) for part in made)
    return None


def _faked(made: Tensor, like: FakeTensor) -> FakeTensor:
    return made if type(made) is FakeTensor else FakeTensor(like.fake_mode, made, like.fake_device)


def _form_of(value: Any) -> Any:
    """What tells a call's results without values: forms of tensors, plain numbers; None if more."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if type(value) in (tuple, list, torch.Size):
        parts = tuple(map(_form_of, value))
        return None if any(part is None for part in parts) else parts
    return (type(value), value) if isinstance(value, _PLAIN) else None

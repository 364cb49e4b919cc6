"""A result that is made without torch's dispatcher has the form and the memory of torch's own."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F

from splitgrow.analysis import bare_runs
from splitgrow.analysis.bare_runs import Remembered, result_without_values
from splitgrow.analysis.ops.targets import target_of


def made(function: Any, args: Any, kwargs: Any, remembered: Remembered) -> Any:
    _, target, _ = target_of(function, args)
    return result_without_values(function, target, args, kwargs, remembered)


def form(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [form(part) for part in value]
    return type(value), value.shape, value.stride(), value.dtype, value.device


def memory(value: Any) -> int:
    first = value[0] if isinstance(value, (tuple, list)) else value
    return first.untyped_storage()._cdata


VIEWS: dict[str, Callable[[Tensor], tuple[Any, tuple[Any, ...]]]] = {
    "transpose": lambda x: (Tensor.transpose, (x, 1, 2)),
    "swapaxes": lambda x: (torch.swapaxes, (x, 0, 2)),
    "permute": lambda x: (Tensor.permute, (x, 2, 0, 1)),
    "movedim": lambda x: (torch.movedim, (x, 0, 1)),
    "unsqueeze": lambda x: (Tensor.unsqueeze, (x, 1)),
    "squeeze": lambda x: (torch.squeeze, (x[:1], 0)),
    "expand": lambda x: (Tensor.expand, (x[:1], 5, -1, -1)),
    "flatten": lambda x: (torch.flatten, (x, 1)),
    "flatten of a turned one": lambda x: (torch.flatten, (x.transpose(1, 2), 1)),
    "unflatten": lambda x: (Tensor.unflatten, (x, 2, (2, -1))),
    "reshape": lambda x: (Tensor.reshape, (x, 2, -1)),
    "reshape of a turned one": lambda x: (Tensor.reshape, (x.transpose(1, 2), 2, 12)),
    "reshape to its own shape": lambda x: (Tensor.reshape, (x, 2, 3, 4)),
    "view": lambda x: (Tensor.view, (x, 6, 4)),
    "narrow": lambda x: (Tensor.narrow, (x, 2, 1, 2)),
    "select": lambda x: (Tensor.select, (x, 2, 1)),
    "chunk": lambda x: (torch.chunk, (x, 2, -1)),
    "split": lambda x: (Tensor.split, (x, 3, 2)),
    "unbind": lambda x: (torch.unbind, (x, 1)),
    "an index": lambda x: (Tensor.__getitem__, (x, 1)),
    "a slice": lambda x: (Tensor.__getitem__, (x, (Ellipsis, slice(2, None)))),
    "a new axis": lambda x: (Tensor.__getitem__, (x, (slice(None), None, 0))),
}
FRESH: dict[str, Callable[[Tensor], tuple[Any, tuple[Any, ...]]]] = {
    "neg": lambda x: (Tensor.neg, (x,)),
    "a broadcast product": lambda x: (torch.mul, (x, x[:1, :1])),
    "a sum of unlike types": lambda x: (torch.add, (x, torch.ones(3, 4, dtype=torch.int64))),
    "cat": lambda x: (torch.cat, ((x, x[..., :1]), -1)),
    "matmul": lambda x: (torch.matmul, (x, x.transpose(1, 2))),
    "softmax": lambda x: (F.softmax, (x.transpose(1, 2), -1)),
    "attention": lambda x: (F.scaled_dot_product_attention, (x[None], x[None], x[None])),
    "a comparison": lambda x: (torch.lt, (x, 2)),
}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("of", VIEWS.values(), ids=VIEWS.keys())
def test_a_view_is_as_torchs_and_lies_in_the_same_memory(of: Any, dtype: torch.dtype) -> None:
    with FakeTensorMode():
        x = torch.empty(2, 3, 4, dtype=dtype)
        function, args = of(x)
        ours, theirs = made(function, args, {}, {}), function(*args)
        assert ours is not None
        assert form(ours) == form(theirs)
        assert (memory(ours) == memory(x)) == (memory(theirs) == memory(x))


@torch.no_grad()
@pytest.mark.parametrize("of", FRESH.values(), ids=FRESH.keys())
def test_a_result_that_was_seen_before_is_as_torchs_in_memory_of_its_own(of: Any) -> None:
    remembered: Remembered = {}
    with FakeTensorMode():
        function, args = of(torch.empty(2, 3, 4))
        first, again = (made(function, args, {}, remembered) for _ in range(2))
        assert remembered
        assert form(first) == form(again) == form(function(*args))
        assert memory(first) != memory(again)


@torch.no_grad()
def test_another_form_or_number_is_not_taken_for_one_that_was_seen() -> None:
    remembered: Remembered = {}
    with FakeTensorMode():
        x = torch.empty(2, 3, 4)
        for args in ((x, -1), (x, 0), (x.transpose(0, 1), -1), (x.double(), -1), (x[:1], -1)):
            assert form(made(torch.cumsum, args, {}, remembered)) == form(torch.cumsum(*args))
        one = made(torch.sum, (x,), {"dim": 1}, remembered)
        assert form(one) != form(made(torch.sum, (x,), {"dim": 1, "keepdim": True}, remembered))


@torch.no_grad()
def test_what_needs_torch_is_left_to_it() -> None:
    with FakeTensorMode() as mode:
        x, index = torch.empty(2, 3), torch.zeros(2, dtype=torch.int64)
        constant = mode.from_tensor(torch.ones(2, 3))
        constant.constant = torch.ones(2, 3)
        cases: list[tuple[Any, tuple[Any, ...]]] = [
            (Tensor.__getitem__, (x, index)),
            (Tensor.view, (x, 5)),  # fails
            (torch.relu_, (x,)),
            (F.relu, (x, True)),
            (partial(F.elu, inplace=True), (x,)),
            (Tensor.unsqueeze_, (x, 0)),
            (Tensor.neg, (constant,)),
            (torch.exp, (torch.empty(2, dtype=torch.complex64),)),
            ([], (x,)),
        ]
        for function, args in cases:
            kwargs = getattr(function, "keywords", {})
            assert made(getattr(function, "func", function), args, kwargs, {}) is None, function
        assert made(torch.neg, (x,), {"out": torch.empty(2, 3)}, {}) is None
        with torch.enable_grad():
            assert made(Tensor.unsqueeze, (x, 0), {}, {}) is None
        with torch.autocast("cpu"):
            assert made(Tensor.unsqueeze, (x, 0), {}, {}) is None
        assert isinstance(made(Tensor.unsqueeze, (x, 0), {}, {}), FakeTensor)
    real = torch.ones(2, 3)
    assert made(Tensor.unsqueeze, (real, 0), {}, {}) is None


def test_no_op_in_place_is_among_the_views() -> None:
    assert operator.getitem in bare_runs._BARE
    assert not any(str(getattr(f, "__name__", f)).endswith("_") for f in bare_runs._BARE)

"""A result that is known without running an op equals torch's own result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F

from splitgrow.analysis.leaf_modules import as_if_resized, resized
from splitgrow.analysis.ops.registry import OPS
from splitgrow.analysis.ops.targets import target_of
from splitgrow.analysis.shape_shortcuts import result_of_leaf, result_of_op


def result_of_function(function: Any, args: Any, kwargs: Any) -> Tensor | None:
    name, target, _ = target_of(function, args)
    return result_of_op(name, target, args, kwargs)


KNOWN = {
    getattr(Tensor, target) if isinstance(target, str) else target: known.facts.operands
    for target, known in OPS.items()
    if known.facts.operands and not isinstance(target, type)
}
"""Functions whose results are known, with the number of their operands."""


def _form(x: Any) -> tuple[object, ...]:
    return type(x), x.shape, x.stride(), x.dtype, x.device, x.requires_grad


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_known_result_is_as_torchs(dtype: torch.dtype) -> None:
    assert len(KNOWN) > 150
    with FakeTensorMode():
        for function, operands in KNOWN.items():
            for shape in ((2, 3), (), (0, 4), (1, 2, 1, 3)):
                _compare(function, torch.empty(shape, dtype=dtype), operands)


def _compare(function: Callable[..., Any], x: Tensor, operands: int) -> None:
    pairs = ((x, x), (x, torch.empty_like(x)), (x, 2), (x, 0.5))
    for args in pairs if operands == 2 else ((x,),):
        known, expected = result_of_function(function, args, {}), function(*args)
        assert known is not None, function
        assert _form(known) == _form(expected), function
        assert (known is x) == (expected is x), function


@torch.no_grad()
def test_what_is_not_known_is_left_to_torch() -> None:
    with FakeTensorMode():
        x = torch.empty(2, 3)
        unlike = [torch.empty(3), torch.empty(2, 3).double(), torch.empty(3, 2).T, True, 1j, "x"]
        for other in unlike:
            assert result_of_function(torch.add, (x, other), {}) is None
        for first in (torch.empty(3, 2).T, torch.empty(2, 3, dtype=torch.int64), 2.0):
            assert result_of_function(torch.add, (first, x), {}) is None
        assert result_of_function(torch.add, (x, x), {"alpha": 2}) is None
        assert result_of_function(F.relu, (x,), {"inplace": True}) is None
        assert result_of_function(F.relu, (x, 1), {}) is None
        assert result_of_function(torch.fmod, (x, x), {}) is None
        assert result_of_function([], (x,), {}) is None
        assert isinstance(result_of_function(F.relu, (x,), {"inplace": False}), FakeTensor)
        with torch.enable_grad():
            assert result_of_function(torch.add, (x, x), {}) is None
        with torch.autocast("cpu"):
            assert result_of_function(torch.add, (x, x), {}) is None
    real = torch.ones(2, 3)
    assert result_of_function(torch.add, (real, real), {}) is None


IMAGE, SEQUENCE = (2, 4, 8, 8), (2, 5, 4)
RESIZED: list[tuple[nn.Module, tuple[int, int], tuple[int, ...]]] = [
    (nn.Linear(4, 6), (5, 7), (2, 3, 5)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1), (5, 9), (2, 5, 8, 8)),
    (nn.Conv2d(4, 8, 3, groups=2, dilation=2), (6, 10), (2, 6, 8, 8)),
    (nn.Conv2d(4, 8, 3, groups=4), (5, 10), (2, 5, 8, 8)),
    (nn.Conv1d(4, 6, 3, bias=False), (5, 9), (2, 5, 8)),
    (nn.BatchNorm2d(4), (5, 5), (2, 5, 8, 8)),
    (nn.InstanceNorm1d(4), (5, 5), (2, 5, 8)),
    (nn.GroupNorm(2, 4), (6, 6), (2, 6, 8, 8)),
    (nn.ConvTranspose2d(4, 6, 3), (5, 7), (2, 5, 8, 8)),
    (nn.Embedding(9, 4), (0, 6), (2, 3)),
    (nn.RMSNorm(4), (6, 6), (2, 6)),
]


@torch.no_grad()
@pytest.mark.parametrize(("layer", "sizes", "shape"), RESIZED, ids=str)
def test_a_look_alike_of_other_sizes_answers_as_the_layer_would(
    layer: nn.Module, sizes: tuple[int, int], shape: tuple[int, ...]
) -> None:
    alike, plain = as_if_resized(layer, sizes), resized(layer, sizes)

    def numbers(module: nn.Module) -> dict[str, int]:
        own = vars(module).items()
        return {key: value for key, value in own if type(value) is int and key != "eps"}

    assert numbers(alike) == numbers(plain)
    before = vars(layer).copy()
    with FakeTensorMode():
        x = torch.empty(shape)
        known: Tensor | None = result_of_leaf(alike, (x,))
    assert known is None or known.shape == plain(torch.empty(shape, device="meta")).shape
    assert vars(layer) == before

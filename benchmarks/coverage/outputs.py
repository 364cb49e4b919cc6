"""What a model answers, in whatever structure, and how far two answers lie apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OutputsDifferError(Exception):
    """Two answers cannot be compared: they have other shapes or another number of tensors."""


class Answer(NamedTuple):
    """The tensors of an answer.

    Attributes:
        fixed: Those whose shapes only growth may change.
        found: Those whose number of rows depends on values: what a detection model found.
    """

    fixed: list[Tensor]
    found: list[Tensor]

    def is_finite(self) -> bool:
        """Whether there are tensors, and all their values are numbers."""
        tensors = [*self.fixed, *self.found]
        return bool(tensors) and all(bool(tensor.isfinite().all()) for tensor in tensors)


def tensors_of(outputs: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and mappings, and numbers as tensors."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, (bool, int, float)):
        return [torch.tensor(outputs)]
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if isinstance(outputs, (list, tuple)):
        return [tensor for part in outputs for tensor in tensors_of(part)]
    return []


@torch.no_grad()
def ask(model: nn.Module, inputs: tuple[Any, ...], *, detects: bool = False) -> Answer:
    """What a model answers; of a detection model also the features that its backbone makes."""
    torch.manual_seed(0)
    outputs = tensors_of(model(*inputs))
    if not detects:
        return Answer(outputs, [])
    backbone = getattr(model, "backbone", None)
    features: Any = []
    if isinstance(backbone, nn.Module) and type(backbone) is not nn.Module:  # a fused one is empty
        features = backbone(torch.stack(inputs[0]))
    return Answer(tensors_of(features), outputs)


def difference(actual: Answer, expected: Answer) -> float:
    """The largest difference, relative to the largest expected value of the same tensor.

    Of tensors that have grown, the leading part is compared; of what was found, tensors of equal
    shape.

    Raises:
        OutputsDifferError: If tensors are missing or too small, or none can be compared.
    """
    pairs = list(_leading_pairs(actual.fixed, expected.fixed))
    pairs += [
        (a, b) for a, b in zip(actual.found, expected.found, strict=False) if a.shape == b.shape
    ]
    if not pairs:
        raise OutputsDifferError("no outputs of equal shape to compare")
    distances = [_distance(ours, theirs) for ours, theirs in pairs]
    return math.nan if any(map(math.isnan, distances)) else max(distances)


def identical(actual: Answer, expected: Answer) -> bool:
    """Whether two answers are equal bit for bit."""
    ours, theirs = [*actual.fixed, *actual.found], [*expected.fixed, *expected.found]
    if len(ours) != len(theirs):
        return False
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def check_shapes(actual: Answer, expected: Answer, *, may_grow: bool = False) -> None:
    """Compares shapes only.

    Raises:
        OutputsDifferError: If a shape is another one, or smaller where it may grow.
    """
    _leading_pairs(actual.fixed, expected.fixed)
    ours, theirs = shapes_of(actual.fixed), shapes_of(expected.fixed)
    if ours != theirs and not may_grow:
        raise OutputsDifferError(f"outputs have shapes {ours}, expected were {theirs}")


def shapes_of(values: Any) -> list[list[int]]:
    """The shapes of the tensors in any structure."""
    return [list(tensor.shape) for tensor in tensors_of(values)]


class PrecisionWatch(TorchDispatchMode):
    """Sees whether a model that is given double precision computes in less on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.single = False

    def __torch_dispatch__(  # type: ignore[no-untyped-def]
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        coarse = (torch.float32, torch.float16, torch.bfloat16, torch.complex64)
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.single |= any(leaf.dtype in coarse for leaf in leaves)
        return result


def _leading_pairs(actual: list[Tensor], expected: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    if len(actual) != len(expected):
        raise OutputsDifferError(f"{len(actual)} tensors, expected were {len(expected)}")
    pairs = []
    for ours, theirs in zip(actual, expected, strict=True):
        part = ours[tuple(slice(size) for size in theirs.shape[: ours.dim()])]
        if part.shape != theirs.shape:
            raise OutputsDifferError(
                f"an output has shape {list(ours.shape)}, expected was {list(theirs.shape)}"
            )
        pairs.append((part, theirs))
    return pairs


def _distance(ours: Tensor, theirs: Tensor) -> float:
    if not theirs.numel():
        return 0.0
    kind = torch.complex128 if theirs.is_complex() else torch.float64
    ours, theirs = ours.to(kind), theirs.to(kind)
    scale = max(theirs.abs().max().item(), torch.finfo(torch.float64).tiny)
    return float((ours - theirs).abs().max().item() / scale)

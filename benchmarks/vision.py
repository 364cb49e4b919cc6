"""Torchvision's models, also where its compiled ops do not fit the installed torch."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, library

_LIBRARIES = []


def torchvision() -> ModuleType:
    """The torchvision module, usable without its compiled ops.

    Its wheel is built for CUDA, and on a CPU build of torch the import fails because two ops are
    unknown. Their schemas are named here, and detection models get `nms` in plain Python.
    """
    try:
        import torchvision  # noqa: PLC0415
    except RuntimeError:
        schemas = library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            schemas.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        schemas.impl("nms", nms, "CPU")
        _LIBRARIES.append(schemas)  # they live as long as it
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        import torchvision  # noqa: PLC0415

        _use_plain_python()
    return torchvision


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy suppression: the best box stays, those that overlap it too much go, and again.

    Args:
        boxes: Corners (x1, y1, x2, y2), shape (n, 4).
        scores: Shape (n,).
        iou_threshold: The largest overlap, as intersection over union, that may stay.

    Returns:
        The indices of the boxes that stay, best first.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.9], [3, 3, 4, 4]])
        >>> nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5)
        tensor([1, 2])
    """
    left = scores.argsort(descending=True, stable=True)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        corner = torch.maximum(boxes[best, :2], boxes[left, :2])
        sides = (torch.minimum(boxes[best, 2:], boxes[left, 2:]) - corner).clamp(min=0)
        shared = sides[:, 0] * sides[:, 1]
        left = left[shared <= iou_threshold * (areas[best] + areas[left] - shared)]
    return torch.stack(kept) if kept else left


def _use_plain_python() -> None:
    """Lets `nms` run, and `roi_align` as it is written instead of compiled on its first call."""
    modules: dict[str, Any] = dict(sys.modules)
    modules["torchvision.ops.boxes"]._assert_has_ops = lambda: None  # noqa: SLF001
    align = modules["torchvision.ops.roi_align"]
    align._roi_align = align._roi_align.__wrapped__  # noqa: SLF001

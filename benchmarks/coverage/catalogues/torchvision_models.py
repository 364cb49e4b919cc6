"""Torchvision's models: classification, segmentation, detection, video, optical flow."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.coverage.catalogues import Sample, Subject, image, images
from benchmarks.vision import torchvision

models = torchvision().models

SIZES = (64, 96, 128, 224, 299)
CLIPS = ((4, 64), (16, 64), (16, 224))
"""Frames and side of a video, in the order in which they are tried."""

_REGION_OPTIONS = {
    "min_size": 128,
    "max_size": 160,
    "rpn_pre_nms_top_n_test": 50,
    "rpn_post_nms_top_n_test": 20,
    "box_detections_per_img": 5,
}
_ANCHOR_OPTIONS = {"detections_per_img": 5, "topk_candidates": 50}


def names() -> list[str]:
    """The names of all models, those for quantisation included."""
    return list(models.list_models())


def version() -> str:
    """The library's version."""
    return str(torchvision().__version__)


def totals() -> dict[str, int]:
    """How many models there are."""
    return {"models": len(names())}


def subject(name: str) -> Subject:
    """The model of a name."""
    builder = models.get_model_builder(name)
    area = builder.__module__.removeprefix("torchvision.models.").split(".")[0]
    options: dict[str, Any] = {"weights": None}
    if area in {"detection", "segmentation"}:
        options["weights_backbone"] = None
    if area == "detection":
        options |= _detection_options(name)
    if "googlenet" in name or "inception" in name:
        options["init_weights"] = False  # slow, and the values are replaced
    return Subject(
        library="torchvision",
        name=name,
        family=builder.__module__.removeprefix("torchvision.models."),
        build=partial(_build, name, options),
        samples=_samples(area),
        detects=area == "detection",
    )


def _build(name: str, options: dict[str, Any]) -> nn.Module:
    return models.get_model(name, **options)  # type: ignore[no-any-return]


def _detection_options(name: str) -> dict[str, int]:
    """Few boxes, and small images where the model takes them."""
    if "rcnn" in name:
        return _REGION_OPTIONS
    if name.startswith("ssd"):
        return _ANCHOR_OPTIONS
    return {**_ANCHOR_OPTIONS, "min_size": 128, "max_size": 160}


def _samples(area: str) -> tuple[Sample, ...]:
    if area == "detection":
        # SSD's backbone, asked for its features, needs larger ones.
        return (lambda: ([torch.rand(3, 128, 160)],), lambda: ([torch.rand(3, 300, 300)],))
    if area == "optical_flow":
        return (lambda: (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128)),)
    if area == "video":
        return tuple(image(2, 3, frames, size, size) for frames, size in CLIPS)
    return images(3, SIZES)

"""Torchvision's models, also where its compiled ops do not fit the installed torch."""

from __future__ import annotations

import sys
from types import ModuleType

from torch import library

_LIBRARIES = []


def torchvision() -> ModuleType:
    """The torchvision module.

    Its wheel is built for CUDA, and on a CPU build of torch the import fails because two ops are
    unknown. Naming their schemas is enough for the models, which do not call them.
    """
    try:
        import torchvision  # noqa: PLC0415
    except RuntimeError:
        schemas = library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            schemas.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(schemas)  # they live as long as it
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        import torchvision  # noqa: PLC0415
    return torchvision

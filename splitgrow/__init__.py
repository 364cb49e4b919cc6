"""Grow any PyTorch model while it trains, and make it plain again to deploy."""

import importlib
from typing import TYPE_CHECKING

from splitgrow.checkpoints import load, save
from splitgrow.edits import Edit, InputChange, Insertion, LayerChange, NumberChange
from splitgrow.errors import (
    CheckpointError,
    DistributedError,
    FixedWidthError,
    FusionError,
    GenerationError,
    InexactError,
    InsertionError,
    MergeError,
    OptimizerError,
    SplitGrowError,
    StructureChangedError,
    TraceError,
    UnsupportedLayerError,
    UnsupportedModelError,
)
from splitgrow.execution import execution
from splitgrow.fading import FadeIn, FadeSchedule
from splitgrow.fusion import fuse
from splitgrow.growable import growable
from splitgrow.handle import Handle, handle
from splitgrow.kinds import register_layer, unregister_layer
from splitgrow.listing import Layer
from splitgrow.merging import merge
from splitgrow.progressive import (
    ProgressiveAutoencoder,
    ProgressiveDecoder,
    ProgressiveDiscriminator,
    ProgressiveEncoder,
    ProgressiveGenerator,
)
from splitgrow.rules import register_op, unregister_op
from splitgrow.running import LayerRun
from splitgrow.sharedkernel import SharedKernelConv1d, SharedKernelConv2d, SharedKernelConv3d

if TYPE_CHECKING:
    from types import ModuleType

__all__ = [
    "CheckpointError",
    "DistributedError",
    "Edit",
    "FadeIn",
    "FadeSchedule",
    "FixedWidthError",
    "FusionError",
    "GenerationError",
    "Handle",
    "InexactError",
    "InputChange",
    "Insertion",
    "InsertionError",
    "Layer",
    "LayerChange",
    "LayerRun",
    "MergeError",
    "NumberChange",
    "OptimizerError",
    "ProgressiveAutoencoder",
    "ProgressiveDecoder",
    "ProgressiveDiscriminator",
    "ProgressiveEncoder",
    "ProgressiveGenerator",
    "SharedKernelConv1d",
    "SharedKernelConv2d",
    "SharedKernelConv3d",
    "SplitGrowError",
    "StructureChangedError",
    "TraceError",
    "UnsupportedLayerError",
    "UnsupportedModelError",
    "execution",
    "fuse",
    "growable",
    "handle",
    "load",
    "merge",
    "register_layer",
    "register_op",
    "save",
    "unregister_layer",
    "unregister_op",
]


def __getattr__(name: str) -> "ModuleType":
    """`splitgrow.continual` and `splitgrow.distributed`, once somebody asks for them.

    Raises:
        AttributeError: If that is not what is asked for.
    """
    if name in {"continual", "distributed"}:
        return importlib.import_module(f"splitgrow.{name}")
    raise AttributeError(f"module 'splitgrow' has no attribute {name!r}")

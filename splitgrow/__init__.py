"""Grow any PyTorch model while it trains, and make it plain again to deploy."""

from splitgrow.edits import Edit, LayerChange
from splitgrow.errors import (
    FixedWidthError,
    FusionError,
    GenerationError,
    OptimizerError,
    SplitGrowError,
    StructureChangedError,
    TraceError,
    UnsupportedLayerError,
    UnsupportedModelError,
)
from splitgrow.execution import execution
from splitgrow.fusion import fuse
from splitgrow.growable import growable
from splitgrow.handle import Handle, Layer, handle
from splitgrow.merging import merge

__all__ = [
    "Edit",
    "FixedWidthError",
    "FusionError",
    "GenerationError",
    "Handle",
    "Layer",
    "LayerChange",
    "OptimizerError",
    "SplitGrowError",
    "StructureChangedError",
    "TraceError",
    "UnsupportedLayerError",
    "UnsupportedModelError",
    "execution",
    "fuse",
    "growable",
    "handle",
    "merge",
]

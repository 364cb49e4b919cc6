"""Grow any PyTorch model while it trains, and make it plain again to deploy."""

from splitgrow.edits import Edit, LayerChange, NumberChange
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
from splitgrow.fading import FadeIn, FadeSchedule
from splitgrow.fusion import fuse
from splitgrow.growable import growable
from splitgrow.handle import Handle, Layer, handle
from splitgrow.kinds import register_layer
from splitgrow.merging import merge
from splitgrow.progressive import (
    ProgressiveAutoencoder,
    ProgressiveDecoder,
    ProgressiveDiscriminator,
    ProgressiveEncoder,
    ProgressiveGenerator,
)
from splitgrow.rules import register_op
from splitgrow.running import LayerRun

__all__ = [
    "Edit",
    "FadeIn",
    "FadeSchedule",
    "FixedWidthError",
    "FusionError",
    "GenerationError",
    "Handle",
    "Layer",
    "LayerChange",
    "LayerRun",
    "NumberChange",
    "OptimizerError",
    "ProgressiveAutoencoder",
    "ProgressiveDecoder",
    "ProgressiveDiscriminator",
    "ProgressiveEncoder",
    "ProgressiveGenerator",
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
    "register_layer",
    "register_op",
]

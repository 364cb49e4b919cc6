"""Grow any PyTorch model while it trains, and make it plain again to deploy."""

import importlib
from typing import TYPE_CHECKING

from splitgrow.analysis.ops import register_op, unregister_op
from splitgrow.checkpoints import load, save
from splitgrow.deploy.fuse import fuse
from splitgrow.deploy.merge import merge
from splitgrow.errors import (
    CheckpointError,
    DistributedError,
    ExportError,
    FixedWidthError,
    FusionError,
    GenerationError,
    InexactError,
    InsertionError,
    MergeError,
    OptimizerError,
    SplitGrowError,
    SplitGrowWarning,
    StructureChangedError,
    TraceError,
    UnsupportedLayerError,
    UnsupportedModelError,
)
from splitgrow.growable import growable
from splitgrow.grower import (
    All,
    Budget,
    ComputeShares,
    Cycles,
    Every,
    Factor,
    Gap,
    Grower,
    Plateau,
    Score,
    ToWidths,
)
from splitgrow.growth.edit_parts import InputChange, Insertion, LayerChange, NumberChange
from splitgrow.growth.edits import Edit
from splitgrow.growth.following import follow
from splitgrow.growth.initializers import Initializer, initializers, register_initializer
from splitgrow.growth.layer_list import Layer
from splitgrow.growth.optimizer_names import by_name
from splitgrow.handle import Handle, handle
from splitgrow.layers.attention import PlainAttention, plain_attention
from splitgrow.layers.dispatch import LayerRun
from splitgrow.layers.execution import execution
from splitgrow.layers.fade import FadeIn, FadeSchedule
from splitgrow.layers.mixture_of_experts import MixtureOfExperts
from splitgrow.layers.shared_kernel import (
    SharedKernelConv1d,
    SharedKernelConv2d,
    SharedKernelConv3d,
)
from splitgrow.layers.types import register_layer, unregister_layer
from splitgrow.pretrained.dense_to_mixture import to_mixture
from splitgrow.pretrained.saving import save_pretrained
from splitgrow.progressive import (
    ProgressiveAutoencoder,
    ProgressiveDecoder,
    ProgressiveDiscriminator,
    ProgressiveEncoder,
    ProgressiveGenerator,
)
from splitgrow.pruning.penalty import group_penalty
from splitgrow.pruning.target import Target

if TYPE_CHECKING:
    from types import ModuleType

__all__ = [
    "All",
    "Budget",
    "CheckpointError",
    "ComputeShares",
    "Cycles",
    "DistributedError",
    "Edit",
    "Every",
    "ExportError",
    "Factor",
    "FadeIn",
    "FadeSchedule",
    "FixedWidthError",
    "FusionError",
    "Gap",
    "GenerationError",
    "Grower",
    "Handle",
    "InexactError",
    "Initializer",
    "InputChange",
    "Insertion",
    "InsertionError",
    "Layer",
    "LayerChange",
    "LayerRun",
    "MergeError",
    "MixtureOfExperts",
    "NumberChange",
    "OptimizerError",
    "PlainAttention",
    "Plateau",
    "ProgressiveAutoencoder",
    "ProgressiveDecoder",
    "ProgressiveDiscriminator",
    "ProgressiveEncoder",
    "ProgressiveGenerator",
    "Score",
    "SharedKernelConv1d",
    "SharedKernelConv2d",
    "SharedKernelConv3d",
    "SplitGrowError",
    "SplitGrowWarning",
    "StructureChangedError",
    "Target",
    "ToWidths",
    "TraceError",
    "UnsupportedLayerError",
    "UnsupportedModelError",
    "by_name",
    "execution",
    "follow",
    "fuse",
    "group_penalty",
    "growable",
    "handle",
    "initializers",
    "load",
    "merge",
    "plain_attention",
    "register_initializer",
    "register_layer",
    "register_op",
    "save",
    "save_pretrained",
    "to_mixture",
    "unregister_layer",
    "unregister_op",
]


def __getattr__(name: str) -> "ModuleType":
    """`splitgrow.continual`, `splitgrow.distributed` and `splitgrow.scores`, once asked for.

    Raises:
        AttributeError: If that is not what is asked for.
    """
    if name in {"continual", "distributed", "scores"}:
        return importlib.import_module(f"splitgrow.{name}")
    raise AttributeError(f"module 'splitgrow' has no attribute {name!r}")

"""Grow any PyTorch model while it trains, and make it plain again to deploy.

This file runs twice: when the package is imported, and when one of its names is first asked for.
Only then it needs torch, so the command answers `--help` at once.
"""

import importlib
import sys
from threading import RLock
from types import ModuleType
from typing import TYPE_CHECKING, Any

_wanted: bool = globals().get("_wanted", False)
if TYPE_CHECKING or _wanted:
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
    from splitgrow.growth.layer_list import Layer, Layers
    from splitgrow.growth.optimizer_names import by_name
    from splitgrow.growth.summary import LayerSummary, Summary
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
    "LayerSummary",
    "Layers",
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
    "Summary",
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

_ASKED_FOR = ("continual", "distributed", "scores", "typing")
"""Packages, and a module, that are imported only if they are asked for."""
_ALSO_MODULES = ("growable", "handle")
"""The public functions that have the name of a module."""


class _Package(ModuleType):
    """This package, in which no module takes the place of a function of its name."""

    lock = RLock()

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; Python itself sets each module of the package once it is imported."""
        if name not in _ALSO_MODULES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


if not _wanted:
    sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> ModuleType:
    """A name that is not there yet: all of them are, once one is asked for.

    Raises:
        AttributeError: If there is no such name.
    """
    global _wanted  # noqa: PLW0603 - for the second run of this file
    if name in _ASKED_FOR:
        return importlib.import_module(f"splitgrow.{name}")
    package: Any = sys.modules[__name__]
    with package.lock:  # of several threads one runs it
        if not _wanted and not name.startswith("__"):  # Python itself asks for such names
            try:
                _wanted = True
                importlib.reload(package)
            except BaseException:
                _wanted = False
                raise
    if name in globals():
        found: ModuleType = globals()[name]
        return found
    raise AttributeError(f"module 'splitgrow' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Its names, also those that nobody has asked for yet."""
    return sorted({*globals(), *__all__, *_ASKED_FOR})

"""The errors that splitgrow raises for what a model does not allow.

Misuse of an argument is a ``ValueError`` or a ``TypeError`` instead.
"""

from __future__ import annotations


class SplitGrowError(Exception):
    """The model, or its state, does not allow the request."""


class TraceError(SplitGrowError):
    """The model's forward could not be traced, so nothing is known of its channels."""


class UnsupportedLayerError(SplitGrowError):
    """The named module is of a layer type that cannot grow."""


class UnsupportedModelError(SplitGrowError):
    """The model as a whole cannot be made growable: wrapped, lazy or scripted."""


class FixedWidthError(SplitGrowError):
    """A layer's width is tied to something that cannot change."""


class InexactError(SplitGrowError):
    """An edit would change the model's function; it was taken back."""


class InsertionError(SplitGrowError):
    """No insertion at that place leaves the model's function as it is."""


class StructureChangedError(SplitGrowError):
    """The model was changed by hand since it was analysed."""


class GenerationError(SplitGrowError):
    """A generation that is no longer exact was asked for."""


class OptimizerError(SplitGrowError):
    """The optimizer cannot take the new parameters."""


class CheckpointError(SplitGrowError):
    """A checkpoint cannot be written, is damaged, or does not fit the model."""


class MergeError(SplitGrowError):
    """The merged model does not equal the model it was made from."""


class ExportError(SplitGrowError):
    """No settings of a library's class describe the model, so that its loader could not make it."""


class FusionError(SplitGrowError):
    """The fused network does not equal the model it was made from."""


class DistributedError(SplitGrowError):
    """The processes that hold a model do not agree, or one of them failed or is gone."""


class SplitGrowWarning(UserWarning):
    """Something that splitgrow allows, and that is seldom meant."""

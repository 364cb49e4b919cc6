"""Checkpoints: a grown model and its training in a file, lost at no moment and never believed."""

from splitgrow.checkpoints.loading import load
from splitgrow.checkpoints.saving import save

__all__ = ["load", "save"]

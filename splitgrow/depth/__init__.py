"""Layers inserted mid-network: where they can go, what they are, and putting them in."""

from splitgrow.depth.methods import DepthMethods

__all__ = ["DepthMethods"]

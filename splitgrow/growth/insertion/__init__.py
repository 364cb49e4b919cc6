"""Layers inserted mid-network: where they can go, what they are, and putting them in."""

from splitgrow.growth.insertion.methods import DepthMethods

__all__ = ["DepthMethods"]

"""Layers inserted mid-network: where they can go, what they are, and putting them in."""

from splitgrow.depth.insertion import Wanted, insert_, plan_insertion

__all__ = ["Wanted", "insert_", "plan_insertion"]

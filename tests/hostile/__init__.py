"""Broken checkpoints, and the outcomes of loading them."""

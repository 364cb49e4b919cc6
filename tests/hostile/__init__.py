"""Broken checkpoints, and what comes of loading them."""

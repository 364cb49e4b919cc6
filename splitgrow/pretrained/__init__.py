"""Grown models as checkpoints of the libraries that they came from, which these libraries read."""

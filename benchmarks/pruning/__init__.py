"""Shrinking networks, beside torch-pruning: how many models, how fast, and how accurate."""

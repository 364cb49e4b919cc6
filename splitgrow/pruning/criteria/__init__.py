"""Criteria: how much each unit counts, by its weights, gradients or values."""

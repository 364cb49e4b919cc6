"""Mixtures of experts: finding them in a model, and giving them further experts."""

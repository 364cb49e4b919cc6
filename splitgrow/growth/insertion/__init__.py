"""Layers inserted mid-network: where they can go, what they are, and putting them in."""

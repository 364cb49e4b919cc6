"""Channels as units on axes: axes, groups that grow together, and numbers that follow them."""

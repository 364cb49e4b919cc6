"""Measurements, one file for each claim; run them with ``python -m benchmarks.NAME``."""

"""What growth costs in time and memory, against plain networks and other ways to grow.

One file in ``claims`` for each claim; run them with ``python -m benchmarks``.
"""

"""Imported by the server from which the measuring processes are forked: does everything once."""

from benchmarks.scale.steps import warm_up

warm_up()

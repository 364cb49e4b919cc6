"""All claims, in the order in which they run."""

from __future__ import annotations

from benchmarks.speed.claims import (
    absorbed_training,
    against_masks,
    analysis_time,
    beside_training,
    check_time,
    compiled_training,
    fuse_memory,
    fused_inference,
    grown_inference,
    growth_memory,
    growth_time,
    long_run,
    many_growths,
    shared_kernel,
    training_free,
    training_frozen,
    training_memory,
    training_recurrent,
)

CLAIMS = (
    fused_inference.CLAIM,
    grown_inference.CLAIM,
    *training_frozen.CLAIMS,
    compiled_training.CLAIM,
    training_free.CLAIM,
    absorbed_training.CLAIM,
    *training_recurrent.CLAIMS,
    against_masks.CLAIM,
    many_growths.CLAIM,
    long_run.CLAIM,
    shared_kernel.CLAIM,
    growth_memory.CLAIM,
    growth_time.CLAIM,
    analysis_time.CLAIM,
    check_time.CLAIM,
    beside_training.CLAIM,
    fuse_memory.CLAIM,
    training_memory.CLAIM,
)

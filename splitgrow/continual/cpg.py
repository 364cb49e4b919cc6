"""CPG: pick from the weights of earlier tasks, grow if they are too few, and make compact."""

from __future__ import annotations

from splitgrow.continual.compacting import CompactingLearner


class CPG(CompactingLearner):
    r"""Compacting, Picking and Growing (Hung et al., NeurIPS 2019).

    For every task, section 3:

    1. *Picking.* Scores pick, from the weights of earlier tasks, those that help, and the free
       weights train along with them: :math:`M \odot W^P_{1:k}` and :math:`W^E_k`.
    2. *Growing.* While the task misses its goal, all layers gain units, and the task begins again,
       up to a largest expansion.
    3. *Compacting.* The task's own weights are pruned little by little, by magnitude, on a cubic
       schedule, and the sparsest state that holds the goal is kept. Pruned weights are free.
    4. *Retraining.* The scores begin again and train with the remaining weights; the result is kept
       if it is better.

    Differences from the published code: growth takes place in the process, without a restart, and
    decisions are made on validation data unless ``decide_on="test"`` asks for the test data, as in
    that code. If a task misses its goal at the largest expansion, it is pruned so far that future
    tasks have room, if `expected_tasks` gives their number; the code does the same.

    Args:
        **options: See `CompactingLearner`.
    """

    method = "cpg"
    picks = "binary"

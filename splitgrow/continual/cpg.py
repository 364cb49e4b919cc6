"""CPG: pick from what earlier tasks own, grow where that is too little, and make compact."""

from __future__ import annotations

from splitgrow.continual.compacting import CompactingLearner


class CPG(CompactingLearner):
    r"""Compacting, Picking and Growing (Hung et al., NeurIPS 2019).

    For every task, section 3:

    1. *Picking.* Scores pick, of what earlier tasks own, the weights that help, and the weights
       that are free train along with them: :math:`M \odot W^P_{1:k}` and :math:`W^E_k`.
    2. *Growing.* As long as the task falls short of its goal, all layers gain units, and the task
       begins anew, up to a largest expansion.
    3. *Compacting.* The task's own weights are pruned little by little, by magnitude, on a cubic
       schedule, and the sparsest state that holds the goal is kept. What was pruned is free.
    4. *Retraining.* The scores begin anew and train with the weights that are left; that is kept
       where it is better.

    Differences to the published code: growth takes place in the process, without a restart; and
    decisions are made on validation data unless ``decide_on="test"`` asks for the test data, as in
    that code. A task that falls short of its goal at the largest expansion is pruned so far that
    the tasks to come have room, if `expected_tasks` tells how many these are; the code does the
    same.

    Args:
        **options: See `CompactingLearner`.
    """

    method = "cpg"
    picks = "binary"

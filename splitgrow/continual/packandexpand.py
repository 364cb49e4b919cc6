"""Pack and Expand: what earlier tasks own, what is free, and growth where that is too little."""

from __future__ import annotations

from splitgrow.continual.compacting import CompactingLearner


class PackAndExpand(CompactingLearner):
    """Pack and Expand (Hung et al., ICMR 2019).

    The paper is called "Increasingly Packing Multiple Facial-Informatics Modules in A Unified
    Deep-Learning Model via Lifelong Learning".

    A task trains the weights that are free while it sees all that earlier tasks own. As long as it
    falls short of its goal, the network grows and the task begins anew; then it is pruned little by
    little, to the sparsest state that holds the goal. It is CPG without picking: every weight of
    earlier tasks is used, which is the inertia that CPG's authors name as its weakness.

    Differences to the paper: goals, growth and pruning are as CPG's, so that the two differ in
    picking alone. Norms and biases are every task's own.

    Args:
        **options: See `CompactingLearner`.
    """

    method = "pack-and-expand"
    picks = None

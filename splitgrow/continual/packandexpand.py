"""Pack and Expand: all weights of earlier tasks, the free ones, and growth if those are too few."""

from __future__ import annotations

from splitgrow.continual.compacting import CompactingLearner


class PackAndExpand(CompactingLearner):
    """Pack and Expand (Hung et al., ICMR 2019).

    The paper is called "Increasingly Packing Multiple Facial-Informatics Modules in A Unified
    Deep-Learning Model via Lifelong Learning".

    A task trains the free weights while it sees all weights of earlier tasks. While it misses its
    goal, the network grows and the task begins again; then it is pruned little by little, to the
    sparsest state that holds the goal. It is CPG without picking: a task uses every weight of
    earlier tasks, which CPG's authors call the inertia and weakness of this method.

    Differences from the paper: goals, growth and pruning are as CPG's, so that the two differ in
    picking alone. Norms and biases are every task's own.

    Args:
        **options: See `CompactingLearner`.

    Example:
        >>> import torch
        >>> from splitgrow.continual import PackAndExpand, Task, Training
        >>> from torch import nn
        >>> x = torch.randn(64, 4)
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> learner = PackAndExpand(net, x[:1], training=Training(epochs=1), goal=0.6)
        >>> record = learner.learn(Task("signs", 2, (x, (x[:, 0] > 0).long())))
        >>> learner.report().tasks[0].name
        'signs'
    """

    method = "pack-and-expand"
    picks = None

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

    Example:
        >>> import torch
        >>> from splitgrow.continual import CPG, Task, Training
        >>> from torch import nn
        >>> x = torch.randn(64, 4)
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> learner = CPG(net, x[:1], training=Training(epochs=1), goal=0.6)
        >>> record = learner.learn(Task("signs", 2, (x, (x[:, 0] > 0).long())))
        >>> learner.predict(x, task="signs").shape
        torch.Size([64, 2])
    """

    method = "cpg"
    picks = "binary"

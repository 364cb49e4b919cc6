"""Separate networks, the baseline of other methods."""

from __future__ import annotations

import torch
from lessons import images, learned, learner, net, task

from splitgrow.continual import Task


def test_separate_networks_begin_alike_and_share_nothing() -> None:
    made = learned("separate", 2)
    alone = learner("separate")
    other = Task("task 1", 2, task(1).train)
    alone.learn(Task("before", 2, task(2).train))
    alone.learn(other)
    assert torch.equal(
        made.predict(images(3), task="task 1"), alone.predict(images(3), task="task 1")
    )
    report = made.report()
    one = sum(p.numel() for name, p in net().named_parameters() if p.dim() > 1)
    assert report.weights == 2 * report.first_weights
    assert report.first_weights == one - net().head.weight.numel()  # type: ignore[union-attr]

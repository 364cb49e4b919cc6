"""A task's network while it is learned."""

from __future__ import annotations

from typing import Any

import torch
from lessons import learned, learner, task
from torch import nn
from torch.nn import functional as F

from splitgrow.continual import Joint, Study


def test_a_study_is_an_ordinary_module() -> None:
    made: Any = learned("packnet", 1)
    made.body = made.body.copied()
    study = made._begin(task(1))
    assert isinstance(study, Study)
    assert isinstance(study, nn.Module)
    x, y = task(1).train[:]
    optimizer = torch.optim.AdamW(study.parameters(), lr=0.02)
    first = float(F.cross_entropy(study(x), y).detach())
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(study(x), y).backward()
        optimizer.step()
    assert float(F.cross_entropy(study.eval()(x), y).detach()) < first
    assert isinstance(made, type(learner("packnet")))
    assert not isinstance(made, Joint)

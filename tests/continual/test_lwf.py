"""LwF: the second loss, and the new head that first trains by itself."""

from __future__ import annotations

from typing import Any

import torch
from lessons import images, learned, task
from torch.nn import functional as F

from splitgrow.continual import Training
from splitgrow.continual.lwf import _softened


def test_old_heads_are_asked_to_say_what_they_said() -> None:
    """LwF's second loss is least, and flat, where both say the same."""
    wanted = torch.randn(6, 4, dtype=torch.float64)
    given = wanted.clone().requires_grad_()
    loss = _softened(given, wanted, 2.0)
    (gradient,) = torch.autograd.grad(loss, given)
    assert gradient.abs().max() < 1e-12
    assert _softened(wanted + torch.randn_like(wanted), wanted, 2.0) > loss
    soft = F.softmax(wanted / 2, 1)
    assert torch.allclose(loss, -4 * (soft * soft.log()).sum(1).mean())


def test_lwf_without_its_second_loss_is_finetuning_and_with_it_remembers_more() -> None:
    def drift(made: Any) -> Any:
        x = task(1).train[:][0]  # where it is asked for
        before = made.predict(x, task="task 0").softmax(1)
        made.learn(task(1))
        made._networks.clear()
        drifted = (made.predict(x, task="task 0").softmax(1) - before).abs().mean()
        return float(drifted), made.predict(images(3), task="task 1")

    longer = Training(epochs=8, batch_size=16, lr=0.05)
    free, given = drift(learned("lwf", 1, strength=0.0, warmup_epochs=0, training=longer))
    _, plain = drift(learned("finetuning", 1, training=longer))
    assert torch.equal(given, plain)  # the old heads alone decay
    assert drift(learned("lwf", 1, strength=3.0, training=longer))[0] < 0.7 * free


def test_lwf_trains_a_new_head_by_itself_first() -> None:
    made: Any = learned("lwf", 1)
    train, changed = made._train, {}

    def watched(study: Any, task: Any, what: str, **more: Any) -> Any:
        before = {name: p.detach().clone() for name, p in study.named_parameters()}
        done = train(study, task, what, **more)
        changed[what] = {n for n, p in study.named_parameters() if not torch.equal(p, before[n])}
        return done

    made._train = watched
    made.learn(task(1))
    assert list(changed) == ["warm up", "train"]
    assert changed["warm up"] == {"head.weight", "head.bias"}
    assert changed["train"] > {"head.weight", "head.bias", "others.0.weight"}

"""EWC: the Fisher information, and the springs made from it."""

from __future__ import annotations

from typing import Any

import torch
from lessons import images, learned, learner, task
from torch.nn import functional as F

from splitgrow.continual import Task
from splitgrow.continual.training import cross_entropy


def test_fisher_information_is_the_mean_of_squared_gradients_of_what_the_network_draws() -> None:
    """Against a loop over examples with gradients by autograd, for a certain output."""
    made: Any = learner("ewc", samples=8)
    made.body = made.body.copied()
    study = made._study(task(0))
    with torch.no_grad():  # so sure of class 1 that nothing else is drawn
        study.head.bias.copy_(torch.tensor([-20.0, 20.0]))
        study.head.weight.mul_(0.1)
    x, y = task(0).train[:8]
    only = Task("only", 2, (x, y))
    found = made._fisher_of(study, only)
    study.eval()
    expected = {name: torch.zeros_like(value) for name, value in found.items()}
    parameters = {n: study.weight(n) for n in study.mine} | study.own_parameters
    for one in x.split(1):
        study.zero_grad()
        F.log_softmax(study(one), 1)[0, 1].backward()
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                expected[name] += parameter.grad**2 / 8
    for name, value in found.items():
        assert torch.allclose(value, expected[name], rtol=1e-4, atol=1e-30)
    assert sum(float(value.sum()) for value in found.values()) > 0


def test_the_springs_pull_to_where_each_task_was_by_how_much_it_needs_it() -> None:
    """The gradient of the penalty, against the sum over tasks written out."""
    made: Any = learned("ewc", 1, strength=1e5)
    first = {name: value.clone() for name, value in made._fisher.items()}
    at_first = {n: made._pull[n] / f.clamp(min=1e-30) for n, f in first.items()}
    made.learn(task(1))
    second = {name: made._fisher[name] - first[name] for name in first}
    study = made._study(task(2))
    x, y = task(2).train[:]
    study.eval()
    name = next(iter(study.mine))
    weight = study.weight(name)
    with torch.no_grad():
        weight.add_(torch.randn_like(weight))
    plain, _ = cross_entropy(study, x, y)
    loss, _ = made._loss(study, x, y)
    (with_springs,) = torch.autograd.grad(loss, weight, retain_graph=True)
    (without,) = torch.autograd.grad(plain, weight)
    at_second = made.body.slots[name].tensor
    pull = first[name] * (weight - at_first[name]) + second[name] * (weight - at_second)
    expected = 1e5 * pull / (1 + made.training.lr * 1e5 * (first[name] + second[name]))
    assert torch.allclose(with_springs - without, expected, rtol=1e-3, atol=1e-5)
    assert expected.abs().max() > 1e-2


def test_springs_of_any_strength_do_not_make_training_diverge() -> None:
    made = learned("ewc", 3, strength=1e9)
    assert all(torch.isfinite(made.predict(images(1), task=name)).all() for name in made.tasks)


def test_stiff_springs_forget_less() -> None:
    forgotten = []
    for strength in (0.0, 1e6):
        made: Any = learned("ewc", 1, strength=strength)
        before = {n: s.tensor.clone() for n, s in made.body.slots.items() if s.trains}
        made.learn(task(1))
        now = made.body.slots
        moved = sum(float((now[n].tensor - v).abs().sum()) for n, v in before.items())
        forgotten.append(moved)
    assert forgotten[1] < 0.9 * forgotten[0]

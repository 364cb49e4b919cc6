"""Methods that others are compared with: finetuning, EWC, LwF, separate and joint training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lessons import images, learned, learner, net, task
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from splitgrow.continual import Joint, Study, Task, Training
from splitgrow.continual.joint import _mixed
from splitgrow.continual.lwf import _softened
from splitgrow.continual.tasks import Batches
from splitgrow.continual.training import cross_entropy


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


def test_joint_training_judges_each_example_among_the_classes_of_its_task() -> None:
    tasks = [task(0, classes=2), task(1, classes=3)]
    made: Any = learner("joint", training=Training(epochs=12, batch_size=16, lr=0.05))
    records = made.learn_all(tasks)
    assert [record.classes for record in records] == [2, 3]
    assert [made.predict(images(1), task=t.name).shape[1] for t in tasks] == [2, 3]
    accuracies = [made.evaluate(t.train, task=t.name) for t in tasks]
    assert min(accuracies) > 0.6
    # The same network: only the heads differ.
    one, other = (made.network(t.name) for t in tasks)
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert name.startswith("head") or torch.equal(a, b)


def test_joint_training_one_by_one_ends_as_all_at_once() -> None:
    """It begins from the model's first values each time."""
    made = learner("joint")
    for index in range(2):
        made.learn(task(index))
    assert made.tasks == ("task 0", "task 1")
    assert made.evaluate(task(0).test, task="task 0") >= 0.3


@pytest.mark.parametrize("kind", ["tensors", "tensor of indices", "examples"])
def test_mixed_labels_of_one_byte_do_not_begin_anew(kind: str) -> None:
    x, y = torch.randn(2, 3), torch.tensor([0, 199], dtype=torch.uint8)

    class Data(Dataset[Any]):
        takes_tensors = kind == "tensor of indices"

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: Any) -> Any:
            return x[index], y[index]

    data: Any = (x, y) if kind == "tensors" else Data()
    mixed: Any = _mixed([Task("a", 200, data), Task("b", 200, data)])
    everything = Batches(mixed, 4, torch.device("cpu"))
    assert [label for _, part in everything for label in part.tolist()] == [0, 199, 200, 399]
    assert y.add(200).tolist() != [200, 399]  # what bytes would make of it


def test_joint_training_needs_data_that_can_be_mixed() -> None:
    made = learner("joint", decide_on="test")
    loader = DataLoader(task(0).train, batch_size=8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a Dataset"):
        made.learn(Task("loader", 2, loader, task(0).test))
    assert made.tasks == ()
    made.learn(task(1))


class Pairs(Dataset[Any]):
    """A data set of the ordinary kind: one example at a time."""

    def __init__(self, index: int) -> None:
        self.x, self.y = task(index).train[:]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return self.x[index], int(self.y[index])


@pytest.mark.parametrize("method", ["cpg", "joint", "ewc", "lwf", "separate"])
def test_any_dataset_learns_the_same_as_its_tensors(method: str) -> None:
    one, other = learner(method), learner(method)
    for made, index in ((one, 0), (one, 1)):
        made.learn(Task(f"task {index}", 2, Pairs(index), task(index).test))
    for index in range(2):
        other.learn(task(index))
    for name in one.tasks:
        assert torch.equal(one.predict(images(2), task=name), other.predict(images(2), task=name))


@pytest.mark.parametrize("method", ["cpg", "packnet", "ewc", "lwf", "finetuning"])
def test_loaders_are_learned_from_as_they_are(method: str) -> None:
    made = learner(method)
    for index in range(2):
        loader = DataLoader(Pairs(index), batch_size=16)
        made.learn(Task(f"task {index}", 2, loader, task(index).test, task(index).test))
    assert made.tasks == ("task 0", "task 1")


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

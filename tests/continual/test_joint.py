"""Joint training: all tasks at once, each judged among its own classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lessons import images, learner, task
from torch.utils.data import DataLoader, Dataset

from splitgrow.continual import Task, Training
from splitgrow.continual.joint import _mixed
from splitgrow.continual.tasks import Batches


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

"""Joint training: all tasks at once, which a learner of one task after the other cannot have."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset
from typing_extensions import Unpack

from splitgrow.continual.finetuning import Finetuning
from splitgrow.continual.options import LearnerOptions
from splitgrow.continual.records import TaskRecord
from splitgrow.continual.studies import whole_study
from splitgrow.continual.tasks import Data, Task, joined, labels, takes_tensors


class Joint(Finetuning):
    """One network for all tasks, trained on all of their data in mixed batches.

    `learn_all` trains it once. `learn` trains it anew, from the model's first values, on the data
    of all tasks so far, which the learner keeps.

    Args:
        **common: The arguments of every learner; see `Learner`.

    Example:
        >>> import torch
        >>> from splitgrow.continual import Joint, Task, Training
        >>> from torch import nn
        >>> x = torch.randn(64, 4)
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> learner = Joint(net, x[:1], training=Training(epochs=1))
        >>> record = learner.learn(Task("signs", 2, (x, (x[:, 0] > 0).long())))
        >>> learner.predict(x, task="signs").shape
        torch.Size([64, 2])
    """

    method = "joint"

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Tensor | tuple[Any, ...],
        **common: Unpack[LearnerOptions],
    ) -> None:
        super().__init__(model, example_inputs, **common)
        self._seen: tuple[Task, ...] = ()

    def learn_all(self, tasks: Iterable[Task]) -> list[TaskRecord]:
        """Learns tasks at once; otherwise as `learn`."""
        return self._learn_together(list(tasks))

    def _learned(self, tasks: Sequence[Task]) -> list[TaskRecord]:
        known = (*self._seen, *tasks)
        if len(known) < len(self.records) + len(tasks):
            raise ValueError(
                "the data of the tasks before are not at hand any more; learn all in a new learner"
            )
        self._seen = known
        self.body = self._first.copied()
        counts = [task.classes for task in known]
        study = whole_study(self.body, self._new_head(sum(counts)))
        of_task = torch.arange(len(known)).repeat_interleave(torch.tensor(counts))
        allowed = (of_task[:, None] == of_task[None, :]).to(self.body.device)

        def loss(network: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            # Each example is classified among its own task's classes only.
            logits = network(x).masked_fill(~allowed[y], -torch.inf)
            return F.cross_entropy(logits, y), logits

        together = Task(", ".join(t.name for t in known), sum(counts), _mixed(known))
        self._train(study, together, "train", loss=loss)
        heads = _heads(study.head, counts)
        own = {name: study.weight(name).detach() for name in study.mine}
        self.body.set_values({**own, **study.own_values()})
        records = []
        for index, (task, head) in enumerate(zip(known, heads, strict=True)):
            study.head = head
            accuracy = self._judge(study, task, "train")
            records.append(
                TaskRecord(
                    name=task.name,
                    number=index + 1,
                    classes=task.classes,
                    edit=self.body.edit,
                    head=head,
                    accuracy=accuracy,
                )
            )
        self.records = []
        return records


def _heads(head: nn.Linear, counts: Sequence[int]) -> list[nn.Linear]:
    """The parts of a head that compute each task's logits."""
    found = []
    for weight, bias in zip(
        *(torch.split(t, list(counts)) for t in head.parameters()), strict=True
    ):
        part = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        part.weight = nn.Parameter(weight.detach().clone())
        part.bias = nn.Parameter(bias.detach().clone())
        found.append(part)
    return found


def _mixed(tasks: Sequence[Task]) -> Data:
    """The training data of tasks, with labels shifted so that all classes differ.

    Raises:
        ValueError: If a task has a loader, whose examples cannot be mixed with others.
    """
    parts: list[Dataset[Any]] = []
    offset = 0
    for task in tasks:
        if isinstance(task.train, DataLoader):
            raise ValueError(f"task {task.name!r} has a loader; joint training needs a Dataset")
        parts.append(_Shifted(cast("Dataset[Any]", task.train), offset))
        offset += task.classes
    if all(isinstance(task.train, TensorDataset) for task in tasks):
        x, y = zip(*(part[:] for part in parts), strict=True)
        return TensorDataset(torch.cat(x), torch.cat(y))
    return joined(parts)


class _Shifted(Dataset[Any]):
    """Data whose labels are shifted by an offset."""

    def __init__(self, data: Dataset[Any], offset: int) -> None:
        self._data, self._offset = data, offset

    @property
    def takes_tensors(self) -> bool:
        return takes_tensors(self._data)

    def __len__(self) -> int:
        return len(cast("Any", self._data))

    def __getitem__(self, index: Any) -> Any:
        x, y = self._data[index]
        # As 64-bit integers: labels of one byte would overflow above 255.
        y = labels(y) if isinstance(y, Tensor) and y.dim() else operator.index(y)
        return x, y + self._offset

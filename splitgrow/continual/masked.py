"""The base of methods whose tasks own single weights of the body."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from splitgrow.continual.learner import Learner
from splitgrow.continual.masks import Picks, packed
from splitgrow.continual.records import TaskRecord
from splitgrow.continual.studies import Study, TaskView
from splitgrow.continual.tasks import Task


class MaskedLearner(Learner):
    """A learner whose tasks own single weights of the body."""

    def _begin(
        self,
        task: Task,
        *,
        picks: Picks | None = None,
        mine: Callable[[str], Tensor] | None = None,
    ) -> Study:
        """A study that trains free weights, and sees the weights of earlier tasks.

        Args:
            task: The task to learn.
            picks: The form of picks of earlier tasks' weights; None to see all of them.
            mine: Where a shared tensor trains; by default where it is free.
        """
        body, view = self.body, TaskView(picks=picks)
        scored = set()
        for name, slot in body.shared.items():
            free = body.free(name) if mine is None else mine(name)
            others = body.owners[name] > 0
            tensor = slot.tensor.detach()
            base = torch.where(others, tensor, torch.zeros_like(tensor))
            if bool(free.any()):
                view.mine[name] = free
            # A tensor that is read as it is stays a parameter of the body, which does not train.
            if not bool(free.all() if name in view.mine else torch.equal(base, tensor)):
                view.base[name] = base
            if picks is not None and bool(others.any()):
                scored.add(name)
        view.scores = frozenset(scored)
        own = self.records[-1].own if self.records else None
        study = Study(body, view, own or {}, self._new_head(task.classes))
        return study.to(body.device)

    def _commit(self, study: Study, task: Task, accuracy: float) -> TaskRecord:
        """Gives the values of a study to the task."""
        body, number = self.body, self._next
        packs = {}
        if study.view.picks is not None:
            for name, picks in study.picked().items():
                earlier = (body.owners[name] > 0) & (body.owners[name] < number)
                packs[name] = packed(picks * earlier)
        for name, mask in study.mine.items():
            body.give(name, mask, study.weight(name).detach(), number)
        body.release()
        return TaskRecord(
            name=task.name,
            number=number,
            classes=task.classes,
            edit=body.edit,
            head=copy.deepcopy(study.head).requires_grad_(True),
            own=study.own_values(),
            picks=packs,
            accuracy=accuracy,
        )

"""A task's network while it is learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.continual.body import Body
from splitgrow.continual.masks import SCORE, THRESHOLD, Picks, picked, seen


@dataclass
class TaskView:
    """The parts of the shared tensors that a study sees and trains.

    Attributes:
        mine: Where each trains; tensors that are not in it do not.
        base: The values seen elsewhere; for tensors that are not in it, the body's own.
        picks: The form of scores' picks; None for no scores.
        scores: The tensors that have scores.
        threshold: The score above which its weight is picked.
    """

    mine: dict[str, Tensor] = field(default_factory=dict)
    base: dict[str, Tensor] = field(default_factory=dict)
    picks: Picks | None = None
    scores: frozenset[str] = frozenset()
    threshold: float = THRESHOLD


class Study(nn.Module):
    """A task's network while it is learned: the body as the task sees it, and a head.

    It is a module as any other, for any training loop. It trains its own parameters: the task's
    values of shared weights, scores that pick others' weights, the task's own biases and norms, and
    its head. It reads weights of other tasks and never writes them: no optimizer has them.

    Args:
        body: The shared part of the tasks.
        view: The parts of it that are seen and trained.
        own: The first values of the task's own tensors, by slots' names; others begin with the
            body's.
        head: The layer that reads the features.
    """

    def __init__(
        self, body: Body, view: TaskView, own: Mapping[str, Tensor], head: nn.Linear
    ) -> None:
        super().__init__()
        self._body = (body,)  # in a tuple, so that it is no part of this module
        self.view, self.head = view, head
        self._mine, self._base = dict(view.mine), dict(view.base)
        shared = body.shared
        self._names = {name: index for index, name in enumerate(view.mine)}
        self.weights = nn.ParameterList(
            nn.Parameter(shared[name].tensor.detach().clone()) for name in view.mine
        )
        self._scored = {name: index for index, name in enumerate(sorted(view.scores))}
        self.scores = nn.ParameterList(
            nn.Parameter(torch.full_like(shared[name].tensor, SCORE)) for name in self._scored
        )
        self._owned: dict[str, int] = {}
        self._buffers_own: dict[str, Tensor] = {}
        parameters: list[nn.Parameter] = []
        for name, slot in body.slots.items():
            if slot.shared:
                continue
            value = own.get(name, slot.tensor).detach().clone()
            if slot.trains:
                self._owned[name] = len(parameters)
                parameters.append(nn.Parameter(value))
            else:
                self._buffers_own[name] = value
        self.own = nn.ParameterList(parameters)
        self.train(self.training)

    @property
    def body(self) -> Body:
        """The shared part of the tasks."""
        return self._body[0]

    @property
    def mine(self) -> Mapping[str, Tensor]:
        """Where each shared tensor trains."""
        return self._mine

    def weight(self, name: str) -> nn.Parameter:
        """The task's values of a shared tensor; only those where it is `mine` are seen."""
        found: nn.Parameter = self.weights[self._names[name]]
        return found

    def score(self, name: str) -> nn.Parameter | None:
        """The scores of a shared tensor, if it has any."""
        index = self._scored.get(name)
        return None if index is None else self.scores[index]

    @property
    def own_parameters(self) -> dict[str, nn.Parameter]:
        """The task's own biases and norms' tensors, by slots' names."""
        return {name: self.own[index] for name, index in self._owned.items()}

    def keep_only(self, name: str, mask: Tensor) -> None:
        """Prunes: from here on, only a mask's weights of a shared tensor are seen and trained."""
        self._mine[name] = self._mine[name] & mask
        if name not in self._base:
            self._base[name] = torch.zeros_like(self.body.slots[name].tensor)

    def values(self) -> dict[str, Tensor]:
        """All tensors that the body is to read in place of its own."""
        found: dict[str, Tensor] = {}
        how = self.view.picks or "binary", self.view.threshold
        for name, slot in self.body.shared.items():
            index, scores = self._names.get(name), self.score(name)
            own = None if index is None else self.weights[index]
            base = self._base.get(name)
            if own is None and scores is None:
                if base is not None:
                    found[name] = base
            elif base is None and scores is None:
                assert own is not None
                found[name] = own
            else:
                base = slot.tensor if base is None else base
                found[name] = seen(own, self._mine.get(name), base, scores, how)
        found.update({name: self.own[index] for name, index in self._owned.items()})
        found.update(self._buffers_own)
        return found

    def forward(self, *inputs: Any) -> Tensor:
        """The task's logits `(N, classes)`."""
        logits: Tensor = self.head(self.features(*inputs))
        return logits

    def features(self, *inputs: Any) -> Tensor:
        """The features that the head reads, `(N, width)`."""
        with self.body.reading(self.values()) as model:
            features: Tensor = model(*inputs)
        return features

    def train(self, mode: bool = True) -> Study:  # noqa: FBT001, FBT002
        """Sets the mode, the body's too."""
        super().train(mode)
        self.body.model.train(mode)
        return self

    def picked(self) -> dict[str, Tensor]:
        """The picks of scores, for each shared tensor that has some."""
        assert self.view.picks is not None
        return {
            name: picked(self.scores[index].detach(), self.view.picks, self.view.threshold)
            for name, index in self._scored.items()
        }

    def reset_scores(self) -> None:
        """Sets the scores to their first values: every weight is picked."""
        with torch.no_grad():
            for score in self.scores:
                score.fill_(SCORE)

    def own_values(self) -> dict[str, Tensor]:
        """The task's own tensors, copied."""
        found = {name: self.own[index].detach() for name, index in self._owned.items()}
        return {name: value.clone() for name, value in {**found, **self._buffers_own}.items()}

    def snapshot(self) -> dict[str, Any]:
        """The state that learning changes, copied: plain data and tensors."""
        return {
            "parameters": [p.detach().clone() for p in self.parameters()],
            "mine": {name: mask.clone() for name, mask in self._mine.items()},
            "buffers": {name: value.clone() for name, value in self._buffers_own.items()},
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Puts back a state of `snapshot`."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters(), snapshot["parameters"], strict=True):
                parameter.copy_(value)
            for name, value in snapshot["buffers"].items():
                self._buffers_own[name].copy_(value)
        for name, mask in snapshot["mine"].items():
            self.keep_only(name, mask)
            self._mine[name] = mask.to(self._mine[name].device, torch.bool, copy=True)


def whole_study(body: Body, head: nn.Linear) -> Study:
    """A study that sees and trains all of a body, whoever owns it."""
    mine = {n: torch.ones_like(s.tensor, dtype=torch.bool) for n, s in body.shared.items()}
    return Study(body, TaskView(mine=mine), {}, head).to(body.device)

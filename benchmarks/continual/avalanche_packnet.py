"""What Avalanche's PackNet needs to take networks with batch norms, and one head for each task.

It refuses normalisation layers and invites users to write `PackNetModule`s for what it does not
know; `PackedNorm` is one. Its model has a single head; `PackedTasks` puts Avalanche's
`MultiHeadClassifier` behind it. Masks, pruning and training stay Avalanche's.

Only imported where Avalanche is installed, and after `benchmarks.vision.torchvision()`.
"""

from __future__ import annotations

import copy

from avalanche.models import MultiHeadClassifier
from avalanche.models.packnet import PackNetModel, PackNetModule, WeightAndBiasPackNetModule
from torch import Tensor, nn


class PackedNorm(PackNetModule):  # type: ignore[misc]
    """A batch norm in a network that PackNet packs.

    Args:
        norm: The batch norm.
        treatment: "held": it learns with the first task and stays as it is, as in PackNet's paper;
            "own": each task has one, which begins as that of the task before; "shared": all tasks
            train the same one, which harms the old ones and is there to see how much.
        tasks: How many tasks there will be.
    """

    def __init__(self, norm: nn.Module, treatment: str, tasks: int) -> None:
        super().__init__()
        copies = tasks - 1 if treatment == "own" else 0
        self.norms = nn.ModuleList([norm, *(copy.deepcopy(norm) for _ in range(copies))])
        self.treatment = treatment
        self.active = 0
        self.held = False

    def _prune(self, prune_proportion: float) -> None:
        """Norms are not pruned."""

    def _freeze_pruned(self) -> None:
        if self.treatment == "held":
            self.held = True
            self.requires_grad_(requires_grad=False)
        elif self.treatment == "own" and self.active + 1 < len(self.norms):
            state = self.norms[self.active].state_dict()
            self.norms[self.active + 1].load_state_dict(state)

    def _activate_task(self, task_id: int) -> None:
        if self.treatment == "own":
            self.active = int(task_id)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape as `x`."""
        norm = self.norms[self.active]
        norm.train(self.training and not self.held)
        y: Tensor = norm(x)
        return y


class PackedTasks(PackNetModel):  # type: ignore[misc]
    """Features that all tasks share by PackNet's masks, and a head for each task.

    Args:
        features: From images to `(N, width)`; changed in place.
        width: The number of features.
        classes: The largest number of classes of a task.
        norms: The treatment of batch norms; see `PackedNorm`.
        tasks: How many tasks there will be.
    """

    def __init__(
        self, features: nn.Module, width: int, classes: int, norms: str, tasks: int
    ) -> None:
        found = _pack_norms(features, norms, tasks)
        super().__init__(features)
        self.heads = MultiHeadClassifier(width, initial_out_features=classes)
        self.norm_count = found
        self.without_bias = _forget_missing_biases(self)

    def forward(self, x: Tensor, task_labels: Tensor) -> Tensor:
        """Images and the number of their task, to logits."""
        y: Tensor = self.heads(super().forward(x, task_labels), task_labels)
        return y


def _pack_norms(module: nn.Module, treatment: str, tasks: int) -> int:
    found = 0
    for name, child in list(module.named_children()):
        if hasattr(child, "running_mean"):
            setattr(module, name, PackedNorm(child, treatment, tasks))
            found += 1
        else:
            found += _pack_norms(child, treatment, tasks)
    return found


def _forget_missing_biases(packed: nn.Module) -> int:
    """Avalanche freezes biases without looking, and fails where there is none; now it looks."""
    found = 0
    for module in packed.modules():
        if isinstance(module, WeightAndBiasPackNetModule) and module.wrappee.bias is None:
            module.has_bias = False
            found += 1
    return found

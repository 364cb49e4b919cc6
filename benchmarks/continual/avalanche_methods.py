"""Avalanche's strategies with the models, optimizers and data that they are given.

Only imported where Avalanche is installed, and after `benchmarks.vision.torchvision()`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from avalanche.benchmarks import (
    benchmark_from_datasets,
    with_classes_timeline,
    with_task_labels,
)
from avalanche.benchmarks.utils import (
    ConstantSequence,
    DataAttribute,
    TaskAwareSupervisedClassificationDataset,
    TaskLabels,
)
from avalanche.models import PNN, MultiHeadClassifier, as_multitask
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.supervised import EWC, LwF, Naive, PackNet, PNNStrategy
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.continual.avalanche_packnet import PackedTasks
from benchmarks.continual.task_files import Task


@dataclass(frozen=True)
class Settings:
    """What a run was asked for; the flags of `avalanche_peer`, which explain themselves there."""

    method: str
    backbone: str
    width: float
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    nesterov: bool
    schedule: str
    weight_decay: float
    seed: int
    ewc_lambda: float
    ewc_mode: str
    ewc_decay: float
    lwf_alpha: float
    lwf_temperature: float
    packnet_post_prune_epochs: int
    packnet_prune: float | None
    packnet_norms: str

    def used(self) -> dict[str, Any]:
        """Without the options of other methods, as JSON data."""
        methods = ("ewc", "lwf", "packnet")
        others = tuple(f"{name}_" for name in methods if name != self.method)
        return {name: value for name, value in vars(self).items() if not name.startswith(others)}


class Cosine(SupervisedPlugin):
    """Has the learning rate fall along half a cosine: for each task, and anew after pruning.

    Args:
        settings: What was asked for.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        after = settings.packnet_post_prune_epochs if settings.method == "packnet" else 0
        self._cycles = (settings.epochs - after, after)
        self._rate = settings.lr

    def before_training_iteration(self, strategy: Any, **_: Any) -> None:
        """Sets the learning rate of the coming step; the optimizer may be a new one."""
        first, second = self._cycles
        steps, epoch = len(strategy.dataloader), strategy.clock.train_exp_epochs
        later = epoch >= first
        epochs, begun = (second, epoch - first) if later else (first, epoch)
        step = begun * steps + strategy.clock.train_epoch_iterations
        share = 0.5 * (1 + math.cos(math.pi * step / (epochs * steps)))
        for group in strategy.optimizer.param_groups:
            group["lr"] = self._rate * share


def experiences(tasks: Sequence[Task]) -> list[Any]:
    """Avalanche's experiences, one a task, with the task's number as label."""
    datasets = []
    for number, task in enumerate(tasks):
        labels = task.y_train.tolist()
        data = TensorDataset(torch.from_numpy(task.x_train), torch.from_numpy(task.y_train))
        numbers = TaskLabels(ConstantSequence(number, len(labels)))
        attributes = [DataAttribute(labels, "targets"), numbers]
        # LwF asks for what only this kind of its datasets has
        datasets.append(
            TaskAwareSupervisedClassificationDataset([data], data_attributes=attributes)
        )
    benchmark = with_task_labels(benchmark_from_datasets(train=datasets))
    found = list(with_classes_timeline(benchmark).train_stream)
    for experience in found:  # its MultiHeadClassifier cannot take the sets that it makes itself
        experience.classes_in_this_experience = sorted(experience.classes_in_this_experience)
    return found


def strategy(
    settings: Settings, backbone: Callable[..., Any], tasks: Sequence[Task]
) -> tuple[Any, list[str]]:
    """A strategy that has learnt nothing yet, and what one should know of it.

    Args:
        settings: What was asked for.
        backbone: Makes the network; its linear layer `head` is replaced.
        tasks: All that will be learnt.
    """
    classes = max(task.classes for task in tasks)
    channels, height, width = tasks[0].image_shape
    if settings.method == "pnn":
        units = max(1, round(256 * settings.width))
        model: Any = PNN(2, channels * height * width, units)
        # room for the largest task, as the other models have: it fails at heads of different sizes
        model.classifier = MultiHeadClassifier(units, initial_out_features=classes)
        model.max_class_label = classes
    else:
        network = backbone(channels, classes, (height, width), settings.width)
        if settings.method == "packnet":
            features, network.head = network.head.in_features, nn.Identity()
            norms = settings.packnet_norms
            model = PackedTasks(network, features, classes, norms, len(tasks))
        else:
            model = as_multitask(network, "head")
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it will not log
        silent = EvaluationPlugin()
    kind, options = _KINDS[settings.method]
    made = kind(
        model=model,
        optimizer=optimizer,
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=settings.batch_size,
        train_epochs=settings.epochs,
        evaluator=silent,
        plugins=[Cosine(settings)] if settings.schedule == "cosine" else [],
        **options(settings, len(tasks)),
    )
    return made, _notes(settings, model)


def _packnet(settings: Settings, tasks: int) -> dict[str, Any]:
    """Unless a share is given, pruned so that all tasks keep equally many weights."""
    asked = settings.packnet_prune
    shares = [1 - 1 / left if asked is None else asked for left in range(tasks, 0, -1)]
    return {
        "prune_proportion": shares,
        "post_prune_epochs": settings.packnet_post_prune_epochs,
    }


def _ewc(settings: Settings, tasks: int) -> dict[str, Any]:  # noqa: ARG001
    online = settings.ewc_mode == "online"
    return {
        "ewc_lambda": settings.ewc_lambda,
        "mode": settings.ewc_mode,
        "decay_factor": settings.ewc_decay if online else None,
    }


def _lwf(settings: Settings, tasks: int) -> dict[str, Any]:  # noqa: ARG001
    return {"alpha": settings.lwf_alpha, "temperature": settings.lwf_temperature}


def _plain(settings: Settings, tasks: int) -> dict[str, Any]:  # noqa: ARG001
    return {}


_KINDS: Mapping[str, tuple[Any, Callable[[Settings, int], dict[str, Any]]]] = {
    "naive": (Naive, _plain),
    "packnet": (PackNet, _packnet),
    "pnn": (PNNStrategy, _plain),
    "ewc": (EWC, _ewc),
    "lwf": (LwF, _lwf),
}

_TREATMENTS = {
    "held": "they learn with the first task and are held after it, as in PackNet's paper",
    "own": "each task has its own, which begin as those of the task before",
    "shared": "all tasks train the same ones, so old tasks change",
}


def _notes(settings: Settings, model: Any) -> list[str]:
    if settings.method == "pnn":
        return [
            "Avalanche has no progressive network but of linear layers: this is its PNN of two "
            "hidden layers, with a column for each task, not the backbone.",
            "Its first layer has lateral connections too, from the image once for each old task.",
        ]
    if settings.method != "packnet":
        normed = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        said = "Nothing holds the statistics of batch norms: they follow the latest task."
        lwf = (
            "Each step passes through the network once more for the old heads, so statistics move "
            "twice; the teacher is in training mode."
        )
        return [said] * normed + [lwf] * (normed and settings.method == "lwf")
    notes = [
        "Avalanche's PackNet model has one head; here each task has one, beside the packed layers."
    ]
    if model.norm_count:
        treatment = _TREATMENTS[settings.packnet_norms]
        notes.append(
            f"Avalanche's PackNet refuses batch norms; the {model.norm_count} of this network are "
            f"given to it in a PackNetModule of the benchmark: {treatment}."
        )
    if model.without_bias:
        notes.append(
            "Avalanche's PackNet fails after the first task where a layer has no bias (it freezes "
            f"`bias` without looking); {model.without_bias} layers are marked as having none."
        )
    if settings.weight_decay:
        notes.append(
            "SGD's weight decay shrinks frozen weights too, as their gradient is zero and not "
            "missing: old tasks change; see drift."
        )
    return notes

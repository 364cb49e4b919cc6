"""The options of `splitgrow continual`.

Free of torch, so that the command can show its defaults without loading it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

METHOD_NAMES = (
    "cpg",
    "pack-and-expand",
    "packnet",
    "piggyback",
    "progressive",
    "den",
    "finetuning",
    "ewc",
    "lwf",
    "separate",
    "joint",
)
BACKBONE_NAMES = ("cnn", "mlp", "resnet18", "vgg16_bn")
SPLITS = ("classes", "superclasses", "permuted", "rotated")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a run learns its tasks.

    Attributes:
        method: The name of the method.
        data: Where the data are; empty for the digits of scikit-learn.
        split: How the data become tasks.
        tasks: How many; 0 for as many as there are superclasses.
        shuffled: Whether classes come in an order that is drawn.
        limit: The largest number of training images of a task; 0 for all.
        backbone: The network: a name, or MODULE:FACTORY.
        checkpoint: The file with its first weights; empty for those that it comes with.
        width: A factor for its widths.
        augment: The kinds of change of training images, as flips,crops; empty for none.
        epochs: Passes through a task's data in its training.
        batch_size: Images in a training step.
        learning_rate: At the beginning; it falls along half a cosine.
        momentum: Of stochastic gradient descent.
        weight_decay: Of weights.
        score_rate: The learning rate of scores that pick weights.
        decide_on: "validation" or "test".
        validation_share: How much of a task's training images is set apart to decide on.
        seed: Of everything that is drawn.
        threads: CPU threads.
        options: The method's own.
    """

    method: str
    data: str = ""
    split: str = "classes"
    tasks: int = 5
    shuffled: bool = False
    limit: int = 0
    backbone: str = "cnn"
    checkpoint: str = ""
    width: float = 1.0
    augment: str = ""
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 4e-5
    score_rate: float = 5e-4
    decide_on: Literal["validation", "test"] = "validation"
    validation_share: float = 0.1
    seed: int = 0
    threads: int = 1
    options: dict[str, Any] = field(default_factory=dict)

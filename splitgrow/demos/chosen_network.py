"""The network that `splitgrow grow` trains: one of the demos' by name, or the user's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from splitgrow.cli.grow_settings import NETWORK_NAMES, RESIDUAL, GrowSettings
from splitgrow.cli.hugging_face import load_target
from splitgrow.cli.targets import attempt
from splitgrow.demos.backbones import BACKBONES
from splitgrow.demos.datasets import Dataset
from splitgrow.demos.networks import ResidualNet, stages_for
from splitgrow.demos.training import evaluated

RESIDUAL_WIDTH = 8
"""The channels of the residual network's first stage, at a width of 1."""

MakeNetwork = Callable[[Dataset, GrowSettings], nn.Module]


def network_maker(target: str, seed: int = 0) -> MakeNetwork:
    """A function that makes the network of a target; the user's own is made at once.

    Args:
        target: A name, MODULE:FACTORY, or a directory of transformers.
        seed: For the values of the user's own network.

    Raises:
        click.ClickException: If there is no such network, or it cannot be made.
    """
    if target in NETWORK_NAMES:
        return lambda dataset, settings: _named(target, dataset, settings.width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        own = load_target(target)
    return lambda *_: own


def _named(name: str, dataset: Dataset, width: float) -> nn.Module:
    classes = len(dataset.classes)
    if name == RESIDUAL:
        channels = max(1, round(RESIDUAL_WIDTH * width))
        return ResidualNet(
            dataset.channels, classes, width=channels, stages=stages_for(dataset.size)
        )
    made: nn.Module = BACKBONES[name](dataset.channels, classes, dataset.size, width)
    return made


def check_classifier(network: nn.Module, dataset: Dataset) -> None:
    """Makes sure that a network gives logits for the classes of some images.

    Raises:
        click.ClickException: If it does not; the message gives the shapes.
    """
    classes = len(dataset.classes)
    shape = "x".join(map(str, dataset.x_train.shape[1:]))

    def check() -> None:
        logits = evaluated(network, dataset.x_train[:2])
        if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < classes:
            raise ValueError(
                f"it gives {tuple(logits.shape)} for two images, not (2, {classes}) logits"
            )

    attempt(f"{type(network).__name__} is no classifier of these {shape} images", check)

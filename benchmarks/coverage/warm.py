"""Imported once by the process that the models' processes are forked from.

Both libraries import much on their first call; done here, it is not part of any model's time.
"""

from __future__ import annotations

import warnings

import torch
import torch_pruning as tp
from torch import nn

import splitgrow

torch.set_num_threads(1)


def warm_up() -> None:
    """Grows, fuses and analyses a small network."""
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    network, x = nn.Sequential(*layers).eval(), torch.randn(2, 3, 4, 4)
    tp.DependencyGraph().build_dependency(network, example_inputs=x, verbose=False)
    splitgrow.growable(network, x)
    splitgrow.handle(network).expand_layer("0", 2)
    splitgrow.fuse(network)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    warm_up()

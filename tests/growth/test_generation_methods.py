"""The methods for generations: an earlier one is shown in a block, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import splitgrow


def test_at_without_a_block_says_how() -> None:
    net = splitgrow.growable(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), torch.ones(1, 2))
    inputs = torch.randn(4, 2)
    before = net(inputs)
    net.expand_layer("0", 1, initializer="kaiming")
    with pytest.raises(TypeError, match=r"with model\.at"):
        net.at(0)(inputs)
    with pytest.raises(AttributeError, match=r"state_dict.*with model\.at"):
        net.at(0).state_dict()
    with net.at(0) as shown:
        assert shown is net
        assert torch.equal(shown(inputs), before)


def test_an_error_in_the_block_passes_through_and_ends_it() -> None:
    net = splitgrow.growable(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), torch.ones(1, 2))
    net.expand_layer("0", 1)
    with pytest.raises(KeyError), net.at(0):
        raise KeyError
    assert net(torch.ones(1, 2)).shape == (1, 1)
    assert net.expand_layer("0", 1).index == 2

from __future__ import annotations

import pytest
import torch
from torch import nn

import splitgrow
from splitgrow.demos.fresh_start import moments_of, restart_


class _Net(nn.Module):
    """Layers, norms, attention, and parameters of its own."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.5 + 3)
        self.gain = nn.Parameter(torch.full((width,), 0.25))
        self.embed = nn.Linear(8, width)
        self.norm = nn.BatchNorm1d(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.head = nn.Linear(width, 3)


def _spoiled(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(7)
    return network


def test_layers_are_as_if_they_had_just_been_made() -> None:
    network = _Net()
    moments = moments_of(network)
    torch.manual_seed(3)
    restart_(_spoiled(network), moments)
    linear = network.embed.weight
    assert linear.abs().max() <= 8**-0.5  # torch's bound, kaiming_uniform_ with a = sqrt(5)
    assert linear.std() > 0.4 * 8**-0.5
    assert network.norm.weight.eq(1).all()
    assert network.norm.running_var.eq(1).all()
    assert network.norm.running_mean.eq(0).all()
    assert network.attention.in_proj_weight.std() < 1
    assert network.attention.out_proj.bias.eq(0).all()  # attention has the last word on it


def test_parameters_that_no_layer_resets_are_drawn_with_their_moments_and_named() -> None:
    network = _Net()
    moments = moments_of(network)
    torch.manual_seed(3)
    assert restart_(_spoiled(network), moments) == ("token", "gain")
    assert network.token.mean().item() == pytest.approx(3, abs=0.4)
    assert network.token.std().item() == pytest.approx(0.5, abs=0.2)
    assert network.gain.eq(0.25).all()


def test_the_seed_makes_the_values() -> None:
    network = _Net()
    moments = moments_of(network)
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        restart_(network, moments)
        values.append(network.head.weight.detach().clone())
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_a_grown_and_merged_network_has_no_zeros_of_helpers_left() -> None:
    net = splitgrow.growable(
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.ones(1, 4)
    )
    splitgrow.handle(net).expand_layer(0, 6, freeze=False)
    plain = splitgrow.merge(net)
    helper = plain[2].weight[:, 6:]
    assert helper.eq(0).all()  # so the law below can fail
    restart_(plain, moments_of(net))
    assert plain[2].weight.ne(0).all()

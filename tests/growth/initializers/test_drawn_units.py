"""The draws of new weights, against their formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import splitgrow
from splitgrow.growth.initializers.drawn_units import CopyStatistics, Kaiming, Orthogonal


def new_rows(net: nn.Sequential, x: Tensor, n: int, initializer: Any, layer: str = "0") -> Any:
    """A merged layer that has grown by n units."""
    model: Any = splitgrow.growable(net.double().eval(), x.double())
    torch.manual_seed(1)
    model.expand_layer(layer, n, initializer=initializer)
    return splitgrow.merge(model).requires_grad_(False)[int(layer)]


def linear(ins: int, outs: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(ins, outs), nn.ReLU(), nn.Linear(outs, 2))


def test_kaiming_has_the_deviation_of_its_formula_and_no_bias() -> None:
    grown = new_rows(linear(50), torch.ones(1, 50), 400, Kaiming(gain=3.0))
    rows = grown.weight[8:]
    assert float(rows.std()) == pytest.approx(3.0 / math.sqrt(50), rel=0.02)
    assert float(rows.mean()) == pytest.approx(0, abs=0.01)
    assert (grown.bias[8:] == 0).all()


def test_the_fan_in_of_a_convolution_is_that_of_one_group() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 2, 1))
    grown = new_rows(net, torch.ones(1, 8, 4, 4), 400, "kaiming")
    rows = torch.cat([part[4:] for part in grown.weight.chunk(2)])
    assert float(rows.std()) == pytest.approx(math.sqrt(2 / (4 * 9)), rel=0.02)
    torch.manual_seed(0)
    turned = nn.Sequential(nn.ConvTranspose2d(8, 8, 3, groups=2), nn.Conv2d(8, 2, 1))
    grown = new_rows(turned, torch.ones(1, 8, 4, 4), 400, "kaiming")
    assert float(grown.weight[:, 4:].std()) == pytest.approx(math.sqrt(2 / (4 * 9)), rel=0.02)


@pytest.mark.parametrize(("n", "length"), [(5, 12), (12, 5)])
def test_orthogonal_rows_are_as_long_as_the_old_ones(n: int, length: int) -> None:
    grown = new_rows(linear(length), torch.ones(1, length), n, Orthogonal())
    old, rows = grown.weight[:8], grown.weight[8:]
    rows = rows if n <= length else rows.T
    products = rows @ rows.T
    size = old.square().sum(1).mean() * (1 if n <= length else n / length)
    torch.testing.assert_close(products, torch.eye(len(rows)).double() * size)


def test_statistics_are_those_of_the_old_weights_and_numbers_are_the_old_ones_in_turn() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    nn.init.normal_(net[0].weight, mean=0.3, std=0.7)
    nn.init.uniform_(net[1].weight)
    net[1].running_var.uniform_()
    model: Any = splitgrow.growable(net.double().eval(), torch.ones(1, 40).double())
    model.expand_layer("0", 400, initializer=CopyStatistics())
    plain, turn = splitgrow.merge(model).requires_grad_(False), torch.arange(400) % 8
    rows, old = plain[0].weight[8:], plain[0].weight[:8]
    assert float(rows.mean()) == pytest.approx(float(old.mean()), abs=0.02)
    assert float(rows.std()) == pytest.approx(float(old.std()), rel=0.02)
    for tensor in (plain[0].bias, plain[1].weight, plain[1].running_var):
        assert torch.equal(tensor[8:], tensor[turn])


def test_a_layer_of_zeros_has_no_statistics_to_copy() -> None:
    net = linear(5)
    nn.init.zeros_(net[0].weight)
    for name in ("copy_statistics", "orthogonal"):
        grown = new_rows(net, torch.ones(1, 5), 4, name)
        assert (grown.weight[-4:] != 0).any(1).all()
        net = linear(5)
        nn.init.zeros_(net[0].weight)


def test_the_row_of_a_padding_stays_zero() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(7, 4, padding_idx=2), nn.Linear(4, 2)).double()
    model: Any = splitgrow.growable(net, torch.arange(7))
    model.expand_layer("0", 4, initializer="pair")
    weight = splitgrow.merge(model)[0].weight
    assert (weight[2] == 0).all()
    assert (weight[[0, 1, 3, 4, 5, 6]] != 0).all()


@pytest.mark.parametrize(
    ("gain", "error"),
    [("2", TypeError), (True, TypeError), (0.0, ValueError), (math.inf, ValueError)],
)
def test_a_gain_is_a_positive_number(gain: Any, error: type[Exception]) -> None:
    for kind in (Kaiming, Orthogonal):
        with pytest.raises(error, match="gain must be"):
            kind(gain=gain)

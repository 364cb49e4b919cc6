"""Pairs of new units cancel each other out until they learn, whatever lies between."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from attention_cases import GroupedQueries
from helpers import assert_equal, largest_difference
from snapshots import unchanged
from torch import Tensor, nn

import splitgrow
from splitgrow.growth.initializers.pairs import Pair

WIDE = torch.float64


def grown(net: nn.Module, x: Tensor, layer: str, n: int, **options: Any) -> tuple[Any, Tensor]:
    """A grown model and its outputs from before."""
    model: Any = splitgrow.growable(net.double().eval(), x)
    wanted = model(x)
    model.expand_layer(layer, n, **{"initializer": "pair", **options})
    return model, wanted


def convs(*norms: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        *norms,
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6 * 4, 3),
    )


IMAGES = torch.randn(5, 3, 4, 4, dtype=WIDE)


def test_twins_are_equal_in_all_that_makes_them_and_read_with_opposite_signs() -> None:
    norm = nn.BatchNorm2d(6)
    nn.init.uniform_(norm.weight)
    norm.running_mean.uniform_()
    model, wanted = grown(convs(norm), IMAGES, "0", 4, freeze=False)
    assert_equal(model(IMAGES), wanted)
    plain = splitgrow.merge(model)
    first, second = slice(6, None, 2), slice(7, None, 2)
    for tensor in (
        *(plain[0].weight, plain[0].bias, plain[1].weight, plain[1].bias),
        *(plain[1].running_mean, plain[1].running_var),
    ):
        assert torch.equal(tensor[first], tensor[second])
    columns = plain[5].weight.view(3, 10, 4)
    assert torch.equal(columns[:, first], -columns[:, second])
    assert (columns[:, 6:] != 0).all()


@pytest.mark.parametrize("freeze", [False, True])
def test_all_new_weights_learn_at_the_first_step_and_twins_part(freeze: bool) -> None:
    model, wanted = grown(convs(nn.GELU()), IMAGES, "0", 4, freeze=freeze)
    born = model.parameters_of(1)
    optimizer = torch.optim.SGD(born, lr=0.1)
    model(IMAGES).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in born)
    optimizer.step()
    assert largest_difference(model(IMAGES), wanted) > 1e-6
    rows = splitgrow.merge(model)[0].weight[6:].flatten(1)
    assert len(torch.unique(rows, dim=0)) == 4


def test_heads_are_paired_as_a_whole() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, dtype=WIDE)
    model, wanted = grown(GroupedQueries(), x, "attend.key", 6)
    assert_equal(model(x), wanted)
    plain = splitgrow.merge(model)
    keys = plain.attend.key.weight[6:].view(2, 3, -1)
    assert torch.equal(keys[0], keys[1])
    out = plain.attend.out.weight[:, 12:].view(6, 2, 6)
    assert torch.equal(out[:, 0], -out[:, 1])


def test_hidden_units_alone_must_be_pairs() -> None:
    """What nobody makes or reads starts as zero has it: inputs, and outputs of the model."""
    model, wanted = grown(convs(), IMAGES, "0", 2)
    model.expand_layer("4", 3, initializer="pair")
    assert_equal(model(IMAGES)[:, :3], wanted)
    assert len(torch.unique(splitgrow.merge(model)[4].weight[3:], dim=0)) == 3
    model.expand_input(3, initializer="pair")
    seen = torch.cat((IMAGES, torch.randn(5, 3, 4, 4, dtype=WIDE)), 1)
    assert_equal(model(seen)[:, :3], wanted)
    with unchanged(model), pytest.raises(ValueError, match="'0' would gain 3"):
        model.expand({"0": 3, "4": 2}, initializer="pair")


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_stream_grows_in_its_way_beside_pairs(norm: Any) -> None:
    """Norms over all channels take zeros, means or copies; hidden units in between are pairs."""
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm = nn.Linear(3, 8), norm(8)
            self.up, self.gate, self.down = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            y = self.norm(x)
            x = x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))
            return self.head(self.norm(x))

    x = torch.randn(4, 3, dtype=WIDE)
    model: Any = splitgrow.growable(Block().double().eval(), x)
    wanted = model(x)
    edit = model.expand({"embed": 3, "up": 4}, initializer="pair")
    assert set(edit.ways.values()) == {"average" if norm is nn.LayerNorm else "zero"}
    assert_equal(model(x), wanted)
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters_of(edit))
    columns = splitgrow.merge(model).down.weight[:8, 6:]
    assert torch.equal(columns[:, ::2], -columns[:, 1::2])
    assert (columns != 0).all()


def test_noise_moves_the_outputs_and_the_edit_says_how_far() -> None:
    noisy = Pair(noise=0.1)
    assert (noisy.exact, noisy.differ_from, Pair().exact) == (False, "birth", True)
    net = convs(nn.BatchNorm2d(6))
    model, wanted = grown(copy.deepcopy(net), IMAGES, "0", 4, initializer=noisy)
    moved = largest_difference(model(IMAGES), wanted)
    assert splitgrow.handle(model).edits[-1].moved == pytest.approx(moved)
    less, _ = grown(net, IMAGES, "0", 4, initializer=Pair(noise=0.001))
    assert 0 < splitgrow.handle(less).edits[-1].moved < moved


@pytest.mark.parametrize(
    ("noise", "error"), [(True, TypeError), ("0.1", TypeError), (-0.1, ValueError), (1, ValueError)]
)
def test_noise_is_a_share(noise: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="noise must be"):
        Pair(noise=noise)


def test_layers_of_zeros_do_not_make_pairs_that_never_learn() -> None:
    net = convs()
    nn.init.zeros_(net[4].weight)
    model, wanted = grown(net, IMAGES, "0", 2)
    assert_equal(model(IMAGES), wanted)
    assert (splitgrow.merge(model)[4].weight[:, 24:] != 0).all()

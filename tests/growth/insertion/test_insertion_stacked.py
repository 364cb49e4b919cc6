"""Copies of blocks that change the function: as they are, or between two blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_equal, assert_identical, randomise
from torch import Tensor, nn

import splitgrow

X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class PostNorm(nn.Module):
    """A block behind whose sum a norm lies: no copy of it returns its input."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.lin(x).tanh())


class Net(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PostNorm() for _ in range(blocks))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def growable(blocks: int = 3) -> Any:
    torch.manual_seed(0)
    return splitgrow.growable(randomise(Net(blocks)).double().eval(), X)


def by_hand(model: Any, chosen: list[Any]) -> Tensor:
    """The network with other blocks, by a model of the user's class."""
    net = Net(len(chosen)).double().eval()
    for own, block in zip(net.blocks, chosen, strict=True):
        own.load_state_dict(block.state_dict())
    net.head.load_state_dict(model.head.state_dict())
    return net(X)


def test_a_stacked_block_is_a_copy_as_it_is_and_the_change_is_measured() -> None:
    model = growable()
    before, blocks = model(X), list(model.blocks)
    with pytest.warns(splitgrow.SplitGrowWarning, match=r"'stack' changes .* moved by \d+\.\d%"):
        edit = model.insert_layer("blocks.1", "stack")
    expected = by_hand(model, [blocks[0], blocks[1], blocks[1], blocks[2]])
    assert_equal(model(X), expected)
    moved = edit.inserted[0].options["moved"]
    assert moved == pytest.approx(((model(X) - before).abs().max() / before.abs().max()).item())
    assert f"moved by {moved:.1%} of the largest" in str(edit)
    assert splitgrow.handle(model).edits[-1] == edit
    merged = splitgrow.merge(model)
    assert len(merged.blocks) == 4
    assert_equal(merged(X), expected)
    with model.at(0):
        assert_identical(model(X), before)


def test_an_interpolated_block_is_the_mean_of_its_neighbours() -> None:
    model = growable()
    blocks = list(model.blocks)
    with pytest.warns(splitgrow.SplitGrowWarning, match="'interpolate' changes"):
        model.insert_layer("blocks.0", "interpolate")
    between = PostNorm().double()
    mean = {
        name: (tensor + blocks[1].state_dict()[name]) / 2 if tensor.is_floating_point() else tensor
        for name, tensor in blocks[0].state_dict().items()
    }
    between.load_state_dict(mean)
    expected = by_hand(model, [blocks[0], between, blocks[1], blocks[2]])
    assert_equal(model(X), expected)
    assert_equal(splitgrow.merge(model)(X), expected)


def test_behind_the_last_block_there_is_nothing_between() -> None:
    model = growable()
    with pytest.raises(splitgrow.InsertionError, match="kind='stack' copies it"):
        model.insert_layer("blocks.2", "interpolate")
    assert len(splitgrow.merge(model).blocks) == 3


def test_blocks_of_other_shapes_have_no_mean() -> None:
    class Wide(Net):
        def __init__(self) -> None:
            super().__init__()
            self.blocks[1].lin = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))

    model: Any = splitgrow.growable(Wide().double().eval(), X)
    with pytest.raises(splitgrow.InsertionError, match="tensors of other shapes"):
        model.insert_layer("blocks.0", "interpolate")


@pytest.mark.filterwarnings("ignore::splitgrow.SplitGrowWarning")
def test_checkpoints_have_them_and_what_they_moved() -> None:
    model = growable()
    model.insert_layer("blocks.0", "stack")
    model.insert_layer("blocks.1", "interpolate", freeze=False)
    fresh = growable()
    fresh.load_state_dict(model.state_dict())
    assert_identical(fresh(X), model(X))
    known = [edit.inserted[0].options["moved"] for edit in splitgrow.handle(fresh).edits]
    assert known == [e.inserted[0].options["moved"] for e in splitgrow.handle(model).edits]


def test_without_a_check_nothing_is_measured() -> None:
    model = growable()
    edit = model.insert_layer("blocks.1", "stack", check=False)
    assert "moved" not in edit.inserted[0].options
    assert "moved" not in str(model.plan_insertion("blocks.0", "stack"))


def test_optimizers_take_their_parameters_in() -> None:
    model = growable()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(X).square().sum().backward()
    optimizer.step()
    with pytest.warns(splitgrow.SplitGrowWarning):
        model.insert_layer("blocks.1", "stack", optimizer=optimizer, freeze=False)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}

"""A run that must leave a model as it was restores also the blocks that it takes for inert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from snapshots import unchanged
from torch import Tensor, nn

import splitgrow
from splitgrow.analysis import output_comparison
from splitgrow.analysis.output_comparison import outputs_of
from splitgrow.growth.history_lookup import history_of
from splitgrow.utils.inert_children import outer_modules, without_inert

X = torch.linspace(-1, 1, 2 * 3 * 5 * 5, dtype=torch.float64).view(2, 3, 5, 5)


class Restless(nn.Module):
    """Does something to its parts in each run, once it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)
        self.head = nn.Linear(2, 3)
        self.does: Callable[[Restless], object] = len_of_parts

    def forward(self, x: Tensor) -> Tensor:
        self.does(self)
        return self.head(self.b(self.a(x).relu()).mean((2, 3)))


def len_of_parts(net: nn.Module) -> int:
    return len(list(net.children()))


def trains(net: nn.Module) -> None:
    net.train()


def pads_otherwise(net: Any) -> None:
    net.a.padding_mode = "circular"


def counts_calls(net: nn.Module) -> None:
    for module in net.modules():
        module.calls = getattr(module, "calls", 0) + 1  # type: ignore[assignment]


def puts_hooks(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(lambda *_, **__: None, with_kwargs=True)


MOVES = [trains, pads_otherwise, counts_calls, puts_hooks]


def grown() -> Any:
    torch.manual_seed(0)
    model: Any = splitgrow.growable(Restless().double(), X)
    for _ in range(3):
        model.expand({"a": 2, "b": 1})
    return model.eval()


@pytest.mark.parametrize("move", MOVES)
def test_a_run_restores_all_that_forward_does_to_blocks(move: Callable[[Restless], object]) -> None:
    model = grown()
    model.does = move
    assert sum(len(each.children) for each in without_inert(model)[1]) == 3 * (1 + 2 + 1)
    with unchanged(model):
        outputs_of(model, history_of(model).inputs)


@pytest.mark.parametrize("move", MOVES)
def test_it_would_be_seen_if_inert_blocks_were_not_restored(
    move: Callable[[Restless], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_comparison, "keep_inert_", lambda *_: None)
    model = grown()
    model.does = move
    with pytest.raises(AssertionError, match=r"changed: .*\.[1-9]: attribute"), unchanged(model):
        outputs_of(model, history_of(model).inputs)


def gains_an_attribute(block: Any) -> None:
    block.note = [1]


def gains_a_hook(block: nn.Module) -> None:
    block.register_forward_hook(lambda module, *_: setattr(module, "seen", True))


def is_compiled(block: nn.Module) -> None:
    block.compile(backend="eager")


@pytest.mark.parametrize("change", [gains_an_attribute, gains_a_hook, is_compiled])
def test_a_block_that_has_anything_of_its_own_is_not_inert(
    change: Callable[[nn.Module], None],
) -> None:
    model = grown()
    block = model.a[2]
    assert block not in without_inert(model)[0]
    change(block)
    assert block in without_inert(model)[0]
    with unchanged(model):
        outputs_of(model, history_of(model).inputs)


def test_blocks_of_layers_with_statistics_of_their_own_are_not_inert() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    model: Any = splitgrow.growable(net, torch.ones(4, 3, dtype=torch.float64))
    model.expand_layer("0", 2)
    assert model[1][1] in outer_modules(model)
    assert model[0][1] not in outer_modules(model)
    assert model[0][0] in outer_modules(model)  # the user's own

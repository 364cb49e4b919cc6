"""Growing for long leaves nothing behind but the added parts."""

from __future__ import annotations

import copy
import gc
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import splitgrow


@pytest.fixture(autouse=True)
def only_what_comes() -> Iterator[None]:
    """Leaves out what other tests and libraries have made, through which looking takes long."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


X = torch.linspace(-1, 1, 32).view(4, 8)


def trained() -> tuple[Any, torch.optim.Optimizer]:
    torch.manual_seed(0)
    layers = (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4))
    model: Any = splitgrow.growable(nn.Sequential(*layers), X)
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    return model, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(X).square().mean().backward()
    optimizer.step()


def objects() -> Counter[str]:
    """What is alive, by the names of types."""
    gc.collect()
    return Counter(type(item).__name__ for item in gc.get_objects())


KINDS = ("Parameter", "Tensor", "Linear", "Runner", "Composition", "Assembly", "Undo")


def test_as_much_is_added_by_late_growths_as_by_early_ones():
    model, optimizer = trained()
    gained: list[list[int]] = []
    before = objects()
    for _ in range(4):
        for _ in range(4):
            model.expand({"0": 1, "3": 1}, optimizer=optimizer)
            train(model, optimizer)
        model.next_generation()
        now = objects()
        gained.append([now[kind] - before[kind] for kind in KINDS])
        before = now
    # The first round makes split layers of stock ones, and so more.
    assert gained[1] == gained[2] == gained[3]
    growths = dict(zip(KINDS, gained[3], strict=True))
    assert growths["Linear"] == 4 * 4  # two layers' new blocks, and the helpers of two
    assert all(growths[kind] == 0 for kind in KINDS[3:])


def test_joining_blocks_gives_back_what_they_took():
    model, optimizer = trained()
    counts = []
    for _ in range(4):
        for _ in range(3):
            model.expand({"0": 1, "3": 1}, optimizer=optimizer)
            train(model, optimizer)
        model.consolidate(optimizer=optimizer)
        train(model, optimizer)
        counts.append([objects()[kind] for kind in KINDS])
    assert counts[1] == counts[2] == counts[3]


def test_copies_that_grow_and_go_leave_nothing():
    model, optimizer = trained()
    model.expand_layer("0", 1, optimizer=optimizer)

    def live() -> None:
        copied, own = copy.deepcopy((model, optimizer))
        copied.expand_layer("3", 1, optimizer=own)
        copied.insert_layer("0", "residual", optimizer=own)
        copied.expand_input(1)
        with copied.at(0):
            copied(X)
        # Not merged or fused: torch.fx keeps the source of whatever it compiles, for good.

    for _ in range(2):
        live()
    before = objects()
    for _ in range(5):
        live()
    after = objects()
    left = {kind: count - before[kind] for kind, count in after.items()}
    assert not {kind: count for kind, count in left.items() if count >= 5}


def test_nothing_lives_on_of_a_model_that_is_gone_nor_of_its_class():
    class Net(nn.Sequential):
        pass

    model: Any = splitgrow.growable(Net(nn.Linear(8, 4), nn.Linear(4, 2)), X)
    model.expand_layer("0", 2)
    model.insert_layer("0", "residual")
    model(X).sum().backward()
    parts = [weakref.ref(part) for part in (model, *model.modules(), *model.parameters())]
    classes = [weakref.ref(Net), weakref.ref(type(model))]
    assert all(part() is not None for part in parts)
    del model, Net
    gc.collect()
    assert not [part() for part in (*parts, *classes) if part() is not None]


def test_the_record_of_a_growth_is_as_long_late_as_early():
    model, _ = trained()
    lengths = [len(model.expand_layer("0", 1, check=False).to_json()) for _ in range(110)]
    assert max(lengths) <= 1.1 * lengths[1]  # numbers with a digit more

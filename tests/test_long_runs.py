"""Growing for long leaves nothing behind but the added parts."""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
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
    """What is alive, by the names of types; a kernel has the name of its layer."""
    gc.collect()
    own = (item for item in gc.get_objects() if "kernels" not in type(item).__module__)
    return Counter(type(item).__name__ for item in own)


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


def calls_of(work: Callable[[], object]) -> int:
    """How many functions are called, of Python and of C: work that no clock has to measure."""
    found = 0

    def see(_frame: object, event: str, _arg: object) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(before)
    return found


def work_of_growths(grow: Callable[[Any, torch.optim.Optimizer], object], model: Any) -> list[int]:
    """The calls that the 10th growth of a model takes, those of the 26th, and of the 42nd."""
    optimizer, found = torch.optim.AdamW(model.parameters()), []
    for number in range(1, 43):
        if number % 16 != 10:
            grow(model, optimizer)
        else:
            found.append(calls_of(lambda: grow(model, optimizer)))
    return found


def small() -> Any:
    torch.manual_seed(0)
    layers = (nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    return splitgrow.growable(nn.Sequential(*layers), X)


def closed_each_time(model: Any, optimizer: torch.optim.Optimizer) -> None:
    model.expand_layer("0", 1, optimizer=optimizer)
    model.next_generation()


GROWTHS: dict[str, tuple[Callable[[Any, torch.optim.Optimizer], object], int]] = {
    "one layer": (lambda model, _: model.expand_layer("0", 1), 8),
    "with an optimizer": (lambda model, o: model.expand_layer("0", 1, optimizer=o), 24),
    "nothing frozen": (
        lambda model, o: model.expand_layer("0", 1, optimizer=o, freeze=False),
        24,
    ),
    "two layers": (lambda model, _: model.expand({"0": 1, "2": 1}), 40),
    "each closed": (closed_each_time, 200),
}
"""Ways to grow, each with the calls that one growth may add to every later one."""


@pytest.mark.parametrize("way", GROWTHS)
def test_a_growth_takes_a_few_calls_more_for_each_one_before_it(way: str) -> None:
    grow, most = GROWTHS[way]
    early, middle, late = work_of_growths(grow, small())
    assert late - middle <= 1.02 * (middle - early)
    assert late - middle <= 16 * most


def test_the_thousandth_growth_takes_at_most_twice_the_calls_of_the_tenth() -> None:
    early, middle, late = work_of_growths(GROWTHS["one layer"][0], small())
    more = (late - middle) / 16  # for each growth before it, as by the law above
    assert early + 990 * more <= 2 * early


def test_work_that_looks_at_all_pairs_of_blocks_would_be_seen() -> None:
    model = small()

    def look_at_pairs(net: Any, *_: object) -> None:
        blocks = list(net[0].children())
        for one in blocks:
            for other in blocks:
                id((one, other))

    model.register_forward_hook(look_at_pairs)
    early, middle, late = work_of_growths(GROWTHS["one layer"][0], model)
    assert late - middle > 1.02 * (middle - early)
    assert early + 990 * (late - middle) / 16 > 2 * early

"""A model that one thread runs while another changes it."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers import MANY, assert_equal, assert_identical
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import splitgrow
from splitgrow.utils import model_lock as gate

PATIENT = 60.0
"""Seconds after which a thread that should have come by now will never come."""
X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)


class Halting(nn.Module):
    """Passes its input on, and halts on the way when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived, self.go_on = threading.Event(), threading.Event()
        self.halts = False

    def forward(self, x: Tensor) -> Tensor:
        if self.halts and threading.current_thread() is not threading.main_thread():
            self.arrived.set()
            assert self.go_on.wait(PATIENT)
        return x

    def __deepcopy__(self, memo: dict[int, Any]) -> Halting:
        return Halting()


def network() -> tuple[Any, Halting]:
    """Two wide layers with a halt in between, so that a call can be caught in the middle."""
    torch.manual_seed(0)
    halting = Halting()
    model: Any = nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(), halting, nn.Linear(4, 4), nn.Linear(4, 2)
    )
    return splitgrow.growable(model.double(), X), halting


@torch.no_grad()
def run(model: nn.Module) -> Tensor:
    return model(X)


def _show(model: Any) -> None:
    with model.at(0):
        pass


CHANGES: dict[str, Callable[[Any], object]] = {
    "expand": lambda m: m.expand({"0": 2, "3": 1}),
    "expand_input": lambda m: m.expand_input(1),
    "insert_layer": lambda m: m.insert_layer("3", "residual"),
    "consolidate": lambda m: m.consolidate(),
    "absorb": lambda m: m.absorb(),
    "next_generation": lambda m: m.next_generation(),
    "unfreeze": lambda m: m.unfreeze(),
    "growable": lambda m: splitgrow.growable(m, X),
    "at": _show,
    "fuse": lambda m: splitgrow.fuse(m, generation=0),
}
every_change = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())


@every_change
def test_a_change_waits_for_a_call_in_another_thread(change):
    model, halting = network()
    model.expand_layer("0", 1)
    model.expand_layer("0", 1)
    expected, halting.halts = run(model), True
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(run, model)
        assert halting.arrived.wait(PATIENT)
        changing = pool.submit(change, model)
        with pytest.raises(TimeoutError):
            changing.result(0.1)
        assert not changing.done()
        halting.go_on.set()
        assert_identical(call.result(PATIENT), expected)
        changing.result(PATIENT)
    halting.halts = False
    assert type(model) is type(network()[0])


class Times(nn.Module):
    """A product of two layers' outputs of one unit, in which shapes tell no mixture of networks."""

    def __init__(self, halting: Halting) -> None:
        super().__init__()
        self.one, self.other, self.out = nn.Linear(3, 1), nn.Linear(3, 1), nn.Linear(1, 2)
        self.halting = halting

    def forward(self, x: Tensor) -> Tensor:
        y = self.halting(self.one(x))
        return self.out(y * self.other(x))


@pytest.mark.parametrize("waits", [True, False], ids=["waiting", "control"])
def test_a_call_under_way_mixes_no_networks_since_growth_waits(monkeypatch, waits):
    torch.manual_seed(0)
    halting = Halting()
    model: Any = splitgrow.growable(Times(halting).double(), X)
    expected, halting.halts = run(model), True
    if not waits:
        monkeypatch.setattr(gate, "_running", lambda modules: iter(()))
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(run, model)
        assert halting.arrived.wait(PATIENT)
        growing = pool.submit(model.expand_layer, "one", 2, check=False)
        if waits:
            with pytest.raises(TimeoutError):
                growing.result(0.1)
        else:
            growing.result(PATIENT)
            with torch.no_grad():
                for parameter in model.generation_parameters(1):
                    parameter.fill_(0.5)
        halting.go_on.set()
        given = call.result(PATIENT)
        growing.result(PATIENT)
    halting.halts = False
    assert torch.equal(given, expected) is waits
    assert waits or not torch.allclose(given, run(model))


@pytest.mark.parametrize("entered", ["the model", "a part of it", "its forward"])
def test_a_change_is_refused_if_a_call_does_not_end(monkeypatch, entered):
    monkeypatch.setattr(gate, "PATIENCE", 0.05)
    model, halting = network()
    halting.halts = True
    calls = {"the model": model, "a part of it": model[2], "its forward": model.forward}
    before = splitgrow.merge(model)
    with ThreadPoolExecutor(1, thread_name_prefix="server") as pool:
        call = pool.submit(calls[entered], X)
        assert halting.arrived.wait(PATIENT)
        with pytest.raises(splitgrow.SplitGrowError, match=r"grow while .* \(server_0\)"):
            model.expand_layer("0", 1)
        halting.go_on.set()
        call.result(PATIENT)
    assert model.generation == 0
    assert_identical(run(model), run(before))
    model.expand_layer("0", 1)
    assert_equal(run(model), run(before))


@every_change
def test_a_call_waits_for_a_change_in_another_thread(change, monkeypatch):
    model, _ = network()
    model.expand_layer("0", 1)
    model.expand_layer("0", 1)
    expected = run(model)
    in_the_middle, go_on = threading.Event(), threading.Event()
    really_close = gate.lock_

    def close_and_halt(*args: Any) -> None:
        really_close(*args)
        in_the_middle.set()
        assert go_on.wait(PATIENT)

    for name in ("utils.model_lock", "growth.generation_methods", "deploy.deploy_check"):
        monkeypatch.setattr(sys.modules[f"splitgrow.{name}"], "lock_", close_and_halt)
    with ThreadPoolExecutor(3) as pool:
        changing = pool.submit(change, model)
        assert in_the_middle.wait(PATIENT)
        calls = [pool.submit(run, model) for _ in range(2)]
        if change is _show:
            for call in calls:
                with pytest.raises(splitgrow.SplitGrowError, match="shows generation 0"):
                    call.result(PATIENT)
        else:
            with pytest.raises(TimeoutError):
                calls[0].result(0.1)
        go_on.set()
        changing.result(PATIENT)
        if change is CHANGES["expand_input"]:
            with pytest.raises(RuntimeError, match=r"cannot be multiplied|size mismatch"):
                calls[0].result(PATIENT)
        elif change is not _show:
            assert_equal(calls[0].result(PATIENT), expected)


def test_another_thread_is_refused_while_a_generation_is_shown():
    model, _ = network()
    model.expand_layer("0", 2)
    uses: dict[str, Callable[[], object]] = {
        "run the model": lambda: run(model),
        "grow": lambda: model.expand_layer("0", 1),
        "merge": lambda: splitgrow.merge(model),
        "fuse": lambda: splitgrow.fuse(model),
        "show a generation": lambda: _show(model),
        "analyse the model": lambda: splitgrow.growable(model, X),
    }
    with ThreadPoolExecutor(1) as pool:
        with model.at(0), model.at(1), model.at(0):
            shown = run(model)
            for what, use in uses.items():
                with pytest.raises(
                    splitgrow.SplitGrowError, match=rf"cannot {what} while another .* generation 0"
                ):
                    pool.submit(use).result(PATIENT)
            assert_identical(run(model), shown)
        for use in uses.values():
            pool.submit(use).result(PATIENT)


def test_growth_from_inside_forward_is_refused():
    class Growing(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if grows:
                self.expand_layer("0", 1)
            return super().forward(x)

    grows: list[bool] = []
    model: Any = splitgrow.growable(Growing(nn.Linear(3, 2), nn.Linear(2, 2)).double(), X)
    grows.append(True)
    with pytest.raises(splitgrow.SplitGrowError, match="from inside the model's forward"):
        run(model)
    grows.clear()
    model.expand_layer("0", 1)
    assert run(model).shape == (4, 2)


def test_nothing_is_left_of_a_change_and_copies_have_gates_of_their_own():
    model, _ = network()
    cls, attributes = type(model), set(vars(model))
    model.expand_layer("0", 2)
    assert type(model) is cls
    assert set(vars(model)) == attributes
    assert cls.__call__ is nn.Module.__call__
    with model.at(0):
        assert isinstance(model, cls)
        assert run(model).shape == (4, 2)
    plain: Any = splitgrow.growable(nn.Sequential(nn.Linear(3, 2)).double(), X)
    for copied in (copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))):
        histories = [vars(each)["_splitgrow_history"] for each in (plain, copied)]
        assert histories[0].model_lock is not histories[1].model_lock
        assert histories[1].model_lock.rlock.acquire(blocking=False)


@contextmanager
def served(models: list[nn.Module], expected: Tensor) -> Iterator[Callable[[], None]]:
    """A thread for each model runs it again and again, and every call gives the expected outputs.

    It gives a function that waits until each has run its model once more.
    """
    stop, served = threading.Event(), [threading.Event() for _ in models]

    def serve(model: nn.Module, done: threading.Event) -> None:
        while not stop.is_set():
            assert_equal(run(model), expected)
            done.set()

    def once_more() -> None:
        for done in served:
            done.clear()
        assert all(done.wait(PATIENT) for done in served)  # each has run this network

    with ThreadPoolExecutor(len(models)) as pool:
        serving: list[Future[None]] = [
            pool.submit(serve, *each) for each in zip(models, served, strict=True)
        ]
        try:
            yield once_more
        finally:
            stop.set()
        for each in serving:
            each.result(PATIENT)


def test_threads_that_run_a_model_while_it_changes_see_one_network_or_the_next():
    """Growth leaves the old outputs as they are, so every call has to give these."""
    model, _ = network()
    expected = run(model)
    with served([model] * 3, expected) as once_more:
        for turn in range(12):
            model.expand({"0": 1, "3": 1})
            if turn % 3 == 0:
                model.insert_layer("3", "residual")
            if turn % 4 == 1:
                model.next_generation()
                model.expand_layer("0", 1)
                model.expand_layer("0", 1)
                model.consolidate()
            assert_equal(run(splitgrow.merge(model)), expected)
            once_more()


def test_eight_threads_run_a_model_and_its_average_beside_growth_and_saves(tmp_path):
    """Both grow, and every call of either gives the outputs of before; so does every file."""
    model, _ = network()
    average = splitgrow.follow(AveragedModel(model), model)
    average.eval()
    expected, path = run(model), tmp_path / "a.safetensors"
    with served([model, average.module] * 4, expected) as once_more:
        for turn in range(round(4 * MANY)):
            model.expand({"0": 1, "3": 1}, freeze=turn % 2 == 0)
            if turn % 3 == 0:
                model.insert_layer("3", "residual")
            if turn % 3 == 1:
                model.consolidate()
            splitgrow.save(model, path)
            fresh, _ = network()
            splitgrow.load(fresh, path, training=False)
            assert_equal(run(fresh), expected)
            once_more()

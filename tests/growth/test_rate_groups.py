"""Rates of their own hold at every step, whoever steps, and groups are whole between steps."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

import splitgrow
from splitgrow.growth.rates import RATES

X = torch.ones(1, 3, dtype=torch.float64)
LR = 0.1


def network() -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    return splitgrow.growable(net.double(), X)


def grown(make: Any = SGD, *, warmup: int = 4, lr_scale: float = 0.5, **options: Any) -> Any:
    model = network()
    optimizer = make(model.parameters(), **{"lr": LR, **options})
    grow(model, optimizer, warmup=warmup, lr_scale=lr_scale)
    return model, optimizer


def grow(model: Any, optimizer: Any, layer: str = "0", **options: Any) -> Any:
    options = {"freeze": False, "check": False, **options}
    return model.expand_layer(layer, 1, optimizer=optimizer, **options)


def new_names(model: Any, edit: int = 1) -> set[str]:
    new = {id(p) for p in model.parameters_of(edit)}
    return {name for name, p in model.named_parameters() if id(p) in new}


def moves(model: Any, step: Callable[[], Any]) -> dict[str, float]:
    """How far the parameters move against gradients of ones, which by plain SGD is their rate."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    step()
    return {n: float((before[n] - p.detach()).mean()) for n, p in model.named_parameters()}


def factors(model: Any, step: Callable[[], Any], edit: int = 1) -> set[float]:
    """The rates of an edit's parameters in a step, relative to those of the first ones."""
    new, moved = new_names(model, edit), moves(model, step)
    old = {round(rate, 12) for name, rate in moved.items() if name.split(".")[1] == "0"}
    assert len(old) == 1
    return {round(rate / old.copy().pop(), 9) for name, rate in moved.items() if name in new}


def steps_of(model: Any, optimizer: Any, count: int = 5) -> list[float]:
    found = [factors(model, optimizer.step) for _ in range(count)]
    assert all(len(each) == 1 for each in found)
    return [each.pop() for each in found]


def test_the_rate_is_the_groups_times_scale_and_warm_up():
    assert steps_of(*grown()) == [0.125, 0.25, 0.375, 0.5, 0.5]


def test_the_rate_follows_whoever_sets_the_groups():
    model, optimizer = grown(warmup=0)
    optimizer.param_groups[0]["lr"] = 0.3
    moved = moves(model, optimizer.step)
    assert {round(rate, 12) for rate in moved.values()} == {0.3, 0.15}


def test_between_steps_a_group_has_all_parameters_in_the_models_order():
    model, optimizer = grown()
    for _ in range(5):
        assert [len(group["params"]) for group in optimizer.param_groups] == [9]
        pairs = zip(optimizer.param_groups[0]["params"], model.parameters(), strict=True)
        assert all(own is other for own, other in pairs)
        optimizer.step()


def test_after_the_warm_up_nothing_is_left():
    model, optimizer = grown(lr_scale=1.0, warmup=3)
    before = set(optimizer.param_groups[0])
    assert steps_of(model, optimizer, 4) == [round(1 / 3, 9), round(2 / 3, 9), 1.0, 1.0]
    assert before - set(optimizer.param_groups[0]) == {RATES}


def test_edits_have_rates_of_their_own_and_share_them_where_they_are_equal():
    model, optimizer = grown(warmup=0)
    seen: list[int] = []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(len(o.param_groups)))
    grow(model, optimizer, "0", lr_scale=2.0)
    assert factors(model, optimizer.step, 1) == {0.5}
    assert factors(model, optimizer.step, 2) == {2.0}
    grow(model, optimizer, "2", lr_scale=2.0)
    assert factors(model, optimizer.step, 3) == {2.0}
    grow(model, optimizer, "0")
    assert factors(model, optimizer.step, 4) == {1.0}
    assert seen == [1] * 4  # other hooks find the groups that they know


GROWTHS: dict[str, Callable[[Any, Any], Any]] = {
    "expand": lambda m, o: m.expand({"0": 2, "2": 1}, optimizer=o, lr_scale=0.5, freeze=False),
    "expand_input": lambda m, o: m.expand_input(2, optimizer=o, lr_scale=0.5, freeze=False),
    "insert_layer": lambda m, o: m.insert_layer("0", optimizer=o, lr_scale=0.5, freeze=False),
}


@pytest.mark.parametrize("growth", GROWTHS.values(), ids=GROWTHS.keys())
def test_every_growth_takes_rates(growth: Callable[[Any, Any], Any]):
    model = network()
    optimizer = SGD(model.parameters(), LR)
    growth(model, optimizer)
    new, moved = new_names(model), moves(model, optimizer.step)
    assert {round(rate, 12) for name, rate in moved.items() if name in new} == {0.05}
    assert {round(rate, 12) for name, rate in moved.items() if name not in new} == {LR}


def test_a_failed_growth_leaves_groups_as_they_are(monkeypatch: pytest.MonkeyPatch):
    model, optimizer = grown()
    before = copy.deepcopy(optimizer.state_dict())

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no more")

    monkeypatch.setattr("splitgrow.growth.growing.tell_", fail)
    with pytest.raises(RuntimeError, match="no more"):
        grow(model, optimizer, lr_scale=2.0)
    assert optimizer.state_dict() == before


# -- ways to step ----------------------------------------------------------------------------------


def test_in_a_closure_the_groups_are_whole():
    model, optimizer = grown()
    seen = []

    def closure() -> float:
        seen.append([len(group["params"]) for group in optimizer.param_groups])
        assert RATES in optimizer.param_groups[0]
        return 1.0

    assert factors(model, lambda: optimizer.step(closure)) == {0.125}
    assert factors(model, lambda: optimizer.step(closure=closure)) == {0.25}
    assert seen == [[9]] * 2


def test_a_model_may_grow_in_a_closure():
    model, optimizer = grown()

    def closure() -> None:
        if len(splitgrow.handle(model).edits) == 1:
            grow(model, optimizer, lr_scale=2.0)

    optimizer.step(closure)
    assert factors(model, optimizer.step, 2) == {2.0}
    assert factors(model, optimizer.step, 1) == {0.375}


class Failing(SGD):
    """An optimizer that may run out of memory."""

    fails = False

    def step(self, closure: Any = None) -> Any:
        made = super().step(closure) if not self.fails else None
        if self.fails:
            raise MemoryError
        return made


def test_a_step_that_fails_is_no_step_and_leaves_groups_whole():
    model, optimizer = grown(Failing)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1.0)
    optimizer.fails = True
    try:
        optimizer.step()
    except MemoryError:
        inside = len(optimizer.state_dict()["param_groups"])  # as an interrupted run is saved
    assert inside == 1
    with pytest.raises(MemoryError):
        optimizer.step()
    optimizer.fails = False
    optimizer.step()
    scheduler.step()
    assert factors(model, optimizer.step) == {0.25}


def test_after_a_step_that_failed_a_scheduler_goes_on():
    _, optimizer = grown(Failing)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1.0)
    optimizer.fails = True
    for _ in range(2):
        try:
            optimizer.step()
        except MemoryError:
            failed = True
        scheduler.step()
    assert failed
    assert len(optimizer.param_groups) == 1


def test_hooks_of_others_find_whole_groups():
    model, optimizer = grown()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.5**n)
    optimizer.register_step_post_hook(lambda *_: scheduler.step())
    seen: list[int] = []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(len(o.param_groups)))
    assert steps_of(model, optimizer) == [0.125, 0.25, 0.375, 0.5, 0.5]
    assert seen == [1] * 5


def test_a_class_that_calls_the_step_of_another_counts_once():
    class Further(SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    SGD([nn.Parameter(torch.ones(1))], LR)  # now both steps run hooks
    assert steps_of(*grown(Further)) == [0.125, 0.25, 0.375, 0.5, 0.5]


class Around(Optimizer):
    """An optimizer around another one, with the same groups."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.base = SGD(self.param_groups, lr)
        self.param_groups = self.base.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.base.step(closure)


def test_an_optimizer_around_another_counts_once():
    assert steps_of(*grown(Around)) == [0.125, 0.25, 0.375, 0.5, 0.5]


def test_steps_that_a_scaler_skips_are_none():
    model, optimizer = grown()
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=1000)

    def step(*, finite: bool) -> None:
        loss = model(X).sum()
        scaler.scale(loss).backward()
        value = 1.0 if finite else float("inf")
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, value)
        scaler.step(optimizer)
        scaler.update(1.0)

    step(finite=False)
    assert factors(model, lambda: step(finite=True)) == {0.125}
    assert factors(model, lambda: step(finite=True)) == {0.25}


def test_a_fused_step_that_does_nothing_is_none():
    model, optimizer = grown(SGD, fused=True)
    optimizer.grad_scale, optimizer.found_inf = torch.ones(1), torch.ones(1)
    optimizer.step()
    optimizer.found_inf.zero_()
    assert factors(model, optimizer.step) == {0.125}


def test_fused_momentum_goes_on():
    _, optimizer = grown(SGD, fused=True, momentum=0.9)
    model = network()
    optimizer = SGD(model.parameters(), LR, fused=True, momentum=0.9)
    moves(model, optimizer.step)
    grow(model, optimizer, warmup=2, lr_scale=1.0)
    for _ in range(4):
        moves(model, optimizer.step)
    assert all("momentum_buffer" in optimizer.state[p] for p in model.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its compiler
@pytest.mark.parametrize("compiled", [False, True])
def test_tensor_rates_hold_and_a_compiled_step_is_compiled_once(compiled: bool):
    from torch._dynamo.testing import CompileCounter  # noqa: PLC0415

    model, optimizer = grown(lambda p, lr: SGD(p, torch.tensor(lr, dtype=torch.float64)))
    counter = CompileCounter()
    step = torch.compile(optimizer.step, backend=counter) if compiled else optimizer.step
    found = [factors(model, step) for _ in range(5)]
    optimizer.param_groups[0]["lr"].fill_(0.2)
    found.append(factors(model, step))
    assert found == [{0.125}, {0.25}, {0.375}, {0.5}, {0.5}, {0.5}]
    assert counter.frame_count == compiled


def test_options_that_a_step_writes_are_written_once():
    class Counting(SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                group["count"] += 1
            return super().step(closure)

    _, optimizer = grown(Counting)
    optimizer.param_groups[0]["count"] = torch.zeros(1)
    for _ in range(3):
        optimizer.step()
    assert optimizer.param_groups[0]["count"] == 3


# -- copies and checkpoints ------------------------------------------------------------------------


def deepcopied(model: Any, optimizer: Any) -> Any:
    return copy.deepcopy((model, optimizer))


def pickled(model: Any, optimizer: Any) -> Any:
    return pickle.loads(pickle.dumps((model, optimizer)))


def by_position(model: Any, optimizer: Any) -> Any:
    fresh = network()
    fresh.load_state_dict(model.state_dict())
    resumed = type(optimizer)(fresh.parameters(), lr=1.0)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    return fresh, resumed


def by_names(model: Any, optimizer: Any) -> Any:
    state = splitgrow.by_name(optimizer, model).state_dict()
    fresh = network()
    resumed = splitgrow.by_name(type(optimizer)(reversed(list(fresh.parameters())), lr=1.0), fresh)
    fresh.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(state))
    return fresh, resumed


def saved(model: Any, optimizer: Any, tmp: Path) -> Any:
    splitgrow.save(model, tmp / "run", optimizer=optimizer)
    fresh = nn.Sequential(*(copy.deepcopy(m) for m in plain())).double()
    resumed = type(optimizer)(fresh.parameters(), lr=1.0)
    splitgrow.load(fresh, tmp / "run", optimizer=resumed)
    return fresh, resumed


def plain() -> Any:
    return nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)


WAYS = {
    "deepcopy": deepcopied,
    "pickle": pickled,
    "a state_dict by position": by_position,
    "a state_dict by names": by_names,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_rates_go_on_in(way: Callable[[Any, Any], Any]):
    model, optimizer = grown()
    steps_of(model, optimizer, 2)
    assert steps_of(*way(model, optimizer)) == [0.375, 0.5, 0.5, 0.5, 0.5]
    assert steps_of(model, optimizer) == [0.375, 0.5, 0.5, 0.5, 0.5]


def test_rates_go_on_in_a_file(tmp_path: Path):
    model, optimizer = grown()
    steps_of(model, optimizer, 2)
    assert steps_of(*saved(model, optimizer, tmp_path)) == [0.375, 0.5, 0.5, 0.5, 0.5]


def test_a_file_with_other_rates_is_refused(tmp_path: Path):
    model, optimizer = grown()
    optimizer.param_groups[0][RATES] = ["fast"] * 9
    with pytest.raises(splitgrow.CheckpointError, match="no learning rate"):
        saved(model, optimizer, tmp_path)


def test_a_state_dict_in_memory_stays_that_of_its_step():
    model, optimizer = grown()
    state = optimizer.state_dict()
    before = copy.deepcopy(state["param_groups"])
    steps_of(model, optimizer, 2)
    assert state["param_groups"] == before


def test_whoever_changes_the_list_of_parameters_is_told():
    _, optimizer = grown()
    optimizer.param_groups[0]["params"].pop()
    with pytest.raises(splitgrow.OptimizerError, match="8 parameters, and 9 rates"):
        optimizer.step()


# -- blocks that are joined ------------------------------------------------------------------------


def test_blocks_of_one_rate_are_joined_and_those_of_several_are_not():
    model, optimizer = grown(AdamW, lr_scale=1.0, warmup=2)
    grow(model, optimizer, lr_scale=1.0)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(splitgrow.OptimizerError, match="different learning rates"):
        model.consolidate(optimizer=optimizer)
    assert optimizer.state_dict() == before
    optimizer.step()  # the warm-up ends
    assert RATES not in optimizer.param_groups[0]
    model.consolidate(optimizer=optimizer)
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))


def test_a_joined_block_keeps_the_rate_of_its_parts():
    model = network()
    optimizer = SGD(model.parameters(), LR)
    for _ in range(2):  # the first growth freezes the past, so both are joined apart from it
        model.expand_layer("0", 1, optimizer=optimizer, lr_scale=0.5, check=False)
    model.consolidate(optimizer=optimizer)
    data = optimizer.param_groups[0][RATES]
    assert {None if item is None else item["scale"] for item in data} == {None, 0.5}
    optimizer.step()


def test_the_optimizer_of_a_library_is_seen_through():
    accelerate = pytest.importorskip("accelerate")
    model = network()
    accelerator = accelerate.Accelerator(cpu=True)
    optimizer = accelerator.prepare(Adam(model.parameters(), LR))
    grow(model, optimizer, lr_scale=0.5, warmup=2)
    assert RATES in optimizer.param_groups[0]
    moved = moves(model, optimizer.step)
    assert {round(moved[name], 6) for name in new_names(model)} == {0.025}

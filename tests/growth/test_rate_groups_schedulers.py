"""Every scheduler of torch, timm and transformers goes on when a model grows, at any rates.

The rates are read from the steps themselves: by plain SGD, a parameter with a gradient of ones
moves by its learning rate.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer, lr_scheduler, swa_utils

import splitgrow
from benchmarks.vision import torchvision

STEPS = 9
X = torch.ones(1, 3, dtype=torch.float64)
RATES = (0.3, 0.2)
Maker = Callable[[Any], Any]


def installed(name: str) -> Any:
    torchvision()  # timm imports it
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


TIMMS = installed("timm.scheduler")
TRANSFORMERS = installed("transformers.optimization")


def sequential(optimizer: Any) -> Any:
    """One milestone, so that its lists are as long as those for one group."""
    first = lr_scheduler.LinearLR(optimizer, 0.5, total_iters=2)
    second = lr_scheduler.ExponentialLR(optimizer, 0.9)
    return lr_scheduler.SequentialLR(optimizer, [first, second], milestones=[3])


def chained(optimizer: Any) -> Any:
    parts = [lr_scheduler.ConstantLR(optimizer, 0.5, 4), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    return lr_scheduler.ChainedScheduler(parts)


def cyclic(optimizer: Any) -> Any:
    return lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, 2, cycle_momentum=False)


def one_cycle(optimizer: Any) -> Any:
    return lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=30, cycle_momentum=False)


TORCH: dict[type, Maker] = {
    lr_scheduler.LambdaLR: lambda o: lr_scheduler.LambdaLR(o, lambda n: 0.9**n),
    lr_scheduler.MultiplicativeLR: lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    lr_scheduler.StepLR: lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    lr_scheduler.MultiStepLR: lambda o: lr_scheduler.MultiStepLR(o, [5]),
    lr_scheduler.ConstantLR: lambda o: lr_scheduler.ConstantLR(o, 0.5, 4),
    lr_scheduler.LinearLR: lambda o: lr_scheduler.LinearLR(o, 0.5, total_iters=6),
    lr_scheduler.ExponentialLR: lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    lr_scheduler.SequentialLR: sequential,
    lr_scheduler.CosineAnnealingLR: lambda o: lr_scheduler.CosineAnnealingLR(o, 20, 0.01),
    lr_scheduler.ChainedScheduler: chained,
    lr_scheduler.PolynomialLR: lambda o: lr_scheduler.PolynomialLR(o, 20),
    lr_scheduler.CosineAnnealingWarmRestarts: lambda o: lr_scheduler.CosineAnnealingWarmRestarts(
        o, 4
    ),
    lr_scheduler.CyclicLR: cyclic,
    lr_scheduler.OneCycleLR: one_cycle,
    lr_scheduler.ReduceLROnPlateau: lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    swa_utils.SWALR: lambda o: swa_utils.SWALR(o, 0.05, 4),
}
TIMM: dict[str, Maker] = {
    "CosineLRScheduler": lambda o: TIMMS.CosineLRScheduler(o, 20, warmup_t=3),
    "MultiStepLRScheduler": lambda o: TIMMS.MultiStepLRScheduler(o, [5], 0.5),
    "PlateauLRScheduler": lambda o: TIMMS.PlateauLRScheduler(o, patience_t=1),
    "PolyLRScheduler": lambda o: TIMMS.PolyLRScheduler(o, 20, noise_range_t=4),
    "StepLRScheduler": lambda o: TIMMS.StepLRScheduler(o, 3, 0.5, warmup_t=2),
    "TanhLRScheduler": lambda o: TIMMS.TanhLRScheduler(o, 20, warmup_t=2),
    "WSDLRScheduler": lambda o: TIMMS.WSDLRScheduler(o, 20, decay_t=5, warmup_t=3),
}
EXTRA = {
    "cosine_with_min_lr": {"min_lr": 0.01},
    "cosine_warmup_with_min_lr": {"min_lr": 0.01},
    "warmup_stable_decay": {"num_decay_steps": 3},
    "greedy": {"patience": 1, "min_lr": 1e-3},
}


def of_transformers(name: str) -> Maker:
    extra = EXTRA.get(name)
    return lambda o: TRANSFORMERS.get_scheduler(name, o, 3, 20, scheduler_specific_kwargs=extra)


NAMES = [str(kind.value) for kind in TRANSFORMERS.SchedulerType] if TRANSFORMERS else []
SCHEDULERS: dict[str, Maker] = {
    **{kind.__name__: make for kind, make in TORCH.items()},
    **(TIMM if TIMMS else {}),
    **{f"transformers: {name}": of_transformers(name) for name in NAMES},
}


def test_no_scheduler_is_missing():
    bases = {lr_scheduler.LRScheduler, lr_scheduler._LRScheduler}
    both = (*vars(lr_scheduler).values(), *vars(swa_utils).values())
    kinds = {c for c in both if inspect.isclass(c) and issubclass(c, lr_scheduler.LRScheduler)}
    assert kinds - bases == TORCH.keys()
    timms = {name for name in dir(TIMMS) if name.endswith("Scheduler")} - {"Scheduler"}
    assert not TIMMS or timms == TIMM.keys()


@cache
def made() -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    return splitgrow.growable(net, X)


class Run:
    """A training whose gradients are ones."""

    def __init__(self, make: Maker, groups: int, model: Any = None) -> None:
        self.model = copy.deepcopy(made()) if model is None else model
        params = list(self.model.parameters())
        rules = [[p for p in params if p.dim() > 1], [p for p in params if p.dim() <= 1]]
        ruled = [{"params": params}] if groups == 1 else [{"params": each} for each in rules]
        rates = zip(ruled, RATES, strict=False)
        self.optimizer: Optimizer = SGD([{**group, "lr": rate} for group, rate in rates])
        self.scheduler = make(self.optimizer)
        self.steps = 0

    @property
    def rates(self) -> list[float]:
        """The rates of the groups."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def home(self, parameter: nn.Parameter) -> float:
        groups = self.optimizer.param_groups
        return next(g["lr"] for g in groups if any(p is parameter for p in g["params"]))

    def step(self) -> dict[str, float]:
        """A step of optimizer and scheduler; returns the rate of each parameter in it."""
        before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        for parameter in self.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.optimizer.step()
        self.steps += 1
        named = dict(self.model.named_parameters())
        moved = {name: float((old - named[name].detach()).mean()) for name, old in before.items()}
        advance(self.scheduler, self.steps)
        return moved


def advance(scheduler: Any, steps: int) -> None:
    metric = float(steps % 3)
    if hasattr(scheduler, "step_update"):
        scheduler.step(steps, metric)
    elif hasattr(scheduler, "patience"):
        scheduler.step(metric)
    else:
        scheduler.step()


def goes_on(make: Maker, groups: int, births: dict[int, tuple[float, int]]) -> None:
    """The law: each scheduler goes on as if the model had not grown, and new units follow."""
    run, twin = Run(make, groups), Run(make, groups)
    born: dict[str, tuple[int, float, int]] = {}
    for number in range(STEPS):
        if number in births:
            scale, warmup = births[number]
            edit = run.model.expand_layer(
                "0",
                1,
                freeze=False,
                check=False,
                optimizer=run.optimizer,
                lr_scale=scale,
                warmup=warmup,
            )
            new = {id(p) for p in run.model.parameters_of(edit)}
            named = run.model.named_parameters()
            born.update({n: (number, scale, warmup) for n, p in named if id(p) in new})
        homes = {name: run.home(p) for name, p in run.model.named_parameters()}
        assert run.rates == twin.rates
        moved = run.step()
        twin.step()
        for name, rate in moved.items():
            since, scale, warmup = born.get(name, (0, 1.0, 0))
            factor = scale * min(1.0, (number - since + 1) / max(1, warmup))
            assert rate == pytest.approx(homes[name] * factor, rel=1e-9, abs=1e-12), name
    told = getattr(run.scheduler, "get_last_lr", lambda: run.rates)()
    assert [float(rate) for rate in told] == run.rates == twin.rates
    if make is not TIMM["PlateauLRScheduler"]:  # it says that it saves too little to resume
        resumes(run, make, groups)


def resumes(run: Run, make: Maker, groups: int) -> None:
    """A state_dict by position fits an optimizer and a scheduler of the grown model, made anew."""
    resumed = Run(make, groups, copy.deepcopy(run.model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of saving a scheduler without its optimizer
        resumed.scheduler.load_state_dict(copy.deepcopy(run.scheduler.state_dict()))
    resumed.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    resumed.steps = run.steps
    for _ in range(3):
        assert resumed.rates == run.rates
        assert resumed.step() == pytest.approx(run.step(), rel=1e-9, abs=1e-12)


pytestmark = pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated")
every_scheduler = pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS.keys())


@every_scheduler
def test_with_one_group_it_goes_on_through_two_growths(make: Maker):
    goes_on(make, 1, {0: (0.5, 3), 7: (2.0, 4)})


@every_scheduler
def test_with_two_groups_it_goes_on_through_growth_in_the_middle(make: Maker):
    goes_on(make, 2, {4: (2.0, 0), 6: (1.0, 2)})


@pytest.mark.parametrize("name", ["OneCycleLR", "LambdaLR", "ReduceLROnPlateau"])
def test_with_the_groups_rates_nothing_is_beside_the_groups(name: str):
    goes_on(SCHEDULERS[name], 2, {4: (1.0, 0)})


@pytest.mark.parametrize(("name", "error"), [("OneCycleLR", KeyError), ("LambdaLR", ValueError)])
def test_the_law_fails_where_a_group_stays(name: str, error: type[Exception]):
    run = Run(SCHEDULERS[name], 1)
    edit = run.model.expand_layer("0", 1, freeze=False, check=False)
    run.optimizer.add_param_group({"params": run.model.parameters_of(edit)})
    with pytest.raises(error):
        run.step()


def test_the_law_fails_where_rates_are_the_groups(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("splitgrow.growth.rates.Rates.factor", 1.0)
    with pytest.raises(AssertionError):
        goes_on(SCHEDULERS["StepLR"], 1, {0: (0.5, 3)})


def test_momenta_that_a_scheduler_cycles_are_those_of_the_group():
    seen: list[list[tuple[float, float]]] = []

    class Watched(SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append([(group["lr"], group["momentum"]) for group in self.param_groups])
            return super().step(closure)

    model = copy.deepcopy(made())
    optimizer = Watched(model.parameters(), 0.1, momentum=0.5)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=30)
    model.expand_layer("0", 1, freeze=False, check=False, optimizer=optimizer, lr_scale=0.5)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    for (home, momentum), new in seen:
        assert new == pytest.approx((home * 0.5, momentum))
    assert len({momentum for (_, momentum), _ in seen}) == 5

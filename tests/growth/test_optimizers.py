"""Growth with `optimizer=`: new parameters join the right group, old ones keep their state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from snapshots import unchanged
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import Optimizer

import splitgrow
from splitgrow.growth import growing


class Net(nn.Module):
    """Convolutions, a norm, a depthwise convolution, a residual add and a flattened head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.depth = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.head = nn.Linear(4 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.body(self.norm(self.depth(x)))
        return self.head(x.flatten(1))


def make_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = Net().double()
    return splitgrow.growable(model, torch.randn(2, 2, 3, 3, dtype=torch.float64))


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 2, 3, 3, generator=generator, dtype=torch.float64)
    return x, torch.randn(6, 3, generator=generator, dtype=torch.float64)


def loss_of(model: nn.Module, seed: int) -> Tensor:
    x, target = batch(seed)
    return (model(x)[:, :3] - target).square().mean()


def train(model: nn.Module, optimizer: Any, seeds: range) -> list[float]:
    losses = []
    for seed in seeds:
        optimizer.zero_grad()
        loss = loss_of(model, seed)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def grow(model: Any, optimizer: object, **options: Any) -> Any:
    return model.expand_layer("stem", 2, optimizer=optimizer, **options)


Maker = Callable[[Any], Optimizer]

OPTIMIZERS: dict[str, Maker] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.1),
    "SGD nesterov": lambda p: torch.optim.SGD(
        p, lr=0.02, momentum=0.9, weight_decay=0.1, nesterov=True
    ),
    "SGD foreach": lambda p: torch.optim.SGD(
        p, lr=0.02, momentum=0.9, weight_decay=0.1, foreach=True
    ),
    "SGD fused": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.1, fused=True),
    "SGD maximize": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, maximize=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "Adam for-loop": lambda p: torch.optim.Adam(p, lr=0.01, foreach=False),
    "Adam foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "Adam fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "Adam tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.3),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.3, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.3, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    "RMSprop centered": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, foreach=True),
    "Adagrad": lambda p: torch.optim.Adagrad(
        p, lr=0.05, weight_decay=0.1, lr_decay=0.01, initial_accumulator_value=0.1
    ),
    "Adagrad foreach": lambda p: torch.optim.Adagrad(p, lr=0.05, foreach=True),
    "Adagrad fused": lambda p: torch.optim.Adagrad(p, lr=0.05, fused=True),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5, weight_decay=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01, weight_decay=0.1),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01, weight_decay=0.1),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01, weight_decay=0.1),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.01, weight_decay=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01, weight_decay=0.1),
}
DECAYING = ("SGD momentum", "SGD foreach", "SGD fused", "AdamW", "AdamW fused", "RMSprop")

KINDS = {name.partition(" ")[0]: make for name, make in OPTIMIZERS.items()}
"""One of each class, where it makes no difference how a class computes its steps."""

every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def members(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def identities(tensors: Any) -> list[int]:
    return [id(tensor) for tensor in tensors]


@every_kind
@pytest.mark.parametrize("freeze", [True, False])
def test_old_parameters_and_their_state_stay_the_same_objects_with_the_same_values(make, freeze):
    model = make_net()
    optimizer = make(model.parameters())
    train(model, optimizer, range(3))
    old = list(model.parameters())
    values = copy.deepcopy(old)
    states = {id(p): dict(optimizer.state[p]) for p in old if p in optimizer.state}
    state_values = {key: copy.deepcopy(state) for key, state in states.items()}

    grow(model, optimizer, freeze=freeze)

    assert [key for key in identities(members(optimizer)) if key in identities(old)] == identities(
        old
    )
    assert set(identities(old)) < set(identities(model.parameters()))
    assert all(torch.equal(p, value) for p, value in zip(old, values, strict=True))
    for parameter in old:
        if id(parameter) not in states:
            continue
        now, then = optimizer.state[parameter], states[id(parameter)]
        assert now.keys() == then.keys()
        for name in now:
            assert now[name] is then[name]
            before = state_values[id(parameter)][name]
            same = torch.equal(now[name], before) if isinstance(before, Tensor) else None
            assert same if same is not None else now[name] == before


@every_kind
def test_every_parameter_is_in_the_optimizer_exactly_once_after_growth(make):
    model = make_net()
    optimizer = make(model.parameters())
    for layer in ("stem", "head", "depth", "stem"):
        model.expand_layer(layer, 1, optimizer=optimizer)
    assert sorted(identities(members(optimizer))) == sorted(identities(model.parameters()))


@every_optimizer
def test_a_closed_generation_does_not_move_by_a_bit_in_twenty_steps(make):
    model = make_net()
    optimizer = make(model.parameters())
    train(model, optimizer, range(4))
    model.train()
    old = dict(model.named_parameters())
    statistics = dict(model.named_buffers())
    before = copy.deepcopy((old, statistics))

    grow(model, optimizer)
    train(model, optimizer, range(4, 24))

    assert all(torch.equal(old[name], value) for name, value in before[0].items())
    assert all(torch.equal(statistics[name], value) for name, value in before[1].items())
    assert all(parameter.grad is None for parameter in old.values())


@pytest.mark.parametrize("name", DECAYING)
def test_control_masked_gradients_would_let_a_closed_generation_drift(name):
    model = make_net()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, range(4))
    old = list(model.parameters())
    before = copy.deepcopy(old)
    grow(model, optimizer, freeze=False)
    for parameter in old:
        parameter.register_hook(torch.zeros_like)
    train(model, optimizer, range(4, 8))
    assert not any(torch.equal(p, value) for p, value in zip(old, before, strict=True))


@every_optimizer
def test_old_parameters_take_the_step_that_they_would_have_taken_without_growth(make):
    model = make_net()
    optimizer = make(model.parameters())
    train(model, optimizer, range(3))
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    old = dict(model.named_parameters())
    before = copy.deepcopy(old)

    grow(model, optimizer, freeze=False)
    loss = train(model, optimizer, range(3, 4))
    twin_loss = train(twin, twin_optimizer, range(3, 4))

    assert loss == pytest.approx(twin_loss, rel=1e-12)
    for name, expected in twin.named_parameters():
        torch.testing.assert_close(old[name], expected, rtol=1e-9, atol=1e-12)
        assert not torch.equal(old[name], before[name])


@every_optimizer
def test_control_the_second_step_differs_from_that_of_a_twin(make):
    model = make_net()
    optimizer = make(model.parameters())
    train(model, optimizer, range(3))
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    old = dict(model.named_parameters())
    grow(model, optimizer, freeze=False)
    train(model, optimizer, range(3, 6))
    train(twin, twin_optimizer, range(3, 6))
    assert not all(
        torch.allclose(old[name], parameter, rtol=1e-9, atol=1e-12)
        for name, parameter in twin.named_parameters()
    )


@pytest.mark.parametrize("freeze", [True, False])
def test_the_loss_does_not_jump_at_growth(freeze):
    model = make_net()
    optimizer = OPTIMIZERS["SGD momentum"](model.parameters())
    losses = train(model, optimizer, range(10))
    for mode in (True, False):
        model.train(mode)
        before = [loss_of(model, seed).item() for seed in range(3)]
        # Closing a generation holds the running statistics: in training mode that shows.
        if mode and freeze:
            model.next_generation()
            before = [loss_of(model, seed).item() for seed in range(3)]
        grow(model, optimizer, freeze=freeze)
        after = [loss_of(model, seed).item() for seed in range(3)]
        assert after == pytest.approx(before, rel=1e-12)
    assert losses[-1] < losses[0]


def learning_parameters(model: Any) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    split = model.stem
    new = list(split[len(split) - 1].parameters())
    helpers = [model.body[1].weight, model.head[1].weight]
    return new, helpers


@every_optimizer
def test_helpers_learn_from_the_first_step_and_new_units_from_the_second(make):
    model = make_net()
    optimizer = make(model.parameters())
    train(model, optimizer, range(3))
    grow(model, optimizer)
    new, helpers = learning_parameters(model)
    assert all(not helper.any() for helper in helpers)
    first = copy.deepcopy(new)
    train(model, optimizer, range(3, 4))
    assert all(helper.any() for helper in helpers)
    train(model, optimizer, range(4, 5))
    assert not any(torch.equal(p, value) for p, value in zip(new, first, strict=True))


@pytest.mark.parametrize(
    ("make", "freeze", "steps"),
    [
        pytest.param(make, freeze, 2 * (freeze ^ index % 2), id=f"{name}-{freeze}")
        for index, (name, make) in enumerate(OPTIMIZERS.items())
        for freeze in (True, False)
    ],
)
def test_growth_upon_growth_goes_on_training_whether_or_not_there_were_steps(make, freeze, steps):
    model = make_net()
    optimizer = make(model.parameters())
    for start in range(0, 9, 3):
        train(model, optimizer, range(start, start + steps))
        grow(model, optimizer, freeze=freeze)
        grow(model, optimizer, freeze=freeze)
    trained = [p for p in model.parameters() if p.requires_grad]
    before = copy.deepcopy(trained)
    train(model, optimizer, range(9, 13))
    assert not any(torch.equal(p, value) for p, value in zip(trained, before, strict=True))


def test_training_lowers_the_loss_with_nothing_but_new_blocks():
    model = make_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.eval()
    grow(model, optimizer)
    losses = [train(model, optimizer, range(1))[0] for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]


def test_control_without_optimizer_the_new_parameters_are_in_no_group_and_do_not_move():
    model = make_net()
    optimizer = OPTIMIZERS["SGD momentum"](model.parameters())
    with unchanged(nn.Module(), optimizer):
        # Frozen parameters lose their gradients, but there are none yet.
        state = torch.get_rng_state()
        model.expand_layer("stem", 2, freeze=False)
        torch.set_rng_state(state)
    new, helpers = learning_parameters(model)
    assert not set(identities(new + helpers)) & set(identities(members(optimizer)))
    before = copy.deepcopy(new + helpers)
    with pytest.warns(splitgrow.SplitGrowWarning, match="no optimizer trains stem.1.weight"):
        train(model, optimizer, range(5))
    assert all(torch.equal(p, value) for p, value in zip(new + helpers, before, strict=True))


def test_new_parameters_join_the_group_of_their_own_weight_or_bias():
    model = make_net()
    named = dict(model.named_parameters())
    biases = [p for name, p in named.items() if name.endswith("bias")]
    stem = [named["stem.weight"], named["norm.weight"]]
    rest = [p for p in named.values() if p.dim() > 1 and p is not named["stem.weight"]]
    optimizer = torch.optim.SGD(
        [
            {"params": biases, "weight_decay": 0.0},
            {"params": stem, "lr": 0.5},
            {"params": rest, "lr": 0.1, "momentum": 0.9},
        ],
        lr=0.01,
        weight_decay=0.1,
    )
    options = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    grow(model, optimizer)
    joined = (
        [model.stem[1].bias, model.norm[1].bias],
        [model.stem[1].weight, model.norm[1].weight],
        [model.depth[1].weight, *(b.weight for b in list(model.body)[1:]), model.head[1].weight],
    )
    for group, old, new in zip(optimizer.param_groups, (biases, stem, rest), joined, strict=True):
        members = {*identities(old), *identities(new)}
        in_order = [id(p) for p in model.parameters() if id(p) in members]
        assert identities(group["params"]) == in_order
    now = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    assert now == options


def test_the_groups_own_settings_drive_the_new_parameters():
    model = make_net()
    named = dict(model.named_parameters())
    still = [p for name, p in named.items() if name.startswith("stem")]
    moving = [p for name, p in named.items() if not name.startswith("stem")]
    optimizer = torch.optim.SGD([{"params": still, "lr": 0.0}, {"params": moving}], lr=0.05)
    grow(model, optimizer)
    new, helpers = learning_parameters(model)
    before = copy.deepcopy((new, helpers))
    train(model, optimizer, range(4))
    assert all(torch.equal(p, value) for p, value in zip(new, before[0], strict=True))
    assert not any(torch.equal(p, value) for p, value in zip(helpers, before[1], strict=True))


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_several_optimizers_each_take_the_parameters_of_their_own_layers(kind):
    model = make_net()
    head = torch.optim.Adam(model.head.parameters(), lr=0.01)
    body = torch.optim.SGD(
        [p for name, p in model.named_parameters() if not name.startswith("head")], lr=0.01
    )
    grow(model, kind([body, head]))
    assert sorted(identities(members(head))) == sorted(identities(model.head.parameters()))
    others = [p for name, p in model.named_parameters() if not name.startswith("head")]
    assert sorted(identities(members(body))) == sorted(identities(others))


def test_an_optimizer_among_several_that_trains_none_of_the_layers_is_left_alone():
    model = make_net()
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = identities(members(other))
    grow(model, [optimizer, other])
    assert identities(members(other)) == before
    assert sorted(identities(members(optimizer))) == sorted(identities(model.parameters()))


def test_an_optimizer_of_named_parameters_learns_the_new_names():
    model = make_net()
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.01)
    grow(model, optimizer)
    train(model, optimizer, range(2))
    (group,) = optimizer.param_groups
    names = dict(model.named_parameters())
    assert len(group["param_names"]) == len(group["params"]) == len(names)
    for name, parameter in zip(group["param_names"], group["params"], strict=True):
        assert names[name] is parameter
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == group["param_names"]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("freeze", [False, True])
def test_groups_list_the_parameters_as_a_new_optimizer_would(named, freeze):
    def groups() -> list[dict[str, Any]]:
        items: list[Any] = list(model.named_parameters(prefix="net"))
        weights = [item if named else item[1] for item in items if item[1].dim() > 1]
        others = [item if named else item[1] for item in items if item[1].dim() < 2]
        return [{"params": others}, {"params": weights}]

    model = make_net()
    optimizer = torch.optim.AdamW(groups())
    model.expand_layer("stem", 2, freeze=freeze, optimizer=optimizer)
    model.insert_layer("body", "residual", optimizer=optimizer)
    model.expand_layer("stem", 1, freeze=freeze, optimizer=optimizer)
    model.expand_input(1, optimizer=optimizer)
    model.consolidate(optimizer=optimizer)
    for group, fresh in zip(
        optimizer.param_groups, torch.optim.AdamW(groups()).param_groups, strict=True
    ):
        assert identities(group["params"]) == identities(fresh["params"])
        assert group.get("param_names") == fresh.get("param_names")


def test_names_from_before_an_untold_growth_are_brought_up_to_date_by_the_next():
    model = make_net()
    optimizer = torch.optim.AdamW(model.named_parameters(prefix="net"))
    model.expand_layer("stem", 2, freeze=False)
    optimizer.add_param_group(
        {
            "params": [
                (f"net.{n}", p)
                for n, p in model.named_parameters()
                if any(p is q for q in model.parameters_of(1))
            ]
        }
    )
    model.expand_layer("stem", 1, freeze=False, optimizer=optimizer)
    named = dict(model.named_parameters(prefix="net"))
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            assert named[name] is parameter


@pytest.mark.parametrize("named", [False, True])
def test_a_growth_that_fails_leaves_order_and_names_of_the_groups(named, monkeypatch):
    model = make_net()
    optimizer = torch.optim.AdamW(model.named_parameters() if named else model.parameters())
    model.expand_layer("stem", 2, optimizer=optimizer)

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(growing, "watch_new_", fail)
    with unchanged(model, optimizer), pytest.raises(MemoryError):
        model.expand_layer("stem", 2, optimizer=optimizer)


@every_optimizer
def test_the_state_survives_a_round_trip_after_growth(make):
    model = make_net()
    optimizer = make(model.parameters())
    train(model, optimizer, range(3))
    grow(model, optimizer)
    train(model, optimizer, range(3, 6))
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    saved = copy.deepcopy(optimizer.state_dict())

    fresh = make([{"params": group["params"]} for group in optimizer.param_groups])
    fresh.load_state_dict(copy.deepcopy(saved))
    optimizer.load_state_dict(copy.deepcopy(saved))

    expected = pytest.approx(train(twin, twin_optimizer, range(6, 9)), rel=1e-7)
    start = copy.deepcopy(model.state_dict())
    assert train(model, optimizer, range(6, 9)) == expected
    model.load_state_dict(start)
    assert train(model, fresh, range(6, 9)) == expected


def test_the_first_step_of_new_parameters_is_the_same_with_fused_momentum():
    runs = []
    for fused in (True, False):
        model = make_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, fused=fused)
        train(model, optimizer, range(3))
        grow(model, optimizer, freeze=False)
        runs.append(train(model, optimizer, range(3, 8)))
    assert runs[0] == pytest.approx(runs[1], rel=1e-10)


def test_adagrads_new_state_is_what_a_new_adagrad_would_make():
    model = make_net()
    optimizer = OPTIMIZERS["Adagrad"](model.parameters())
    train(model, optimizer, range(2))
    grow(model, optimizer)
    new, helpers = learning_parameters(model)
    fresh = OPTIMIZERS["Adagrad"](new + helpers)
    for parameter in new + helpers:
        assert optimizer.state[parameter]["sum"].eq(0.1).all()
        assert optimizer.state[parameter].keys() == fresh.state[parameter].keys()
        assert optimizer.state[parameter]["step"] == 0


Scheduler = Callable[[Optimizer], Any]

SCHEDULERS: dict[str, Scheduler] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "LambdaLR by group": lambda o: lr_scheduler.LambdaLR(o, [lambda e: 0.9**e, lambda e: 0.8**e]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.95),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, gamma=0.5),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=30),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=12),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=5),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, base_lr=0.01, max_lr=0.1, step_size_up=4),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [
            lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=5),
            lr_scheduler.CosineAnnealingLR(o, T_max=10),
        ],
        milestones=[6],
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 4), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.05),
}


def two_groups(model: nn.Module) -> Optimizer:
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    weights = [p for name, p in model.named_parameters() if not name.endswith("bias")]
    return torch.optim.SGD(
        [{"params": weights}, {"params": biases, "lr": 0.01}], lr=0.02, momentum=0.9
    )


def schedule(scheduler: Any, optimizer: Optimizer, steps: range) -> list[Any]:
    """The learning rate and momentum of each group, step by step, for losses made up here."""
    seen = []
    for step in steps:
        optimizer.step()
        plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
        scheduler.step(1.0 / (1 + min(step, 6))) if plateau else scheduler.step()
        seen.append([(group["lr"], group["momentum"]) for group in optimizer.param_groups])
    return seen


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_a_scheduler_goes_on_after_growth_as_if_nothing_had_happened(make):
    runs = []
    for grows in (True, False):
        model = make_net()
        optimizer = two_groups(model)
        scheduler = make(optimizer)
        before = schedule(scheduler, optimizer, range(5))
        if grows:
            grow(model, optimizer)
        runs.append(before + schedule(scheduler, optimizer, range(5, 15)))
    assert runs[0] == runs[1]
    assert len({str(rates) for rates in runs[0]}) > 2, "the schedule does not do anything"


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_a_scheduler_drives_the_new_parameters(make):
    model = make_net()
    optimizer = two_groups(model)
    scheduler = make(optimizer)
    schedule(scheduler, optimizer, range(5))
    grow(model, optimizer)
    schedule(scheduler, optimizer, range(5, 9))
    new, helpers = learning_parameters(model)
    for parameter in new + helpers:
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(new + helpers)
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.step()
    for parameter, value in zip(new + helpers, before, strict=True):
        rate = rates[int(parameter.dim() == 1)]
        assert torch.allclose(value - parameter, torch.full_like(value, rate), atol=1e-15)


def test_a_growth_between_backward_and_step_keeps_the_step_of_what_stays_open():
    model = make_net()
    optimizer = OPTIMIZERS["Adam"](model.parameters())
    train(model, optimizer, range(2))
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    old = dict(model.named_parameters())
    optimizer.zero_grad()
    loss_of(model, 2).backward()
    loss_of(twin, 2).backward()
    grow(model, optimizer, freeze=False)
    optimizer.step()
    twin_optimizer.step()
    for name, expected in twin.named_parameters():
        torch.testing.assert_close(old[name], expected, rtol=1e-9, atol=1e-12)


def test_a_later_growth_puts_its_blocks_beside_the_original_too():
    model = make_net()
    optimizer = two_groups(model)
    for generation in (1, 2, 3):
        grow(model, optimizer)
        train(model, optimizer, range(2))
        assert model.next_generation() == generation + 1
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert sorted(identities(optimizer.param_groups[1]["params"])) == sorted(identities(biases))


def test_lbfgs_is_refused():
    model = make_net()
    optimizer = torch.optim.LBFGS(model.parameters())
    with unchanged(model, optimizer), pytest.raises(splitgrow.OptimizerError, match="LBFGS"):
        grow(model, optimizer)


class HandingOn(torch.optim.Optimizer):
    """Hands parameters on to another optimizer, with lists of its own or with the same ones."""

    def __init__(self, params, *, same: bool):
        super().__init__(params, {})
        self.inner = torch.optim.SGD([p for g in self.param_groups for p in g["params"]], lr=0.1)
        if same:
            self.param_groups = self.inner.param_groups

    def step(self, closure=None):
        return self.inner.step(closure)


def test_an_optimizer_whose_inner_one_would_not_hear_of_new_parameters_is_refused():
    """As ZeroRedundancyOptimizer, whose inner optimizer steps the parameters of one rank."""
    model = make_net()
    optimizer = HandingOn(model.parameters(), same=False)
    refused = pytest.raises(
        splitgrow.OptimizerError, match=r"`inner`, which would not step new ones"
    )
    with unchanged(model, optimizer), refused:
        grow(model, optimizer)


def test_an_optimizer_that_shares_its_groups_with_the_inner_one_trains_new_parameters():
    model = make_net()
    optimizer = HandingOn(model.parameters(), same=True)
    grow(model, optimizer)
    new = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in new]
    train(model, optimizer, range(3))
    assert any((p - b).abs().max() > 1e-6 for p, b in zip(new, before, strict=True))


def test_an_optimizer_that_does_not_train_the_layers_is_refused_and_all_layers_are_named():
    model = make_net()
    optimizer = torch.optim.Adam(model.head.parameters())
    train(model, optimizer, range(2))
    with (
        unchanged(model, optimizer),
        pytest.raises(splitgrow.OptimizerError, match="parameters_of") as caught,
    ):
        grow(model, optimizer)
    for name in (
        "stem.1.weight",
        "stem.1.bias",
        "norm.1.weight",
        "depth.1.weight",
        "body.1.weight",
    ):
        assert name in str(caught.value)
    assert "head" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["adam", 3, torch.optim.Adam, nn.Linear(1, 1), {"lr": 0.1}])
@pytest.mark.parametrize("listed", [False, True])
def test_anything_but_an_optimizer_is_a_type_error(wrong, listed):
    model = make_net()
    optimizer = torch.optim.Adam(model.parameters())
    with (
        unchanged(model, optimizer),
        pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer"),
    ):
        grow(model, [optimizer, wrong] if listed else wrong)


def test_a_refused_optimizer_among_several_leaves_the_others_alone():
    model = make_net()
    good, bad = torch.optim.Adam(model.parameters()), torch.optim.LBFGS(model.parameters())
    train(model, good, range(2))
    with unchanged(model, good, bad), pytest.raises(splitgrow.OptimizerError):
        grow(model, [good, bad])


def test_an_optimizer_made_for_the_open_generation_takes_in_later_growth():
    model = make_net()
    model.expand_layer("stem", 2)
    body = model.get_submodule("body")
    optimizer = torch.optim.Adam(
        [
            {"params": model.generation_parameters(), "lr": 0.01},
            {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.5},
        ]
    )
    known = set(identities(members(optimizer)))
    model.expand_layer("stem", 2, optimizer=optimizer)
    joined = [p for p in optimizer.param_groups[0]["params"] if id(p) not in known]
    assert identities(joined) == [
        i for i in identities(model.generation_parameters()) if i not in known
    ]
    assert len(optimizer.param_groups[1]["params"]) == 1
    assert len(body) == 5  # the original, and two helpers with two new blocks


@pytest.mark.parametrize("make", [OPTIMIZERS["SGD momentum"], OPTIMIZERS["Adam"]])
def test_a_closing_growth_between_backward_and_step_takes_the_old_parameters_out_of_it(make):
    model = make_net()
    optimizer = make(model.parameters())
    train(model, optimizer, range(3))
    loss_of(model, 5).backward()
    old = [(p, p.detach().clone()) for p in model.parameters()]
    grow(model, optimizer)
    optimizer.step()
    assert all(torch.equal(now, then) for now, then in old)


def test_param_groups_by_generation_take_what_is_born_in_theirs() -> None:
    model: Any = make_net()
    groups = model.param_groups({0: {"lr": 0.01}, 1: {"lr": 0.1}, 2: {"lr": 1.0}})
    optimizer = torch.optim.SGD(groups, lr=0.5, momentum=0.9)
    scheduler = lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    train(model, optimizer, range(2))
    grow(model, optimizer)
    model.insert_layer("body", "residual", optimizer=optimizer)
    scheduler.step()
    train(model, optimizer, range(2))
    model.next_generation()
    grow(model, optimizer)
    for group, generation in zip(optimizer.param_groups, range(3), strict=True):
        assert group["name"] == f"generation {generation}"
        born = model.generation_parameters(generation)
        assert {id(p) for p in group["params"]} == {id(p) for p in born}
        assert group["lr"] == 0.5 * 0.01 * 10**generation
    model.next_generation()
    grow(model, optimizer)  # there is no group of this generation: it joins the layer's
    assert len(optimizer.param_groups[0]["params"]) > len(model.generation_parameters(0))


@pytest.mark.parametrize("options", [3, {"0": {}}, {0: 0.1}, {-1: {}}])
def test_options_of_generations_that_are_none_are_refused(options: Any) -> None:
    model: Any = make_net()
    with unchanged(model), pytest.raises(TypeError, match="options map generations"):
        model.param_groups(options)

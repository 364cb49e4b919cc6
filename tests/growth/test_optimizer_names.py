"""An optimizer by name goes on from its state_dict as if it had never stopped."""

from __future__ import annotations

import copy
import gc
import io
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from equal_widths import Net
from resuming import OPTIMIZERS
from snapshots import unchanged
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

import splitgrow


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(seed)
    return splitgrow.growable(Net().to(dtype), torch.randn(3, 6, dtype=dtype))


def train(model: nn.Module, optimizer: Any, steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        dtype = next(model.parameters()).dtype
        x = torch.randn(5, 6, generator=generator, dtype=dtype)
        (model(x).square().mean() + model(x).mean()).backward()
        optimizer.step()


Groups = Callable[[nn.Module], Any]
GROUPINGS: dict[str, Groups] = {
    "one group": lambda m: list(m.parameters()),
    "reversed": lambda m: list(m.parameters())[::-1],
    "named": lambda m: list(m.named_parameters()),
    "weights and others": lambda m: [
        {"params": [p for p in m.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in m.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ],
    "trainable": lambda m: [p for p in m.parameters() if p.requires_grad],
}


def change(model: Any, optimizer: Optimizer, draw: random.Random) -> None:
    """One change that a training script may make."""
    freeze = draw.random() < 0.5
    kind = draw.choice(("stem", "block.first", "head", "block", "residual", "consolidate", "group"))
    if kind == "block":
        model.insert_layer("block", "block", freeze=freeze, optimizer=optimizer)
    elif kind == "residual":
        model.insert_layer("stem", "residual", freeze=freeze, optimizer=optimizer)
    elif kind == "consolidate":
        model.consolidate(optimizer=optimizer)
    elif kind == "group":
        model.expand_layer("block.first", 2, freeze=freeze)
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        new = [(n, p) for n, p in model.named_parameters() if id(p) not in known]
        named = "param_names" in optimizer.param_groups[0]
        optimizer.add_param_group({"params": new if named else [p for _, p in new], "lr": 2e-3})
    else:
        model.expand_layer(kind, 6 if kind == "stem" else 2, freeze=freeze, optimizer=optimizer)


def saved(model: nn.Module, optimizer: Optimizer) -> tuple[Any, Any]:
    """Both states, through a file as trainers write it."""
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    both: tuple[Any, Any] = torch.load(file, weights_only=True)
    return both


def assert_same_run(one: Any, other: Any) -> None:
    model, optimizer = one
    fresh, again = other
    named, fresh_named = dict(model.named_parameters()), dict(fresh.named_parameters())
    assert named.keys() == fresh_named.keys()
    assert all(torch.equal(named[name], fresh_named[name]) for name in named)
    for group, group_again in zip(optimizer.param_groups, again.param_groups, strict=True):
        options = [{k: v for k, v in g.items() if k != "params"} for g in (group, group_again)]
        assert options[0] == options[1]


RUNS = [(how, grouping) for grouping in GROUPINGS for how in ("AdamW", "fused")]
RUNS += [(how, "weights and others") for how in OPTIMIZERS if how not in {"AdamW", "fused"}]


@pytest.mark.parametrize(("how", "grouping"), RUNS)
def test_a_resumed_run_ends_in_the_same_bits(how, grouping):
    draw = random.Random(f"{how} {grouping}")
    make, groups = OPTIMIZERS[how], GROUPINGS[grouping]
    model = network(0, torch.float32)  # torch loads NAdam's float32 numbers as the weights' dtype
    optimizer = splitgrow.by_name(make(groups(model)), model)
    train(model, optimizer, 2)
    for _ in range(3):
        change(model, optimizer, draw)
        train(model, optimizer, 2)
    states = saved(model, optimizer)

    fresh = network(1, torch.float32)
    early = draw.random() < 0.5  # as accelerate does: the optimizer is there before the growth is
    again = splitgrow.by_name(make(groups(fresh)), fresh) if early else None
    fresh.load_state_dict(states[0])
    again = again or splitgrow.by_name(make(groups(fresh)), fresh)
    again.load_state_dict(states[1])

    for run in ((model, optimizer), (fresh, again)):
        train(*run, 3, seed=1)
    assert_same_run((model, optimizer), (fresh, again))


def test_control_by_position_the_same_run_becomes_another_one():
    model = network()
    optimizer = OPTIMIZERS["AdamW"](GROUPINGS["reversed"](model))
    train(model, optimizer, 2)
    model.expand_layer("stem", 6, freeze=False, optimizer=optimizer)
    train(model, optimizer, 2)
    states = saved(model, optimizer)
    fresh = network(1)
    fresh.load_state_dict(states[0])
    again = OPTIMIZERS["AdamW"](list(fresh.parameters()))
    again.load_state_dict(states[1])
    with pytest.raises(splitgrow.OptimizerError, match="is that of other parameters"):
        train(fresh, again, 1)  # the shapes differ somewhere; nothing has stepped
    for parameter in fresh.parameters():  # and with that state gone, it is another run
        state = again.state[parameter]
        again.state[parameter] = {
            k: v if v.dim() == 0 or v.shape == parameter.shape else torch.zeros_like(parameter)
            for k, v in state.items()
        }
    for run in ((model, optimizer), (fresh, again)):
        train(*run, 3, seed=1)
    with pytest.raises(AssertionError):
        assert_same_run((model, optimizer), (fresh, again))


def test_a_model_inside_of_another_module_goes_by_the_paths_there():
    class Task(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.net, self.scale = network(seed), nn.Parameter(torch.ones(()).double())

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * self.scale

    def task(seed: int) -> tuple[Any, Any]:
        made = Task(seed)
        return made, splitgrow.by_name(torch.optim.AdamW(made.parameters(), 1e-3), made)

    model, optimizer = task(0)
    model.net.expand_layer("stem", 6, optimizer=optimizer)
    train(model, optimizer, 2)
    states = saved(model, optimizer)
    fresh, again = task(1)
    fresh.load_state_dict(states[0])
    again.load_state_dict(states[1])
    for run in ((model, optimizer), (fresh, again)):
        train(*run, 3, seed=1)
    assert_same_run((model, optimizer), (fresh, again))


def test_parameters_that_are_not_the_models_go_by_their_order():
    def made(seed: int) -> tuple[Any, Any, Any]:
        model, loss = network(seed), nn.Linear(6, 1).double()
        parameters = [*loss.parameters(), *model.parameters()]
        return model, splitgrow.by_name(torch.optim.AdamW(parameters, 1e-3), model), loss

    model, optimizer, loss = made(0)
    model.expand_layer("stem", 2, optimizer=optimizer)
    loss(model(torch.ones(2, 6).double())).sum().backward()
    optimizer.step()
    states = saved(model, optimizer)
    fresh, again, other = made(1)
    fresh.load_state_dict(states[0])
    again.load_state_dict(states[1])
    for here, there in zip(loss.parameters(), other.parameters(), strict=True):
        one, two = optimizer.state[here], again.state[there]
        assert all(torch.equal(one[key], two[key]) for key in ("exp_avg", "exp_avg_sq"))


def test_wrappers_of_torch_add_nothing_to_the_names():
    model, compiled = network(), nn.Module()
    compiled.add_module("_orig_mod", model)  # as torch.compile's module has it
    optimizer = splitgrow.by_name(torch.optim.SGD(model.parameters(), 0.1), compiled)
    names = optimizer.state_dict()["by_name"]["names"][0]
    assert names == [name for name, _ in model.named_parameters()]


def test_a_state_of_torchs_named_parameters_is_matched_by_these_with_any_prefix():
    model = network()
    model.expand_layer("stem", 6)
    outer = nn.Module()
    outer.net = model
    optimizer = torch.optim.AdamW(outer.named_parameters(), 1e-3)
    train(model, optimizer, 2)
    fresh = network(1)
    fresh.load_state_dict(model.state_dict())
    again = splitgrow.by_name(torch.optim.AdamW(list(fresh.parameters())[::-1], 1e-3), fresh)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for run in ((model, optimizer), (fresh, again)):
        train(*run, 3, seed=1)
    named, fresh_named = dict(model.named_parameters()), dict(fresh.named_parameters())
    assert all(torch.equal(named[name], fresh_named[name]) for name in named)


def test_a_state_from_before_a_growth_is_found_by_the_names_of_then():
    model = network()
    optimizer = splitgrow.by_name(torch.optim.AdamW(model.parameters(), 1e-3), model)
    train(model, optimizer, 2)
    state = copy.deepcopy(optimizer.state_dict())
    old = list(model.parameters())
    model.expand_layer("stem", 6, freeze=False)
    again = splitgrow.by_name(torch.optim.AdamW(old[::-1], 1e-3), model)
    again.load_state_dict(state)
    for parameter in old:
        assert torch.equal(again.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])


def refused(again: Optimizer, state: Any, *patterns: str) -> None:
    """The state is refused, with these words, and the optimizer is as before."""
    with unchanged(nn.Module(), again), pytest.raises(splitgrow.OptimizerError) as caught:
        again.load_state_dict(state)
    for pattern in patterns:
        assert pattern in str(caught.value)


def grown_state() -> tuple[Any, Any]:
    model = network()
    optimizer = splitgrow.by_name(torch.optim.AdamW(model.parameters(), 1e-3), model)
    model.expand_layer("stem", 2, freeze=False, optimizer=optimizer)
    train(model, optimizer, 1)
    return model.state_dict(), optimizer.state_dict()


def test_a_state_that_does_not_fit_is_refused_with_names_and_shapes():
    _, state = grown_state()
    ungrown = network()
    again = splitgrow.by_name(torch.optim.AdamW(ungrown.parameters(), 1e-3), ungrown)
    refused(again, state, "`stem.1.weight` is in the state_dict, not in the model", "first")

    wider = network()
    wider.expand_layer("stem", 4, freeze=False)
    again = splitgrow.by_name(torch.optim.AdamW(wider.parameters(), 1e-3), wider)
    refused(again, state, "`stem.1.weight` has the shape (2, 6) there, (4, 6) here")


def test_an_optimizer_that_trains_more_than_the_saved_one_is_refused():
    model_state, state = grown_state()
    model = network()
    model.load_state_dict(model_state)
    model.expand_layer("head", 1, freeze=False)
    again = splitgrow.by_name(torch.optim.AdamW(model.parameters(), 1e-3), model)
    refused(again, state, "the optimizer trains `head.2.weight`, which the saved one did not")


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"state": {}, "param_groups": [{}]},
        {"state": {}, "param_groups": None},
        {"state": {}, "param_groups": [{"params": [0]}], "by_name": {}},
        {"state": {}, "param_groups": [{"params": [0]}], "by_name": {"names": [], "shapes": []}},
        {
            "state": {},
            "param_groups": [{"params": [0]}],
            "by_name": {"names": [["head.weight", "head.bias"]], "shapes": [[[6, 6], [6]]]},
        },
    ],
)
def test_what_is_no_state_of_an_optimizer_is_refused(broken):
    model = network()
    again = splitgrow.by_name(torch.optim.AdamW(model.parameters(), 1e-3), model)
    refused(again, broken)


def test_a_state_without_names_goes_by_position_with_a_warning_if_shapes_allow():
    model = network()
    plain = torch.optim.AdamW(model.parameters(), 1e-3)
    train(model, plain, 1)
    again = splitgrow.by_name(torch.optim.AdamW(model.parameters(), 1e-3), model)
    with pytest.warns(splitgrow.SplitGrowWarning, match="by position"):
        again.load_state_dict(plain.state_dict())
    for parameter in model.parameters():
        assert torch.equal(again.state[parameter]["exp_avg"], plain.state[parameter]["exp_avg"])
    other = splitgrow.by_name(torch.optim.AdamW(list(model.parameters())[::-1], 1e-3), model)
    refused(other, plain.state_dict(), "`head.bias` has the shape (6,)", "(6, 6)")
    fewer = splitgrow.by_name(torch.optim.AdamW(model.head.parameters(), 1e-3), model)
    refused(fewer, plain.state_dict(), "[10] parameters in its groups", "[2]")


def test_a_plain_optimizer_loads_a_named_state_as_any_other():
    model = network()
    optimizer = splitgrow.by_name(torch.optim.AdamW(model.parameters(), 1e-3), model)
    train(model, optimizer, 1)
    plain = torch.optim.AdamW(model.parameters(), 1e-3)
    plain.load_state_dict(optimizer.state_dict())
    plain.add_param_group({"params": nn.Linear(2, 2).parameters()})  # the groups have no names
    for parameter in model.parameters():
        assert torch.equal(plain.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])


def test_an_optimizer_whose_class_ignores_torchs_hooks_is_refused():
    class Saves(torch.optim.SGD):
        def state_dict(self) -> Any:
            return {"state": {}, "param_groups": []}

    class Loads(torch.optim.SGD):
        def load_state_dict(self, state_dict: Any) -> None:
            self.loaded = state_dict

    model = network()
    for cls, method in ((Saves, "state_dict"), (Loads, "load_state_dict")):
        optimizer = cls(model.parameters(), 0.1)
        with unchanged(nn.Module(), optimizer):
            with pytest.raises(splitgrow.OptimizerError, match=f"`{method}` of {cls.__name__}"):
                splitgrow.by_name(optimizer, model)
            assert not hasattr(optimizer, "loaded")


def test_a_wrapper_that_shares_the_groups_stands_for_its_optimizer():
    class Wrapper(Optimizer):
        def __init__(self, optimizer: Optimizer) -> None:
            self.optimizer = optimizer

        @property
        def param_groups(self) -> Any:
            return self.optimizer.param_groups

    model = network()
    inner = torch.optim.SGD(model.parameters(), 0.1)
    wrapper = Wrapper(inner)
    assert splitgrow.by_name(wrapper, model) is wrapper
    assert "by_name" in inner.state_dict()
    model.expand_layer("stem", 2, optimizer=wrapper)
    assert len(inner.param_groups[0]["params"]) == len(list(model.parameters()))


def test_a_second_call_changes_the_model_and_adds_no_hooks():
    model, other = network(), network(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    splitgrow.by_name(optimizer, other)
    assert set(optimizer.state_dict()["by_name"]["names"][0]) == {None}
    splitgrow.by_name(optimizer, model)
    assert None not in optimizer.state_dict()["by_name"]["names"][0]
    assert len(optimizer._optimizer_state_dict_post_hooks) == 1


def test_a_model_that_is_gone_is_said_to_be():
    model = network()
    optimizer = splitgrow.by_name(torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1), model)
    del model
    gc.collect()
    with pytest.raises(splitgrow.OptimizerError, match="is gone"):
        optimizer.state_dict()


@pytest.mark.parametrize("wrong", [None, "optimizer", nn.Linear(2, 2)])
def test_anything_but_an_optimizer_and_a_model_is_refused(wrong):
    model = network()
    with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer"):
        splitgrow.by_name(wrong, model)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
        splitgrow.by_name(torch.optim.SGD(model.parameters(), 0.1), wrong and "model")

"""The first step after a growth warns where nobody trains the new parameters."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_pre_hooks as hooks
from torch.optim.swa_utils import AveragedModel

import splitgrow
from splitgrow.growth import untrained

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()


def network() -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    return splitgrow.growable(net.double(), X)


@pytest.fixture(autouse=True)
def nothing_is_watched():
    """Each test begins and ends without a watch."""
    untrained._watched.clear()
    untrained._keep_hook()
    yield
    untrained._watched.clear()
    untrained._keep_hook()
    assert untrained._at_step not in hooks.values()


def step(optimizer: Any, model: nn.Module, x: Tensor = X) -> list[str]:
    """The warnings of one training step."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    assert all(issubclass(one.category, splitgrow.SplitGrowWarning) for one in told)
    assert all(one.filename == __file__ for one in told)  # it points at the user's line
    return [str(one.message) for one in told]


GROWTHS: dict[str, Callable[[Any, Any], Any]] = {
    "expand_layer": lambda m, o: m.expand_layer("0", 2, optimizer=o),
    "expand_layer, the past not frozen": lambda m, o: m.expand_layer(
        "0", 2, freeze=False, optimizer=o
    ),
    "expand": lambda m, o: m.expand({"0": 2, "2": 1}, optimizer=o),
    "expand_input": lambda m, o: m.expand_input(2, optimizer=o),
    "insert_layer": lambda m, o: m.insert_layer("0", "residual", optimizer=o),
}
every_growth = pytest.mark.parametrize("grow", GROWTHS.values(), ids=GROWTHS.keys())


def wide(model: Any) -> Tensor:
    width = model[0].in_features
    return torch.cat([X, X], 1)[:, :width]


@every_growth
def test_a_step_by_an_optimizer_that_was_not_told_warns_once(grow):
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    assert step(optimizer, model) == []
    grow(model, None)
    (told,) = step(optimizer, model, wide(model))
    assert "no optimizer trains" in told
    assert "optimizer=" in told
    assert step(optimizer, model, wide(model)) == []
    assert untrained._at_step not in hooks.values()  # and steps run no hook of ours


@every_growth
def test_an_optimizer_that_was_told_is_not_watched(grow):
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    grow(model, optimizer)
    assert untrained._at_step not in hooks.values()
    assert step(optimizer, model, wide(model)) == []


@every_growth
def test_no_warning_if_the_new_parameters_came_to_an_optimizer_some_other_way(grow):
    for way in ("a new optimizer", "a group of their own", "an optimizer of their own"):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        grow(model, None)
        if way == "a new optimizer":
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
        elif way == "a group of their own":
            optimizer.add_param_group({"params": model.parameters_of(1)})
        else:
            other = torch.optim.SGD(model.parameters_of(model._splitgrow_history.edits[0]), 0.1)
            assert step(other, model, wide(model)) == []
        assert step(optimizer, model, wide(model)) == []


def test_a_consolidation_that_an_optimizer_is_not_told_of_warns():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):
        model.expand_layer("0", 1, optimizer=optimizer)
    model.consolidate()
    (told,) = step(optimizer, model)
    assert "consolidate" in told


def test_a_growth_by_load_state_dict_warns():
    grown = network()
    grown.expand_layer("0", 2)
    state = grown.state_dict()
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    model.load_state_dict(state)
    (told,) = step(optimizer, model)
    assert "load_state_dict" in told
    inside = nn.Sequential(network())
    optimizer = torch.optim.Adam(inside.parameters())
    inside.load_state_dict({f"0.{name}": value for name, value in state.items()})
    assert len(step(optimizer, inside)) == 1


def test_a_growth_by_load_warns_unless_its_optimizer_is_given(tmp_path):
    grown = network()
    optimizer = torch.optim.Adam(grown.parameters())
    grown.expand_layer("0", 2, optimizer=optimizer)
    splitgrow.save(grown, tmp_path / "a.safetensors", optimizer=optimizer)
    for given, count in ((True, 0), (False, 1)):
        model = network()
        optimizer = torch.optim.Adam(model.parameters())
        splitgrow.load(model, tmp_path / "a.safetensors", optimizer=optimizer if given else None)
        assert len(step(optimizer, model)) == count


def test_a_stage_of_a_progressive_network_that_nobody_trains_warns():
    model = splitgrow.ProgressiveAutoencoder.of_widths([6, 4, 3], image_channels=1, start=4)
    optimizer = torch.optim.Adam(model.parameters())
    model.grow(fade=False)
    (told,) = step(optimizer, model, torch.rand(2, 1, 8, 8))
    assert "grow" in told


def test_several_growths_make_one_warning():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    for name in ("0", "2", "0"):
        model.expand_layer(name, 1)
    assert len(step(optimizer, model)) == 1


def test_an_optimizer_of_another_model_is_left_alone():
    model, other = network(), nn.Linear(3, 2).double()
    model.expand_layer("0", 1)
    optimizer = torch.optim.Adam(other.parameters())
    assert step(optimizer, other) == step(optimizer, other) == []
    assert untrained._at_step in hooks.values()  # the model still has to be seen
    (told,) = step(torch.optim.Adam([model[4].weight]), model)
    assert "0.1.weight" in told


def test_new_parameters_that_are_frozen_need_no_optimizer():
    model = network()
    optimizer = torch.optim.SGD([model[4].weight], 0.1)
    model.expand_layer("0", 1, freeze=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "4.weight")
    assert step(optimizer, model) == []


def test_a_model_that_is_gone_is_not_watched():
    model = network()
    model.expand_layer("0", 1)
    del model
    gc.collect()
    other = nn.Linear(3, 2).double()
    optimizer = torch.optim.Adam(other.parameters())
    step(optimizer, other)
    assert untrained._at_step not in hooks.values()


def test_a_growth_that_fails_leaves_no_watch(monkeypatch):
    from splitgrow.growth import growing  # noqa: PLC0415

    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(growing, "follow_growth_", fail)
    model = network()
    with pytest.raises(MemoryError):
        model.expand_layer("0", 1)
    assert untrained._at_step not in hooks.values()


def test_a_state_of_other_shapes_is_refused_at_the_step_before_torch_runs():
    grown = network()
    saving = torch.optim.AdamW(list(grown.parameters())[::-1], fused=True)
    step(saving, grown)
    grown.expand_layer("0", 2, freeze=False, optimizer=saving)
    step(saving, grown)
    model = network()
    model.load_state_dict(grown.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    optimizer.load_state_dict(saving.state_dict())
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(splitgrow.OptimizerError, match=r"`exp_avg` \(2,\).*splitgrow\.by_name"):
        step(optimizer, model)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_control_an_optimizer_that_keeps_states_of_other_shapes_may_step():
    class Rows(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {})

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter]["exp_avg"] = torch.zeros(1 + len(parameter))

    model = network()
    optimizer = Rows(model.parameters())
    model.expand_layer("0", 2)
    for _ in range(2):
        optimizer = Rows(model.parameters())
        assert step(optimizer, model) == []


@pytest.mark.parametrize("told", [True, False])
def test_an_average_that_was_not_loaded_with_its_model_is_told_of_at_the_next_step(told):
    grown = network()
    grown.expand_layer("0", 2)
    model = network()
    average = AveragedModel(model)
    model.load_state_dict(grown.state_dict())  # as a trainer does, before it loads the average
    if told:
        average.module.load_state_dict(grown.state_dict())
    warned = step(torch.optim.SGD(model.parameters(), 0.1), model)
    assert [("splitgrow.follow" in one) for one in warned] == ([] if told else [True])

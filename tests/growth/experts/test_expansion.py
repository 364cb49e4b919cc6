"""The laws of growth, for further experts of mixtures."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_equal, assert_identical
from mixture_models import CHOSEN, EXPERTS, MIXTURES, X, growable, plain
from torch import Tensor, nn

import splitgrow
from splitgrow.errors import InexactError, OptimizerError
from splitgrow.growth.edits import Edit

pytestmark = pytest.mark.parametrize("name", MIXTURES)


def stirred(model: Any, edit: Edit | None = None, size: float = 0.3) -> None:
    with torch.no_grad():
        for parameter in model.parameters_of(edit) if edit is not None else model.parameters():
            parameter.add_(size * torch.randn_like(parameter))


def train(model: Any, optimizer: Any, steps: int = 2) -> None:
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()
    model.eval()


def optimizer_of(model: nn.Module) -> Any:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("freeze", [True, False])
def test_outputs_stay_whatever_is_frozen(name: str, freeze: bool, times: int) -> None:
    model = growable(name)
    before = model(X)
    model.expand_experts((times - 1) * EXPERTS, freeze=freeze)
    assert_equal(model(X), before)
    assert_equal(model(3 * X.flip(1)), plain(name)(3 * X.flip(1)))
    assert [m.count for m in model.mixtures()] == [times * EXPERTS] * 2
    assert [m.chosen for m in model.mixtures()] == [times * CHOSEN] * 2


def test_a_merged_model_is_plain_and_computes_the_same(name: str) -> None:
    model = growable(name)
    for n in (EXPERTS, 4 * EXPERTS):
        stirred(model, model.expand_experts(n, freeze=False))
    merged: Any = splitgrow.merge(model)
    assert not [m for m in merged.modules() if type(m).__module__.startswith("splitgrow")]
    assert type(merged[1].moe) is type(plain(name)[1].moe)
    assert_equal(merged(X), model(X))
    fresh = plain(name)
    assert {n: t.dim() for n, t in merged.state_dict().items()}.keys() >= fresh.state_dict().keys()
    again = splitgrow.growable(merged, X)
    assert [m.count for m in again.mixtures()] == [6 * EXPERTS] * 2


def test_a_closed_generation_is_recovered_to_the_bit_after_training(name: str) -> None:
    model = growable(name)
    optimizer = optimizer_of(model)
    train(model, optimizer)
    states = [model(X).detach()]
    for _ in range(2):
        model.expand_experts(model.mixtures()[0].count, optimizer=optimizer)
        train(model, optimizer)
        states.append(model(X).detach())
        model.next_generation()
    if model.layers[0].growable:
        model.expand_layer("0", model.layers[0].step, optimizer=optimizer)
        train(model, optimizer)
    for generation, state in enumerate(states):
        with model.at(generation):
            assert_identical(model(X), state)
        assert_equal(splitgrow.merge(model, generation=generation)(X), state)
    assert (states[0] - states[1]).abs().max() > 1e-4


def test_parameters_and_optimizer_state_stay_and_new_ones_join_their_groups(name: str) -> None:
    model = growable(name)
    experts = [p for n, p in model.named_parameters() if "experts" in n]
    others = [p for n, p in model.named_parameters() if "experts" not in n]
    groups = [{"params": others, "lr": 1e-2}, {"params": experts, "lr": 1e-3}]
    optimizer: Any = torch.optim.Adam(groups)
    train(model, optimizer)
    known = list(model.parameters())
    state = {id(p): copy.deepcopy(optimizer.state[p]) for p in known}
    edit = model.expand_experts(EXPERTS, freeze=False, noise=0.0, optimizer=optimizer)
    assert all(any(p is q for q in model.parameters()) for p in known)
    for parameter in known:
        assert_identical(optimizer.state[parameter]["exp_avg"], state[id(parameter)]["exp_avg"])
    new = {id(p): n for n, p in model.named_parameters() if all(p is not q for q in known)}
    for rate, group in ((1e-2, optimizer.param_groups[0]), (1e-3, optimizer.param_groups[1])):
        names = [new[id(p)] for p in group["params"] if id(p) in new]
        assert names
        assert all(("experts" in n) == (rate == 1e-3) for n in names)
    assert {id(p) for p in model.parameters_of(edit)} == new.keys()
    train(model, optimizer)


def test_all_new_parameters_learn_from_the_first_steps_and_frozen_ones_stay(name: str) -> None:
    model = growable(name)
    old = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = optimizer_of(model)
    edit = model.expand_experts(EXPERTS, optimizer=optimizer)
    before = [p.detach().clone() for p in model.parameters_of(edit)]
    train(model, optimizer, 3)
    for parameter, value in zip(model.parameters_of(edit), before, strict=True):
        assert not torch.equal(parameter, value)
    with model.at(0):
        assert_identical(model(X), plain(name)(X))
    assert edit.closes == 0
    now = dict(model.named_parameters())
    assert all(torch.equal(now[n], value) for n, value in old.items() if n in now)


def test_twins_that_train_drift_apart_and_without_noise_they_do_not(name: str) -> None:
    gaps = []
    for noise in (0.05, 0.0):
        model = growable(name)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        model.expand_experts(EXPERTS, freeze=False, noise=noise, optimizer=optimizer)
        train(model, optimizer, 5)
        merged: Any = splitgrow.merge(model)
        gaps.append(max(_gap(part) for part in (merged[1].moe, merged[2].moe)))
    assert gaps[0] > 1e-3
    assert gaps[1] < 1e-9


def _gap(mixture: Any) -> float:
    """How far experts are from their twins."""
    experts = mixture.experts
    if hasattr(experts, "down") and isinstance(experts.down, Tensor):
        tensors = [experts.up, experts.down]
    else:
        modules = list(experts.values() if isinstance(experts, nn.ModuleDict) else experts)
        tensors = [torch.stack([m.up.weight for m in modules])]
        tensors.append(torch.stack([m.down.weight for m in modules]))
    halves = (tensor.detach().chunk(2) for tensor in tensors)
    return max(float((one - two).abs().max()) for one, two in halves)


def test_gradients_are_those_of_the_merged_model_in_parts(name: str) -> None:
    model = growable(name)
    stirred(model, model.expand_experts(EXPERTS, freeze=False), size=0.2)
    merged: Any = splitgrow.merge(model)
    for each in (model, merged):
        each(X).square().sum().backward()
    plain_grads = {n: p.grad for n, p in merged.named_parameters()}
    total = sum(float(g.square().sum()) for g in plain_grads.values() if g is not None)
    ours = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
    assert ours == pytest.approx(total, rel=1e-9)
    assert_equal(model[0].weight.grad, plain_grads["0.weight"])


def test_copies_pickles_and_state_dicts_hold_the_experts(name: str, tmp_path: Path) -> None:
    model = growable(name)
    optimizer = optimizer_of(model)
    stirred(model, model.expand_experts(EXPERTS, optimizer=optimizer))
    now = model(X)
    assert_identical(copy.deepcopy(model)(X), now)
    assert_identical(pickle.loads(pickle.dumps(model))(X), now)
    fresh = growable(name)
    fresh.load_state_dict(model.state_dict())
    assert_identical(fresh(X), now)
    with fresh.at(0):
        assert_identical(fresh(X), plain(name)(X))
    splitgrow.save(model, tmp_path / "saved", optimizer=optimizer)
    loaded: Any = plain(name)
    again = optimizer_of(loaded)
    splitgrow.load(loaded, tmp_path / "saved", optimizer=again, example_inputs=X)
    assert_identical(loaded(X), now)
    for each, of_each in ((model, optimizer), (loaded, again)):
        train(each, of_each)
    assert_identical(loaded(X), model(X))


def test_experts_grow_in_any_order_with_widths_and_again(name: str) -> None:
    for first in (True, False):
        model = growable(name)
        before = model(X)
        widths = [layer.name for layer in model.layers if layer.growable and layer.name != "3"]
        if first:
            stirred(model, model.expand_experts(EXPERTS, freeze=False), 0.0)
            widths = [layer.name for layer in model.layers if layer.growable and layer.name != "3"]
        for layer in widths[:3]:
            model.expand_layer(layer, model.layers[0].step or 1, freeze=False)
        if not first:
            model.expand_experts(EXPERTS, freeze=False)
        model.expand_experts(2 * EXPERTS, freeze=False)
        assert_equal(model(X), before)
        stirred(model)
        assert_equal(splitgrow.merge(model)(X), model(X))


def test_one_mixture_grows_alone(name: str) -> None:
    model = growable(name)
    before = model(X)
    edit = model.expand_experts(EXPERTS, "2.moe")
    assert [m.count for m in model.mixtures()] == [EXPERTS, 2 * EXPERTS]
    assert dict(edit.request) == {"2.moe": EXPERTS}
    assert_equal(model(X), before)
    model.expand_experts(EXPERTS, "1.moe.experts")
    assert [m.count for m in model.mixtures()] == [2 * EXPERTS] * 2


def test_a_plan_is_the_edit_and_changes_nothing(name: str) -> None:
    model = growable(name)
    state = {n: t.clone() for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    random = torch.get_rng_state()
    planned = model.plan_experts(EXPERTS)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.count for m in model.mixtures()] == [EXPERTS] * 2
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in state.items())
    before = sum(p.numel() for p in model.parameters())
    edit = model.expand_experts(EXPERTS)
    assert edit == planned
    assert str(edit) == str(planned)
    assert f"1.moe +{EXPERTS}" in str(edit)
    assert f"{EXPERTS} experts beside those of 1.moe.experts" in str(edit)
    assert sum(p.numel() for p in model.parameters()) - before == edit.parameters
    assert Edit.from_json(edit.to_json()) == edit


def test_a_failed_edit_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = growable(name)
    before, modules = model(X), dict(model.named_modules())
    numbers = {n: dict(vars(m)) for n, m in modules.items()}
    with pytest.raises(ValueError, match=r"multiple of the experts.*nearest are 4 and 8"):
        model.expand_experts(EXPERTS + 1)
    stranger = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    with pytest.raises(OptimizerError):
        model.expand_experts(EXPERTS, freeze=False, optimizer=stranger)

    def fails(*_: Any) -> None:
        raise InexactError("as if")

    monkeypatch.setattr("splitgrow.growth.edit_check.Unchanged.check", fails)
    for freeze in (True, False):
        with pytest.raises(InexactError):
            model.expand_experts(EXPERTS, freeze=freeze, optimizer=optimizer_of(model))
    assert dict(model.named_modules()) == modules
    for path, module in model.named_modules():
        own = {k: v for k, v in vars(module).items() if isinstance(v, (int, float))}
        assert own == {k: v for k, v in numbers[path].items() if isinstance(v, (int, float))}
    assert_identical(model(X), before)
    assert all(p.requires_grad for p in model.parameters())
    assert not splitgrow.handle(model).edits


def test_averages_follow(name: str) -> None:
    model = growable(name)
    average = torch.optim.swa_utils.AveragedModel(model)
    splitgrow.follow(average, model)
    stirred(model, model.expand_experts(EXPERTS))
    average.update_parameters(model)
    assert_equal(average(X), model(X))


def test_hooks_on_the_experts_see_the_results_of_all(name: str) -> None:
    model = growable(name)
    if name not in ("Stacked", "Grouped"):
        pytest.skip("a list is never called")
    seen: list[Tensor] = []
    handle = model[1].moe.experts.register_forward_hook(lambda _, __, y: seen.append(y.detach()))
    model(X)
    model.expand_experts(EXPERTS)
    seen[1:] = []
    model(X)
    assert len(seen) == 2
    assert_equal(seen[1], seen[0])
    merged: Any = splitgrow.merge(model)
    merged(X)
    assert len(seen) > 2
    assert_equal(seen[-1], seen[0])
    handle.remove()
    count = len(seen)
    model(X)
    assert len(seen) == count


def test_parameters_are_set_by_their_paths(name: str) -> None:
    model = growable(name)
    stirred(model, model.expand_experts(EXPERTS))
    values = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert_equal(torch.func.functional_call(model, values, (X,)), model(X))
    half = {n: p / 2 for n, p in values.items()}
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    assert_equal(torch.func.functional_call(model, half, (X,)), other(X))


def test_a_model_that_is_a_mixture_itself_grows_and_is_loaded(name: str) -> None:
    def made() -> Any:
        torch.manual_seed(0)
        return splitgrow.growable(MIXTURES[name]().double().eval(), X)

    model = made()
    before = model(X)
    edit = model.expand_experts(EXPERTS)
    assert_equal(model(X), before)
    numbers = [(number.module, number.attribute) for number in edit.numbers]
    assert len(numbers) == len({*numbers})
    stirred(model, edit)
    fresh = made()
    fresh.load_state_dict(model.state_dict())
    assert_identical(fresh(X), model(X))
    with fresh.at(0):
        assert_identical(fresh(X), before)


def test_a_mixture_that_is_called_twice_grows_once(name: str) -> None:
    def made() -> Any:
        torch.manual_seed(0)
        mixture = MIXTURES[name]()
        return splitgrow.growable(nn.Sequential(mixture, nn.Tanh(), mixture).double().eval(), X)

    model = made()
    before = model(X)
    model.expand_experts(EXPERTS)
    assert_equal(model(X), before)
    merged: Any = splitgrow.merge(model)
    assert merged[0] is merged[2]
    assert_equal(merged(X), before)

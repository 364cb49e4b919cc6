"""The contract of `growable` and of growable models, one sentence at a time."""

from __future__ import annotations

import copy
import inspect
import io
import json
import pickle
import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_equal, assert_identical, outputs_of, randomise_new_blocks, train_steps
from snapshots import ANALYSIS, unchanged
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations

import splitgrow
from splitgrow.growth.edits import Edit
from splitgrow.growth.history_lookup import history_of
from splitgrow.layers.split_layer import SplitLayer


class Net(nn.Module):
    """A residual add, norms, a depthwise convolution and a head, with state of their own."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.depth = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, 3)
        self.calls: list[int] = []
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = len(self.calls)
        x = self.norm(self.stem(x)).relu()
        x = x + self.body(self.depth(x))
        return self.head(self.drop(x).mean((2, 3)))


def make_inputs() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(4, 2, 6, 6, generator=generator, dtype=torch.float64),)


INPUTS = make_inputs()
(X,) = INPUTS


def plain(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().double().eval()


def growable(seed: int = 0) -> Any:
    return splitgrow.growable(plain(seed), X)


def grown(*, freeze: bool = True) -> Any:
    """Grown twice in two places, with non-trivial values in the new blocks and some training."""
    model = growable()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for layer, n in (("stem", 2), ("head", 1), (0, 1)):
        model.expand_layer(layer, n, freeze=freeze, optimizer=optimizer)
        randomise_open_blocks(model)
        train_steps(model, INPUTS, optimizer, steps=1)
    return model.eval()


def randomise_open_blocks(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.generation_parameters():
            if parameter.requires_grad:
                parameter.normal_()


# --- what growable itself does ------------------------------------------------------------------


def test_growable_returns_the_same_object_which_stays_an_instance_of_its_class():
    model = plain()
    assert splitgrow.growable(model, X) is model
    assert isinstance(model, Net)
    assert type(model).__name__ == "Net"
    assert type(model).__qualname__ == Net.__qualname__
    assert type(model).__module__ == Net.__module__
    assert type(model).__doc__ == Net.__doc__


@pytest.mark.parametrize("training", [True, False])
def test_growable_keeps_text_paths_keys_flags_and_tensors(training):
    model = plain().train(training)
    model.norm.eval()
    model.stem.weight.requires_grad_(False)
    text, before = repr(model), dict(model.state_dict(keep_vars=True))
    paths = dict(model.named_modules())
    flags = {name: module.training for name, module in model.named_modules()}
    splitgrow.growable(model, X)
    after = dict(model.state_dict(keep_vars=True))
    assert repr(model) == text
    assert list(after) == list(before)
    assert all(after[name] is tensor for name, tensor in before.items())
    assert dict(model.named_modules()) == paths
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert not model.stem.weight.requires_grad


def test_a_layer_that_never_grows_stays_the_stock_module_that_it_was():
    model = growable()
    norm, head = model.norm, model.head
    model.expand_layer("head", 2)
    assert type(model.stem) is nn.Conv2d
    assert model.norm is norm
    assert isinstance(model.head, nn.ModuleList)
    assert model.head[0] is head


def test_paths_and_keys_that_were_there_are_found_after_growth():
    model = growable()
    modules = {name for name, _ in model.named_modules()}
    old = {id(p): name for name, p in model.named_parameters()}
    model.expand_layer("stem", 2)
    assert modules <= {name for name, _ in model.named_modules()}
    names = {id(p): name for name, p in model.named_parameters()}
    for key, name in old.items():
        path, _, tensor = name.rpartition(".")
        assert names[key] in {name, f"{path}.0.{tensor}"}


class Disturbing(nn.Module):
    """A forward that changes whatever a forward can change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = parametrizations.spectral_norm(nn.Conv2d(2, 4, 3))
        self.norm = nn.BatchNorm2d(4)
        self.instance = nn.InstanceNorm2d(4, track_running_stats=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Conv2d(4, 3, 1)
        self.register_buffer("counter", torch.zeros(()))
        self.seen: dict[str, Any] = {}
        self.calls = 0
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x
        self.fresh = x.shape
        self.counter += 1
        noise = torch.rand(1, dtype=x.dtype) + random.random()
        y = self.drop(self.instance(self.norm(self.conv(x))))
        return self.head(y + noise + torch.randn_like(y))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("check", [True, False])
def test_analysis_leaves_no_trace_and_runs_hooks_only_to_check_values(training, times, check):
    torch.manual_seed(0)
    model: Any = Disturbing().double().train(training)
    model.instance.train(not training)
    ran = []
    for name, module in model.named_modules():
        if "parametrizations" in name:
            continue
        module.register_forward_pre_hook(lambda m, args: ran.append(m))
        module.register_forward_hook(lambda m, args, output: ran.append(m))
    model.norm.register_full_backward_hook(lambda m, before, after: ran.append(m))
    model(X).sum().backward()
    assert ran
    ran.clear()
    with unchanged(model, but=ANALYSIS):
        for _ in range(times):
            splitgrow.growable(model, X, check=check)
    assert type(model) is not Disturbing
    assert bool(ran) == check
    assert model.calls == 1


def test_hooks_inside_a_stock_module_do_not_run():
    model: Any = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True))
    ran = []
    for module in model.modules():
        module.register_forward_hook(lambda m, args, output: ran.append(m))
    splitgrow.growable(model, torch.ones(1, 3, 4), check=False)
    assert ran == []


def test_control_a_real_call_of_that_model_leaves_many_traces():
    torch.manual_seed(0)
    model = Disturbing().double().train()
    with (
        pytest.raises(
            AssertionError, match=r"counter.*running_mean|running_mean.*counter"
        ) as caught,
        unchanged(model),
    ):
        model(X)
    for trace in ("attribute calls", "num_batches_tracked", "random state", "_u", "attribute last"):
        assert trace in str(caught.value)


def test_analysis_of_a_grown_model_leaves_no_trace_but_a_new_graph():
    model = grown()
    model.train()
    layers, edits, generation = model.layers, splitgrow.handle(model).edits, model.generation
    with unchanged(model, but=ANALYSIS):
        assert splitgrow.growable(model, X) is model
    assert model.layers == layers
    assert splitgrow.handle(model).edits == edits
    assert model.generation == generation


def test_growth_goes_on_after_analysing_again_and_generations_stay():
    model = grown()
    expected, old = outputs_of(model, X), None
    with model.at(0):
        old = outputs_of(model, X)
    model.next_generation()
    splitgrow.growable(model, X)
    edit = model.expand({"stem": 2, "head": 2})
    assert (edit.index, edit.generation, edit.closes) == (4, 2, None)
    randomise_open_blocks(model)
    with model.at(0):
        assert_identical(outputs_of(model, X), old)
    with model.at(1):
        assert_identical(outputs_of(model, X), expected)
    assert_equal(outputs_of(splitgrow.merge(model), X), outputs_of(model, X))
    model.unfreeze()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_analysing_again_does_not_wrap_the_class_again():
    model = growable()
    cls = type(model)
    splitgrow.growable(model, X)
    assert type(model) is cls
    assert cls.__mro__[1] is Net


def test_two_models_of_a_class_do_not_know_of_each_other():
    one, other = growable(), growable()
    one.expand_layer("stem", 2)
    assert [layer.width for layer in other.layers] == [6, 6, 6, 3]
    assert other.generation == 0
    assert not hasattr(plain(), "expand_layer")


def test_hooks_on_the_model_and_on_grown_layers_go_on_running():
    model = growable()
    seen = []
    model.register_forward_hook(lambda m, args, output: seen.append(tuple(output.shape)))
    model.norm.register_forward_hook(lambda m, args, output: seen.append("norm"))
    model.expand_layer("head", 2)
    model.expand_layer("stem", 2)
    seen.clear()
    model(X)
    assert seen.count("norm") == 1
    assert seen[-1] == (4, 5)


def test_example_inputs_that_carry_gradients_do_not_keep_the_model_from_being_copied():
    x = X.clone().requires_grad_() * 1
    model = splitgrow.growable(plain(), x)
    assert copy.deepcopy(model).layers == model.layers


def test_growth_under_inference_mode_makes_blocks_that_can_train():
    model = growable()
    with torch.inference_mode():
        model.expand_layer("stem", 2)
    model(X).sum().backward()
    assert all(p.grad is not None for p in model.generation_parameters())


# --- names of the model's own -------------------------------------------------------------------


class Named(nn.Module):
    """Uses the names that splitgrow would give."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 2)])
        self.generation = "third"

    def plan(self) -> str:
        return "a plan"

    def at(self, x: float) -> float:
        return x + 1

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def named() -> Any:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"Named has its own at, generation, layers, plan; use"):
        return splitgrow.growable(Named(), torch.ones(1, 4))


def test_the_models_own_names_win_with_a_warning_and_the_handle_has_splitgrows():
    model = named()
    assert isinstance(model.layers, nn.ModuleList)
    assert (model.generation, model.plan(), model.at(1.0)) == ("third", "a plan", 2.0)
    handle = splitgrow.handle(model)
    assert [layer.name for layer in handle.layers] == ["layers.0", "layers.1"]
    assert handle.generation == 0
    assert handle.plan({0: 2}).request == {"layers.0": 2}
    old = outputs_of(model, torch.ones(1, 4))
    model.expand_layer("layers.0", 2)
    randomise_new_blocks(model)
    with handle.at(0):
        assert_identical(outputs_of(model, torch.ones(1, 4)), old)
    assert model.generation == "third"
    assert handle.generation == 1


def test_the_warning_points_to_the_line_that_calls_growable():
    with pytest.warns(UserWarning, match="has its own") as caught:
        splitgrow.growable(Named(), torch.ones(1, 4))
    assert caught[0].filename == __file__


def test_the_warning_is_given_once():
    model = named()
    splitgrow.growable(model, torch.ones(1, 4))
    copied = copy.deepcopy(model)
    splitgrow.growable(copied, torch.ones(1, 4))
    assert copied.plan() == "a plan"


def test_a_warning_that_is_made_an_error_leaves_the_model_as_it_was():
    model = Named()
    with unchanged(model), pytest.raises(UserWarning, match="has its own"):
        splitgrow.growable(model, torch.ones(1, 4))


class SetLater(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.generation = "set in forward"
        return self.linear(x)


def test_a_name_that_the_model_sets_later_wins_too():
    x = torch.ones(1, 2)
    model: Any = splitgrow.growable(SetLater(), x)
    assert model.generation == 0
    model(x)
    assert model.generation == "set in forward"
    assert splitgrow.handle(model).generation == 0
    assert copy.deepcopy(model).generation == "set in forward"


@pytest.mark.parametrize("name", ["layers", "generation", "expand_layer", "expand", "plan", "at"])
def test_methods_and_properties_carry_their_documentation(name):
    documented = inspect.getattr_static(splitgrow.Handle, name)
    assert vars(type(growable()))[name].__doc__ == documented.__doc__


# --- copies -------------------------------------------------------------------------------------


def by_pickle(model: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(model))


def by_old_pickle(model: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(model, protocol=0))


def by_torch_save(model: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": by_pickle,
    "pickle protocol 0": by_old_pickle,
    "torch.save": by_torch_save,
}
every_copy = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES.keys())


@every_copy
@pytest.mark.parametrize("make", [growable, grown], ids=["fresh", "grown"])
def test_a_copy_is_equal_bit_for_bit_and_knows_all_that_the_model_knows(copied, make):
    model = make()
    twin = copied(model)
    assert type(twin) is type(model)
    assert twin.layers == model.layers
    assert twin.generation == model.generation
    assert splitgrow.handle(twin).edits == splitgrow.handle(model).edits
    assert list(twin.state_dict()) == list(model.state_dict())
    for generation in range(model.generation + 1):
        with twin.at(generation), model.at(generation):
            assert_identical(outputs_of(twin, X), outputs_of(model, X))
        ours, theirs = (len(m.generation_parameters(generation)) for m in (twin, model))
        assert ours == theirs
    for name, parameter in twin.named_parameters():
        assert parameter.requires_grad == model.get_parameter(name).requires_grad


@every_copy
@pytest.mark.parametrize("make", [growable, grown], ids=["fresh", "grown"])
def test_a_copy_grows_on_its_own(copied, make):
    model = make()
    twin = copied(model)
    expected = outputs_of(model, X)
    with unchanged(model):
        state = torch.get_rng_state()
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
        twin.expand_layer("stem", 2, optimizer=optimizer)
        randomise_open_blocks(twin)
        train_steps(twin, INPUTS, optimizer, steps=2)
        twin.next_generation()
        twin.unfreeze()
        torch.set_rng_state(state)
    assert twin.layers[0].width == model.layers[0].width + 2
    assert all(p.requires_grad for p in twin.parameters())
    with unchanged(twin):
        state = torch.get_rng_state()
        model.expand_layer("head", 2)
        torch.set_rng_state(state)
    assert_equal(outputs_of(model, X)[:, : expected.shape[1]], expected)


@every_copy
def test_a_copy_can_be_analysed_again_merged_and_fused(copied):
    twin = copied(grown())
    splitgrow.growable(twin, X)
    assert_equal(outputs_of(splitgrow.merge(twin), X), outputs_of(twin, X))
    assert_equal(outputs_of(splitgrow.fuse(twin), X), outputs_of(twin, X))


def test_a_copy_of_a_copy_of_a_pickle_is_still_growable():
    twin = copy.deepcopy(by_pickle(by_torch_save(grown())))
    twin.expand_layer("stem", 1)
    assert twin.layers[0].width == 10


@pytest.mark.parametrize(
    "use", [copy.deepcopy, pickle.dumps, splitgrow.merge, splitgrow.fuse], ids=lambda u: u.__name__
)
def test_nothing_is_made_of_a_model_while_an_earlier_generation_is_shown(use):
    model = grown()
    expected = outputs_of(model, X)
    with model.at(0), pytest.raises(splitgrow.SplitGrowError, match=r"inside `with model.at"):
        use(model)
    assert_identical(outputs_of(model, X), expected)
    use(model)


def test_a_part_that_is_copied_while_an_earlier_generation_is_shown_is_whole():
    model = grown()
    with model.at(0):
        part = copy.deepcopy(model.stem)
    assert part.view is None
    assert_identical(outputs_of(part, X), outputs_of(model.stem, X))


def test_weights_travel_by_state_dict_between_models_of_equal_growth():
    model, other = grown(), growable(seed=5)
    for edit in splitgrow.handle(model).edits:
        other.expand(dict(edit.request))
    other.load_state_dict(model.state_dict())
    assert_identical(outputs_of(other, X), outputs_of(model, X))


def test_parameters_replaced_by_load_state_dict_are_still_known():
    model = grown()
    expected = outputs_of(model, X)
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    assert_identical(outputs_of(model, X), expected)
    assert not model.stem[0].weight.requires_grad
    parts = [model.generation_parameters(g) for g in range(2)]
    assert [len(part) for part in parts] == [len(grown().generation_parameters(g)) for g in (0, 1)]
    assert splitgrow.merge(model).stem.weight.requires_grad
    model.unfreeze()
    assert all(parameter.requires_grad for parameter in model.parameters())


# --- layers -------------------------------------------------------------------------------------


class Shuffled(nn.Module):
    """Layers that run in another order than they are made in, one of them never."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 2)
        self.never = nn.Linear(6, 7)
        self.middle = nn.Linear(5, 6)
        self.first = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x).relu()))


def test_layers_are_numbered_in_order_of_execution_and_those_never_called_come_last():
    model: Any = splitgrow.growable(Shuffled(), torch.ones(1, 4))
    assert [layer.name for layer in model.layers] == ["first", "middle", "last", "never"]
    assert [layer.index for layer in model.layers] == [0, 1, 2, 3]
    assert [layer.width for layer in model.layers] == [5, 6, 2, 7]
    assert [layer.growable for layer in model.layers] == [True, True, True, False]
    assert "forward does not call it" in model.layers[3].reason
    model.expand_layer(1, 2)
    assert [layer.width for layer in model.layers] == [5, 8, 2, 7]
    assert [layer.name for layer in model.layers] == ["first", "middle", "last", "never"]


def test_a_layer_tells_its_kind_group_readers_and_step():
    stem, depth, body, head = growable().layers
    assert (stem.kind, head.kind) == ("Conv2d", "Linear")
    assert set(stem.group) == {"depth", "body"}
    assert set(depth.group) == {"stem", "body"}
    assert set(body.group) == {"stem", "depth"}
    assert head.group == ()
    assert set(stem.readers) == {"depth", "body", "head"}
    assert head.readers == ()
    assert [layer.step for layer in (stem, depth, body, head)] == [1, 1, 1, 1]
    assert not any(layer.reason for layer in (stem, depth, body, head))


def test_a_layer_that_cannot_grow_has_a_reason_and_no_step():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x + self.first(x))

    first, last = splitgrow.growable(Fixed(), torch.ones(1, 4)).layers
    assert (first.growable, first.step) == (False, 0)
    assert "the model's input `x`" in first.reason
    assert last.growable


def test_steps_are_the_smallest_growth_that_works():
    model: Any = nn.Sequential(
        nn.Conv2d(2, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 6, 1, groups=2), nn.Conv2d(6, 2, 1)
    )
    model = splitgrow.growable(model.double(), X)
    for layer in model.layers:
        twin = copy.deepcopy(model)
        for n in range(1, layer.step):
            with pytest.raises(ValueError, match="does not fit"):
                twin.plan({layer.name: n})
        twin.expand_layer(layer.name, layer.step)
        assert twin.layers[layer.index].width == layer.width + layer.step
        assert twin(X).isfinite().all()
    assert [layer.step for layer in model.layers] == [8, 2, 1]


def test_the_list_of_layers_cannot_be_changed():
    layers = growable().layers
    assert isinstance(layers, tuple)
    with pytest.raises(FrozenInstanceError):
        layers[0].width = 3


# --- plans and edits ----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [growable, grown], ids=["fresh", "grown"])
@pytest.mark.parametrize("freeze", [True, False])
def test_a_plan_changes_nothing_and_equals_the_edit_that_growth_returns(make, freeze):
    model = make()
    optimizer = torch.optim.Adam(model.parameters())
    request = {"stem": 2, "head": 3}
    with unchanged(model, optimizer):
        planned = model.plan(request, freeze=freeze)
    before = sum(p.numel() for p in model.parameters())
    edit = model.expand(request, freeze=freeze, optimizer=optimizer)
    assert edit == planned
    assert hash(edit) == hash(planned)
    assert splitgrow.handle(model).edits[-1] is edit
    assert edit.parameters == sum(p.numel() for p in model.parameters()) - before
    for change in edit.changes:
        assert isinstance(model.get_submodule(change.name), SplitLayer)
        assert model.get_submodule(change.name).sizes() == (change.in_width[1], change.width[1])


def test_a_plan_and_growth_may_name_layers_by_index_or_by_name():
    model = growable()
    assert model.plan({0: 2, 3: 1}) == model.plan({"stem": 2, "head": 1})
    assert model.plan({0: 2}) != model.plan({0: 3})


def test_an_edit_cannot_be_changed():
    edit = growable().plan({"stem": 2})
    with pytest.raises(FrozenInstanceError):
        edit.index = 7
    with pytest.raises(TypeError, match="does not support item assignment"):
        edit.request["stem"] = 3


def test_an_edit_survives_json_and_pickle():
    model = growable()
    for edit in (model.plan({"stem": 2, "head": 1}), model.expand({"head": 1}, freeze=False)):
        text = edit.to_json()
        assert Edit.from_json(text) == edit
        assert Edit.from_json(text).to_json() == text
        assert pickle.loads(pickle.dumps(edit)) == edit
        assert copy.deepcopy(edit) == edit
        assert json.loads(text)["version"] == 2


def _broken(change: Callable[[dict[str, Any]], object]) -> str:
    fields = json.loads(growable().plan({"stem": 2}).to_json())
    change(fields)
    return json.dumps(fields)


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.update(version=1),
        lambda fields: fields.pop("version"),
        lambda fields: fields.pop("changes"),
        lambda fields: fields.pop("request"),
        lambda fields: fields.update(extra=1),
        lambda fields: fields.update(changes=[{}]),
        lambda fields: fields.update(changes=3),
        lambda fields: fields.update(growth=[1]),
        lambda fields: fields["changes"][0].pop("kind"),
        lambda fields: fields["changes"][0].update(ins=[1]),
        lambda fields: fields["changes"][0].update(extra=[1]),
    ],
)
def test_json_that_is_no_edit_is_a_value_error(change):
    with pytest.raises(ValueError, match="not an edit of version 2"):
        Edit.from_json(_broken(change))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"edit"'])
def test_text_that_is_no_edit_is_a_value_error(text):
    with pytest.raises(ValueError, match="not an edit of version 2"):
        Edit.from_json(text)


def test_an_edit_prints_as_a_table():
    lines = str(growable().plan({"stem": 2})).splitlines()
    assert lines[0] == "Edit 1 (generation 1, closes generation 0): stem +2"
    assert lines[1] == "adds 320 parameters to 5 layers"
    assert lines[2].split() == ["layer", "type", "inputs", "units", "blocks", "parameters"]
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[3:]}
    assert rows["stem"] == "Conv2d 2 6 -> 8 new +38"
    assert rows["body"] == "Conv2d 6 -> 8 6 -> 8 helper + new +254"
    assert rows["head"] == "Linear 6 -> 8 3 helper +6"
    starts = {line.index(line.split()[1]) for line in lines[2:]}
    assert len(starts) == 1, "the columns are aligned"


def test_an_edit_that_closes_nothing_says_nothing_of_closing():
    model = growable()
    assert "closes" not in str(model.plan({"head": 1}, freeze=False))
    assert "(generation 0)" in str(model.plan({"head": 1}, freeze=False))


# --- generations --------------------------------------------------------------------------------


def ids(tensors: Any) -> set[int]:
    return {id(tensor) for tensor in tensors}


def test_growth_without_freezing_closes_nothing():
    model = growable().train()
    edit = model.expand_layer("stem", 2, freeze=False)
    assert (edit.generation, edit.closes, model.generation) == (0, None, 0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    before = copy.deepcopy(dict(model.named_buffers()))
    model(X)
    changed = [n for n, b in model.named_buffers() if not torch.equal(b, before[n])]
    assert len(changed) == len(before) > 3


def test_the_first_growth_closes_generation_0_and_later_ones_join_the_open_one():
    model = growable()
    old = list(model.parameters())
    first = model.expand_layer("stem", 2)
    second = model.expand_layer("head", 2)
    assert (first.generation, first.closes) == (1, 0)
    assert (second.generation, second.closes) == (1, None)
    assert model.generation == 1
    assert not any(parameter.requires_grad for parameter in old)
    assert ids(p for p in model.parameters() if p.requires_grad) == ids(
        model.generation_parameters()
    )
    assert ids(model.generation_parameters(0)) == ids(old)


def test_a_later_growth_that_freezes_closes_what_earlier_ones_left_open():
    model = growable()
    model.expand_layer("stem", 2, freeze=False)
    old = list(model.parameters())
    edit = model.expand_layer("stem", 2)
    assert (edit.generation, edit.closes, model.generation) == (1, 0, 1)
    assert not any(parameter.requires_grad for parameter in old)
    with model.at(0):
        assert model.stem(X).shape[1] == 8
    assert model.stem(X).shape[1] == 10


def test_next_generation_freezes_what_is_open_and_counts():
    model = grown()
    assert model.next_generation() == 2 == model.generation
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.generation_parameters() == []
    edit = model.expand_layer("stem", 2)
    assert (edit.generation, edit.closes) == (2, None)
    assert all(parameter.requires_grad for parameter in model.generation_parameters())


def test_next_generation_may_come_before_the_first_growth():
    model = growable()
    assert model.next_generation() == 1
    edit = model.expand_layer("stem", 2)
    assert (edit.generation, edit.closes, model.generation) == (1, None, 1)


def test_the_generations_share_out_all_parameters():
    model = grown()
    for _ in range(3):
        model.next_generation()
        model.expand({"stem": 1, "head": 1})
    parts = [model.generation_parameters(g) for g in range(model.generation + 1)]
    assert len(parts) == 5
    assert all(parts)
    everything = [id(p) for part in parts for p in part]
    assert len(everything) == len(set(everything))
    assert set(everything) == ids(model.parameters())
    assert ids(model.generation_parameters()) == ids(parts[-1])


def test_the_parameters_of_a_generation_can_be_a_group_of_their_own():
    model = growable()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.expand_layer("stem", 2)
    optimizer.add_param_group({"params": model.generation_parameters(), "lr": 0.5})
    randomise_open_blocks(model)
    before = copy.deepcopy(model.state_dict())
    train_steps(model, INPUTS, optimizer, steps=2)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}


def test_unfreeze_lets_everything_train_that_splitgrow_froze_and_nothing_else():
    model = plain()
    model.head.bias.requires_grad_(False)
    model = splitgrow.growable(model, X)
    for _ in range(2):
        model.expand_layer("stem", 2)
        model.next_generation()
    model.train()
    model.unfreeze()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"head.0.bias"}
    assert all(module.training for module in model.modules())
    before = copy.deepcopy(dict(model.named_buffers()))
    model(X)
    assert not any(torch.equal(b, before[n]) for n, b in model.named_buffers())


def test_a_frozen_norm_stays_still_whatever_mode_it_is_put_into():
    model = growable()
    model.expand_layer("head", 1)
    before = copy.deepcopy(dict(model.named_buffers()))
    model.train()
    model(X)
    model.norm.train()
    model(X)
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_reaches_every_block(training):
    model = grown().train(not training)
    assert model.train(training) is model
    assert all(module.training is training for module in model.modules())


@pytest.mark.parametrize("training", [True, False])
def test_new_blocks_take_the_mode_of_their_layer(training):
    model = growable().train(training)
    model.norm.train(not training)
    model.expand_layer("stem", 2, freeze=False)
    assert all(m.training is training for m in model.stem.modules())
    assert all(m.training is not training for m in model.norm.modules())


# --- placement ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_model_can_change_its_dtype_before_and_after_growth(dtype):
    model = growable().to(dtype)
    model.expand_layer("stem", 2)
    assert {p.dtype for p in model.parameters()} == {dtype}
    model.double()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    model.expand_layer("stem", 2)
    randomise_open_blocks(model)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert_equal(outputs_of(splitgrow.merge(model), X), outputs_of(model, X))
    model.next_generation()
    model.unfreeze()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_grows_on_the_meta_device_and_keeps_its_generations():
    model = growable().to("meta")
    model.expand_layer("stem", 2)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model(X.to("meta")).shape == (4, 3)
    model.to_empty(device="cpu")
    model.unfreeze()
    assert all(p.requires_grad for p in model.parameters())
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_a_channels_last_model_stays_channels_last():
    model = growable().to(memory_format=torch.channels_last)
    model.expand_layer("stem", 2)
    for block in (*model.stem, *model.body):
        assert block.weight.is_contiguous(memory_format=torch.channels_last)


# --- split layers pass for stock ones -----------------------------------------------------------


@pytest.mark.parametrize("layer", ["stem", "norm", "depth", "body", "head"])
def test_a_split_layer_answers_like_a_stock_layer_of_its_size(layer):
    model = grown()
    split = model.get_submodule(layer)
    stock = splitgrow.merge(model).get_submodule(layer)
    assert isinstance(split, SplitLayer)
    assert not isinstance(stock, SplitLayer)
    names = [*stock.__constants__, *stock._parameters, *stock._buffers]
    assert len(names) > 3
    for name in names:
        ours, theirs = getattr(split, name), getattr(stock, name)
        if isinstance(theirs, Tensor):
            if name != "num_batches_tracked":
                assert_identical(ours, theirs)
        else:
            assert ours == theirs, name


def test_a_split_layer_has_no_attributes_that_a_stock_layer_does_not_have():
    model = grown()
    for name in ("out_channel", "_weights", "running_mean"):
        assert not hasattr(model.stem, name)
    with pytest.raises(AttributeError, match="out_features"):
        _ = model.stem.out_features


def test_the_assembled_weight_carries_gradients_to_the_blocks():
    model = grown(freeze=False)
    model.zero_grad()
    weight = model.body.weight
    weight.backward(torch.arange(weight.numel(), dtype=weight.dtype).view_as(weight) + 1)
    total = sum(block.weight.grad.sum() for block in model.body)
    assert total == weight.numel() * (weight.numel() + 1) / 2


# --- graph modules ------------------------------------------------------------------------------


def graph_model() -> Any:
    return splitgrow.growable(fx.symbolic_trace(plain()), X)


def test_a_graph_module_can_grow():
    model = graph_model()
    assert isinstance(model, fx.GraphModule)
    old = outputs_of(model, X)
    model.expand_layer("stem", 2)
    assert_equal(outputs_of(model, X), old)
    randomise_open_blocks(model)
    with model.at(0):
        assert_identical(outputs_of(model, X), old)
    merged = splitgrow.merge(model)
    assert isinstance(merged, fx.GraphModule)
    assert not hasattr(merged, "expand_layer")
    assert_equal(outputs_of(merged, X), outputs_of(model, X))
    assert_equal(outputs_of(splitgrow.fuse(model), X), outputs_of(model, X))


def test_a_copy_of_a_graph_module_is_growable():
    model = graph_model()
    model.expand_layer("stem", 2)
    randomise_open_blocks(model)
    twin = copy.deepcopy(copy.deepcopy(model))
    assert_identical(outputs_of(twin, X), outputs_of(model, X))
    assert twin.layers == model.layers
    assert twin.generation == 1
    twin.expand_layer("stem", 2)
    assert twin.layers[0].width == 10
    assert model.layers[0].width == 8
    assert_equal(outputs_of(twin, X), outputs_of(model, X))


class Pickling(nn.Sequential):
    """Pickles itself by its own recipe."""

    def __reduce__(self) -> Any:
        return nn.Sequential, tuple(self)


def test_a_model_that_pickles_itself_in_its_own_way_says_how_to_save_it():
    model: Any = splitgrow.growable(Pickling(nn.Linear(2, 3)), torch.ones(1, 2))
    with (
        unchanged(model),
        pytest.raises(TypeError, match=r"Pickling .*save its state_dict instead"),
    ):
        pickle.dumps(model)


def test_a_growable_graph_module_says_how_to_save_it():
    linear = splitgrow.growable(fx.symbolic_trace(nn.Sequential(nn.Linear(2, 3))), torch.ones(1, 2))
    with pytest.raises(TypeError, match="save its state_dict instead"):
        pickle.dumps(linear)


class Copying(nn.Sequential):
    """Copies itself by its own recipe, as a new object of its class."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return type(self)(*(copy.deepcopy(module, memo) for module in self))


def test_a_model_that_copies_itself_in_its_own_way_is_still_growable():
    x = torch.ones(1, 2)
    model: Any = splitgrow.growable(Copying(nn.Linear(2, 3), nn.Linear(3, 1)), x)
    model.expand_layer(0, 2)
    randomise_open_blocks(model)
    twin = copy.deepcopy(model)
    assert_identical(outputs_of(twin, x), outputs_of(model, x))
    twin.expand_layer(0, 2)
    assert [layer.width for layer in twin.layers] == [7, 1]
    assert [layer.width for layer in model.layers] == [5, 1]
    assert type(splitgrow.merge(twin)) is Copying


def test_a_new_object_of_a_growable_models_class_is_growable_after_its_own_analysis():
    model = growable()
    other: Any = type(model)().double().eval()
    with pytest.raises(splitgrow.SplitGrowError, match="not growable yet"):
        other.expand_layer("stem", 2)
    assert splitgrow.growable(other, X) is other
    assert type(other) is type(model)
    other.expand_layer("stem", 2)
    assert model.layers[0].width == 6


def test_a_norm_that_grows_while_its_past_is_held_trains_its_new_part():
    model = growable().train()
    model.next_generation()
    model(X)  # the held norm turns to evaluation
    model.expand_layer("stem", 1)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    new = [m for m in norms if m.weight.requires_grad]
    assert new
    before = [m.running_mean.clone() for m in new]
    model(X)
    assert not any(torch.equal(m.running_mean, b) for m, b in zip(new, before, strict=True))
    assert all(module.training for module in splitgrow.merge(model).modules())


def test_a_model_does_not_keep_the_data_that_its_example_inputs_are_a_part_of() -> None:
    data = torch.ones(1000, 4)
    model = splitgrow.growable(nn.Sequential(nn.Linear(4, 2)), data[:2])
    (kept,) = history_of(model).inputs.args
    assert kept.untyped_storage().nbytes() == kept.nbytes
    whole = splitgrow.growable(nn.Sequential(nn.Linear(4, 2)), data)
    assert history_of(whole).inputs.args[0].data_ptr() == data.data_ptr()  # which is not copied


TYPED = """
class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(2, 3)

net = Net()
net = splitgrow.growable(net, {"x": torch.ones(1, 2)})
edit: splitgrow.Edit = net.expand_layer("fc", 1)
width: int = net.fc.out_features
handle = splitgrow.handle(net)
names: list[str] = [layer.name for layer in handle.layers]
handle.expand_layer("fc", "many")
"""


@pytest.mark.slow
def test_type_checkers_take_the_first_example_of_the_readme(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    example = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)[0]
    head = "from typing import Any\n\ndef train(model: Any, optimizer: Any) -> None: ...\n\n"
    (tmp_path / "first.py").write_text(head + example + TYPED)
    options = ["--strict", "--cache-dir", str(tmp_path / "cache"), "--follow-untyped-imports"]
    command = [sys.executable, "-m", "mypy", *options, str(tmp_path / "first.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if "first.py" in line and "error" in line]
    assert done.stderr == ""
    assert len(found) == 1, done.stdout  # the control, a text where a number belongs
    assert '"str"; expected "int"' in found[0]

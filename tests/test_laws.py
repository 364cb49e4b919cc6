"""The laws of growth, each over the whole table of models."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import CASES, Case
from helpers import (
    assert_equal,
    assert_identical,
    largest_difference,
    leading,
    outputs_of,
    randomise,
    randomise_new_blocks,
    split_layers,
    tensors_of,
    train_steps,
)
from torch import Tensor, nn

import splitgrow
from splitgrow.growth.history_lookup import history_of

case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


MODES = ("merged", "blockwise")
"""Every law holds in both: of one model where it only runs, of one each where it trains."""


@pytest.fixture(params=MODES)
def _execution(request: pytest.FixtureRequest) -> Iterator[None]:
    with splitgrow.execution(request.param):
        yield


executed = pytest.mark.usefixtures("_execution")
in_turn = pytest.mark.parametrize(
    ("case", "mode"),
    [
        pytest.param(case, MODES[index % 2], id=f"{case.name}-{MODES[index % 2]}")
        for index, case in enumerate(CASES)
    ],
)
"""Each case in one of the modes, every second one in the same."""


def in_both_modes(model: Any, *inputs: Tensor) -> Iterator[Any]:
    """What a model gives in each mode."""
    for mode in MODES:
        with splitgrow.execution(mode):
            yield model(*inputs)


def everything(model: Any, steps: int = 1) -> dict[str, int]:
    """A request that makes every layer grow that can: one layer of those that are tied asks."""
    request: dict[str, int] = {}
    for layer in model.layers:
        if layer.growable and not set(layer.group) & set(request):
            request[layer.name] = steps * layer.step
    return request


def grow_at_once(model: Any) -> None:
    widths = {layer.name: layer.width for layer in model.layers if layer.growable}
    model.expand(everything(model, steps=2))
    assert all(layer.width > widths[layer.name] for layer in model.layers if layer.growable)


def grow_front_to_back(model: Any) -> None:
    for layer in model.layers:
        if layer.growable:
            model.expand_layer(layer.index, layer.step)


def grow_back_to_front(model: Any) -> None:
    for layer in model.layers[::-1]:
        if layer.growable:
            model.expand_layer(layer.name, layer.step)


def grow_each_three_times(model: Any) -> None:
    for layer in model.layers:
        for _ in range(3 if layer.growable else 0):
            model.expand_layer(layer.name, layer.step, check=False)  # the laws do


ORDERS = (grow_at_once, grow_front_to_back, grow_back_to_front, grow_each_three_times)
Grow = Callable[[Any], None]


def growable_case(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Any, tuple[Tensor, ...]]:
    model = randomise(case.model()).to(dtype)
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in case.inputs())
    return splitgrow.growable(model, inputs), inputs


@dataclass(frozen=True)
class Grown:
    """A model that has grown, which the tests that share it leave as it is.

    Attributes:
        case: What it is of.
        model: The model, whose new blocks have values that matter.
        inputs: Its inputs.
        before: What it gave before it grew.
        after: What it gave in each mode when it had grown, and had learned nothing.
    """

    case: Case
    model: Any
    inputs: tuple[Tensor, ...]
    before: Any
    after: list[Any]


PAIRS = [
    pytest.param((case, grow), id=f"{case.name}-{grow.__name__}")
    for case in CASES
    for grow in ORDERS
]


@pytest.fixture(scope="module", params=PAIRS)
def grown(request: pytest.FixtureRequest) -> Grown:
    case, grow = request.param
    model, inputs = growable_case(case)
    before = model(*inputs)
    grow(model)
    after = list(in_both_modes(model, *inputs))
    randomise_new_blocks(model)
    return Grown(case, model, inputs, before, after)


def fused_case(case: Case, model: Any, **options: Any) -> Any:
    """The fused model; where torch.fx cannot trace it, the merged one, with a warning."""
    if case.traceable:
        return splitgrow.fuse(model, **options)
    with pytest.warns(UserWarning, match="merged, not fused: torch.fx cannot trace"):
        return splitgrow.fuse(model, **options)


def batch_norms(model: nn.Module) -> Iterator[nn.Module]:
    return (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))


def by_name(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return dict(zip(inspect.signature(model.forward).parameters, inputs, strict=True))


@case
def test_inputs_by_name_are_the_inputs_by_place(case: Case) -> None:
    placed, inputs = growable_case(case)
    named: Any = randomise(case.model())
    kwargs = by_name(named, inputs)
    named = splitgrow.growable(named, kwargs)
    assert named.layers == placed.layers
    for model in (placed, named):
        torch.manual_seed(0)
        grow_at_once(model)
        torch.manual_seed(0)
        randomise_new_blocks(model)
    assert history_of(named).edits == history_of(placed).edits
    assert_identical(named(**kwargs), placed(*inputs))
    assert_identical(splitgrow.merge(named)(**kwargs), splitgrow.merge(placed)(*inputs))
    assert_identical(fused_case(case, named)(**kwargs), fused_case(case, placed)(*inputs))
    with named.at(0), placed.at(0):
        assert_identical(named(**kwargs), placed(*inputs))
    restored: Any = randomise(case.model())
    restored = splitgrow.growable(restored, example_kwargs=kwargs)
    restored.load_state_dict(placed.state_dict())
    assert_identical(restored(**kwargs), placed(*inputs))


@case
def test_just_the_layers_that_should_grow_can(case: Case) -> None:
    model, _ = growable_case(case)
    assert {layer.name for layer in model.layers if not layer.growable} == case.fixed
    assert all(bool(layer.reason) == (layer.name in case.fixed) for layer in model.layers)
    assert any(layer.growable for layer in model.layers)


def test_1_growth_leaves_the_old_outputs_as_they_were(grown: Grown) -> None:
    assert len(grown.after) == len(MODES)
    for after in grown.after:
        assert_equal(leading(after, grown.before), grown.before)


@case
def test_1_also_in_training_mode_when_nothing_is_frozen(case: Case) -> None:
    model, inputs = growable_case(case)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    before = model(*inputs)
    model.expand(everything(model), freeze=False)
    for after in in_both_modes(model, *inputs):
        assert_equal(leading(after, before), before)


@case
def test_1_control_helpers_that_are_not_zero_change_the_outputs(case: Case) -> None:
    model, inputs = growable_case(case)
    before = model(*inputs)
    grow_at_once(model)
    randomise_new_blocks(model)
    for after in in_both_modes(model, *inputs):
        assert largest_difference(leading(after, before), before) > 1e-3


@in_turn
def test_2_what_existed_does_not_move_by_a_bit(case: Case, mode: Any) -> None:
    with splitgrow.execution(mode):
        _2_what_existed_does_not_move_by_a_bit(case)


def _2_what_existed_does_not_move_by_a_bit(case: Case) -> None:
    model, inputs = growable_case(case)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, weight_decay=1e-2)
    train_steps(model, inputs, optimizer)
    old = {id(p): (p, p.detach().clone()) for p in model.parameters()}
    statistics = {
        id(b): (b, b.clone()) for m in batch_norms(model) for b in m.buffers(recurse=False)
    }
    grow_at_once_with(model, optimizer)
    train_steps(model, inputs, optimizer)
    assert all(torch.equal(now, then) for now, then in old.values())
    assert all(torch.equal(now, then) for now, then in statistics.values())
    assert not any(now.requires_grad for now, _ in old.values())
    new = model.generation_parameters()
    assert new
    assert {id(p) for p in new} == {id(p) for p in model.parameters()} - set(old)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in new)


def grow_at_once_with(model: Any, optimizer: torch.optim.Optimizer, **options: Any) -> None:
    model.expand(everything(model), optimizer=optimizer, **options)


@case
def test_2_control_without_freezing_the_old_parameters_move(case: Case) -> None:
    model, inputs = growable_case(case)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    old = [(p, p.detach().clone()) for p in model.parameters()]
    grow_at_once_with(model, optimizer, freeze=False)
    assert model.generation == 0
    train_steps(model, inputs, optimizer)
    assert any(not torch.equal(now, then) for now, then in old)


@case
@executed
def test_3_closed_generations_come_back_bit_for_bit(case: Case) -> None:
    model, inputs = growable_case(case)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)
    train_steps(model, inputs, optimizer)
    closed = [outputs_of(model, *inputs)]
    for _ in range(3):
        grow_at_once_with(model, optimizer)
        randomise_new_blocks_of_the_open_generation(model)
        train_steps(model, inputs, optimizer)
        closed.append(outputs_of(model, *inputs))
        model.next_generation()
    now = outputs_of(model, *inputs)
    assert len(closed) == model.generation == 4
    for generation, outputs in enumerate(closed):
        with model.at(generation):
            assert_identical(outputs_of(model, *inputs), outputs)
    assert_identical(outputs_of(model, *inputs), now)
    with model.at(0):  # the control: the generations do differ
        assert largest_difference(leading(now, model(*inputs)), model(*inputs)) > 1e-6


@in_turn
def test_3_also_where_most_layers_and_their_norms_never_grew(case: Case, mode: Any) -> None:
    with splitgrow.execution(mode):
        _3_also_where_most_layers_and_their_norms_never_grew(case)


def _3_also_where_most_layers_and_their_norms_never_grew(case: Case) -> None:
    model, inputs = growable_case(case)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, weight_decay=1e-2)
    train_steps(model, inputs, optimizer)
    before = outputs_of(model, *inputs)
    statistics = [(b, b.clone()) for m in batch_norms(model) for b in m.buffers(recurse=False)]
    layer = next(layer for layer in model.layers if layer.growable)
    model.expand_layer(layer.name, layer.step, optimizer=optimizer)
    assert any(type(m) in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear) for m in model.modules())
    randomise_new_blocks(model)
    train_steps(model, inputs, optimizer, steps=5)
    for norm in batch_norms(model):
        norm.train()  # a norm that the user sets in motion by itself is held as well
    train_steps(model, inputs, optimizer)
    assert all(torch.equal(now, then) for now, then in statistics)
    model.eval()
    assert largest_difference(leading(outputs_of(model, *inputs), before), before) > 1e-9
    with model.at(0):
        assert_identical(outputs_of(model, *inputs), before)


@torch.no_grad()
def randomise_new_blocks_of_the_open_generation(model: Any) -> None:
    young = {id(p) for p in model.generation_parameters()}
    for split in split_layers(model):
        for block in split:
            if any(id(p) in young for p in block.parameters()):
                randomise(block)


def test_4_merged_and_fused_networks_equal_the_model(grown: Grown) -> None:
    case, model, inputs = grown.case, grown.model, grown.inputs
    merged, fused = splitgrow.merge(model), fused_case(case, model)
    assert type(merged) is type(case.model())
    assert not list(split_layers(merged))
    fresh = case.plain()
    assert [name for name, _ in merged.named_modules()] == [n for n, _ in fresh.named_modules()]
    assert list(merged.state_dict()) == list(fresh.state_dict())
    for expected in in_both_modes(model, *inputs):
        assert_equal(merged(*inputs), expected)
        assert_equal(fused(*inputs), expected)
    assert isinstance(fused, torch.fx.GraphModule if case.traceable else type(case.model()))
    # GraphModule keeps the paths of its layers by plain modules without a forward of their own.
    inner = {type(m) for name, m in fused.named_modules() if name} if case.traceable else set()
    inner -= {nn.Module, *case.own_layers}
    assert all(layer.__module__.startswith("torch.nn.modules") for layer in inner)


@case
def test_4_also_in_single_precision(case: Case) -> None:
    model, inputs = growable_case(case, torch.float32)
    grow_front_to_back(model)
    randomise_new_blocks(model)
    merged, fused = splitgrow.merge(model), fused_case(case, model)
    for expected in in_both_modes(model, *inputs):
        assert_equal(merged(*inputs), expected)
        assert_equal(fused(*inputs), expected)


@case
def test_4_also_in_training_mode_when_nothing_is_frozen(case: Case) -> None:
    model, inputs = growable_case(case)
    model.expand(everything(model), freeze=False)
    randomise_new_blocks(model)
    merged = splitgrow.merge(model)
    for network in (model, merged):
        network.train()
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    for trained in in_both_modes(model, *inputs):
        assert_equal(merged(*inputs), trained)
    # and the statistics that they then hold are the same
    model.eval()
    assert_equal(splitgrow.merge(model)(*inputs), merged.eval()(*inputs))


@case
def test_4_an_earlier_generation_merges_and_fuses_too(case: Case) -> None:
    model, inputs = growable_case(case)
    grow_at_once(model)
    randomise_new_blocks(model)
    closed = list(in_both_modes(model, *inputs))
    model.next_generation()
    grow_at_once(model)
    randomise_new_blocks_of_the_open_generation(model)
    merged, fused = splitgrow.merge(model, generation=1), fused_case(case, model, generation=1)
    for expected in closed:
        assert_equal(merged(*inputs), expected)
        assert_equal(fused(*inputs), expected)
    first = splitgrow.merge(model, generation=0)
    assert_equal(first(*inputs), randomise(case.model())(*inputs))
    assert {n: t.shape for n, t in first.state_dict().items()} == {
        n: t.shape for n, t in case.model().state_dict().items()
    }


@case
def test_4_control_a_wrong_weight_is_seen(case: Case) -> None:
    model, inputs = growable_case(case)
    grow_at_once(model)
    randomise_new_blocks(model)
    merged = splitgrow.merge(model)
    new = next(block for split in split_layers(model) for block in list(split)[1:])
    with torch.no_grad():
        next(new.parameters()).add_(0.1)
    assert largest_difference(merged(*inputs), model(*inputs)) > 1e-6


@case
def test_merging_and_fusing_leave_the_model_untouched(case: Case) -> None:
    model, _ = growable_case(case)
    grow_at_once(model)
    model.train()
    before = copy.deepcopy(model.state_dict())
    flags = [(m, m.training) for m in model.modules()]
    splitgrow.merge(model)
    fused_case(case, model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(module.training == training for module, training in flags)


def test_8_gradients_equal_those_of_the_plain_network(grown: Grown) -> None:
    inputs, model = grown.inputs, copy.deepcopy(grown.model)
    if grown.case.computed:
        pytest.skip("the gradients are those of other tensors: test_parametrized_layers has them")
    model.unfreeze()
    merged = splitgrow.merge(model)
    given, expected = gradients(merged, inputs)
    expected = {name: gradient for name, gradient in expected.items() if gradient is not None}
    assert expected
    scale = max(gradient.abs().max().item() for gradient in expected.values())
    for mode in MODES:
        with splitgrow.execution(mode):
            ours, _ = gradients(model, inputs)
        if ours:
            assert_equal(ours, given)
        arranged = dict(splitgrow.merge(with_gradients_as_weights(model)).named_parameters())
        for name, gradient in expected.items():
            assert (arranged[name] - gradient).abs().max().item() <= 1e-12 * scale


def gradients(
    network: nn.Module, inputs: tuple[Tensor, ...]
) -> tuple[list[Any], dict[str, Tensor | None]]:
    """Those of the inputs and, by name, of the parameters, which keep them too."""
    network.zero_grad()
    own = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    sum((y * y.detach().cos()).sum() for y in tensors_of(network(*own))).backward()
    parameters = {name: p.grad for name, p in network.named_parameters()}
    return [x.grad for x in own if x.requires_grad], parameters


def with_gradients_as_weights(model: Any) -> Any:
    """A copy whose merged weights are the gradients, sliced as the weights are."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for mine, theirs in zip(made.parameters(), model.parameters(), strict=True):
            mine.copy_(torch.zeros_like(theirs) if theirs.grad is None else theirs.grad)
        for split in split_layers(made):
            if (
                split.layer_type.merging.couples
            ):  # a block's weight counts sqrt(born / now) times, in both ways
                for block, purpose in zip(split, split.blocks, strict=True):
                    block.weight.div_(split.outs.until(purpose.edit).length / split.outs.length)
    return made


def test_the_comparison_fails_on_a_wrong_answer() -> None:
    right = torch.ones(3, dtype=torch.float64)
    wrong = right + torch.tensor([0.0, 0.0, 1e-11], dtype=torch.float64)
    assert_equal(right, right.clone())
    with pytest.raises(AssertionError):
        assert_equal(wrong, right)
    with pytest.raises(AssertionError):
        assert_identical(wrong, right)
    with pytest.raises(AssertionError):
        assert_equal(right[:2], right)

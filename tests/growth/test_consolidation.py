"""`consolidate` makes the blocks of many growths in one generation those of a single one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import CASES, Case
from grown_layers import grown_case
from helpers import (
    assert_equal,
    assert_identical,
    largest_difference,
    outputs_of,
    randomise_new_blocks,
    split_layers,
    tensors_of,
    train_steps,
)
from snapshots import unchanged
from torch import Tensor, nn

import splitgrow
from splitgrow.growth import consolidation
from splitgrow.growth.edits import Edit

case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


MODES = ("merged", "blockwise")


def in_both_modes(model: Any, *inputs: Tensor) -> Iterator[Any]:
    """What a model gives in each mode."""
    for mode in MODES:
        with splitgrow.execution(mode):
            yield outputs_of(model, *inputs)


def joinable(model: nn.Module) -> list[Any]:
    return [split for split in split_layers(model) if split.layer_type.merging.joins_new]


@case
def test_the_function_stays_and_each_layer_has_the_blocks_of_one_growth(case: Case) -> None:
    model, inputs = grown_case(case)
    before = outputs_of(model, *inputs)
    with model.at(0):
        closed = outputs_of(model, *inputs)
    many = joinable(model)
    counts = [len(split) for split in many]
    assert max(counts) > 3
    edit = model.consolidate()
    for joined in in_both_modes(model, *inputs):
        assert_equal(joined, before)
    assert max(len(split) for split in many) <= 3
    assert sum(len(split) for split in many) < sum(counts)
    assert {layer.name for layer in edit.joined} <= {name for name, _ in model.named_modules()}
    assert Edit.from_json(edit.to_json()) == edit
    with model.at(0):
        assert_identical(outputs_of(model, *inputs), closed)
    assert_equal(splitgrow.merge(model)(*inputs), before)


@pytest.mark.parametrize(
    ("case", "mode"),
    [
        pytest.param(case, MODES[index % 2], id=f"{case.name}-{MODES[index % 2]}")
        for index, case in enumerate(CASES)
    ],
)
def test_training_goes_on_as_it_would_have(case: Case, mode: Any) -> None:
    """With momentum and weight decay, step by step, the same values as without joining."""
    with splitgrow.execution(mode):
        _assert_training_goes_on(case)


def _assert_training_goes_on(case: Case) -> None:
    model, inputs = grown_case(case, rounds=1)
    if any(split.layer_type.merging.couples for split in split_layers(model)):
        pytest.skip("its norms start at zero")
    for layer in model.layers:
        if layer.growable:
            model.expand_layer(layer.name, layer.step)
    randomise_new_blocks(model)
    apart = copy.deepcopy(model)
    after = []
    for one in (apart, model):
        torch.manual_seed(0)  # for dropout
        trained = [p for p in one.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9, weight_decay=1e-2)
        train_steps(one, inputs, optimizer)
        if one is model:
            assert one.consolidate(optimizer=optimizer)
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            assert held == {id(p) for p in model.parameters() if p.requires_grad}
        train_steps(one, inputs, optimizer)
        after.append(outputs_of(one, *inputs))
    assert largest_difference(after[1], after[0]) < 1e-10


class Net(nn.Module):
    """Convolutions, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.head = nn.Linear(4 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.norm(self.stem(x)).relu()).flatten(1))


def net(times: int = 4, **options: Any) -> Any:
    torch.manual_seed(0)
    model = splitgrow.growable(Net().double(), torch.randn(2, 2, 3, 3, dtype=torch.float64))
    for _ in range(times):
        model.expand({"stem": 1, "body": 2}, **options)
    randomise_new_blocks(model)
    return model


def x(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 2, 3, 3, generator=generator, dtype=torch.float64)


def test_only_the_open_generation_is_joined_and_the_closed_stay_bit_for_bit() -> None:
    model = net(times=3).eval()
    first = outputs_of(model, x())
    model.next_generation()
    for _ in range(3):
        model.expand({"stem": 2, "body": 1})
    randomise_last = list(model.generation_parameters())
    with torch.no_grad():
        for parameter in randomise_last:
            parameter.normal_()
    closed = {id(p) for p in model.generation_parameters(1)}
    edit = model.consolidate()
    assert {births for layer in edit.joined for births in layer.edits} == {4, 5, 6}
    assert {id(p) for p in model.generation_parameters(1)} == closed
    with model.at(1):
        assert_identical(outputs_of(model, x()), first)
    assert sum(p.numel() for p in model.generation_parameters()) == sum(
        p.numel() for p in randomise_last
    )


def test_growth_goes_on_afterwards() -> None:
    model, plain = net(), net()
    model.consolidate()
    for one in (model, plain):
        torch.manual_seed(3)
        one.expand({"stem": 3, "body": 1})
    assert_equal(outputs_of(model, x()), outputs_of(plain, x()))
    assert [edit.index for edit in splitgrow.handle(model).edits] == [1, 2, 3, 4, 5, 6]
    assert_equal(splitgrow.fuse(model)(x()), outputs_of(model.eval(), x()))
    again = copy.deepcopy(model)
    assert again.consolidate() is not None
    assert_equal(outputs_of(again, x()), outputs_of(model, x()))
    assert splitgrow.growable(again, x()).consolidate() is None


def test_gradients_and_adams_state_are_joined() -> None:
    """As of parameters that had been there all along, with no gradient until they were."""
    model = net(times=1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        model(x()).square().mean().backward()
        optimizer.step()

    step()
    model.expand({"stem": 1, "body": 1}, optimizer=optimizer)
    step()
    gradient = model.body[1].weight.grad.clone(), model.body[3].weight.grad.clone()
    moments = optimizer.state[model.body[1].weight]["exp_avg"].clone()
    model.consolidate(optimizer=optimizer)
    helper = model.body[1].weight
    assert torch.equal(helper.grad[:, :1], gradient[0])
    assert torch.equal(helper.grad[:, 1:], gradient[1][:4])
    assert torch.equal(optimizer.state[helper]["exp_avg"][:, :1], moments)
    assert optimizer.state[helper]["step"] == 2
    assert len(optimizer.state) == sum(len(group["params"]) for group in optimizer.param_groups)
    step()


def test_names_of_parameters_in_the_optimizer_follow() -> None:
    model = net()
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(named, lr=1e-3)
    model.consolidate(optimizer=optimizer)
    (group,) = optimizer.param_groups
    now = dict(model.named_parameters())
    assert [id(p) for p in group["params"]] == [id(now[name]) for name in group["param_names"]]


@pytest.mark.parametrize("freeze", [True, False])
def test_what_had_nothing_to_join_says_so_and_is_left_alone(freeze: bool) -> None:
    model = net(times=1, freeze=freeze)
    with unchanged(model):
        assert model.consolidate() is None
    assert net(times=0).consolidate() is None


def _freeze_one(model: Any) -> None:
    model.body[1].weight.requires_grad_(False)


def _hook_one(model: Any) -> None:
    model.body[1].register_forward_hook(lambda *_: None)


def _hook_a_parameter(model: Any) -> None:
    model.body[1].weight.register_hook(lambda gradient: gradient)


def _share(model: Any) -> None:
    model.body[1].weight.share_memory_()


@pytest.mark.parametrize("treat", [_freeze_one, _hook_one, _hook_a_parameter, _share])
def test_a_layer_of_which_one_block_was_treated_otherwise_keeps_its_blocks(treat: Any) -> None:
    model = net()
    before = outputs_of(model, x())
    treat(model)
    blocks = list(model.body)
    edit = model.consolidate()
    assert [layer.name for layer in edit.joined] == ["stem", "norm", "head"]
    assert list(model.body) == blocks
    assert_equal(outputs_of(model, x()), before)


def test_parts_in_different_groups_are_refused_by_name_and_nothing_changes() -> None:
    model = net(times=1)
    optimizer = torch.optim.SGD(model.generation_parameters(), lr=1e-3, momentum=0.9)
    old = {id(p) for p in model.generation_parameters()}
    model.expand({"stem": 1})
    new = [p for p in model.generation_parameters() if id(p) not in old]
    optimizer.add_param_group({"params": new, "lr": 1.0})
    with unchanged(model, optimizer), pytest.raises(splitgrow.OptimizerError, match=r"stem\.1"):
        model.consolidate(optimizer=optimizer)


def test_state_that_does_not_lie_as_the_parameter_is_refused() -> None:
    model = net()
    optimizer = torch.optim.Adafactor([p for p in model.parameters() if p.requires_grad])
    model(x()).square().mean().backward()
    optimizer.step()
    with (
        unchanged(model, optimizer),
        pytest.raises(splitgrow.OptimizerError, match="has state of other shapes"),
    ):
        model.consolidate(optimizer=optimizer)


def test_bad_input_is_refused() -> None:
    model = net()
    with unchanged(model), pytest.raises(TypeError, match=r"torch\.optim"):
        model.consolidate(optimizer=3)
    with model.at(0), pytest.raises(splitgrow.SplitGrowError, match="cannot consolidate inside"):
        model.consolidate()
    model.body = nn.Conv2d(4, 4, 3)
    with unchanged(model), pytest.raises(splitgrow.StructureChangedError):
        model.consolidate()


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("step", ["set_blocks_", "replace_", "structure"])
def test_an_interruption_leaves_all_as_it_was(
    monkeypatch: pytest.MonkeyPatch, step: str, error: type[BaseException]
) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.generation_parameters(), lr=1e-3, momentum=0.9)
    train_steps(model, (x(),), optimizer)
    original = getattr(consolidation, step)
    calls = []

    def failing(*args: Any) -> Any:
        result = original(*args)
        calls.append(step)
        if len(calls) == (2 if step == "set_blocks_" else 1):
            raise error
        return result

    monkeypatch.setattr(consolidation, step, failing)
    with unchanged(model, optimizer), pytest.raises(error):
        model.consolidate(optimizer=optimizer)
    assert calls


def test_random_numbers_are_not_drawn() -> None:
    model = net()
    state = torch.get_rng_state()
    model.consolidate()
    assert torch.equal(torch.get_rng_state(), state)


def test_after_unfreezing_the_open_generation_still_joins() -> None:
    model = net()
    model.unfreeze()
    before = outputs_of(model, x())
    assert model.consolidate() is not None
    assert_equal(outputs_of(model, x()), before)
    assert all(t.isfinite().all() for t in tensors_of(model(x())))

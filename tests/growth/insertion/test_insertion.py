"""Layers inserted mid-network: exact at first, then like any other layer."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES, Case
from helpers import (
    assert_equal,
    assert_identical,
    largest_difference,
    outputs_of,
    randomise,
    train_steps,
)
from snapshots import unchanged
from torch import Tensor, nn
from torch.nn import functional as F

import splitgrow
from splitgrow.growth.edits import Edit
from splitgrow.growth.insertion import insertion
from splitgrow.layers.insertion_wrapper import InsertionWrapper

case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
KINDS = ("identity", "residual", "gate")
kind = pytest.mark.parametrize("kind", KINDS)


def growable_case(case: Case) -> tuple[Any, tuple[Tensor, ...]]:
    model = randomise(case.model()).double()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in case.inputs())
    return splitgrow.growable(model, inputs), inputs


def insert_everywhere(model: Any, kind: str, **options: Any) -> list[Edit]:
    """Insertions behind up to four layers of the model, from the first to the last."""
    edits = []
    names = [layer.name for layer in model.layers]
    for name in dict.fromkeys(names[len(names) * place // 4] for place in range(4)):
        try:
            edits.append(model.insert_layer(name, kind, **options))
        except splitgrow.InsertionError:
            continue
    return edits


@torch.no_grad()
def disturb(model: Any, scale: float = 0.1) -> None:
    """Values in everything that trains that a formula could not hide behind."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter), alpha=scale)


@case
@kind
def test_what_is_inserted_changes_nothing_at_first_and_then_merges_and_leaves_the_past(
    case: Case, kind: str
) -> None:
    model, inputs = growable_case(case)
    before = outputs_of(model, *inputs)
    keys = list(model.state_dict())
    edits = insert_everywhere(model, kind)
    assert edits or kind == "identity" or case.name in NOWHERE
    assert_equal(outputs_of(model, *inputs), before)
    assert set(keys) <= set(model.state_dict())
    for edit in edits:
        assert Edit.from_json(edit.to_json()) == edit
        assert edit.parameters > 0
    if edits:
        _assert_the_laws_hold(case, model, inputs, before)


def _assert_the_laws_hold(case: Case, model: Any, inputs: tuple[Tensor, ...], before: Any) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    train_steps(model, inputs, torch.optim.SGD(trained, lr=1e-3, momentum=0.9))
    disturb(model)
    now = outputs_of(model, *inputs)
    assert largest_difference(now, before) > 1e-6  # the control
    with model.at(0):
        assert_identical(outputs_of(model, *inputs), before)
    merged = splitgrow.merge(model).eval()
    assert_equal(outputs_of(merged, *inputs), now)
    kept = {type(m) for m in merged.modules() if type(m).__module__.startswith("splitgrow")}
    own: set[type] = {splitgrow.SharedKernelConv1d, splitgrow.SharedKernelConv2d}  # the model's
    if not all(
        item.tensor_result for edit in splitgrow.handle(model).edits for item in edit.inserted
    ):
        own.add(InsertionWrapper)  # it hands on the other results of a recurrent layer
    assert kept <= own
    assert_equal(outputs_of(splitgrow.merge(model, 0).eval(), *inputs), before)
    traceable = case.traceable and InsertionWrapper not in own
    fused = splitgrow.fuse(model) if traceable else merged
    assert_equal(outputs_of(fused, *inputs), now)


NOWHERE = {"cells"}
"""The cases in which each layer is called more than once, or not at all."""


class Net(nn.Module):
    """Convolutions with norms, a residual block that uses its ReLU twice, a pool and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.block = Block(4)
        self.gelu = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.relu(self.norm(self.stem(x))))
        return self.head(F.gelu(self.gelu(x)).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + x)


def net() -> Any:
    torch.manual_seed(0)
    return splitgrow.growable(randomise(Net()).double().eval(), x())


def x(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 2, 5, 5, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("after", "place"),
    [
        ("stem", "behind relu, as relu.inserted1: Conv2d + BatchNorm2d + ReLU"),
        ("relu", "behind relu"),
        ("block", "behind block"),
        ("block.conv1", "in front of block.conv2"),
        (("stem", "block"), "in front of block"),
        (("block.conv1", "block.conv2"), "in front of block.conv2"),
        (0, "behind relu"),
    ],
)
def test_a_place_is_behind_the_norm_and_activation_of_a_layer(after: Any, place: str) -> None:
    model = net()
    before = outputs_of(model, x())
    plan = model.plan_insertion(after, "identity")
    with unchanged(model):
        model.plan_insertion(after, "identity")
    edit = model.insert_layer(after, "identity")
    assert str(plan) == str(edit)
    assert place in str(edit)
    assert_equal(outputs_of(model, x()), before)


def test_an_identity_is_refused_where_its_activation_is_not_idempotent() -> None:
    other: Any = nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 1)).double()
    other = splitgrow.growable(other, torch.randn(1, 2, dtype=torch.float64))
    with unchanged(other), pytest.raises(splitgrow.InsertionError, match="GELU changes values"):
        other.insert_layer("0", "identity")
    model = net()
    with unchanged(model), pytest.raises(splitgrow.InsertionError, match="ReLU changes values"):
        model.insert_layer("head", "identity")
    before = outputs_of(model, x())
    model.insert_layer("head", "identity", activation=nn.Identity())
    model.insert_layer("block", "identity", activation=nn.LeakyReLU())
    assert_equal(outputs_of(model, x()), before)


def test_a_convolution_takes_an_identity_by_the_dirac_kernel() -> None:
    model = net()
    model.insert_layer("block", "identity", kernel_size=5)
    conv = model.get_submodule("block.inserted1.0")
    made = conv(x()[:, :1].expand(-1, 4, -1, -1))
    assert_equal(made, x()[:, :1].expand(-1, 4, -1, -1))
    assert conv.weight.shape == (4, 4, 5, 5)


def test_a_gate_of_ones_would_change_the_function_and_ours_does_not() -> None:
    model = net()
    before = outputs_of(model, x())
    model.insert_layer("block", "gate")
    assert_identical(outputs_of(model, x()), before)
    gate = model.get_submodule("block.inserted1")
    with torch.no_grad():
        gate.weight.fill_(1)
        gate.bias.zero_()
    assert largest_difference(outputs_of(model, x()), before) > 1e-3


def test_the_identitys_norm_starts_with_the_statistics_of_a_rectified_normal() -> None:
    model = net()
    model.insert_layer("stem", "identity")
    norm = model.get_submodule("relu.inserted1.1")
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(400_000, 4, generator=generator, dtype=torch.float64)
    seen = (normal * model.norm.weight + model.norm.bias).relu()
    assert torch.allclose(norm.running_mean, seen.mean(0), atol=5e-3)
    assert torch.allclose(norm.running_var, seen.var(0), atol=1e-2)


def test_what_is_new_trains_and_what_was_there_does_not() -> None:
    model = net().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, weight_decay=1e-2)
    train_steps(model, (x(),), optimizer)
    old = {id(p): p.detach().clone() for p in model.parameters()}
    groups = [len(group["params"]) for group in optimizer.param_groups]
    edit = model.insert_layer("block", "residual", optimizer=optimizer)
    new = model.generation_parameters()
    assert len(new) == 4 == len(optimizer.param_groups[0]["params"]) - groups[0]
    assert edit.parameters == sum(p.numel() for p in new)
    before = [p.detach().clone() for p in new]
    train_steps(model, (x(),), optimizer)
    assert all(torch.equal(old[id(p)], p) for p in model.parameters() if id(p) in old)
    assert not any(torch.equal(p, q) for p, q in zip(new, before, strict=True))
    model.unfreeze()
    assert all(p.requires_grad for p in model.parameters())


def test_what_is_inserted_behind_an_activation_joins_the_group_of_the_layer_before() -> None:
    model = net()
    rest = [p for name, p in model.named_parameters() if not name.startswith("stem")]
    groups: list[Any] = [{"params": rest}, {"params": list(model.stem.parameters()), "lr": 1e-3}]
    optimizer = torch.optim.SGD(groups, lr=1e-2)
    edit = model.insert_layer("stem", "identity", optimizer=optimizer)
    assert edit.inserted[0].host == "relu"
    layer, norm = (model.get_submodule(f"{edit.inserted[0].name}.{i}") for i in (0, 1))
    for group, module in zip(optimizer.param_groups, (norm, layer), strict=True):
        members = {id(p) for p in group["params"]}  # a norm's parameters go where norms are
        assert {id(p) for p in module.parameters()} <= members


def test_what_is_inserted_joins_the_group_of_the_parameter_of_its_own_name() -> None:
    model = net()
    named = dict(model.named_parameters())
    biases = [p for name, p in named.items() if name.endswith("bias")]
    weights = [p for name, p in named.items() if not name.endswith("bias")]
    groups: list[Any] = [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=1e-2, weight_decay=0.1)
    model.insert_layer("stem", "identity", optimizer=optimizer)
    model.insert_layer("block", "residual", optimizer=optimizer)
    new = {name: p for name, p in model.named_parameters() if name not in named}
    new = {name: p for name, p in new.items() if "inserted" in name}
    assert {name.endswith("bias") for name in new} == {True, False}
    for name, parameter in new.items():
        members = optimizer.param_groups[name.endswith("bias")]["params"]
        assert any(parameter is member for member in members), name


def test_a_copy_of_a_frozen_block_learns() -> None:
    model = net().train()
    model.insert_layer("stem", "gate")  # closes generation 0, with the block in it
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    model.insert_layer("block", "block", optimizer=optimizer)
    copied = model.get_submodule("block.inserted2")
    assert all(p.requires_grad for p in copied.parameters())
    frozen = {name: t.clone() for name, t in model.block.wrapped.state_dict().items()}
    before = {name: t.clone() for name, t in copied.state_dict().items()}
    train_steps(model, (x(),), optimizer)
    moving = {name for name, t in copied.state_dict().items() if not torch.equal(t, before[name])}
    assert {name for name in before if "running_mean" in name} <= moving
    assert any(name.endswith("weight") for name in moving)
    assert_identical(model.block.wrapped.state_dict(), frozen)


def test_what_was_inserted_grows_in_width_and_depth_like_any_other() -> None:
    model = net()
    before = outputs_of(model, x())
    model.insert_layer("block", "residual", form="bottleneck")
    model.insert_layer("stem", "identity")
    inner = "block.inserted1.0"
    assert {layer.name for layer in model.layers} >= {inner, "relu.inserted2.0"}
    model.expand({inner: 3, "relu.inserted2.0": 2})
    model.expand_layer("stem", 2)
    model.insert_layer(inner, "identity")
    model.insert_layer("block", "gate")
    model.next_generation()
    model.insert_layer("block.inserted1", "residual")
    model.expand_layer("block.conv1", 2)
    assert_equal(outputs_of(model, x()), before)
    disturb(model)
    now = outputs_of(model, x())
    assert_equal(outputs_of(splitgrow.merge(model), x()), now)
    assert_equal(outputs_of(splitgrow.fuse(model), x()), now)
    with model.at(0):
        assert_identical(outputs_of(model, x()), before)
    with model.at(1):
        assert_equal(outputs_of(model, x()), before)


def test_the_newest_insertion_lies_next_to_its_module() -> None:
    model = net()
    for _ in range(3):
        model.insert_layer("block", "residual")
    (wrapper,) = (m for m in model.modules() if isinstance(m, InsertionWrapper))
    assert [item.edit for item in wrapper.inserted] == [3, 2, 1]


def test_a_given_module_becomes_a_branch_whose_last_layer_is_zero() -> None:
    model = net()
    before = outputs_of(model, x())
    branch = nn.Sequential(nn.Conv2d(4, 6, 1), nn.Tanh(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4))
    branch = branch.double()
    first = branch[0].weight.detach().clone()
    edit = model.insert_layer("block", "residual", module=branch)
    assert model.get_submodule(edit.inserted[0].name) is branch
    assert torch.equal(branch[0].weight, first)
    assert not branch[3].weight.any()
    assert not branch[3].bias.any()
    assert_equal(outputs_of(model, x()), before)


@pytest.mark.parametrize(
    ("branch", "match"),
    [
        (lambda: nn.Conv2d(4, 5, 1), "keep the shape"),
        (lambda: nn.Conv2d(5, 4, 1), "does not run"),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.Softplus()), "is not zero"),
        (nn.Softplus, "is not zero"),
    ],
)
def test_a_given_module_that_does_not_fit_is_refused_and_left_as_it_was(
    branch: Callable[[], nn.Module], match: str
) -> None:
    model, module = net(), branch().double()
    refused = pytest.raises(splitgrow.InsertionError, match=match)
    with unchanged(model), unchanged(module), refused:
        model.insert_layer("block", "residual", module=module)


def test_any_module_that_keeps_the_shape_can_fade_in() -> None:
    model = net()
    before = outputs_of(model, x())
    module = randomise(nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 4, 1)))
    module = module.double()
    model.insert_layer("block", "fade", module=module)
    assert_identical(outputs_of(model, x()), before)
    assert "block.inserted1.new.0" in {layer.name for layer in model.layers}
    model.expand_layer("block.inserted1.new.0", 3)
    assert_equal(outputs_of(model, x()), before)
    assert_equal(outputs_of(splitgrow.fuse(model), x()), before)
    schedule = splitgrow.FadeSchedule(model, 4)
    for _ in range(2):
        schedule.step()
    halfway = outputs_of(model, x())
    assert largest_difference(halfway, before) > 1e-3
    assert_equal(outputs_of(splitgrow.fuse(model), x()), halfway)
    for _ in range(2):
        schedule.step()
    now = outputs_of(model, x())
    fused = splitgrow.fuse(model)
    assert_equal(outputs_of(fused, x()), now)
    assert not any("fade" in name.lower() or "lerp" in name for name in str(fused.graph).split())
    with model.at(0):
        assert_identical(outputs_of(model, x()), before)
    wider = nn.Conv2d(4, 5, 1).double()
    with unchanged(model), pytest.raises(splitgrow.InsertionError, match="keep the shape"):
        model.insert_layer("block", "fade", module=wider)


def test_a_module_takes_the_place_of_another_little_by_little() -> None:
    model = net()
    before = outputs_of(model, x())
    new = randomise(nn.Sequential(nn.Conv2d(4, 7, 3, padding=1), nn.ReLU(), nn.Conv2d(7, 4, 1)))
    edit = model.insert_layer("block", "replacement", module=new.double())
    assert_identical(outputs_of(model, x()), before)
    assert_equal(outputs_of(splitgrow.merge(model), x()), before)
    inner = edit.inserted[0].name + ".new.module.0"
    model.expand_layer(inner, 2)
    schedule = splitgrow.FadeSchedule(model, 2)
    schedule.step()
    halfway = outputs_of(model, x())
    assert_equal(outputs_of(splitgrow.fuse(model), x()), halfway)
    schedule.step()
    now = outputs_of(model, x())
    expected = model.head(
        F.gelu(model.gelu(new(model.relu(model.norm(model.stem(x())))))).mean((2, 3))
    )
    assert_equal(now, expected)
    fused = splitgrow.fuse(model)
    assert_equal(outputs_of(fused, x()), now)
    assert not any(name.startswith("block.original") for name, _ in fused.named_modules())
    with model.at(0):
        assert_identical(outputs_of(model, x()), before)
    wider = nn.Conv2d(4, 5, 1).double()
    with unchanged(model), pytest.raises(splitgrow.InsertionError, match=r"makes .* replace it"):
        model.insert_layer("block", "replacement", module=wider)
    narrow = nn.Conv2d(3, 5, 1).double()
    with unchanged(model), pytest.raises(splitgrow.InsertionError, match="does not run"):
        model.insert_layer("stem", "replacement", module=narrow)


def test_a_closed_generation_keeps_the_share_of_its_fades() -> None:
    model = net()
    module = randomise(nn.Conv2d(4, 4, 3, padding=1)).double()
    model.insert_layer("block", "fade", module=module)
    schedule = splitgrow.FadeSchedule(model, 4)
    schedule.step()
    quarter = outputs_of(model, x())
    model.next_generation()
    for _ in range(3):
        schedule.step()
    now = outputs_of(model, x())
    assert largest_difference(now, quarter) > 1e-3
    with model.at(1):
        assert_identical(outputs_of(model, x()), quarter)
    assert_identical(outputs_of(model, x()), now)
    assert_equal(outputs_of(splitgrow.merge(model, 1), x()), quarter)
    assert_equal(outputs_of(splitgrow.fuse(model, generation=1), x()), quarter)
    with copy.deepcopy(model).at(1) as copied:
        assert_identical(outputs_of(copied, x()), quarter)


def test_a_block_is_copied_with_its_branch_at_zero() -> None:
    model = net()
    model.expand_layer("block.conv1", 3)
    model.next_generation()
    before = outputs_of(model, x())
    edit = model.insert_layer("block", "block")
    assert edit.inserted[0].type == "Conv2d + BatchNorm2d + ReLU + Conv2d + BatchNorm2d"
    new = model.get_submodule("block.inserted2")
    assert new.conv1.out_channels == 7
    assert torch.equal(new.conv2.weight, model.block.conv2.weight)
    assert not new.bn2.weight.any()
    assert_equal(outputs_of(model, x()), before)
    model.expand_layer("block.inserted2.conv1", 2)
    assert_equal(outputs_of(model, x()), before)


@pytest.mark.parametrize("training", [True, False])
def test_a_copied_block_is_in_the_mode_of_the_model(training: bool) -> None:
    model = net().train(training)
    model.insert_layer("block", "block")
    copied = model.get_submodule("block.inserted1")
    assert {module.training for module in copied.modules()} == {training}


def test_blocks_that_a_copy_could_not_follow_are_refused() -> None:
    model = net()
    with unchanged(model), pytest.raises(splitgrow.InsertionError, match="no residual branch"):
        model.insert_layer("relu", "block")
    with unchanged(model), pytest.raises(splitgrow.InsertionError, match="keeps the shape"):
        model.insert_layer("stem", "block")

    class PostNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x + self.linear(x))

    other = randomise(nn.Sequential(PostNorm(), nn.Linear(4, 2)))
    other = splitgrow.growable(other, torch.randn(2, 4))
    with unchanged(other), pytest.raises(splitgrow.InsertionError, match="would change"):
        other.insert_layer("0", "block")


def test_a_module_that_is_called_twice_is_refused() -> None:
    model = net()
    with unchanged(model), pytest.raises(splitgrow.InsertionError, match="called 2 times"):
        model.insert_layer("block.relu", "residual")


@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        (("steam",), {}, ValueError, "did you mean 'stem'"),
        ((99,), {}, ValueError, "no layer 99"),
        ((1.5,), {}, TypeError, "index, a module's path or an edge"),
        ((("stem",),), {}, ValueError, "an edge is"),
        ((("stem", "head"),), {}, splitgrow.InsertionError, "does not read"),
        (("stem", "mirror"), {}, ValueError, "no kind 'mirror'"),
        (("stem",), {"form": "wide"}, ValueError, "no form"),
        (("stem",), {"kernel_size": 4}, ValueError, "odd"),
        (("stem",), {"kernel_size": 3.0}, TypeError, "int"),
        (("stem",), {"module": 3}, TypeError, r"torch\.nn\.Module"),
        (("stem",), {"activation": "relu"}, TypeError, r"torch\.nn\.Module"),
        (("stem", "gate"), {"module": nn.ReLU()}, ValueError, "for a residual"),
        (("stem", "fade"), {}, ValueError, "needs the module"),
        (("stem",), {"optimizer": 3}, TypeError, "optimizer"),
    ],
)
def test_bad_requests_are_refused_and_nothing_changes(
    arguments: Any, options: Any, error: type[Exception], match: str
) -> None:
    model = net()
    with unchanged(model), pytest.raises(error, match=match):
        model.insert_layer(*arguments, **options)


def test_inside_at_nothing_is_inserted() -> None:
    model = net()
    model.insert_layer("block", "residual")
    with model.at(0), pytest.raises(splitgrow.SplitGrowError, match="inside"):
        model.insert_layer("block", "residual")


def test_an_optimizer_that_does_not_train_the_neighbour_is_refused() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.head.parameters(), lr=1e-2)
    with unchanged(model, optimizer), pytest.raises(splitgrow.OptimizerError):
        model.insert_layer("block", "residual", optimizer=optimizer)


STEPS = ["wrap_", "join_", "analyse_again", "structure", "close_generation_"]


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize(
    ("step", "again"), [*((step, False) for step in STEPS), *((step, True) for step in STEPS[:4])]
)
def test_an_interruption_leaves_all_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: type[BaseException],
    again: bool,
) -> None:
    model = net()
    if again:
        model.insert_layer("block", "gate")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    module = nn.Conv2d(4, 4, 1).double()
    original = getattr(insertion, step)

    def failing(*args: Any, **kwargs: Any) -> Any:
        original(*args, **kwargs)
        raise error

    monkeypatch.setattr(insertion, step, failing)
    with unchanged(model, optimizer), unchanged(module), pytest.raises(error):
        model.insert_layer("block", "residual", module=module, optimizer=optimizer)


def test_copies_pickles_and_state_dicts_take_insertions_along() -> None:
    model = net()
    model.insert_layer("block", "residual")
    model.insert_layer("block.conv1", "identity")
    disturb(model)
    now = outputs_of(model, x())
    assert_identical(outputs_of(copy.deepcopy(model), x()), now)
    assert_identical(outputs_of(pickle.loads(pickle.dumps(model)), x()), now)
    other = net()
    other.insert_layer("block", "residual")
    other.insert_layer("block.conv1", "identity")
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_identical(outputs_of(other, x()), now)
    again = copy.deepcopy(model)
    again.insert_layer("block", "gate")
    assert_equal(outputs_of(again, x()), now)


@pytest.mark.filterwarnings("ignore:the state_dict is from before")
def test_a_state_dict_from_before_loads_under_the_same_keys() -> None:
    model = net()
    old = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = outputs_of(model, x())
    model.insert_layer("block", "residual")
    with torch.no_grad():
        for parameter in model.block.parameters():
            parameter.zero_()
    found = model.load_state_dict(old, strict=False)
    assert not found.unexpected_keys
    assert all("inserted1" in key for key in found.missing_keys)
    assert_equal(outputs_of(model, x()), before)


def test_the_wrapper_answers_for_its_module() -> None:
    model = splitgrow.growable(
        nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), nn.Linear(3, 1)), torch.ones(1, 2)
    )
    inner = model[0]
    paths = [name for name, _ in model.named_parameters()]
    model.insert_layer("0", "residual")
    wrapper = model[0]
    assert wrapper is not inner
    assert wrapper[0] is inner[0]
    assert len(wrapper) == 2
    assert list(wrapper) == list(inner)
    assert bool(wrapper)
    assert [name for name, _ in model.named_parameters()][: len(paths)] == paths[:2] + [
        name for name, _ in model.named_parameters() if "inserted" in name
    ][: len(paths) - 2] or set(paths) <= {name for name, _ in model.named_parameters()}
    assert model.get_submodule("0.0") is inner[0]
    with pytest.raises(AttributeError, match="no attribute"):
        _ = wrapper.nothing


class Pair(nn.Module):
    """Gives several results and takes named arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(
        self, hidden: Tensor, *, scale: float = 1.0, **others: Any
    ) -> tuple[Tensor, Tensor]:
        y = hidden + self.linear(hidden) * scale
        return y, y.sum()


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, total = self.pair(hidden=x, scale=0.5)
        return self.head(y) + total


@pytest.mark.parametrize("kind", ["residual", "block", "gate"])
def test_modules_with_several_results_and_named_arguments_keep_them(kind: str) -> None:
    torch.manual_seed(0)
    y = torch.randn(3, 4, dtype=torch.float64)
    model = splitgrow.growable(randomise(Holder()).double(), y)
    before = outputs_of(model, y)
    model.insert_layer("pair", kind)
    assert_equal(outputs_of(model, y), before)
    disturb(model)
    now = outputs_of(model, y)
    assert largest_difference(now, before) > 1e-3
    merged = splitgrow.merge(model)
    assert_equal(outputs_of(merged, y), now)
    assert_equal(outputs_of(splitgrow.fuse(model), y), now)


class Asking(nn.Module):
    """Reads attributes of the modules that it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.to(self.stem[0].weight.dtype))
        return self.head(x.to(self.head.weight.dtype)) * self.head.in_features


@pytest.mark.parametrize("after", ["stem", "head"])
def test_what_forward_asks_a_module_for_is_there_in_merged_models_too(after: str) -> None:
    torch.manual_seed(0)
    y = torch.randn(3, 3, dtype=torch.float64)
    model: Any = splitgrow.growable(randomise(Asking()).double(), y)
    model.insert_layer(after, "residual")
    disturb(model)
    now = outputs_of(model, y)
    assert_equal(outputs_of(splitgrow.merge(model), y), now)
    assert_equal(outputs_of(splitgrow.fuse(model), y), now)
    for one in (model, splitgrow.merge(model)):
        traced = torch.fx.symbolic_trace(one)
        assert_equal(outputs_of(traced, y), now)


def test_layers_of_another_model_are_refused() -> None:
    model = net()
    model.insert_layer("block", "residual")
    other = nn.Sequential(model.block)
    with pytest.raises(splitgrow.UnsupportedModelError, match="did not grow here"):
        splitgrow.growable(other, torch.randn(1, 4, 5, 5, dtype=torch.float64))


def test_analysing_again_keeps_insertions() -> None:
    model = net()
    before = outputs_of(model, x())
    model.insert_layer("block", "residual")
    disturb(model)
    model = splitgrow.growable(model, x())
    with model.at(0):
        assert_identical(outputs_of(model, x()), before)


@pytest.mark.filterwarnings("ignore")
def test_torch_compile_follows_what_was_inserted() -> None:
    model = net()
    model.insert_layer("block", "residual")
    model.insert_layer("stem", "identity")
    disturb(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_equal(outputs_of(compiled, x()), outputs_of(model, x()))


def test_a_block_whose_branches_end_with_a_norm_of_one_plus_w_gets_a_factor_of_zero() -> None:
    """As Gemma's blocks are written: x + norm(f(x)), with a norm that multiplies by 1 + w."""

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.eps, self.weight = 1e-6, nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1 + self.weight)

    class Branched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.norm = nn.Linear(4, 4), Norm()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.norm(self.lin(x).tanh())

    torch.manual_seed(0)
    x = torch.randn(3, 4, dtype=torch.float64)
    net = nn.Sequential(Branched(), nn.Linear(4, 2)).double().eval()
    model: Any = splitgrow.growable(net, x)
    before = model(x)
    model.insert_layer("0", "block")
    assert_equal(model(x), before)
    norm = model.get_submodule("0.inserted1.norm")
    assert bool((norm.weight == -1).all())
    model(x).square().sum().backward()
    assert norm.weight.grad.abs().min() > 0


def test_a_block_with_two_branches_beside_each_other_has_zeros_in_both() -> None:
    """As GPT-J's blocks are written: x + attention(norm(x)) + mlp(norm(x))."""

    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(4)
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return self.one(y) + self.two(y.tanh()) + x

    torch.manual_seed(0)
    x = torch.randn(3, 4, dtype=torch.float64)
    model: Any = splitgrow.growable(nn.Sequential(Parallel(), nn.Linear(4, 2)).double().eval(), x)
    before = model(x)
    model.insert_layer("0", "block")
    assert_equal(model(x), before)
    copy = model.get_submodule("0.inserted1")
    assert not copy.one.weight.any()
    assert not copy.two.weight.any()


def test_a_block_that_reshapes_what_it_passes_on_can_be_copied() -> None:
    """As OPT's blocks are written: the stream goes through a view within the block."""

    class Reshaping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.one(x.tanh())
            shape = x.shape
            x = x.reshape(-1, x.size(-1))
            return (x + self.two(x.relu())).view(shape)

    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    model: Any = splitgrow.growable(nn.Sequential(Reshaping(), nn.Linear(4, 2)).double().eval(), x)
    before = model(x)
    model.insert_layer("0", "block")
    assert_equal(model(x), before)


def test_what_lies_behind_the_sum_of_a_block_is_named() -> None:
    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x + self.lin(x))

    model: Any = splitgrow.growable(nn.Sequential(Behind(), nn.Linear(4, 2)), torch.ones(1, 4))
    with pytest.raises(splitgrow.InsertionError, match=r"`0\.norm` lies behind the sum"):
        model.insert_layer("0", "block")

"""Units go from every layer that they lie on; what stays is as it was, and all else is refused."""

from __future__ import annotations

import copy
import gc
import random
import weakref
from typing import Any

import pytest
import torch
from cases import CASES, Case
from helpers import (
    assert_equal,
    assert_identical,
    outputs_of,
    randomise,
    randomise_new_blocks,
    split_layers,
    tensors_of,
    train_steps,
)
from scored_models import Tied, small
from snapshots import unchanged
from some_units import some_channels
from torch import Tensor, nn

import splitgrow
from splitgrow.analysis.units import along_tensors
from splitgrow.errors import (
    CheckpointError,
    FixedWidthError,
    GenerationError,
    InexactError,
    OptimizerError,
    SplitGrowError,
    SplitGrowWarning,
    UnsupportedLayerError,
)
from splitgrow.growth.edits import Edit
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.layers.tensor_holder import layer_at
from splitgrow.layers.types import Join
from splitgrow.pruning.shrinking import shrinking

case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
grown = pytest.mark.parametrize("rounds", [0, 2])
REFUSED = (UnsupportedLayerError,)


def grown_case(case: Case, rounds: int, **options: Any) -> tuple[Any, tuple[Tensor, ...]]:
    model = randomise(case.model()).double()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in case.inputs())
    model = splitgrow.growable(model, inputs)
    for _ in range(rounds):
        for layer in model.layers:
            if layer.growable:
                model.expand_layer(layer.name, layer.step, **{"freeze": False, **options})
    randomise_new_blocks(model)
    return model, inputs


def plain_tensors(model: Any, edit: Edit) -> dict[str, dict[str, Tensor]]:
    """The tensors of the plain form of each layer that an edit takes channels out of."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found = {}
    for item in edit.removed:
        layer = layer_at(modules, item.name, item.use)
        split = layer.composition() if hasattr(layer, "composition") else None
        names = along_tensors(layer, torch.zeros(0), torch.zeros(0))
        found[item.name] = {
            name: (split.value(name) if split else getattr(layer, name)).detach().clone()
            for name in names
            if (split.value(name) if split else getattr(layer, name)) is not None
        }
    return found


def marks_of(model: nn.Module, edit: Edit) -> dict[str, dict[str, dict[int, Tensor]]]:
    """The positions of each tensor that stay, by layer, name and dimension."""
    modules = dict(model.named_modules(remove_duplicate=False))
    return {
        item.name: along_tensors(
            layer_at(modules, item.name, item.use),
            kept(item.in_width[0], item.ins),
            kept(item.width[0], item.outs),
        )
        for item in edit.removed
    }


def joint_norms(model: nn.Module) -> set[str]:
    """The norms that make up for channels that joined a statistic."""
    return {
        path
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, SplitLayer)
        and any(block.join is not Join.APART for block in module.blocks)
    }


def kept(length: int, gone: Any) -> Tensor:
    marks = torch.ones(length, dtype=torch.bool)
    for start, count in gone:
        marks[start : start + count] = False
    return marks


@case
@grown
def test_every_tensor_keeps_the_values_of_the_channels_that_stay(case: Case, rounds: int) -> None:
    model, inputs = grown_case(case, rounds)
    draw, done = random.Random(0), 0
    for name in [layer.name for layer in model.layers if layer.growable]:
        channels = some_channels(model, name, draw)
        if not channels:
            continue
        try:
            planned = model.plan_shrinking({name: channels})
            before, joint = plain_tensors(model, planned), joint_norms(model)
            staying = marks_of(model, planned)
            edit = model.shrink_layer(name, channels)
        except REFUSED:
            continue
        done += 1
        for layer, tensors in plain_tensors(model, edit).items():
            if layer in joint:
                continue  # the norm makes up for fewer channels: the law of reversal holds it
            for key, tensor in tensors.items():
                expected = before[layer][key]
                for dim, marks in staying[layer].get(key, {}).items():
                    expected = expected.index_select(dim, marks.nonzero().flatten())
                assert_equal(tensor, expected)
        assert Edit.from_json(edit.to_json()) == edit
        assert f"takes {sum(r.parameters for r in edit.removed):,} parameters" in str(edit)
    merged = splitgrow.merge(model)
    assert_equal(outputs_of(model, *inputs), outputs_of(merged, *inputs))
    gradients = []
    for one in (model, merged):
        one.zero_grad()
        torch.manual_seed(0)
        sum(output.square().sum() for output in tensors_of(one(*inputs))).backward()
        gradients.append(sum(p.grad.square().sum() for p in one.parameters() if p.grad is not None))
    if not case.computed and not joint_norms(model):  # which scale the blocks' gradients
        assert_equal(*gradients)
    assert done or case.name in NOTHING_GOES


NOTHING_GOES: set[str] = set()


@case
def test_all_that_growth_added_can_go_again_in_reverse_order(case: Case) -> None:
    model, inputs = grown_case(case, 0)
    grown: list[tuple[Edit, Any]] = []
    for layer in [layer.name for layer in model.layers if layer.growable and layer.readers] * 2:
        step = next(each.step for each in model.layers if each.name == layer)
        before = outputs_of(model, *inputs)
        grown.append((model.expand_layer(layer, step, freeze=False), before))
        assert_equal(outputs_of(model, *inputs), before)
    randomise_new_blocks(model)
    for edit, _ in reversed(grown):
        change = {each.name: each for each in edit.changes}
        model.shrink({name: added(change[name].outs) for name in edit.request})
    assert_equal(outputs_of(model, *inputs), grown[0][1])
    assert not case.computed or list(split_layers(model))
    assert all(len(split) == 1 for split in split_layers(model))


def added(insertions: Any) -> list[int]:
    """The positions after an edit of the channels that it added."""
    found: list[int] = []
    for position, count in insertions:
        start = position + len(found)
        found += range(start, start + count)
    return found


@case
def test_growth_and_shrinking_take_turns_and_go_on_in_a_file(case: Case, tmp_path: Any) -> None:
    model, inputs = grown_case(case, 1)
    draw = random.Random(1)
    for name in [layer.name for layer in model.layers if layer.growable]:
        channels = some_channels(model, name, draw)
        if channels:
            try:
                model.shrink_layer(name, channels)
            except REFUSED:
                continue
        layer = next(each for each in model.layers if each.name == name)
        before = outputs_of(model, *inputs)
        model.expand_layer(name, layer.step, freeze=False)
        if layer.readers:
            assert_equal(outputs_of(model, *inputs), before)
    randomise_new_blocks(model)
    splitgrow.save(model, tmp_path / "run.sg")
    fresh = splitgrow.growable(case.model(), inputs)
    splitgrow.load(fresh, tmp_path / "run.sg")
    assert_equal(outputs_of(fresh, *inputs), outputs_of(model, *inputs))
    again = splitgrow.growable(case.model(), inputs)
    again.load_state_dict(model.state_dict())
    assert_equal(outputs_of(again, *inputs), outputs_of(model, *inputs))
    assert_identical(outputs_of(copy.deepcopy(model), *inputs), outputs_of(model, *inputs))


# -- one network -----------------------------------------------------------------------------------


class Net(nn.Module):
    """Convolutions, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.body = nn.Conv2d(6, 5, 3, padding=1, bias=False)
        self.head = nn.Linear(5 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.norm(self.stem(x)).relu()).flatten(1))


def net() -> Any:
    torch.manual_seed(0)
    return splitgrow.growable(randomise(Net()).double().eval(), x()[:2])


def x(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 2, 3, 3, generator=generator, dtype=torch.float64)


def test_units_that_nothing_reads_go_without_a_trace_and_others_are_measured() -> None:
    model = net()
    with torch.no_grad():
        model.body.weight[:, [1, 4]] = 0
    before = outputs_of(model, x())
    edit = model.shrink_layer("stem", [1, 4])
    assert edit.moved is None
    assert_equal(outputs_of(model, x()), before)
    edit = model.shrink_layer("stem", [0])
    assert edit.moved is not None
    assert edit.moved > 0.01
    assert "the outputs moved by" in str(edit)
    assert model.stem.out_channels == model.norm.num_features == model.body.in_channels == 3


def test_a_number_takes_the_weakest_units_by_the_weights_of_makers_and_readers() -> None:
    model = net()
    weights = model.stem.weight, model.body.weight
    scores = weights[0].square().sum((1, 2, 3)) + weights[1].square().sum((0, 2, 3))
    weakest = sorted(scores.argsort()[:2].tolist())
    twin = copy.deepcopy(model)
    edit = model.shrink_layer("stem", 2)
    assert edit == twin.shrink_layer("stem", weakest)
    assert_identical(model.stem.weight, twin.stem.weight)
    assert net().shrink_layer("stem", 1, round_to=4).removed[0].width == (6, 4)


@case
def test_a_quarter_of_every_layer_goes_at_once(case: Case) -> None:
    model, inputs = grown_case(case, 1)
    request, seen = {}, set()
    for layer in model.layers:
        count = layer.width // 4 // max(layer.step, 1) * layer.step
        if layer.growable and count and layer.name not in seen:
            request[layer.name] = count
        seen.update(layer.group)
    try:
        model.shrink(request)
    except REFUSED:
        return
    outputs_of(model, *inputs)


def test_newer_units_go_and_closed_generations_stay_bit_for_bit() -> None:
    model = net()
    first = outputs_of(model, x())
    model.expand({"stem": 3, "body": 2})
    randomise_new_blocks(model)
    parameters = dict(model.named_parameters())
    edit = model.shrink({"stem": [7, 8], "body": [6]})
    assert edit.gives_up == ()
    with model.at(0):
        assert_identical(outputs_of(model, x()), first)
    for path in ("stem.0.weight", "norm.0.weight", "body.0.weight"):
        assert dict(model.named_parameters())[path] is parameters[path]
    with unchanged(model), pytest.raises(GenerationError, match="closed generation 0 would go"):
        model.shrink_layer("stem", [0, 6])
    edit = model.shrink_layer("stem", [0], give_up=True)
    assert edit.gives_up == (0,)
    with pytest.raises(GenerationError, match="edit 3 has taken units of it out"), model.at(0):
        pass


def test_all_that_growth_added_can_go_again() -> None:
    model = net()
    first = outputs_of(model, x())
    model.expand({"stem": 3, "body": 2})
    randomise_new_blocks(model)
    model.shrink({"stem": [6, 7, 8], "body": [5, 6]})
    assert_equal(outputs_of(model, x()), first)
    assert all(len(split) == 1 for split in split_layers(model))
    assert model.expand_layer("stem", 2).index == 3


OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_keeps_the_state_of_the_channels_that_stay(name: str) -> None:
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    train_steps(model, (x(),), optimizer)
    before = copy.deepcopy(optimizer.state[model.body.weight])
    order = [key for key, _ in model.named_parameters()]
    model.shrink({"stem": [0, 3], "body": [2]}, optimizer=optimizer)
    after = optimizer.state[model.body.weight]
    rows, columns = torch.tensor([0, 1, 3, 4]), torch.tensor([1, 2, 4, 5])
    assert after.keys() == before.keys()
    for key, value in before.items():
        if isinstance(value, Tensor) and value.dim():
            if value.shape[0] == 5:
                value = value.index_select(0, rows)
            if value.shape[1] == 6:
                value = value.index_select(1, columns)
        assert_identical(after[key], value) if isinstance(value, Tensor) else None
    assert [p for g in optimizer.param_groups for p in g["params"]] == [*model.parameters()]
    assert [key for key, _ in model.named_parameters()] == order
    train_steps(model, (x(),), optimizer)


def test_state_that_lies_in_an_unknown_way_is_refused() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model.body.weight]["preconditioner"] = torch.eye(30)
    with unchanged(model), pytest.raises(OptimizerError, match="state of other shapes"):
        model.shrink_layer("stem", [0], optimizer=optimizer)


def test_blocks_that_go_leave_the_optimizer() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model.expand_layer("stem", 2, optimizer=optimizer)
    train_steps(model, (x(),), optimizer)
    model.shrink_layer("stem", [6, 7], optimizer=optimizer)
    held = [p for g in optimizer.param_groups for p in g["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert {id(p) for p in optimizer.state} <= {id(p) for p in held}


@pytest.mark.parametrize("all_first", [False, True])
def test_an_optimizer_made_before_loading_trains_the_loaded_model(all_first: bool) -> None:
    model = net()
    model.expand_layer("stem", 2, freeze=False)
    randomise_new_blocks(model)
    # Without any of its first channels, the layer becomes plain in an edit before.
    model.shrink_layer("stem", [*range(6)] if all_first else [0, 3])
    assert len(splitgrow.handle(model).edits) == 2 + all_first
    trained = torch.optim.AdamW(model.parameters(), lr=0.01)
    train_steps(model, (x(),), trained)
    fresh = net()
    before = dict(fresh.named_parameters())
    optimizer = splitgrow.by_name(torch.optim.AdamW(fresh.parameters(), lr=0.01), fresh)
    fresh.load_state_dict(model.state_dict())
    assert before["stem.weight"] in {*fresh.parameters()}
    splitgrow.by_name(trained, model)
    optimizer.load_state_dict(copy.deepcopy(trained.state_dict()))
    for each, its in ((model, trained), (fresh, optimizer)):
        train_steps(each, (x(1),), its)
    assert_equal(outputs_of(fresh, x()), outputs_of(model, x()))


def test_a_load_that_fails_gives_parameters_their_values_again() -> None:
    model = net()
    model.expand_layer("stem", 2, freeze=False)
    model.shrink_layer("stem", [*range(6)])
    state = model.state_dict()
    state["body.weight"] = state["body.weight"][:1]
    fresh = net()
    fresh(x()).sum().backward()
    with unchanged(fresh), pytest.raises(CheckpointError):
        fresh.load_state_dict(state)


def test_tensors_alone_of_a_model_that_lost_channels_load_into_it() -> None:
    model = net()
    model.shrink_layer("stem", [0])
    state = {k: 2 * v for k, v in model.state_dict().items() if k != "_extra_state"}
    model.load_state_dict(state)
    assert_identical(model.stem.weight, state["stem.weight"])
    earlier = {k: v for k, v in net().state_dict().items() if k != "_extra_state"}
    with unchanged(model), pytest.raises(CheckpointError, match="took units of"):
        model.load_state_dict(earlier)


def test_units_of_a_layer_that_was_inserted_later_are_of_no_generation_before() -> None:
    model = net()
    model.next_generation()
    first = outputs_of(model, x())
    wide = nn.Sequential(nn.Conv2d(5, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1)).double()
    edit = model.insert_layer("body", "residual", module=wide)
    randomise_new_blocks(model)
    hidden = next(each for each in model.layers if each.name.startswith(edit.inserted[0].name))
    assert model.shrink_layer(hidden.name, 1).gives_up == ()
    with model.at(0):
        assert_identical(outputs_of(model, x()), first)
    model.next_generation()
    with pytest.raises(GenerationError, match="closed generation 1 would go"):
        model.shrink_layer(hidden.name, 1)


def test_nothing_holds_what_has_gone() -> None:
    model = net()
    first = outputs_of(model, x())
    model.expand_layer("stem", 2)
    model.next_generation()
    gone = [weakref.ref(model.get_submodule(f"{path}.1")) for path in ("stem", "norm", "body")]
    assert model.shrink_layer("stem", [6, 7], give_up=True).gives_up == (1,)
    gc.collect()
    assert [each() for each in gone] == [None] * 3
    with model.at(0):
        assert_identical(outputs_of(model, x()), first)
    model.unfreeze()
    assert all(p.requires_grad for p in model.parameters())


def test_an_optimizer_that_was_not_told_says_so() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.shrink_layer("stem", [0])
    with pytest.warns(SplitGrowWarning, match="no optimizer trains"):
        train_steps(model, (x(),), optimizer, steps=1)


def test_averages_lose_the_same_channels_and_keep_their_values() -> None:
    model = net()
    average = copy.deepcopy(model)
    splitgrow.follow(average, model)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(0.5)
    before = average.body.weight.detach().clone()
    model.shrink_layer("stem", [0, 3])
    assert_identical(average.body.weight, before[:, [1, 2, 4, 5]])


def test_gradients_and_flags_follow() -> None:
    model = net()
    model(x()).sum().backward()
    model.stem.bias.requires_grad_(False)
    gradient = model.body.weight.grad.clone()
    model.shrink_layer("stem", [2])
    assert_identical(model.body.weight.grad, gradient[:, [0, 1, 3, 4, 5]])
    assert not model.stem.bias.requires_grad


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "no mapping": (["stem"], TypeError, "a request maps layers"),
    "nothing": ({}, ValueError, "got none"),
    "unknown layer": ({"steam": [0]}, ValueError, "did you mean 'stem'"),
    "no channels": ({"stem": []}, ValueError, "no channels of `stem`"),
    "a text": ({"stem": "0"}, TypeError, "are ints"),
    "none": ({"stem": None}, TypeError, "is an int"),
    "a flag": ({"stem": True}, TypeError, "is an int"),
    "zero": ({"stem": 0}, ValueError, "at least 1"),
    "too many": ({"stem": 6}, ValueError, "6 of the 6 channels of `stem` cannot go"),
    "a float": ({"stem": [0.5]}, TypeError, "are ints"),
    "out of range": ({"stem": [6]}, ValueError, "from 0 to 5"),
    "twice": ({"stem": [1, 1]}, ValueError, "named twice"),
    "all": ({"stem": [*range(6)]}, ValueError, "no units left"),
    "a norm": ({"norm": [0]}, UnsupportedLayerError, "norms and activations follow"),
    "several": ({"stem": [9], "body": "x"}, ValueError, "`stem` has no channel 9.*`body`"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_refused_and_change_nothing(name: str) -> None:
    request, error, match = BAD[name]
    model = net()
    with unchanged(model), pytest.raises(error, match=f"(?s){match}"):
        model.shrink(request)
    with unchanged(model), pytest.raises(error, match=f"(?s){match}"):
        model.plan_shrinking(request)


def test_fixed_layers_and_parts_of_units_are_refused_with_reasons() -> None:
    fixed = next(each for each in CASES if each.fixed)
    model, _ = grown_case(fixed, 0)
    with pytest.raises(FixedWidthError, match="cannot shrink"):
        model.shrink_layer(sorted(fixed.fixed)[0], [0])
    heads = next(each for each in CASES if each.name == "vision transformer")
    model, _ = grown_case(heads, 0)
    layer = next(each for each in model.layers if each.step > 1)
    with pytest.raises(ValueError, match="are one unit, such as a head"):
        model.shrink_layer(layer.name, [0])


def test_a_removal_that_does_more_than_it_should_is_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part = shrinking.put_narrowed_

    def wrong(modules: Any, layers: Any, parameters: Any, undo: Any) -> None:
        part(modules, layers, parameters, undo)
        modules["body"].weight.data.mul_(1.001)

    monkeypatch.setattr(shrinking, "put_narrowed_", wrong)
    model = net()
    with unchanged(model), pytest.raises(InexactError, match="more than what the units"):
        model.shrink_layer("stem", [0])


def test_an_interruption_leaves_all_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: Any) -> None:
        raise KeyboardInterrupt

    model = net()
    model.expand({"stem": 3, "body": 2}, freeze=False)
    randomise_new_blocks(model)
    optimizer = torch.optim.AdamW(model.parameters())
    train_steps(model, (x(),), optimizer)
    monkeypatch.setattr(shrinking, "replace_", stopped)
    with unchanged(model, optimizer), pytest.raises(KeyboardInterrupt):
        model.shrink({"stem": [*range(6)], "body": [0]}, optimizer=optimizer)


def test_a_file_whose_removal_does_not_fit_is_refused() -> None:
    model = net()
    model.shrink_layer("stem", [0])
    state = model.state_dict()
    other = Net()
    other.stem = nn.Conv2d(2, 7, 3, padding=1)
    other.norm, other.body = nn.BatchNorm2d(7), nn.Conv2d(7, 5, 3, padding=1, bias=False)
    other = splitgrow.growable(other.double(), x()[:2])
    with unchanged(other), pytest.raises(CheckpointError, match="does not have in this model"):
        other.load_state_dict(state)
    earlier = net().state_dict()
    with unchanged(model), pytest.raises(SplitGrowError, match="load it into a fresh model"):
        model.load_state_dict(earlier)


def test_a_block_of_a_recurrent_layer_may_lose_all_that_it_read(tmp_path: Any) -> None:
    tagger = next(each for each in CASES if each.name == "tagger")
    model, inputs = grown_case(tagger, 0)
    edit = model.expand({"conv": 2, "rnn": 1}, freeze=False)
    randomise_new_blocks(model)
    conv = next(each for each in edit.changes if each.name == "conv")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train_steps(model, inputs, optimizer)
    model.shrink_layer("conv", added(conv.outs), optimizer=optimizer)
    assert model.rnn[1].weight_ih_l0 is None, "as where growth adds hidden units alone"
    assert model.rnn[1].weight_hh_l0 is not None
    merged = splitgrow.merge(copy.deepcopy(model))
    assert_equal(outputs_of(model, *inputs), outputs_of(merged, *inputs))
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    train_steps(model, inputs, optimizer)
    splitgrow.save(model, tmp_path / "run.sg")
    fresh = splitgrow.growable(tagger.model(), inputs)
    splitgrow.load(fresh, tmp_path / "run.sg")
    assert_equal(outputs_of(fresh, *inputs), outputs_of(model, *inputs))


def test_parameters_that_layers_share_count_once() -> None:
    for growths in (0, 1):
        model = small(Tied())
        for _ in range(growths):
            model.expand_layer("table", 2, freeze=False)
        before = sum(parameter.numel() for parameter in model.parameters())
        edit = model.shrink_layer("table", 2)
        lost = before - sum(parameter.numel() for parameter in model.parameters())
        assert lost == sum(item.parameters for item in edit.removed) > 0


@pytest.mark.parametrize("name", ["cells", "translator", "several lengths"])
def test_all_new_units_of_one_recurrent_layer_go_and_those_of_others_stay(name: str) -> None:
    """Blocks are left that have an empty weight: inputs or earlier outputs that are none."""
    case = next(case for case in CASES if case.name == name)
    first = splitgrow.growable(case.model(), case.inputs())
    layers = {layer.name: layer.width for layer in first.layers if layer.readers}
    for layer, width in layers.items():
        model = splitgrow.growable(case.model(), case.inputs())
        model.expand(dict.fromkeys(layers, 2), freeze=False)
        randomise_new_blocks(model)
        model.shrink({layer: [width, width + 1]})
        found = outputs_of(model, *case.inputs())
        assert_equal(found, outputs_of(splitgrow.merge(model), *case.inputs()))
        now = {each.name: each.width for each in model.layers}
        assert now[layer] == width
        assert any(now[other] == layers[other] + 2 for other in layers)
        train_steps(model, case.inputs(), torch.optim.SGD(model.parameters(), 0.01))

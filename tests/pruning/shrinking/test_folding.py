"""Units with the same value for every input go without a change: biases take over their part."""

from __future__ import annotations

import copy
import random
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
    randomise_new_blocks,
)
from snapshots import unchanged
from some_units import some_channels
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import splitgrow
from splitgrow.errors import InexactError
from splitgrow.growth.edits import Edit
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.shrinking.block_parts import home_of, marks_of_block
from splitgrow.layers.tensor_holder import layer_at, split_of
from splitgrow.layers.types import known_layer_type
from splitgrow.pruning.shrinking import folding, shrinking
from splitgrow.pruning.shrinking.chosen_units import Chosen, requested_units

NAMES = ("plain", "dense", "squeeze and excite", "conv to linear", "shuffled", "fused heads")
case = pytest.mark.parametrize("case", [c for c in CASES if c.name in NAMES], ids=lambda c: c.name)


@torch.no_grad()
def make_constant_(model: Any, name: str, channels: list[int]) -> None:
    """Sets the weights of zero that make some units, in all layers; biases and norms stay."""
    history = history_of(model)
    graph = history.graph
    units = requested_units(graph, history.modules, {name: channels})
    chosen = Chosen(graph.groups, units)
    for node in graph.nodes.values():
        marks = chosen.on(node.ins), chosen.on(node.outs)
        if node.use is not None or not node.followed or not bool(marks[1].any()):
            continue
        composition = split_of(layer_at(history.modules, node.name, node.use)).composition()
        for index, block in enumerate(composition.modules):
            like = home_of(composition, block)
            axes = known_layer_type(like).tensors(like)
            for key, along in marks_of_block(composition, index, marks).items():
                tensor = getattr(block, key, None)
                for dim, own in along.items() if tensor is not None and tensor.dim() > 1 else ():
                    if not axes[key][dim].reads:
                        tensor.index_fill_(dim, own.nonzero().flatten(), 0)


def constant_case(case: Case, rounds: int) -> tuple[Any, tuple[Tensor, ...]]:
    model = randomise(case.model()).double().eval()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in case.inputs())
    model = splitgrow.growable(model, inputs)
    for _ in range(rounds):
        for layer in model.layers:
            if layer.growable:
                model.expand_layer(layer.name, layer.step, freeze=False)
    randomise_new_blocks(model)
    return model, inputs


@case
@pytest.mark.parametrize("rounds", [0, 1])
def test_constant_units_go_without_a_change(case: Case, rounds: int) -> None:
    model, inputs = constant_case(case, rounds)
    draw, folded = random.Random(0), 0
    for name in [layer.name for layer in model.layers if layer.growable and layer.readers]:
        channels = some_channels(model, name, draw)
        if not channels:
            continue
        make_constant_(model, name, channels)
        other = tuple(x + 1 if x.is_floating_point() else x for x in inputs)
        before = outputs_of(model, *inputs), outputs_of(model, *other)
        planned = model.plan_shrinking({name: channels})
        edit = model.shrink_layer(name, channels)
        assert (planned.folded, planned.removed) == (edit.folded, edit.removed)
        assert Edit.from_json(edit.to_json()) == edit
        assert len(edit.rewritten) >= len(edit.folded)
        if edit.moved is None:
            assert_equal((outputs_of(model, *inputs), outputs_of(model, *other)), before)
            folded += len(edit.folded)
    assert folded


# -- one network -----------------------------------------------------------------------------------


class Net(nn.Module):
    """Two layers that read without padding, and one that pads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.body = nn.Conv2d(6, 5, 1)
        self.head = nn.Linear(5 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.norm(self.stem(x)).sigmoid()).tanh().flatten(1))


def net(**options: Any) -> Any:
    torch.manual_seed(0)
    return splitgrow.growable(randomise(Net()).double().eval(), x()[:2], **options)


def x(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 2, 3, 3, generator=generator, dtype=torch.float64)


def silence_(model: Any, *channels: int) -> None:
    """Norms of zero scale, as training with a penalty on them leaves."""
    with torch.no_grad():
        model.norm.weight[[*channels]] = 0


def test_the_edit_says_which_biases_hold_constants() -> None:
    model = net()
    silence_(model, 1, 4)
    before, bias = outputs_of(model, x()), model.body.bias
    held = bias.detach().clone()
    edit = model.shrink_layer("stem", [1, 4])
    assert (dict(edit.folded), edit.rewritten, edit.moved) == ({"body": 2}, ("body.bias",), None)
    assert "the bias of body holds 2 constants" in str(edit)
    assert_equal(outputs_of(model, x()), before)
    assert model.body.bias is bias
    assert not torch.equal(bias, held)


def test_without_it_the_outputs_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the same request, with biases that take over nothing."""
    model = net()
    silence_(model, 1, 4)
    before = outputs_of(model, x())
    monkeypatch.setattr(shrinking, "plan_folding", lambda *_: folding.Folding())
    edit = model.shrink_layer("stem", [1, 4])
    assert edit.moved is not None
    assert edit.moved > 1e-3
    assert largest_difference(outputs_of(model, x()), before) > 1e-3


def test_units_that_are_no_constants_keep_their_part_out_of_biases() -> None:
    model = net()
    silence_(model, 1)
    bias = model.body.bias.detach().clone()
    edit = model.shrink_layer("stem", [1, 2])
    assert dict(edit.folded) == {"body": 1}
    assert edit.moved is not None
    bias += net().body.weight.detach()[:, 1, 0, 0] * net().norm.bias.detach()[1].sigmoid()
    assert_equal(model.body.bias.detach(), bias)


def test_constants_that_only_constants_make_go_too() -> None:
    model = splitgrow.growable(
        randomise(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))).double(), x()[:, 0, :2, :2]
        .reshape(5, 4),
    )  # fmt: skip
    with torch.no_grad():
        model[0].weight[1] = 0
        model[1].weight[2, [0, 2, 3]] = 0
    given = torch.randn(7, 4, dtype=torch.float64)
    before = outputs_of(model, given)
    edit = model.shrink_layer("1", [2])
    assert dict(edit.folded) == {"2": 1}
    assert_equal(outputs_of(model, given), before)


def test_nothing_is_followed_where_weights_show_no_constants(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("it was traced")

    monkeypatch.setattr(folding, "run_in_evaluation", fail)
    model = net()
    silence_(model, 0)
    model.shrink_layer("stem", [1, 4])
    with pytest.raises(AssertionError, match="it was traced"):
        model.shrink_layer("stem", [0])


def test_closed_generations_keep_their_biases_bit_for_bit() -> None:
    model = net()
    first = outputs_of(model, x())
    model.expand({"stem": 3, "body": 2})
    randomise_new_blocks(model)
    with torch.no_grad():
        model.norm[1].weight[1] = 0
    edit = model.shrink_layer("stem", [7])
    assert edit.rewritten == ("body.2.bias",)
    assert edit.moved is not None  # the part of the older units' bias is lost
    with model.at(0):
        assert_identical(outputs_of(model, x()), first)
    before = outputs_of(model, x())
    with torch.no_grad():
        model.norm[0].weight[2] = 0
    before = outputs_of(model, x())
    edit = model.shrink_layer("stem", [2], give_up=True)
    assert edit.moved is None
    assert_equal(outputs_of(model, x()), before)
    assert "body.0.bias" in edit.rewritten


def test_a_failure_gives_biases_their_values_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    silence_(model, 1)

    def fail(*_: Any, **__: Any) -> None:
        raise InexactError("no")

    monkeypatch.setattr(shrinking, "_held_to", fail)
    with unchanged(model), pytest.raises(InexactError):
        model.shrink_layer("stem", [1])


def test_a_wrong_constant_is_found_by_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    silence_(model, 1)
    found = folding.contributed
    monkeypatch.setattr(folding, "contributed", lambda *given: 2 * found(*given))
    with unchanged(model), pytest.raises(InexactError, match="though only constants go"):
        model.shrink_layer("stem", [1])


def _shared_bias(model: Any) -> None:
    model.other = nn.Conv2d(1, 5, 1)
    model.other.bias = model.body.bias


def _hook(model: Any) -> None:
    model.norm.register_forward_hook(lambda _, __, out: out + 1)


def _hook_around(model: Any) -> None:
    model.register_forward_pre_hook(lambda _, given: given)


def _hook_that_looks_behind(model: Any) -> None:
    model.body.register_forward_hook(lambda _, __, out: None)


def _bias_less(model: Any) -> None:
    model.body = nn.Conv2d(6, 5, 1, bias=False).double()


def _padded(model: Any) -> None:
    model.body = nn.Conv2d(6, 5, 3, padding=1).double()


@pytest.mark.parametrize(
    "change", [_shared_bias, _hook, _hook_around, _hook_that_looks_behind, _bias_less, _padded]
)
def test_no_bias_takes_over_more_than_is_known(change: Any) -> None:
    torch.manual_seed(0)
    model: Any = randomise(Net()).double().eval()
    change(model)
    model = splitgrow.growable(model, x()[:2])
    silence_(model, 1)
    before = outputs_of(model, x())
    edit = model.shrink_layer("stem", [1])
    assert not edit.folded
    moved = largest_difference(outputs_of(model, x()), before)
    assert (edit.moved is not None) == (moved > 1e-12)


def test_it_goes_on_in_files_averages_and_optimizers(tmp_path: Any) -> None:
    model = net()
    average = splitgrow.follow(AveragedModel(model), model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(x()).square().mean().backward()
    optimizer.step()
    silence_(model, 1)
    average.update_parameters(model)
    momentum = optimizer.state[model.body.bias]["momentum_buffer"].clone()
    before = outputs_of(model, x())
    model.shrink_layer("stem", [1], optimizer=optimizer)
    assert_equal(outputs_of(model, x()), before)
    assert torch.equal(optimizer.state[model.body.bias]["momentum_buffer"], momentum)
    assert_identical(average.module.body.bias, model.body.bias)
    splitgrow.save(model, tmp_path / "run.sg")
    fresh = net()
    splitgrow.load(fresh, tmp_path / "run.sg")
    assert_identical(outputs_of(fresh, x()), outputs_of(model, x()))
    assert splitgrow.handle(fresh).edits == splitgrow.handle(model).edits
    assert_identical(outputs_of(copy.deepcopy(model), x()), outputs_of(model, x()))

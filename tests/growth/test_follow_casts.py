"""Casts and moves of a growable model: example inputs and new blocks go along, values stay."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MANY
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import splitgrow
from splitgrow.growth import growable_class
from splitgrow.growth.history import History
from splitgrow.growth.history_lookup import HISTORY
from splitgrow.layers.fade import FadeIn

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SEQUENCES = int(8 * MANY)
pytestmark = pytest.mark.filterwarnings(
    "ignore:what the model computes is not compared"  # rounding of two bytes may be too coarse
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(x)))


class Net(nn.Module):
    """Reads an image, and whole numbers that no cast may change."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6)
        self.names, self.block, self.head = nn.Embedding(5, 6), Block(), nn.Linear(6, 3)

    def forward(self, x: Tensor, name: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x))).mean((2, 3)) + self.names(name)
        return self.head(self.block(x))


def net(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(3)
    return Net().to(dtype)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    image = torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64)
    return image.to(torch.float32).to(dtype), torch.tensor([0, 4, 2])


def history_in(model: nn.Module) -> History:
    found: History = vars(model)[HISTORY]
    return found


def floats_of(model: nn.Module) -> dict[str, Tensor]:
    """All floating parameters and buffers, but for the shares of fades, which stay in float32."""
    shares = {id(m.share) for m in model.modules() if isinstance(m, FadeIn)}
    named = [*model.named_parameters(), *model.named_buffers()]
    return {n: t for n, t in named if t.is_floating_point() and id(t) not in shares}


def output_of(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(*pytree.tree_leaves(history_in(model).inputs))
    return found


def assert_all_follow(model: Any, dtype: torch.dtype, image: Tensor) -> None:
    """The laws: one dtype everywhere, inputs with their values, and every generation runs."""
    strays = {n: t.dtype for n, t in floats_of(model).items() if t.dtype != dtype}
    assert not strays
    leaves = pytree.tree_leaves(history_in(model).inputs)
    assert leaves[0].dtype == dtype
    assert torch.equal(leaves[0][:, :2], image)
    assert torch.equal(leaves[1], torch.tensor([0, 4, 2]))
    assert output_of(model).dtype == dtype
    for generation in range(model.generation):
        with model.at(generation), torch.no_grad():
            old = history_in(model).inputs_at(history_in(model).view_of(generation))
            assert model(*pytree.tree_leaves(old)).dtype == dtype


def assert_comes_back(model: Any, dtype: torch.dtype, path: Path) -> Any:
    splitgrow.save(model, path)
    fresh = net(dtype)
    splitgrow.load(fresh, path, training=False)
    assert_same(fresh, model.state_dict())
    assert torch.equal(output_of(fresh), output_of(model))
    return fresh


def assert_same(model: nn.Module, state: dict[str, Tensor]) -> None:
    own = model.state_dict()
    assert {n for n in own if n != "_extra_state"} == {n for n in state if n != "_extra_state"}
    for name, tensor in state.items():
        if name != "_extra_state":
            assert own[name].dtype == tensor.dtype, name
            assert torch.equal(own[name], tensor), name


def assert_state_goes_over(model: Any, dtype: torch.dtype) -> None:
    """A state_dict in a model of another dtype: as torch converts the model itself."""
    other = splitgrow.growable(net(dtype), inputs(dtype))
    other.load_state_dict(model.state_dict())
    assert_same(other, copy.deepcopy(model).to(dtype).state_dict())
    other.expand_layer("block.a", 1)
    assert {t.dtype for t in floats_of(other).values()} == {dtype}


Step = Callable[[Any], object]
GROWTHS: dict[str, Step] = {
    "wider": lambda m: m.expand_layer("stem", 2),
    "wider inside": lambda m: m.expand_layer("block.a", 1),
    "deeper": lambda m: m.insert_layer("head", "residual"),
    "gate": lambda m: m.insert_layer("block", "gate"),
    "block": lambda m: m.insert_layer("block", "block"),
    "input": lambda m: m.expand_input(1, name="x"),
    "next": lambda m: m.next_generation(),
    "fade": lambda m: m.insert_layer(
        "head", "replacement", module=nn.Linear(m.head.in_features, 3).to(m.norm.weight.dtype)
    ),
}


@pytest.mark.parametrize("seed", range(SEQUENCES))
def test_any_order_of_casts_and_growths_keeps_all_in_one_dtype(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    dtype = draw.choice(DTYPES)
    image, names = inputs(dtype)
    model = splitgrow.growable(net(dtype), (image, names))
    growths = {*GROWTHS}
    for _ in range(6):
        if draw.random() < 0.5:
            dtype = draw.choice(DTYPES)
            nn.ModuleList([model]).to(dtype) if draw.random() < 0.5 else model.to(dtype)
            image = image.to(dtype)
        name = draw.choice(sorted(growths))
        if name == "fade":  # what lies on both of its paths grows no more
            growths = {"wider inside", "next"}
        GROWTHS[name](model)
        assert_all_follow(model, dtype, image)
        if draw.random() < 0.5:
            again = assert_comes_back(model, dtype, tmp_path / "a.safetensors")
            assert_all_follow(again, dtype, image)
    assert_comes_back(model, dtype, tmp_path / "a.safetensors")
    assert_state_goes_over(model, draw.choice(DTYPES))


def test_without_following_the_laws_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    monkeypatch.setattr(growable_class, "all_follow", lambda *_: nullcontext())
    model = splitgrow.growable(net(), inputs())
    model.expand_layer("stem", 2)
    model.bfloat16()
    with pytest.raises(AssertionError):
        assert_all_follow(model, torch.bfloat16, inputs(torch.bfloat16)[0])
    with pytest.raises(ValueError, match="does not run on example_inputs"):
        model.insert_layer("head", "residual")


@pytest.mark.parametrize("one", DTYPES)
@pytest.mark.parametrize("other", DTYPES)
def test_a_state_dict_of_another_dtype_is_converted_as_torch_does(
    one: torch.dtype, other: torch.dtype
) -> None:
    model = splitgrow.growable(net(), inputs())
    model.expand_layer("stem", 2)
    model.next_generation()
    model.insert_layer("head", "residual")
    model.insert_layer("block", "block")
    GROWTHS["fade"](model)
    model.to(one)
    assert_state_goes_over(model, other)


def test_loading_by_assignment_gives_the_files_dtype_to_all() -> None:
    model = splitgrow.growable(net(), inputs())
    model.expand_layer("stem", 2)
    model.next_generation()
    model.expand_layer("block.a", 2)
    model.double()
    fresh = splitgrow.growable(net(), inputs())
    fresh.load_state_dict(model.state_dict(), assign=True)
    assert_all_follow(fresh, torch.float64, inputs()[0].double())
    fresh.insert_layer("head", "residual")


def test_inputs_of_another_dtype_than_the_parameters_stay() -> None:
    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, at: Tensor, on: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x))) * at.to(x.dtype) + on.sum()

    given = (torch.randn(2, 3), torch.tensor(0.5, dtype=torch.float64), torch.tensor([True]))
    model = splitgrow.growable(Timed(), given)
    model.half()
    found = pytree.tree_leaves(history_in(model).inputs)
    assert [t.dtype for t in found] == [torch.float16, torch.float64, torch.bool]
    assert torch.equal(found[1], given[1])
    model.insert_layer("a", "residual")


def test_inputs_keep_their_values_where_a_model_loses_its_own() -> None:
    model = splitgrow.growable(net(), inputs())
    model.expand_layer("stem", 2)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = output_of(model)
    model.to("meta")
    assert not any(t.is_meta for t in pytree.tree_leaves(history_in(model).inputs))
    model.to_empty(device="cpu")
    model.load_state_dict(state)
    assert torch.equal(output_of(model), before)
    model.share_memory()
    assert torch.equal(output_of(model), before)
    assert not any(t.is_shared() for t in pytree.tree_leaves(history_in(model).inputs))


def test_a_part_that_is_cast_is_told_and_the_model_stays_as_it_is() -> None:
    model = splitgrow.growable(net(), inputs())
    model.stem.half()
    names = [*model.state_dict()]
    with pytest.raises(ValueError, match=r"does not run on example_inputs.*in `stem`"):
        model.insert_layer("head", "residual")
    assert names == [*model.state_dict()]
    model.half()
    model.insert_layer("head", "residual")
    assert_all_follow(model, torch.float16, inputs(torch.float16)[0])


def test_parts_that_are_cast_one_by_one_load_with_inputs_that_fit(tmp_path: Path) -> None:
    model = splitgrow.growable(net(), inputs())
    model.expand_layer("stem", 2)
    for child in model.children():
        child.double()
    path = tmp_path / "a.safetensors"
    splitgrow.save(model, path)
    with pytest.raises(splitgrow.CheckpointError, match="does not run"):
        splitgrow.load(net(torch.float64), path)
    fresh = net(torch.float64)
    splitgrow.load(fresh, path, example_inputs=inputs(torch.float64))
    assert_same(fresh, model.state_dict())
    fresh.insert_layer("head", "residual")

"""Layers that share a tensor grow on both sides of it, and go on sharing it."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from helpers import (
    assert_equal,
    assert_identical,
    outputs_of,
    randomise,
    randomise_new_blocks,
)
from tied_models import Tied
from torch import Tensor, nn
from torch.nn import functional as F

import splitgrow
from splitgrow.errors import FixedWidthError
from splitgrow.growth.history_lookup import history_of

X = torch.tensor([[1, 4, 10, 2], [0, 3, 3, 7]])


def plain(**options: Any) -> Any:
    torch.manual_seed(0)
    model: Any = randomise(Tied(**options)).double().eval()
    model.tie()
    return model


def tied(**options: Any) -> Any:
    return splitgrow.growable(plain(**options), X)


KINDS: dict[str, dict[str, Any]] = {
    "average": {},
    "zero": {"norm": nn.RMSNorm},
    "with a bias": {"bias": True},
    "post-norm": {"post": True},
    "post-norm, rms": {"post": True, "norm": nn.RMSNorm},
}
WAYS = {
    "average": "average",
    "zero": "zero",
    "with a bias": "average",
    "post-norm": "duplicate",
    "post-norm, rms": "zero",
}


@pytest.mark.parametrize("kind", KINDS)
def test_stream_and_vocabulary_grow_in_turn_and_stay_tied(kind: str) -> None:
    model = tied(**KINDS[kind])
    before = outputs_of(model, X)
    for _ in range(2):
        for layer in ("embed", "head"):
            now = outputs_of(model, X)
            step = next(each.step for each in model.layers if each.name == layer)
            edit = model.expand_layer(layer, step if step > 1 else 2)
            if layer == "embed":
                assert set(edit.ways.values()) == {WAYS[kind]}
            assert_equal(model(X)[..., : now.shape[-1]], now)
            assert model.embed[-1].weight is model.head[-1].weight
            randomise_new_blocks(model)
            assert not torch.allclose(model(X)[..., : now.shape[-1]], now)
    merged: Any = splitgrow.merge(model)
    assert merged.head.weight is merged.embed.weight
    assert_equal(outputs_of(merged, X), outputs_of(model, X))
    new = X + merged.embed.num_embeddings - 11
    for mode in ("blockwise", "merged"):
        with splitgrow.execution(mode):
            assert_equal(outputs_of(model, new), outputs_of(merged, new))
    with model.at(0):
        assert_identical(outputs_of(model, X), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("freeze", [True, False])
def test_gradients_are_those_of_the_merged_model(kind: str, freeze: bool) -> None:
    model = tied(**KINDS[kind])
    step = model.layers[0].step
    model.expand({"embed": step if step > 1 else 2, "head": 3}, freeze=freeze)
    randomise_new_blocks(model)
    merged: Any = splitgrow.merge(model)
    new = X + 3
    model(new).square().sum().backward()
    merged(new).square().sum().backward()
    whole = merged.embed.weight.grad
    old = model.embed[0].weight
    assert (old.grad is None) == freeze
    if not freeze:
        assert_equal(old.grad, whole[:11, :6])
    rows, columns = model.head[1].weight, model.embed[2].weight
    assert rows is model.embed[1].weight
    assert columns is model.head[2].weight
    assert_equal(rows.grad, whole[11:, :6])
    assert_equal(columns.grad, whole[:, 6:])


def test_an_optimizer_gets_each_shared_parameter_once() -> None:
    model = tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model.expand({"embed": 2, "head": 3}, optimizer=optimizer)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == set(model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(X + 3).square().mean().backward()
        optimizer.step()
    assert model.embed[1].weight is model.head[1].weight


def test_an_edit_counts_a_shared_parameter_once() -> None:
    model = tied()
    before = sum(p.numel() for p in model.parameters())
    edit = model.expand({"embed": 2, "head": 3})
    assert sum(p.numel() for p in model.parameters()) - before == edit.parameters


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_files_keep_the_ties(kind: str) -> None:
    model = tied(**KINDS[kind])
    model.expand_layer("embed", model.layers[0].step)
    model.expand_vocabulary(3)
    randomise_new_blocks(model)
    twin = copy.deepcopy(model)
    fresh = splitgrow.growable(plain(**KINDS[kind]), X)
    fresh.load_state_dict(model.state_dict())
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    read = splitgrow.growable(plain(**KINDS[kind]), X)
    read.load_state_dict(torch.load(file))
    for other in (twin, fresh, read):
        assert_identical(outputs_of(other, X), outputs_of(model, X))
        assert other.embed[1].weight is other.head[1].weight
        assert other.embed[1].weight is not model.embed[1].weight


def test_a_tied_model_without_norms_grows_by_zeros() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            h = self.embed(x)
            return self.head(h + torch.sigmoid(self.mix(h)))

    model: Any = splitgrow.growable(Bag().double().eval(), X % 7)
    before = outputs_of(model, X % 7)
    edit = model.expand_layer("embed", 3)
    assert set(edit.ways.values()) == {"zero"}
    assert_equal(outputs_of(model, X % 7), before)
    with pytest.raises(ValueError, match="with the weight of `embed`"):
        model.expand_layer("embed", 7, initializer="average")


def test_two_linear_layers_of_one_weight_grow_as_one() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.read = nn.Linear(3, 5), nn.Linear(3, 5), nn.Linear(5, 2)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.read(torch.relu(self.first(x)) + self.second(x + 1))

    x = torch.randn(4, 3).double()
    model: Any = splitgrow.growable(Twice().double(), x)
    before = model(x)
    model.expand_layer("second", 2)
    assert_equal(model(x), before)
    assert model.first[1].weight is model.second[1].weight
    assert model.first[1].bias is not model.second[1].bias
    randomise_new_blocks(model)
    merged: Any = splitgrow.merge(model)
    assert merged.first.weight is merged.second.weight
    assert_equal(merged(x), model(x))


def test_a_layer_that_is_not_called_grows_with_the_one_that_has_its_weight() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Embedding(7, 4)
            self.embed, self.read = nn.Embedding(7, 4), nn.Linear(4, 3)
            self.embed.weight = self.shared.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.read(self.embed(x))

    model: Any = splitgrow.growable(Shared().double(), X % 7)
    before = model(X % 7)
    model.expand_layer("embed", 2)
    model.expand_vocabulary(3)
    assert_equal(model(X % 7), before)
    merged: Any = splitgrow.merge(model)
    assert merged.shared.weight is merged.embed.weight
    assert merged.shared.weight.shape == (10, 6)


def test_a_module_that_only_holds_the_tensor_holds_the_plain_one_afterwards() -> None:
    class Holding(Tied):
        def __init__(self) -> None:
            super().__init__(bias=True)
            self.beside = nn.Module()
            self.beside.bias = self.head.bias

    model: Any = splitgrow.growable(randomise(Holding()).double().eval(), X)
    before = outputs_of(model, X)
    model.expand_vocabulary(2)
    assert_equal(model(X)[..., :11], before)
    randomise_new_blocks(model)
    merged: Any = splitgrow.merge(model)
    assert merged.beside.bias is merged.head.bias
    assert_equal(merged(X), model(X))


def test_a_module_beside_two_tied_layers_is_tied_to_both_afterwards() -> None:
    class Holding(Tied):
        def __init__(self) -> None:
            super().__init__()
            self.beside = nn.Module()
            self.beside.weight = self.head.weight

    model: Any = splitgrow.growable(randomise(Holding()).double().eval(), X)
    model.expand_vocabulary(2)
    merged: Any = splitgrow.merge(model)
    assert merged.beside.weight is merged.head.weight is merged.embed.weight
    assert_equal(merged(X), model(X))


def test_forward_that_reads_the_tensor_from_there_fixes_it() -> None:
    class Reading(Tied):
        def __init__(self) -> None:
            super().__init__()
            self.alias = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.alias.sum()

    model: Any = splitgrow.growable(randomise(Reading()).double().eval(), X)
    for name in ("embed", "head"):
        with pytest.raises(FixedWidthError, match="its `weight` is tied to `alias`"):
            model.expand_layer(name, 2)


def test_control_where_a_norm_is_read_otherwise_too_copies_do_not_help() -> None:
    class Showing(Tied):
        def forward(self, x: Tensor) -> Any:
            h = self.embed(x)
            h = self.last(self.norm(h + self.down(F.gelu(self.up(h)))))
            return self.head(h), h.mean()

    model = randomise(Showing()).double().eval()
    graph = history_of(splitgrow.growable(model, X)).graph
    (reason,) = {lost["duplicate"] for lost in graph.lost.values() if "duplicate" in lost}
    assert "both for `head`" in reason
    assert not any("duplicate" in ways for ways in graph.ways.values())


def test_frozen_shared_weights_lie_in_one_piece_of_memory() -> None:
    model = tied()
    model.expand_layer("embed", 2)
    model.expand_vocabulary(2)
    before = model(X)
    with splitgrow.execution("merged"):
        for _ in range(2):
            assert_equal(model(X), before)
            wholes = {
                id(layer): layer._runner._merged.assembly._wholes["weight"].data_ptr()
                for layer in (model.embed, model.head)
            }
            assert len(set(wholes.values())) == 1
    twin: Any = splitgrow.merge(model)
    randomise_new_blocks(model)
    assert not torch.allclose(model(X), before)
    assert_equal(twin(X), before)

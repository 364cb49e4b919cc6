"""Attention of stock Linear layers in the place of torch's own: the same, and heads grow alone."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from helpers import (
    assert_equal,
    assert_identical,
    outputs_of,
    randomise,
    randomise_new_blocks,
    train_steps,
)
from torch import nn
from torch_attention import MODELS, X, attention, attentions, block, made, stack

import splitgrow
from splitgrow import PlainAttention, UnsupportedModelError, plain_attention

CASES = pytest.mark.parametrize("name", MODELS)


@CASES
def test_it_computes_the_same_and_has_the_same_gradients(name: str) -> None:
    model, plain = made(name), plain_attention(made(name))
    assert not attentions(plain)
    expected = model(X)
    found = plain(X)
    assert_equal(found, expected)
    expected.square().sum().backward()
    found.square().sum().backward()
    pairs = zip(attentions(model), plains(plain), strict=True)
    for one, other in pairs:
        assert_equal(other.out_proj.weight.grad, one.out_proj.weight.grad)
        if one.in_proj_weight is not None:
            parts = [each.weight.grad for each in (other.q_proj, other.k_proj, other.v_proj)]
            assert_equal(torch.cat(parts), one.in_proj_weight.grad)


def plains(model: nn.Module) -> list[PlainAttention]:
    return [module for module in model.modules() if isinstance(module, PlainAttention)]


@CASES
def test_its_heads_grow_alone_and_merge_to_stock_layers(name: str) -> None:
    model: Any = splitgrow.growable(plain_attention(made(name)), X)
    before = outputs_of(model, X)
    for layer in [each.name for each in model.layers if each.name.endswith("v_proj")]:
        edit = model.expand_layer(layer, 4)
        assert [number.value for number in edit.numbers] == [(2, 3)]
        assert len(edit.changes) in (4, 6)  # with the keys and values that are added to all
        assert_equal(outputs_of(model, X), before)
    randomise_new_blocks(model)
    assert not torch.allclose(outputs_of(model, X), before, rtol=1e-3)
    merged = splitgrow.merge(model)
    assert_equal(outputs_of(merged, X), outputs_of(model, X))
    for module in plains(merged):
        assert type(module.q_proj) is nn.Linear
        assert module.num_heads == 3
    with model.at(0):
        assert_identical(outputs_of(model, X), before)


@pytest.mark.parametrize("name", ["pre-norm", "post-norm", "transformer"])
def test_its_stream_grows_without_its_heads(name: str) -> None:
    model: Any = splitgrow.growable(plain_attention(made(name)), X)
    before = outputs_of(model, X)
    stream = model.layers[0]
    edit = model.expand_layer(stream.name, stream.step)
    assert stream.step == (1 if name == "pre-norm" else 8)
    assert "num_heads" not in {number.attribute for number in edit.numbers}
    assert_equal(outputs_of(model, X), before)


def test_it_trains_is_copied_pickled_and_saved(tmp_path: Any) -> None:
    model: Any = splitgrow.growable(plain_attention(made("pre-norm")), X)
    optimizer = torch.optim.AdamW(model.parameters())
    train_steps(model, (X,), optimizer)
    model.expand_layer("1.self_attn.v_proj", 4, optimizer=optimizer)
    train_steps(model, (X,), optimizer)
    expected = outputs_of(model, X)
    assert_identical(outputs_of(copy.deepcopy(model), X), expected)
    assert_identical(outputs_of(pickle.loads(pickle.dumps(model)), X), expected)
    splitgrow.save(model, tmp_path / "run.safetensors")
    fresh = splitgrow.growable(plain_attention(made("pre-norm")), X)
    splitgrow.load(fresh, tmp_path / "run.safetensors")
    assert_identical(outputs_of(fresh, X), expected)


def test_a_model_that_is_one_itself_is_replaced() -> None:
    module = attention().double()
    plain = plain_attention(module)
    assert isinstance(plain, PlainAttention)
    q, k = torch.randn(3, 8).double(), torch.randn(4, 8).double()
    assert_equal(plain(q, k, k), module(q, k, k))
    assert_equal(plain(q, k, k, need_weights=False)[0], module(q, k, k, need_weights=False)[0])
    assert_equal(
        plain(q, k, k, average_attn_weights=False), module(q, k, k, average_attn_weights=False)
    )


def test_one_module_in_two_places_stays_one_and_keeps_hooks_modes_and_what_is_frozen() -> None:
    shared = attention().requires_grad_(False).eval()
    seen: list[str] = []
    shared.register_forward_hook(lambda *_: seen.append("called"))
    model: Any = nn.ModuleDict({"one": shared, "two": shared})
    assert plain_attention(model) is model
    assert model["one"] is model["two"]
    x = torch.randn(2, 4, 8)
    model["one"](x, x, x)
    assert seen == ["called"]
    assert not any(p.requires_grad for p in model.parameters())
    assert not model["one"].training


def test_what_cannot_be_taken_apart_is_refused_and_left_as_it_is() -> None:
    one, two = attention(), attention()
    two.in_proj_weight = one.in_proj_weight
    tied = nn.ModuleList([one, two])
    with pytest.raises(UnsupportedModelError, match="share a weight"):
        plain_attention(tied)
    assert list(tied) == [one, two]
    growable = splitgrow.growable(made("plain"), X)
    with pytest.raises(UnsupportedModelError, match="growable already"):
        plain_attention(growable)


def test_a_model_without_attention_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    assert plain_attention(model) is model


def test_torchs_layers_go_on_running_it_where_they_would_take_a_fused_path() -> None:
    torch.manual_seed(0)
    for layer in (block(), block(bias=False), nn.TransformerEncoder(block(), 2)):
        model = randomise(stack(layer).double()).eval()
        expected = outputs_of(model, X)
        assert_equal(outputs_of(plain_attention(model), X), expected)


def test_shares_of_dropout_given_by_position_are_no_difference_that_growth_makes() -> None:
    model: Any = splitgrow.growable(plain_attention(stack(block(dropout=0.5)).double()), X)
    reasons = {layer.name: layer.reason for layer in model.layers}
    assert reasons["1.self_attn.v_proj"] == ""

"""Torch's own attention and transformers: stream and heads grow together, and merge to torch's."""

from __future__ import annotations

import copy
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
from torch import Tensor, nn
from torch_attention import HEADS, MODELS, WIDTH, Among, X, attention, attentions, made

import splitgrow
from splitgrow.analysis.written_out import written_out

CASES = pytest.mark.parametrize("name", MODELS)


def grown(name: str, times: int = 2) -> Any:
    model = splitgrow.growable(made(name), X)
    for _ in range(times):
        stream = model.layers[0]
        model.expand_layer(stream.name, stream.step, freeze=False)
        randomise_new_blocks(model)
    return model


@CASES
def test_written_out_it_is_torchs_own(name: str) -> None:
    model = made(name)
    expected = outputs_of(model, X)
    for module, forward in written_out(model.modules()).items():
        module.forward = forward  # type: ignore[method-assign, assignment]
    assert_equal(outputs_of(model, X), expected)


def test_unbatched_it_is_torchs_own_with_its_weights() -> None:
    torch.manual_seed(0)
    for average in (True, False):
        module = attention(batch_first=average).double()
        q, k = torch.randn(3, WIDTH).double(), torch.randn(4, WIDTH).double()
        padded = torch.tensor([False, False, True, False])
        given = {"key_padding_mask": padded, "average_attn_weights": average}
        ours = written_out([module])[module]
        assert_equal(ours(q, k, k, **given), module(q, k, k, **given))


def test_a_subclass_with_a_forward_of_its_own_is_traced_as_it_is() -> None:
    class Own(nn.MultiheadAttention):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    assert not written_out([Own(WIDTH, HEADS), nn.Linear(2, 2)])


@CASES
def test_stream_and_heads_grow_together_and_nothing_changes(name: str) -> None:
    model = splitgrow.growable(made(name), X)
    before = model(X).detach()  # without gradients torch would take a fused path, of other sums
    stream, step = model.layers[0].name, model.layers[0].step
    edit = model.expand_layer(stream, step)
    assert_equal(outputs_of(model, X), before)
    randomise_new_blocks(model)
    changed = outputs_of(model, X)
    assert not torch.allclose(changed, before, rtol=1e-3)
    with model.at(0):
        assert_identical(model(X), before)
    assert step % (WIDTH // HEADS) == 0
    numbers = {f"{n.module}.{n.attribute}": n.value for n in edit.numbers}
    for module in attentions(model):
        width = WIDTH + step
        assert (module.embed_dim, module.num_heads) == (width, width * HEADS // WIDTH)
    assert len(numbers) >= 2 * len(attentions(model))


@CASES
def test_what_it_merges_to_is_torchs_own_and_trains_alike(name: str) -> None:
    model = grown(name)
    merged = splitgrow.merge(model)
    assert_equal(outputs_of(merged, X), outputs_of(model, X))
    for one, other in zip(attentions(merged), attentions(model), strict=True):
        assert type(one) is nn.MultiheadAttention
        assert (one.embed_dim, one.num_heads) == (other.embed_dim, other.num_heads)
        assert one.in_proj_weight is None or one.kdim == one.vdim == one.embed_dim
    model(X).square().sum().backward()
    merged(X).square().sum().backward()
    for module, plain in zip(attentions(model), attentions(merged), strict=True):
        key = "k_proj_weight" if module.in_proj_weight is None else "in_proj_weight"
        assert_equal(getattr(module, key).grad, getattr(plain, key).grad)
        assert_equal(module.out_proj.weight.grad, plain.out_proj.weight.grad)


@pytest.mark.parametrize("name", ["plain", "across", "post-norm", "pre-norm"])
def test_it_is_saved_loaded_and_copied(name: str, tmp_path: Any) -> None:
    model = grown(name)
    splitgrow.save(model, tmp_path / "run.safetensors")
    fresh = splitgrow.growable(made(name), X)
    splitgrow.load(fresh, tmp_path / "run.safetensors")
    expected = outputs_of(model, X)
    assert_identical(outputs_of(fresh, X), expected)
    assert_identical(outputs_of(copy.deepcopy(model), X), expected)


@pytest.mark.parametrize("name", ["pre-norm", "encoder"])
def test_new_heads_differ_and_all_of_them_learn(name: str) -> None:
    model = splitgrow.growable(made(name), X)
    model.expand_layer(model.layers[0].name, WIDTH // HEADS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    added = {
        path: block.value
        for path, block in model.named_modules()
        if path.endswith("in_proj_weight_blocks.2")
    }
    assert added
    before = {path: value.detach().clone() for path, value in added.items()}
    for value in before.values():
        for rows in value.chunk(3):  # queries, keys, values
            assert (rows[0] - rows[1]).abs().max() > 1e-3  # channels of a head are not alike
    train_steps(model, (X,), optimizer, steps=4)
    for path, value in added.items():
        moved = (value - before[path]).abs().amax(1)
        assert bool((moved > 0).all()), path


def test_weights_that_are_averaged_over_heads_and_used_let_the_heads_be_copied_only() -> None:
    class Looking(Among):
        def forward(self, x: Tensor) -> Any:
            h = self.first(x)
            y, weights = self.attention(h, h, h)
            return self.last(h + y), weights

    torch.manual_seed(0)
    model: Any = splitgrow.growable(randomise(Looking(attention()).double()).eval(), X)
    before = outputs_of(model, X)
    with pytest.raises(ValueError, match="'duplicate' is the only exact way here: `mean`"):
        model.expand_layer("first", WIDTH // HEADS)
    model.expand_layer("first", WIDTH)
    assert_equal(outputs_of(model, X), before)


def test_a_mask_of_its_own_for_each_head_keeps_their_number() -> None:
    mask = torch.zeros(2 * HEADS, 4, 4, dtype=torch.float64)
    model = splitgrow.growable(made_of(Among(attention(), attn_mask=mask)), X)
    assert not model.layers[0].growable


def made_of(model: nn.Module) -> nn.Module:
    return randomise(model.double()).eval()


def test_a_mode_of_torch_is_afterwards_as_it_was() -> None:
    for enabled in (True, False):
        torch.backends.mha.set_fastpath_enabled(enabled)
        try:
            splitgrow.growable(made("post-norm"), X)
            assert torch.backends.mha.get_fastpath_enabled() is enabled
        finally:
            torch.backends.mha.set_fastpath_enabled(True)

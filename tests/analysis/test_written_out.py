"""Torch's own attention and transformers: stream and heads grow together, and merge to torch's."""

from __future__ import annotations

import copy
from collections.abc import Callable
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

import splitgrow
from splitgrow.analysis.written_out import written_out

WIDTH, HEADS = 8, 2


class Among(nn.Module):
    """An attention between two Linear layers, with what it is given besides."""

    def __init__(self, attention: nn.MultiheadAttention, **given: Any) -> None:
        super().__init__()
        self.first, self.attention = nn.Linear(5, WIDTH), attention
        self.last, self.given = nn.Linear(WIDTH, 3), given

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h + self.attention(h, h, h, **self.given)[0])


class Across(nn.Module):
    """Queries of one stream, keys of another, values of a third."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        widths = (WIDTH, attention.kdim, attention.vdim)
        self.streams = nn.ModuleList(nn.Linear(5, width) for width in widths)
        self.attention, self.last = attention, nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (stream(x) for stream in self.streams)
        return self.last(self.attention(q, k, v, need_weights=False)[0])


class Both(nn.Module):
    """A whole transformer, from one sequence to another."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, WIDTH)
        self.whole = nn.Transformer(WIDTH, HEADS, 1, 1, 6, dropout=0.0, batch_first=True)
        self.last = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(self.whole(h[:, 1:], h))


def attention(**options: Any) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(WIDTH, HEADS, **{"batch_first": True, **options})


def block(**options: Any) -> nn.TransformerEncoderLayer:
    chosen = {"dropout": 0.0, "batch_first": True, **options}
    return nn.TransformerEncoderLayer(WIDTH, HEADS, 6, **chosen)


def causal() -> Tensor:
    return nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64)


def hidden() -> Tensor:
    return torch.tensor([[False] * 4, [False, False, True, True]])


def stack(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, WIDTH), layer, nn.Linear(WIDTH, 3))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: Among(attention()),
    "without weights": lambda: Among(attention(), need_weights=False),
    "sequence first": lambda: Among(attention(batch_first=False)),
    "no bias": lambda: Among(attention(bias=False), need_weights=False),
    "more keys": lambda: Among(attention(add_bias_kv=True, add_zero_attn=True)),
    "masked": lambda: Among(attention(), attn_mask=causal(), need_weights=False),
    "masked by bools": lambda: Among(attention(), attn_mask=causal() != 0),
    "causal": lambda: Among(attention(), attn_mask=causal(), is_causal=True, need_weights=False),
    "padded": lambda: Among(attention(add_zero_attn=True), key_padding_mask=hidden()),
    "padded and masked": lambda: Among(
        attention(), key_padding_mask=hidden(), attn_mask=causal() != 0, need_weights=False
    ),
    "across": lambda: Across(attention(kdim=6, vdim=7)),
    "across, packed": lambda: Across(attention()),
    "post-norm": lambda: stack(block()),
    "pre-norm": lambda: stack(block(norm_first=True)),
    "encoder": lambda: stack(
        nn.TransformerEncoder(block(norm_first=True), 2, enable_nested_tensor=False)
    ),
    "post-norm encoder": lambda: stack(nn.TransformerEncoder(block(), 2)),
    "transformer": Both,
}

CASES = pytest.mark.parametrize("name", MODELS)
X = torch.randn(2, 4, 5, generator=torch.manual_seed(3), dtype=torch.float64)


def made(name: str) -> Any:
    torch.manual_seed(0)
    return randomise(MODELS[name]().double()).eval()


def grown(name: str, times: int = 2) -> Any:
    model = splitgrow.growable(made(name), X)
    for _ in range(times):
        stream = model.layers[0]
        model.expand_layer(stream.name, stream.step, freeze=False)
        randomise_new_blocks(model)
    return model


def attentions(model: nn.Module) -> list[nn.MultiheadAttention]:
    return [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]


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

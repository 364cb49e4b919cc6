"""Products of activations, and tensors made in forward: which channels pass, which are fixed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from written import Forward, X, laws_hold, reasons, written

import splitgrow

attend = F.scaled_dot_product_attention


def heads(x: Tensor) -> Tensor:
    """(batch, tokens, features) as (batch, heads, tokens, 4)."""
    return x.unflatten(-1, (-1, 4)).transpose(1, 2)


def features(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def three(forward: Forward, **held: nn.Module) -> Any:
    """A model with one more layer of eight units."""
    return splitgrow.growable(written(forward, third=nn.Linear(5, 8), **held), X)


def positions(x: Tensor) -> Tensor:
    """A square matrix over the tokens for each sample, which no layer made."""
    return torch.softmax(x @ x.transpose(1, 2), dim=-1)


# --- attention ----------------------------------------------------------------------------------


def attention(model: Any, x: Tensor) -> Tensor:
    q, k, v = heads(model.one(x)), heads(model.other(x)), heads(model.third(x))
    return model.head(features(attend(q, k, v)))


def attention_with_a_mask(model: Any, x: Tensor) -> Tensor:
    q, k, v = heads(model.one(x)), heads(model.other(x)), heads(model.third(x))
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    return model.head(features(attend(q, k, v, attn_mask=mask)))


def attention_by_words(model: Any, x: Tensor) -> Tensor:
    q, k, v = heads(model.one(x)), heads(model.other(x)), heads(model.third(x))
    return model.head(features(attend(query=q, key=k, value=v, is_causal=True, scale=0.3)))


@pytest.mark.parametrize("forward", [attention, attention_with_a_mask, attention_by_words])
def test_attention_grows_by_whole_heads_of_queries_keys_and_values(forward: Forward) -> None:
    model = three(forward)
    first = model.layers[0]
    assert (first.step, first.group) == (4, ("other", "third"))
    assert laws_hold(model) == ["one", "other", "third", "head"]


def test_attention_with_a_mask_for_each_head_cannot_gain_heads() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        q, k, v = heads(model.one(x)), heads(model.other(x)), heads(model.third(x))
        return model.head(features(attend(q, k, v, attn_mask=model.slopes * torch.ones(2, 4, 4))))

    slopes = torch.tensor([0.5, 0.25], dtype=torch.float64)[:, None, None]
    model = splitgrow.growable(written(forward, third=nn.Linear(5, 8), slopes=slopes), X)
    assert all("does not" in reasons(model)[name] for name in ("one", "other", "third"))
    assert laws_hold(model) == ["head"]


def test_without_heads_the_values_alone_can_grow() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        return model.head(attend(model.one(x), model.other(x), model.third(x)))

    model = three(forward)
    assert all("sums over it" in reasons(model)[name] for name in ("one", "other"))
    assert laws_hold(model) == ["third", "head"]


def test_keys_that_serve_several_queries_bring_as_many_of_them_along() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        q, k, v = heads(model.queries(x)), heads(model.one(x)), heads(model.other(x))
        return model.wide(features(attend(q, k, v, enable_gqa=True)))

    wide = {"queries": nn.Linear(5, 24), "wide": nn.Linear(24, 3)}
    model = splitgrow.growable(written(forward, **wide), X)
    assert {layer.name: layer.step for layer in model.layers[:3]} == {
        "queries": 12,
        "one": 4,
        "other": 4,
    }
    assert laws_hold(model) == ["queries", "one", "other", "wide"]
    assert (model.queries.out_features, model.one.out_features) == (24 * 4, 8 * 4)


# --- matrix products ----------------------------------------------------------------------------


def operator_form(model: Any, x: Tensor) -> Tensor:
    return model.head(positions(x) @ model.one(x))


def function_form(model: Any, x: Tensor) -> Tensor:
    return model.head(torch.matmul(input=positions(x), other=model.one(x)))


def batched_form(model: Any, x: Tensor) -> Tensor:
    return model.head(torch.bmm(positions(x), model.one(x)))


def spread_over_the_batch(model: Any, x: Tensor) -> Tensor:
    return model.head(positions(x)[0] @ model.one(x))


def channels_first(model: Any, x: Tensor) -> Tensor:
    return model.head((model.one(x).transpose(1, 2) @ positions(x)).mT)


def channels_as_batch(model: Any, x: Tensor) -> Tensor:
    y = heads(model.one(x)) @ torch.eye(4, dtype=x.dtype).cos()
    return model.head(features(positions(x)[:, None] @ y))


MATMULS = [operator_form, function_form, batched_form, spread_over_the_batch, channels_first]


@pytest.mark.parametrize("forward", [*MATMULS, channels_as_batch], ids=lambda f: f.__name__)
def test_channels_that_a_product_does_not_sum_over_pass(forward: Forward) -> None:
    model = splitgrow.growable(written(forward), X)
    assert laws_hold(model) == ["one", "head"]


def sums_over_them(model: Any, x: Tensor) -> Tensor:
    return model.head(model.one(x) @ torch.eye(8, dtype=x.dtype).cos())


def sums_over_both(model: Any, x: Tensor) -> Tensor:
    scores = model.one(x) @ model.other(x).transpose(1, 2)
    return model.head(scores.tanh() @ model.third(x))


def by_a_vector(model: Any, x: Tensor) -> Tensor:
    return model.head(model.one(x) * (model.other(x) @ torch.ones(8, dtype=x.dtype))[..., None])


@pytest.mark.parametrize(
    ("forward", "fixed"),
    [(sums_over_them, {"one"}), (sums_over_both, {"one", "other"}), (by_a_vector, {"other"})],
)
def test_channels_that_a_product_sums_over_are_fixed(forward: Forward, fixed: set[str]) -> None:
    model = three(forward)
    called = {name: reason for name, reason in reasons(model).items() if "call it" not in reason}
    assert {name for name, reason in called.items() if reason} == fixed
    assert all("test_products.py:" in called[name] for name in fixed)
    assert set(laws_hold(model)) == set(called) - fixed


# --- einsum -------------------------------------------------------------------------------------


def weighted(equation: str) -> Forward:
    """Activations weighted by one number for each token."""

    def forward(model: Any, x: Tensor) -> Tensor:
        return model.head(torch.einsum(equation, model.one(x), x[..., 0]))

    return forward


def mixed_tokens(equation: str) -> Forward:
    def forward(model: Any, x: Tensor) -> Tensor:
        return model.head(torch.einsum(equation, positions(x), model.one(x)))

    return forward


def from_a_list(model: Any, x: Tensor) -> Tensor:
    return model.head(torch.einsum("bnc, bn -> bnc", [model.one(x), x[..., 0]]))


KEPT: dict[str, Forward] = {
    "a letter": weighted("bnc,bn->bnc"),
    "moved": lambda m, x: m.head(torch.einsum("bnc->cbn", m.one(x)).permute(1, 2, 0)),
    "an ellipsis": weighted("...c,...->...c"),
    "an ellipsis for one": weighted("b...c,b...->b...c"),
    "an ellipsis over it": mixed_tokens("bmn,bn...->bm..."),
    "tokens summed": mixed_tokens("bmn,bnc->bmc"),
    "capitals": mixed_tokens("Bmn,BnC->BmC"),
    "a list": from_a_list,
    "summed away": lambda m, x: m.head(torch.einsum("b...c->bc", m.one(x))),
    "an outer product": lambda m, x: m.head(torch.einsum("bnc,bnd->bnc", m.one(x), x)),
}


@pytest.mark.parametrize("forward", KEPT.values(), ids=KEPT.keys())
def test_a_letter_that_einsum_keeps_can_grow(forward: Forward) -> None:
    model = splitgrow.growable(written(forward), X)
    assert laws_hold(model) == ["one", "head"]


@pytest.mark.parametrize("equation", ["bnc,bnc->bnc", "...c,...c->...c", "...,...->..."])
def test_a_letter_of_two_operands_ties_them(equation: str) -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        return model.head(torch.einsum(equation, model.one(x), model.other(x)))

    model = splitgrow.growable(written(forward), X)
    assert model.layers[0].group == ("other",)
    assert laws_hold(model) == ["one", "other", "head"]


def test_heads_pass_an_einsum_and_their_features_do_not() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        q, k, v = heads(model.one(x)), heads(model.other(x)), heads(model.third(x))
        scores = torch.einsum("bhnd,bhmd->bhnm", q, k).softmax(-1)
        return model.head(torch.einsum("bhnm,bhmd->bnhd", scores, v).flatten(2))

    model = three(forward)
    assert model.layers[0].step == 4
    assert laws_hold(model) == ["one", "other", "third", "head"]


# --- tensors made in forward --------------------------------------------------------------------

MADE: dict[str, Any] = {
    "zeros": lambda y: torch.zeros(y.shape[0], y.shape[1], y.shape[-1], dtype=y.dtype),
    "ones of a shape": lambda y: torch.ones(y.shape, dtype=y.dtype),
    "ones, spelled out": lambda y: torch.ones(*y.shape, dtype=y.dtype),
    "by name": lambda y: torch.zeros(size=(2, 4, y.size(-1)), dtype=y.dtype),
    "spread": lambda y: torch.ones(y.shape[-1], dtype=y.dtype),
    "full": lambda y: torch.full(y.shape, 0.5, dtype=y.dtype),
    "new zeros": lambda y: y.new_zeros(y.shape),
    "new ones": lambda y: y.new_ones(1, y.size(-1)),
    "new full": lambda y: y.new_full((y.size(-1),), 0.5),
    "like it": lambda y: torch.full_like(y, 0.5) + torch.ones_like(y),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE.keys())
def test_a_tensor_that_is_alike_everywhere_grows_with_the_width_it_is_made_by(make: Any) -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        y = model.one(x)
        return model.head(y + make(y))

    model = splitgrow.growable(written(forward), X)
    assert laws_hold(model) == ["one", "head"]


@pytest.mark.parametrize("shape", [(2, 4, 8), (8,)])
def test_a_tensor_of_a_size_that_is_written_down_fixes_what_it_meets(shape: Any) -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        return model.head(model.one(x) + torch.ones(shape, dtype=x.dtype))

    model = splitgrow.growable(written(forward), X)
    assert "test_products.py:" in reasons(model)["one"]
    assert laws_hold(model) == ["head"]


# --- ops that splitgrow does not know -----------------------------------------------------------


def renormed(x: Tensor) -> Tensor:
    return torch.renorm(x, 2, 0, 1.0)


def solved(x: Tensor) -> Tensor:
    return torch.linalg.matrix_exp(positions(x)) @ x


def zeta(x: Tensor) -> Tensor:
    return torch.special.zeta(x.abs() + 2, x.abs() + 1)


@pytest.mark.parametrize("op", [renormed, solved, zeta], ids=lambda f: f.__name__)
def test_an_unknown_op_off_the_way_of_every_channel_fixes_nothing(op: Any) -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        return model.head(model.one(op(x)).tanh())

    assert laws_hold(splitgrow.growable(written(forward), X)) == ["one", "head"]


@pytest.mark.parametrize("op", [renormed, solved, zeta], ids=lambda f: f.__name__)
def test_what_meets_its_result_is_fixed_for_the_reason_that_its_operand_is(op: Any) -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        return model.last(model.same(x) + op(x))

    layers = {"same": nn.Linear(5, 5), "last": nn.Linear(5, 2)}
    model = splitgrow.growable(written(forward, **layers), X)
    assert reasons(model)["same"] == "it is tied to the model's input `x`"


@pytest.mark.parametrize("op", [renormed, solved, zeta], ids=lambda f: f.__name__)
def test_control_on_the_way_of_channels_it_fixes_them(op: Any) -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        return model.head(op(model.one(x)))

    model = splitgrow.growable(written(forward), X)
    assert "test_products.py:" in reasons(model)["one"]
    assert laws_hold(model) == ["head"]

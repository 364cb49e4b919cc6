"""Inserted blocks become entries of their containers in a merged model, all renumbered."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import assert_equal, assert_identical, randomise, randomise_new_blocks
from torch import Tensor, nn

import splitgrow
from splitgrow.analysis.output_comparison import order_of
from splitgrow.layers.block_numbers import counts_of, lists_of, place_numbers
from splitgrow.layers.insertion_wrapper import InsertionWrapper


class Inner(nn.Module):
    def __init__(self, place: int, kind: str) -> None:
        super().__init__()
        self.layer_idx, self.kind = place, kind
        self.lin = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor, cache: list[Tensor] | None) -> Tensor:
        if cache is not None:
            cache.insert(self.layer_idx, x.sum())
        return self.lin(x).tanh() * mask


class Block(nn.Module):
    def __init__(self, place: int, kind: str) -> None:
        super().__init__()
        self.inner, self.out = Inner(place, kind), nn.Linear(4, 4)

    def forward(
        self, x: Tensor, mask: Tensor, cache: list[Tensor] | None = None, **_: Any
    ) -> Tensor:
        return x + self.out(self.inner(x, mask, cache))


class Net(nn.Module):
    """As decoders are written: a list, a config with a count and a list, masks by kind."""

    def __init__(self, kinds: tuple[str, ...] = ("near", "far", "near")) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            num_hidden_layers=len(kinds), layer_types=list(kinds), heads=len(kinds)
        )
        self.h = nn.ModuleList(Block(n, kind) for n, kind in enumerate(kinds))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        masks = {"near": torch.full((4,), 0.5).to(x), "far": torch.ones(4).to(x)}
        for n, layer in enumerate(self.h[: self.config.num_hidden_layers]):
            x = layer(x, mask=masks[self.config.layer_types[n]], other=None)
        return self.head(x)


X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def deepened(*after: str, net: nn.Module | None = None) -> Any:
    torch.manual_seed(0)
    model: Any = splitgrow.growable(randomise((net or Net()).double().eval()), X)
    for path in after:
        model.insert_layer(path, "block")
    randomise_new_blocks(model)
    with torch.no_grad():  # the copies have zeros no more
        for name, parameter in model.named_parameters():
            if "inserted" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def wrappers(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, InsertionWrapper)]


@pytest.mark.parametrize(
    ("after", "kinds"),
    [
        (["h.0"], ["near", "near", "far", "near"]),
        (["h.1"], ["near", "far", "far", "near"]),
        (["h.2", "h.0"], ["near", "near", "far", "near", "near"]),
        (["h.1", "h.1"], ["near", "far", "far", "far", "near"]),
        (["h.1", "h.1.inserted1"], ["near", "far", "far", "far", "near"]),
        (["h.0", "h.1", "h.2"], ["near", "near", "far", "far", "near", "near"]),
    ],
)
def test_a_list_of_blocks_gets_an_entry_for_each_copy(after: list[str], kinds: list[str]) -> None:
    model = deepened(*after)
    merged = splitgrow.merge(model)
    assert not wrappers(merged)
    assert list(merged.h._modules) == [str(n) for n in range(len(kinds))]
    assert merged.config.num_hidden_layers == len(kinds)
    assert merged.config.layer_types == kinds
    assert [block.inner.kind for block in merged.h] == kinds
    assert [block.inner.layer_idx for block in merged.h] == list(range(len(kinds)))
    for x in (X, 3 * X + 1):
        assert_equal(merged(x), model(x))
    fresh = Net(tuple(kinds)).double().eval()
    fresh.load_state_dict(merged.state_dict())
    assert_equal(fresh(X), model(X))


def test_copies_of_one_edit_have_the_kinds_of_their_blocks() -> None:
    model = deepened()
    model.insert_layer(["h.2", "h.1", "h.0"], "block")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "inserted" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    assert model.config.layer_types == ["near", "far", "near", "near", "far", "near"]
    merged = splitgrow.merge(model)
    assert merged.config.layer_types == ["near", "near", "far", "far", "near", "near"]
    assert_equal(merged(X), model(X))


def test_other_insertions_at_a_block_are_no_blocks() -> None:
    model = deepened("h.0")
    model.insert_layer("h.1", "residual")
    assert model.config.num_hidden_layers == 4
    model.insert_layer("h.2", "block")
    assert model.config.num_hidden_layers == 5
    assert_equal(splitgrow.merge(model)(X), model(X))


def test_a_copy_is_counted_by_the_model_that_has_grown_too_and_has_its_own_kind() -> None:
    model = deepened("h.1", "h.0")
    assert model.config.num_hidden_layers == 5
    assert model.config.layer_types == ["near", "far", "near", "far", "near"]
    assert model.config.heads == 3
    places = [m.layer_idx for m in model.modules() if type(m) is Inner]
    assert sorted(places) == [0, 1, 2, 3, 4]
    with pytest.raises(splitgrow.InsertionError):
        model.insert_layer("head", "block")
    assert model.config.num_hidden_layers == 5


def test_an_earlier_generation_has_the_numbers_that_it_had() -> None:
    torch.manual_seed(0)
    model: Any = splitgrow.growable(randomise(Net().double().eval()), X)
    before = model(X)
    model.insert_layer("h.0", "block")
    randomise_new_blocks(model)
    model.next_generation()
    middle = model(X)
    model.insert_layer("h.2", "block")
    for generation, count, expected in ((0, 3, before), (1, 4, middle), (None, 5, model(X))):
        merged = splitgrow.merge(model, generation)
        assert not wrappers(merged)
        assert len(merged.h) == merged.config.num_hidden_layers == count
        assert merged.config.layer_types == [block.inner.kind for block in merged.h]
        assert_equal(merged(X), expected)


def test_a_sequential_gets_entries_and_names_of_its_own() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
            self.two = nn.Sequential()
            self.two.add_module("first", nn.Linear(4, 4))
            self.two.add_module("act", nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x))

    torch.manual_seed(0)
    model: Any = splitgrow.growable(randomise(Two().double().eval()), X)
    model.insert_layer("one.0", "identity")
    model.insert_layer("two.first", "identity")
    randomise_new_blocks(model)
    merged = splitgrow.merge(model)
    assert not wrappers(merged)
    assert list(merged.one._modules) == ["0", "1", "2", "3"]
    assert list(merged.two._modules) == ["first", "act", "act_2"]
    assert_equal(merged(X), model(X))


def test_where_forward_names_the_blocks_a_wrapper_stays_or_torchs_graph() -> None:
    class Named(Net):
        def forward(self, x: Tensor) -> Tensor:
            first, second, third = self.h
            ones = torch.ones(4).to(x)
            x = first(x, mask=ones, other=None)
            return self.head(third(second(x, mask=ones, other=None), mask=ones, other=None))

    model = deepened("h.0", net=Named())
    merged = splitgrow.merge(model)
    assert len(merged.h) == 3
    assert wrappers(merged) == ["h.0"]
    assert_equal(merged(X), model(X))


def test_numbers_of_the_loop_follow_where_forward_counts() -> None:
    class Counts(Net):
        def __init__(self) -> None:
            super().__init__()
            self.n_layer, self.others = 3, 3
            self.rates = [0.5, 0.25, 0.125]

        def forward(self, x: Tensor) -> Tensor:
            for n in range(self.n_layer):
                x = self.h[n](x, mask=torch.full((4,), self.rates[n]).to(x), other=None)
            return self.head(x)

    model = deepened("h.1", net=Counts())
    merged: Any = splitgrow.merge(model)
    assert not wrappers(merged)
    assert (merged.n_layer, merged.others) == (4, 3)
    assert merged.rates == [0.5, 0.25, 0.25, 0.125]
    assert_equal(merged(X), model(X))


def test_caches_of_inserted_blocks_lie_between_the_others_in_the_merged_model() -> None:
    class Cached(Net):
        def forward(self, x: Tensor) -> Any:
            cache: list[Tensor] = []
            for layer in self.h:
                x = layer(x, mask=torch.ones(4).to(x), cache=cache)
            return self.head(x), cache

    model = deepened("h.0", net=Cached())
    merged: Any = splitgrow.merge(model)
    assert not wrappers(merged)
    (ours, cache), (theirs, known) = merged(X), model(X)
    assert_equal(ours, theirs)
    assert len(cache) == len(known) == 4
    assert_identical(*(torch.stack(each).sort().values for each in (cache, known)))


def test_control_another_order_makes_no_wrong_model_right() -> None:
    one = [torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([3.0])]
    assert order_of([one[0], one[2], one[1]], one) == [0, 2, 1]
    assert order_of([one[1], one[0], one[2]], one) == [0, 1, 2]
    assert order_of([one[0], one[2], one[2]], one) == [0, 1, 2]
    assert order_of(one[:2], one) == [0, 1, 2]


def test_hooks_on_a_wrapped_block_keep_the_wrapper() -> None:
    model = deepened("h.0")
    model.h[0].register_forward_hook(lambda *_: None)
    merged = splitgrow.merge(model)
    assert wrappers(merged) == ["h.0"]


# -- the numbers ----------------------------------------------------------------------------------


def test_places_are_known_by_value_and_name() -> None:
    class Part(nn.Module):
        def __init__(self, place: int) -> None:
            super().__init__()
            self.layer_id, self.number, self.width, self.idx = place + 5, place, place, 3

    found = place_numbers([Part(n) for n in range(3)])
    assert {(each.name, each.first) for each in found} == {("layer_id", 5), ("number", 0)}


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("model.encoder.layers", ["encoder_layers"]),
        ("model.decoder.layers", ["decoder_layers"]),
        ("h", ["n_layer", "num_hidden_layers"]),
    ],
)
def test_counts_are_known_by_value_name_and_side(path: str, names: list[str]) -> None:
    config = SimpleNamespace(
        encoder_layers=2,
        decoder_layers=2,
        n_layer=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_window_layers=2,
        num_kv_shared_layers=2,
        depth=4,
    )
    assert list(counts_of(config, 2, path)) == names


def test_lists_are_those_of_plain_items() -> None:
    config = SimpleNamespace(kinds=["a", "b"], other=[1], held=[nn.ReLU(), nn.ReLU()], t=(1, 2))
    assert list(lists_of(config, 2)) == ["kinds", "t"]

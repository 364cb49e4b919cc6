"""Layer types that can grow: stock ones, ones that compute alike, and new ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from helpers import (
    assert_equal,
    assert_identical,
    largest_difference,
    leading,
    outputs_of,
    randomise,
    randomise_new_blocks,
    split_layers,
)
from torch import Tensor, nn
from torch.nn import functional as F

import splitgrow
from splitgrow.layers.types import (
    Along,
    LayerType,
    TensorAxes,
    layer_type_of,
    register_layer,
    sized_layers,
)
from splitgrow.layers.types.registry import FOUND, LAYER_TYPES


@pytest.fixture(autouse=True)
def _layer_types_put_back() -> Iterator[None]:
    before = dict(LAYER_TYPES)
    yield
    LAYER_TYPES.clear()
    LAYER_TYPES.update(before)
    FOUND.clear()


def between(layer: nn.Module, *, seed: int = 0) -> Any:
    """The layer, of six channels, between two plain ones."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 6), layer, nn.Linear(6, 3))
    return splitgrow.growable(randomise(model.double().eval()), X)


X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def reason_of(model: Any, name: str = "1") -> str:
    return next(layer.reason for layer in model.layers if layer.name == name)


def laws_hold(model: Any, x: Tensor, names: tuple[str, ...]) -> None:
    """Grows the named layers twice, each in turn: the old outputs stay, merging is exact."""
    before = outputs_of(model, x)
    for _ in range(2):
        for name in names:
            layer = next(layer for layer in model.layers if layer.name == name)
            model.expand_layer(name, layer.step)
            assert_equal(leading(outputs_of(model, x), before), before)
    randomise_new_blocks(model)
    now = outputs_of(model, x)
    assert largest_difference(leading(now, before), before) > 1e-3
    with model.at(0):
        assert_identical(outputs_of(model, x), before)
    merged = splitgrow.merge(model)
    assert not list(split_layers(merged))
    assert_equal(outputs_of(merged, x), now)
    assert_equal(outputs_of(splitgrow.merge(model, generation=0), x), before)
    assert_equal(outputs_of(splitgrow.fuse(model), x), now)


# --- register_layer -----------------------------------------------------------------------------


class Halved(nn.Linear):
    """Linear in its inputs, with a forward and a child of its own, so that it is not tried."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.child = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) / 2


def test_a_subclass_with_its_own_forward_is_refused_until_it_is_registered() -> None:
    reason = reason_of(between(Halved(6, 6)))
    assert "Halved is a subclass of Linear that splitgrow does not know" in reason
    assert "splitgrow.register_layer" in reason
    register_layer(Halved, like=nn.Linear)
    assert reason_of(between(Halved(6, 6))) == ""


@pytest.mark.parametrize("names", [("0", "1"), ("1", "0")], ids=str)
def test_a_registered_layer_grows_in_blocks_of_its_own_type(names: tuple[str, ...]) -> None:
    register_layer(Halved, like=nn.Linear)
    model = between(Halved(6, 6))
    laws_hold(model, X, names)
    assert {type(block) for block in model[1]} == {Halved}
    assert type(splitgrow.merge(model)[1]) is Halved


def test_a_layer_may_be_registered_by_its_dotted_name() -> None:
    register_layer(f"{Halved.__module__}.{Halved.__qualname__}", like=nn.Linear)
    assert reason_of(between(Halved(6, 6))) == ""


class NotCalled(nn.Linear):
    """Its constructor takes something else, and must not be called for a block."""

    def __init__(self, width: int, note: str) -> None:
        super().__init__(width, width, bias=False)
        self.note, self.act = note, nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_registered_layer_keeps_its_attributes_and_its_constructor_is_not_called() -> None:
    register_layer(NotCalled, like=nn.Linear)
    model = between(NotCalled(6, "mine"))
    laws_hold(model, X, ("1", "0"))
    merged: Any = splitgrow.merge(model)[1]
    assert (type(merged), merged.note, type(merged.act)) == (NotCalled, "mine", nn.Tanh)
    assert (merged.in_features, merged.out_features) == (8, 8)


class Squared(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 2


def test_a_layer_that_is_not_linear_in_its_inputs_is_found_out_in_values() -> None:
    register_layer(Squared, like=nn.Linear)
    model = between(Squared(6, 6))
    with (
        splitgrow.execution("blockwise"),
        pytest.raises((splitgrow.SplitGrowError, AssertionError)) as found,
    ):
        laws_hold(model, X, ("0", "1"))
    assert isinstance(found.value, splitgrow.SplitGrowError) or not model.layers[0].growable


@pytest.mark.parametrize("layer", [nn.Linear, nn.Conv2d, nn.Embedding])
def test_a_type_that_is_known_cannot_be_registered_again(layer: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=rf"{layer.__name__} is registered already"):
        register_layer(layer, like=nn.Linear)


def test_a_type_cannot_be_registered_twice() -> None:
    register_layer(Halved, like=nn.Linear)
    with pytest.raises(ValueError, match="Halved is registered already"):
        register_layer(Halved, like=nn.Linear)


@pytest.mark.parametrize("layer", [3, None, int, Tensor, nn.Linear(2, 2), [Halved]])
def test_what_is_no_layer_type_cannot_be_registered(layer: Any) -> None:
    with pytest.raises(TypeError, match="layer must be a module type"):
        register_layer(layer, like=nn.Linear)


@pytest.mark.parametrize("like", [None, nn.ReLU, nn.Module, "torch.nn.Linear", Halved, 3])
def test_a_layer_can_only_be_like_one_that_can_grow(like: Any) -> None:
    with pytest.raises(TypeError, match="like must be a layer type that can grow"):
        register_layer(Halved, like=like)
    assert layer_type_of(Halved(2, 2)) is None


# --- a whole entry ------------------------------------------------------------------------------


class Scale(nn.Module):
    """One factor for each feature."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class ScaleType(LayerType):
    layers = (Scale,)
    mixes = False

    def channel_dim(self, module: Any) -> int:
        return -1

    def sizes(self, module: Any) -> tuple[int, int]:
        return len(module.factor), len(module.factor)

    def tensors(self, module: Any) -> Mapping[str, TensorAxes]:
        return {"factor": {0: Along("out")}}

    def build(self, module: Any, sizes: tuple[int, int], **options: Any) -> nn.Module:
        with torch.device(options.get("device", module.factor.device)):
            return Scale(sizes[1]).to(module.factor.dtype)


def test_a_layer_of_another_make_grows_by_an_entry_of_its_own() -> None:
    register_layer(ScaleType())
    model = between(Scale(6))
    laws_hold(model, X, ("0",))
    assert len(splitgrow.merge(model)[1].factor) == 8
    with pytest.raises(ValueError, match="Scale is registered already"):
        register_layer(ScaleType())
    splitgrow.unregister_layer(ScaleType())
    assert layer_type_of(Scale(6)) is None


def test_a_whole_entry_is_like_nothing_else() -> None:
    with pytest.raises(TypeError, match="leave `like` out"):
        register_layer(ScaleType(), like=nn.Linear)


# --- subclasses ---------------------------------------------------------------------------------


class OwnConstructor(nn.Linear):
    """Changes nothing of how it computes."""

    note = "mine"

    def __init__(self, width: int) -> None:
        super().__init__(width, width)

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def extra_repr(self) -> str:
        return "mine"

    def more(self) -> int:
        return 3


class OfTwo(OwnConstructor):
    def __repr__(self) -> str:
        return "two"


@pytest.mark.parametrize("layer", [OwnConstructor, OfTwo])
def test_a_subclass_that_computes_as_its_base_does_is_matched(layer: type[nn.Module]) -> None:
    model = between(layer(6))
    laws_hold(model, X, ("1", "0"))
    assert type(splitgrow.merge(model)[1]) is layer
    assert type(splitgrow.fuse(model).get_submodule("1")) is nn.Linear


def subclass(**members: Any) -> type[nn.Linear]:
    return type("Odd", (nn.Linear,), members)


ODD = {
    "forward": subclass(forward=lambda self, x: nn.Linear.forward(self, x) * 2),
    "call": subclass(__call__=nn.Linear.forward),
    "getattr": subclass(__getattr__=nn.Linear.__getattr__),
    "property": subclass(scale=property(lambda self: 3)),
    "call_impl": subclass(_call_impl=nn.Linear._call_impl),
    "train": subclass(train=nn.Linear.train),
    "setattr": subclass(__setattr__=nn.Linear.__setattr__),
    "getattribute": subclass(__getattribute__=object.__getattribute__),
    "mixed in": type("Odd", (type("In", (), {"forward": lambda s, x: x}), nn.Linear), {}),
    "far down": type("Odd", (subclass(forward=lambda self, x: x),), {}),
}


@pytest.mark.parametrize("layer", ODD.values(), ids=ODD.keys())
def test_a_subclass_that_changes_how_its_base_computes_is_not_matched(layer: Any) -> None:
    odd = layer.__new__(layer)  # it need not even work
    assert layer_type_of(odd) is None


def test_a_subclass_with_tensors_or_layers_of_its_own_is_refused() -> None:
    class Gained(OwnConstructor):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.gain = nn.Parameter(torch.ones(width))

    class Deeper(OwnConstructor):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.inner = nn.Linear(width, width)

    assert "tensors that its layer type does not know: gain" in reason_of(between(Gained(6)))
    assert "layers with parameters inside" in reason_of(between(Deeper(6)))


def test_the_layers_whose_width_can_be_asked_for_are_known() -> None:
    assert set(sized_layers()) >= {nn.Linear, nn.Conv1d, nn.ConvTranspose3d, nn.Embedding}
    assert not set(sized_layers()) & {nn.BatchNorm2d, nn.GroupNorm, nn.PReLU, nn.ReLU}


# --- embeddings ---------------------------------------------------------------------------------

WORDS = torch.tensor([[3, 1, 0, 2], [2, 2, 5, 4]])


def embedding(layer: nn.Module) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(6, 3)).double().eval()
    return splitgrow.growable(randomise(model), WORDS)


TABLES = {
    "embedding": lambda **options: nn.Embedding(7, 6, **options),
    "bag of means": lambda **options: nn.EmbeddingBag(7, 6, mode="mean", **options),
    "bag of sums": lambda **options: nn.EmbeddingBag(7, 6, mode="sum", **options),
    "bag of maxima": lambda **options: nn.EmbeddingBag(7, 6, mode="max", **options),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
@pytest.mark.parametrize("names", [("0", "2"), ("2", "0")], ids=str)
def test_a_table_of_rows_grows_in_width(table: Any, names: tuple[str, ...]) -> None:
    model = embedding(table(padding_idx=0))
    laws_hold(model, WORDS, names)
    merged: Any = splitgrow.merge(model)[0]
    assert (merged.num_embeddings, merged.embedding_dim, merged.padding_idx) == (7, 8, 0)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_a_table_that_rescales_its_rows_is_refused(table: Any) -> None:
    model = embedding(table(max_norm=1.0))
    assert "max_norm" in reason_of(model, "0")
    assert reason_of(model, "2") == ""


def test_a_new_column_of_the_padding_row_starts_at_zero() -> None:
    model = embedding(nn.Embedding(7, 6, padding_idx=2))
    model.expand_layer("0", 2)
    assert model[0].weight[2, 6:].eq(0).all()
    assert model[0].weight[1, 6:].ne(0).all()


class NamedTable(nn.Embedding):
    """A table by another name."""


@pytest.mark.parametrize("table", [nn.Embedding, NamedTable])
def test_a_table_given_sparse_gradients_still_has_them(table: Any) -> None:
    model = embedding(table(7, 6, sparse=True))
    model.expand_layer("0", 2)
    with splitgrow.execution("merged"):
        model(WORDS).sum().backward()
    assert [block.weight.grad.is_sparse for block in list(model[0])[1:]] == [True]


class NamedNorm(nn.BatchNorm1d):
    """A norm by another name."""


def test_a_fused_look_alike_has_values_for_all_of_its_tensors() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), NamedNorm(4), nn.Linear(4, 2)).eval()
    fused: Any = splitgrow.fuse(splitgrow.growable(model, torch.ones(2, 3)))
    (norm,) = (module for module in fused.modules() if isinstance(module, nn.BatchNorm1d))
    assert type(norm) is nn.BatchNorm1d
    assert not any(buffer.is_meta for buffer in norm.buffers())


@pytest.mark.parametrize(
    ("norm", "rescales"),
    [
        (nn.BatchNorm1d(6), True),
        (nn.BatchNorm1d(6, affine=False), False),
        (nn.InstanceNorm1d(6, affine=True), True),
        (nn.InstanceNorm1d(6), False),
        (nn.GroupNorm(3, 6), True),
        (nn.GroupNorm(3, 6, affine=False), False),
        (nn.PReLU(6), False),
        (nn.Linear(6, 6), False),
        (nn.Conv1d(6, 6, 1, groups=6), False),
    ],
    ids=repr,
)
def test_a_layer_that_rescales_undoes_the_size_of_its_input_and_has_a_scale_to_give_it_another(
    norm: nn.Module, rescales: bool
) -> None:
    found = layer_type_of(norm)
    assert found is not None
    scale = getattr(norm, "weight", None) if found.norm(norm) is not None else None
    assert (scale is not None) == rescales
    torch.manual_seed(0)
    x, sizes = torch.randn(8, 6, 5), torch.tensor([1.0, 1.0, 3.0, 3.0, 5.0, 5.0])[:, None]
    if not isinstance(norm, nn.Linear):
        undone = torch.allclose(norm(x * sizes), norm(x), atol=1e-3)
        assert undone == (found.norm(norm) is not None)
        assert not rescales or not torch.allclose(with_scale(norm, scale, 0.5)(x), norm(x))


def with_scale(norm: nn.Module, scale: Any, factor: float) -> nn.Module:
    other = copy.deepcopy(norm)
    other.register_parameter("weight", nn.Parameter(scale.detach() * factor))
    return other


def test_a_layer_that_is_like_a_norm_rescales_as_it_does() -> None:
    class Mine(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    register_layer(Mine, like=nn.BatchNorm1d)
    found = layer_type_of(Mine(6))
    assert found is not None
    assert found.norm(Mine(6)) is not None

"""A user's layer type is checked, at once and at the first use, and can be removed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from helpers import assert_equal, randomise
from torch import Tensor, nn
from torch.nn import functional as F

import splitgrow
from splitgrow.errors import StructureChangedError, UnsupportedLayerError
from splitgrow.layers.types import LayerType
from splitgrow.layers.types.registry import FOUND, LAYER_TYPES

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    kinds = dict(LAYER_TYPES)
    yield
    LAYER_TYPES.clear()
    LAYER_TYPES.update(kinds)
    FOUND.clear()


def made(*layers: nn.Module) -> Any:
    torch.manual_seed(0)
    return randomise(nn.Sequential(*layers).double().eval())


class Product(nn.Module):
    """A Linear by another name, of no base that is known."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 0.5, self.bias)


class Kernel(nn.Module):
    """A convolution with all that one has, of no base that is known."""

    dims, transposed = 2, False

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = inputs, outputs, 1
        self.kernel_size, self.stride = (size,) * self.dims, (1,) * self.dims
        self.padding, self.dilation = (0,) * self.dims, (1,) * self.dims
        self.output_padding, self.padding_mode = (0,) * self.dims, "zeros"
        pair = (inputs, outputs) if self.transposed else (outputs, inputs)
        self.weight = nn.Parameter(torch.randn(*pair, *self.kernel_size))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        name = f"conv{'_transpose' * self.transposed}{self.dims}d"
        return getattr(F, name)(x, 0.5 * self.weight, self.bias)


class Kernel1d(Kernel):
    dims = 1


class Transposed(Kernel):
    transposed = True


class Normed(nn.Module):
    """A batch norm of no base that is known."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = width, 0.01, 0.1
        self.affine = self.track_running_stats = True
        self.weight = nn.Parameter(torch.randn(width))
        self.bias = nn.Parameter(torch.randn(width))
        self.register_buffer("running_mean", torch.randn(width))
        self.register_buffer("running_var", torch.rand(width) + 1)
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, self.training, 0.1, 0.01)


class Table(nn.Module):
    """An embedding of no base that is known."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = rows, width
        self.norm_type, self.scale_grad_by_freq = 2.0, False
        self.sparse, self.padding_idx, self.max_norm = False, None, None
        self.weight = nn.Parameter(torch.randn(rows, width))

    def forward(self, x: Tensor) -> Tensor:
        return 2 * F.embedding(x, self.weight)


class Cut(nn.Module):
    """A PReLU of no base that is known."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_parameters, self.init = width, 0.25
        self.weight = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.weight)


class Grouped(nn.Module):
    """A group norm of no base that is known."""

    def __init__(self, groups: int, width: int) -> None:
        super().__init__()
        self.num_groups, self.num_channels, self.eps, self.affine = groups, width, 1e-5, True
        self.weight, self.bias = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias)


Conv = partial(nn.Conv2d, kernel_size=1)
FORMS: dict[str, tuple[type[nn.Module], Any, list[Any], Tensor]] = {
    "linear": (Product, nn.Linear, [lambda: Product(3, 6), lambda: Product(6, 2)], X),
    "conv": (Kernel, nn.Conv2d, [lambda: Kernel(3, 6, 3), lambda: Kernel(6, 2, 1)], IMAGE),
    "conv1d": (
        Kernel1d,
        nn.Conv1d,
        [lambda: Kernel1d(3, 6, 3), nn.ReLU, lambda: Kernel1d(6, 2, 1)],
        IMAGE[:, :, 0],
    ),
    "transposed": (
        Transposed,
        nn.ConvTranspose2d,
        [lambda: Transposed(3, 6, 3), lambda: Transposed(6, 2, 2)],
        IMAGE,
    ),
    "norm": (
        Normed,
        nn.BatchNorm2d,
        [lambda: Conv(3, 6), lambda: Normed(6), lambda: Conv(6, 2)],
        IMAGE,
    ),
    "group norm": (
        Grouped,
        nn.GroupNorm,
        [lambda: Conv(3, 6), lambda: Grouped(3, 6), lambda: Conv(6, 2)],
        IMAGE,
    ),
    "embedding": (
        Table,
        nn.Embedding,
        [lambda: Table(5, 6), lambda: nn.Linear(6, 2)],
        torch.tensor([[0, 4], [2, 1]]),
    ),
    "prelu": (Cut, nn.PReLU, [lambda: nn.Linear(3, 6), lambda: Cut(6), lambda: nn.Linear(6, 2)], X),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_registered_type_that_is_no_subclass_grows(name: str) -> None:
    layer, like, parts, x = FORMS[name]
    splitgrow.register_layer(layer, like=like)
    model = splitgrow.growable(made(*[part() for part in parts]), x)
    before = model(x)
    for _ in range(2):
        model.expand_layer("0", 2)
        assert_equal(model(x), before)
    randomise(model)
    assert_equal(splitgrow.merge(model)(x), model(x))
    assert any(type(module) is layer for module in splitgrow.merge(model))


@pytest.mark.parametrize("name", FORMS)
def test_without_registration_it_grows_by_its_parameters_or_not_at_all(name: str) -> None:
    _, _, parts, x = FORMS[name]
    model = splitgrow.growable(made(*[part() for part in parts]), x)
    grows = "0" in [each.name for each in model.layers if each.growable]
    assert grows == (name == "prelu")  # whose slopes grow as any parameter along channels does


class NoNumbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3))
        self.bias = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class OtherName(Product):
    def __init__(self) -> None:
        super().__init__(3, 6)
        self.matrix = nn.Parameter(self._parameters.pop("weight").detach())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.matrix, self.bias)


class OtherShape(Product):
    def __init__(self) -> None:
        super().__init__(3, 6)
        self.weight = nn.Parameter(torch.randn(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class OtherBias(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 6)
        self.bias = nn.Parameter(torch.randn(1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize(
    ("layer", "what"),
    [
        (NoNumbers, "in_features"),
        (OtherName, "has no `weight`"),
        (OtherShape, r"its `weight` is \(3, 6\), which would be \(6, 3\)"),
        (OtherBias, r"its `bias` is \(1,\)"),
    ],
)
def test_a_wrong_claim_is_refused_by_name_where_a_model_has_one(layer: Any, what: str) -> None:
    splitgrow.register_layer(layer, like=nn.Linear)
    with pytest.raises(UnsupportedLayerError, match=f"{layer.__name__} is registered.*{what}"):
        splitgrow.growable(made(layer(), nn.Linear(6, 2)), X)
    splitgrow.unregister_layer(layer)
    splitgrow.growable(made(layer(), nn.Linear(6, 2)), X)


class Silent(nn.Module):
    """It has no forward."""


class Nothing(LayerType):
    def channel_dim(self, module: Any) -> int: ...
    def sizes(self, module: Any) -> tuple[int, int]: ...
    def tensors(self, module: Any) -> Any: ...
    def build(self, module: Any, sizes: tuple[int, int], **options: Any) -> Any: ...


class Numbered(Nothing):
    layers = (3,)  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("layer", "like", "error"),
    [
        (3, nn.Linear, TypeError),
        (nn.Linear(1, 1), nn.Linear, TypeError),
        (int, nn.Linear, TypeError),
        (Silent, nn.Linear, TypeError),
        (nn.Module, nn.Linear, TypeError),
        ("Layer", nn.Linear, ValueError),
        ("", nn.Linear, ValueError),
        ("a b.c", nn.Linear, ValueError),
        (Product, None, TypeError),
        (Product, nn.ReLU, TypeError),
        (Product, "torch.nn.Linear", TypeError),
        (Product, [], TypeError),
        (nn.Linear, nn.Linear, ValueError),
        (Nothing(), None, ValueError),
        (Numbered(), None, TypeError),
        (Nothing, None, TypeError),
    ],
)
def test_what_cannot_be_a_layer_is_refused_at_registration(layer, like, error) -> None:
    before = dict(LAYER_TYPES)
    with pytest.raises(error):
        splitgrow.register_layer(layer, like=like)
    assert before == LAYER_TYPES


@pytest.mark.parametrize("grown", [True, False])
def test_a_layer_is_taken_back_and_registered_again(grown: bool) -> None:
    splitgrow.register_layer(Product, like=nn.Linear)
    model = splitgrow.growable(made(Product(3, 6), nn.Linear(6, 2)), X)
    before = model(X)
    if grown:
        model.expand_layer("0", 2)
    splitgrow.unregister_layer(Product)
    with pytest.raises(StructureChangedError, match=r"Product .* register it"):
        model.expand_layer("0", 2)
    splitgrow.register_layer(Product, like=nn.Linear)
    model.expand_layer("0", 2)
    assert_equal(model(X), before)


@pytest.mark.parametrize(
    "layer", [nn.Linear, nn.SyncBatchNorm, Product, "a.b", LAYER_TYPES[nn.Conv2d]]
)
def test_only_what_was_registered_is_taken_back(layer: Any) -> None:
    with pytest.raises(ValueError, match=r"own|not registered"):
        splitgrow.unregister_layer(layer)


def test_a_dotted_name_is_taken_back_as_it_was_given() -> None:
    name = f"{Product.__module__}.Product"
    splitgrow.register_layer(name, like=nn.Linear)
    assert splitgrow.growable(made(Product(3, 6), nn.Linear(6, 2)), X).layers[0].growable
    splitgrow.unregister_layer(name)
    assert not any(
        each.name == "0"
        for each in splitgrow.growable(made(Product(3, 6), nn.Linear(6, 2)), X).layers
    )

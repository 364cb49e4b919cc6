"""Which parameters and buffers of modules grow along channels, and why others do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_equal, assert_identical, largest_difference, randomise_new_blocks
from tensor_cases import SilentStream
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import splitgrow
from splitgrow.errors import UnsupportedLayerError
from splitgrow.growth.history_lookup import history_of
from splitgrow.layers.types import TensorUse

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Forward = Callable[[Any, Tensor], Tensor]


class Between(nn.Module):
    """A layer, something that a tensor of the module does, and a layer."""

    def __init__(self, forward: Forward, **tensors: Any) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.between = forward
        for name, tensor in tensors.items():
            setattr(self, name, tensor)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self, self.one(x)))


def made(forward: Forward, *shape: int, buffer: bool = False, **tensors: Any) -> Any:
    torch.manual_seed(1)
    tensor = torch.rand(*(shape or (4,))) + 0.5
    model = Between(forward, **tensors)
    if buffer:
        model.register_buffer("own", tensor)
    else:
        model.own = nn.Parameter(tensor)
    return model.double()


def use_in(model: Any) -> TensorUse | None:
    node = history_of(model).graph.nodes.get("own")
    return None if node is None else node.use


MEETS: dict[str, tuple[Forward, tuple[int, ...], TensorUse]] = {
    "added": (lambda m, h: h + m.own, (4,), TensorUse(0)),
    "multiplied": (lambda m, h: h * m.own, (1, 4), TensorUse(1, role="scales")),
    "multiplied in another shape": (
        lambda m, h: (h[:, :, None] * m.own.view(1, -1, 1)).sum(-1),
        (4,),
        TensorUse(0, role="scales"),
    ),
    "where": (lambda m, h: torch.where(h > 0, h, m.own), (4,), TensorUse(0)),
    "put beside": (lambda m, h: torch.stack([h, m.own.expand(2, -1)]).sum(0), (4,), TensorUse(0)),
    "picked": (lambda m, h: h + m.own[torch.tensor([1, 0])], (3, 4), TensorUse(1)),
    "resampled": (
        lambda m, h: h + F.interpolate(m.own[None], size=3, mode="linear")[0, :, 1],
        (4, 5),
        TensorUse(0),
    ),
    "linear": (lambda m, h: F.linear(h, m.own), (4, 4), TensorUse(0, 1, "weighs")),
    "transposed": (lambda m, h: h @ m.own.t(), (4, 4), TensorUse(0, 1, "weighs")),
    "matmul": (lambda m, h: torch.matmul(h, m.own), (4, 4), TensorUse(1, 0, "weighs")),
    "reads only": (lambda m, h: h + F.linear(h, m.own), (1, 4), TensorUse(0, 1, "weighs")),
    "einsum": (
        lambda m, h: torch.einsum("ni,oi->no", h, m.own),
        (4, 4),
        TensorUse(0, 1, "weighs"),
    ),
    "convolution": (
        lambda m, h: F.conv1d(h[:, :, None], m.own)[:, :, 0],
        (4, 4, 1),
        TensorUse(0, 1, "weighs"),
    ),
    "one of several": (lambda m, h: F.linear(h, m.own[1]), (3, 4, 4), TensorUse(1, 2, "weighs")),
    "one for each row": (
        lambda m, h: (m.own[torch.arange(len(h)) % 3] @ h.unsqueeze(-1)).squeeze(-1),
        (3, 4, 4),
        TensorUse(1, 2, "weighs"),
    ),
    "slopes": (lambda m, h: F.prelu(h, m.own), (4,), TensorUse(0)),
}


@pytest.mark.parametrize(("forward", "shape", "use"), MEETS.values(), ids=MEETS)
def test_a_tensor_grows_along_the_channels_that_it_meets(
    forward: Forward, shape: tuple[int, ...], use: TensorUse
) -> None:
    model = splitgrow.growable(made(forward, *shape), X)
    before = model(X).detach()
    assert use_in(model) == use
    parameter = model.own
    model.expand_layer("one", 3)
    assert_equal(model(X), before)
    assert model.own_blocks[0].value is parameter
    dim = use.outs if use.ins is None else use.ins  # the outputs of a matrix are other channels
    grown = [size + 3 * (index == dim) for index, size in enumerate(shape)]
    assert [*model.own.shape] == grown
    randomise_new_blocks(model)
    assert largest_difference(model(X), before) > 1e-3
    assert_equal(splitgrow.merge(model)(X), model(X))
    with model.at(0):
        assert torch.equal(model(X), before)


@pytest.mark.parametrize("name", ["added", "multiplied", "where", "picked"])
def test_so_does_a_buffer(name: str) -> None:
    forward, shape, use = MEETS[name]
    model = splitgrow.growable(made(forward, *shape, buffer=True), X)
    before = model(X)
    assert use_in(model) == use
    model.expand_layer("one", 2)
    assert_equal(model(X), before)
    plain = splitgrow.merge(model)
    assert "own" in dict(plain.named_buffers())
    assert_equal(plain(X), before)


def shared(model: Any, h: Tensor) -> Tensor:
    return h * model.own + model.other


def written(model: Any, h: Tensor) -> Tensor:
    model.own.mul_(0.9)
    return h + model.own


def written_through_a_view(model: Any, h: Tensor) -> Tensor:
    model.own[None][0].add_(1)
    return h + model.own


def replaced(model: Any, h: Tensor) -> Tensor:
    model.own = model.own * 0.9
    return h + model.own


def used_otherwise(model: Any, h: Tensor) -> Tensor:
    return torch.cat([F.linear(h, model.own), model.own])


class Outer(nn.Module):
    """A matrix whose dimensions lie along the channels of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(3, 5)
        self.own = nn.Parameter(torch.rand(4, 5))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x)[:, :, None] * self.two(x)[:, None] * self.own


def _shared() -> Any:
    model = made(shared)
    model.other = model.own
    return model


def _in_a_list() -> Any:
    model = made(lambda m, h: h + m.all[0])
    model.all = [model.own]
    return model


def _parametrized() -> Any:
    model = made(lambda m, h: h + m.own)
    parametrize.register_parametrization(model, "own", nn.Softplus())
    return model


class _Scaled(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 4))
        self.own = nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.own


def _sequential() -> Any:
    model = made(lambda _, h: h)
    model.one = nn.Identity()
    model.between = lambda m, h: m.scaled(h)
    model.scaled = _Scaled().double()
    return model


REFUSED: dict[str, tuple[Any, str]] = {
    "under two names": (_shared, "which is also"),
    "written into": (lambda: made(written, buffer=True), "into which forward writes"),
    "written into by a view": (
        lambda: made(written_through_a_view, buffer=True),
        "into which forward writes",
    ),
    "replaced": (lambda: made(replaced, buffer=True), "which forward replaces"),
    "reached otherwise": (_in_a_list, "otherwise than by its module's attribute"),
    "parametrized": (_parametrized, "`parametrizations.own.original`"),
    "in a plain attribute": (
        lambda: made(lambda m, h: h + m.plain, plain=torch.rand(4).double()),
        "the tensor `plain`, which does not grow",
    ),
    "in a container": (_sequential, "beside the layers that it goes through"),
    "summed over and used otherwise": (lambda: made(used_otherwise, 4, 4), "also used otherwise"),
    "a buffer that is summed over": (
        lambda: made(lambda m, h: F.linear(h, m.own), 4, 4, buffer=True),
        "sums over it",
    ),
}


@pytest.mark.parametrize(("make", "why"), REFUSED.values(), ids=REFUSED)
def test_a_tensor_that_cannot_grow_fixes_its_channels_and_says_why(make: Any, why: str) -> None:
    model = splitgrow.growable(make(), X)
    reasons = [layer.reason for layer in model.layers if layer.name != "head"]
    assert all(why in text for text in reasons), reasons


def test_a_tensor_grows_along_one_dimension() -> None:
    model: Any = splitgrow.growable(Outer(), X)
    assert use_in(model) == TensorUse(0, role="scales")
    assert [layer.growable for layer in model.layers] == [True, False]
    assert "the tensor `own`, whose dimension 0 grows already" in model.layers[1].reason


def test_a_matrix_draws_its_new_rows_and_reads_new_channels_with_zeros() -> None:
    model = splitgrow.growable(made(lambda m, h: h + F.linear(h, m.own), 4, 4), X)
    model.expand_layer("one", 2)
    _, helper, new = model.own_blocks
    assert not helper.value.any()
    assert new.value.shape == (2, 6)
    assert torch.isin(new.value, model.own_blocks[0].value).all()


def test_other_new_entries_are_copies_of_the_old_in_turn() -> None:
    model = splitgrow.growable(made(lambda m, h: h * torch.exp(-m.own)), X)
    model.expand_layer("one", 6)
    old = model.own_blocks[0].value
    assert torch.equal(model.own_blocks[1].value, torch.cat([old, old])[:6])


def test_a_tensor_that_does_not_grow_stays_what_it_is() -> None:
    model = made(lambda m, h: h + m.own)
    model.alone = nn.Parameter(torch.rand(2).double())
    model.between = lambda m, h: h + m.own + m.alone.sum()
    model = splitgrow.growable(model, X)
    model.expand_layer("one", 1)
    assert isinstance(model.alone, nn.Parameter)
    assert "alone" in dict(model.named_parameters())


def test_a_silent_stream_has_zeros_in_what_is_added_and_not_in_what_multiplies() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3).double()
    model: Any = splitgrow.growable(SilentStream().double(), x)
    before = model(x).detach()
    model.expand_layer("embed", 4)
    assert_equal(model(x), before)
    assert not model.positions_blocks[1].value.any()
    assert model.gamma_blocks[1].value.all()
    assert model.router_blocks[1].value.all()
    optimizer = torch.optim.SGD(model.generation_parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    learned = [p.grad for p in model.generation_parameters() if p.grad is not None]
    assert all(gradient.any() for gradient in learned)


class _Hidden(nn.Module):
    """An MLP of two matrices that it multiplies by itself, between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.up = nn.Parameter(torch.randn(5, 4))
        self.down = nn.Parameter(torch.randn(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h + F.linear(h, self.up).relu() @ self.down
        return self.last(h)


def test_a_matrix_whose_units_no_layer_makes_is_listed_in_order_and_grows() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, dtype=torch.float64)
    model: Any = splitgrow.growable(_Hidden().double().eval(), x)
    assert [layer.name for layer in model.layers] == ["first", "up", "last"]
    one = model.layers[1]
    assert (one.kind, one.width, one.step, one.growable) == ("Parameter", 5, 1, True)
    assert one.readers == ("down",)
    before = model(x)
    edit = model.expand_layer(1, 3)
    assert [change.name for change in edit.changes] == ["up", "down"]
    assert model.layers[1].width == 8
    assert_equal(model(x), before)
    with torch.no_grad():
        for parameter in model.parameters_of(edit):
            parameter.normal_()
    merged: Any = splitgrow.merge(model)
    assert merged.up.shape == (8, 4)
    assert_equal(merged(x), model(x))
    assert (model(x) - before).abs().max() > 1e-2
    with model.at(0):
        assert_identical(model(x), before)
    with pytest.raises(ValueError, match="no layer 'upp'; did you mean 'up'"):
        model.expand_layer("upp", 1)


def test_a_matrix_whose_units_a_layer_makes_too_follows_that_layer() -> None:
    model: Any = splitgrow.growable(_Hidden(), torch.randn(6, 3))
    assert "down" not in [layer.name for layer in model.layers]
    with pytest.raises(UnsupportedLayerError, match="`down` has no width that could be asked for"):
        model.expand_layer("down", 1)
    assert "down" in [change.name for change in model.plan({"first": 2}).changes]

"""If all channels share a statistic, as in RMS norms, new ones join as zeros."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import assert_equal, outputs_of, randomise, randomise_new_blocks, split_layers
from torch import Tensor, nn

import splitgrow
from splitgrow.errors import FixedWidthError


class Stream(nn.Module):
    """Two layers add to a stream that one norm and one layer read."""

    def __init__(self, norm: nn.Module, before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 6), nn.Linear(3, 6)
        self.norm, self.read = norm, nn.Linear(6, 4)
        self.before, self.after = before or nn.Identity(), after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(self.first(x)) + self.second(x)
        return self.read(self.after(self.norm(y)))


X = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def stream(*parts: Any) -> Any:
    torch.manual_seed(0)
    model: Any = randomise(Stream(*parts)).double().eval()
    return splitgrow.growable(model, X)


class Named(nn.RMSNorm):
    """An RMS norm by another name, whose constructor takes something else."""

    def __init__(self, note: str) -> None:
        super().__init__(6, eps=0.1)
        self.note = note


class Halved(nn.RMSNorm):
    """An RMS norm with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


@pytest.fixture
def _halved() -> Iterator[None]:
    splitgrow.register_layer(Halved, like=nn.RMSNorm)
    yield
    splitgrow.unregister_layer(Halved)


NORMS = [
    nn.RMSNorm(6),
    nn.RMSNorm(6, eps=1e-6),
    nn.RMSNorm(6, eps=0.5),
    Named("mine"),
    Halved(6, eps=0.5),
]


@pytest.mark.usefixtures("_halved")
@pytest.mark.parametrize("norm", NORMS, ids=repr)
@pytest.mark.parametrize("mode", ["blockwise", "merged"])
def test_a_stream_that_an_rms_norm_reads_grows_exactly_and_again(
    norm: nn.Module, mode: Any
) -> None:
    with splitgrow.execution(mode):
        _grows_exactly_and_again(stream(copy.deepcopy(norm)), type(norm))


def _grows_exactly_and_again(model: Any, norm: type[nn.Module]) -> None:
    before = outputs_of(model, X)
    for n in (2, 3):
        now = outputs_of(model, X)
        model.expand_layer("second", n)
        assert_equal(outputs_of(model, X), now)
        randomise_new_blocks(model)
        assert not torch.allclose(outputs_of(model, X), now)
        grown = outputs_of(model, X)
        assert_equal(outputs_of(splitgrow.merge(model), X), grown)
        assert_equal(outputs_of(splitgrow.fuse(model), X), grown)
    merged = splitgrow.merge(model)
    assert type(merged.norm) is norm
    assert merged.norm.normalized_shape == (11,)
    with model.at(0):
        assert torch.equal(outputs_of(model, X), before)
    assert_equal(outputs_of(splitgrow.merge(model, generation=0), X), before)


class LlamaRMSNorm(nn.Module):
    """Written as that of transformers is, with numbers of its own in plain sight."""

    def __init__(self, width: int, eps: float = 1e-2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = eps

    def forward(self, x: Tensor) -> Tensor:
        variance = x.float().pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + self.variance_epsilon))


LlamaRMSNorm.__module__ = "transformers.models.llama.modeling_llama"


def test_an_epsilon_that_follows_the_width_is_no_number_that_breaks_the_law() -> None:
    torch.manual_seed(0)
    model: Any = randomise(Stream(LlamaRMSNorm(6))).float().eval()
    splitgrow.growable(model, X.float())
    before = outputs_of(model, X.float())
    model.expand_layer("second", 3)
    assert model.norm.variance_epsilon != 1e-2
    assert torch.allclose(outputs_of(model, X.float()), before, atol=1e-5)


def test_new_units_are_zero_and_the_helpers_that_read_them_are_not() -> None:
    model = stream(nn.RMSNorm(6))
    model.expand_layer("first", 2)
    new = {name: model.get_submodule(name)[1] for name in ("first", "second", "norm", "read")}
    assert not new["first"].weight.any()
    assert not new["second"].bias.any()
    assert new["norm"].weight.all()
    assert new["read"].weight.all()


def test_control_new_units_that_are_not_zero_would_change_the_old_function() -> None:
    model = stream(nn.RMSNorm(6))
    before = outputs_of(model, X)
    model.expand_layer("first", 2)
    assert_equal(outputs_of(model, X), before)
    with torch.no_grad():
        model.first[1].weight.fill_(0.1)
        model.read[1].weight.zero_()
    assert not torch.allclose(outputs_of(model, X), before)


def test_both_learn_from_the_first_step_on() -> None:
    model = stream(nn.RMSNorm(6))
    model.expand_layer("first", 2)
    outputs = model.train()(X).square().sum()
    outputs.backward()
    for name in ("first", "second"):
        assert model.get_submodule(name)[1].weight.grad.any()
    values = [p.clone() for p in model.generation_parameters()]
    optimizer = torch.optim.SGD(model.generation_parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()
    now = model.generation_parameters()
    assert all(not torch.equal(a, b) for a, b in zip(values, now, strict=True))


def test_the_gradients_are_those_of_the_plain_layer_times_what_makes_up_for_the_width() -> None:
    model = stream(nn.RMSNorm(6))
    model.expand_layer("first", 2, freeze=False)
    randomise_new_blocks(model)
    plain: Any = splitgrow.merge(model)
    model(X).square().sum().backward()
    plain(X).square().sum().backward()
    scale = (6 / 8) ** 0.5
    assert_equal(model.norm[0].weight.grad, plain.norm.weight.grad[:6] * scale)
    assert_equal(model.norm[1].weight.grad, plain.norm.weight.grad[6:])
    assert_equal(model.read[1].weight.grad, plain.read.weight.grad[:, 6:])


NOISY = (nn.Sigmoid(), nn.Softplus(), nn.Hardsigmoid())


class Shifted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1.0


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1 - x


@pytest.mark.parametrize("op", [*NOISY, Shifted(), Turned()], ids=lambda op: type(op).__name__)
def test_what_makes_something_of_zeros_on_the_way_fixes_the_stream(op: nn.Module) -> None:
    model = stream(nn.RMSNorm(6), op)
    for name in ("first", "second"):
        with pytest.raises(FixedWidthError, match="something else than zeros of zeros"):
            model.expand_layer(name, 1)
    model.expand_layer("read", 1)


@pytest.mark.parametrize("op", [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Tanh(), nn.Dropout(0.1)])
def test_what_leaves_zeros_alone_does_not(op: nn.Module) -> None:
    model = stream(nn.RMSNorm(6), op)
    before = outputs_of(model, X)
    model.expand_layer("first", 1)
    assert_equal(outputs_of(model, X), before)


def test_without_a_weight_nothing_makes_up_for_the_width() -> None:
    model = stream(nn.RMSNorm(6, elementwise_affine=False))
    with pytest.raises(FixedWidthError, match="takes its statistics over all its channels"):
        model.expand_layer("first", 1)


def test_a_layer_norm_stays_fixed() -> None:
    model = stream(nn.LayerNorm(6))
    with pytest.raises(FixedWidthError, match="takes its statistics over all its channels"):
        model.expand_layer("first", 1)


def test_units_that_no_such_norm_reads_are_not_silent() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), nn.RMSNorm(4))
    model = splitgrow.growable(model.double(), X)
    model.expand({"0": 2, "2": 1})
    first, last, _ = split_layers(model)
    assert first[1].weight.all()
    assert not last[1].weight.any()  # its helper reads units that are not zero
    assert not last[2].weight.any()

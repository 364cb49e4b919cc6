"""Norms of any class are known by the function that they compute."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import assert_equal, assert_identical, outputs_of, randomise, randomise_new_blocks
from torch import Tensor, nn
from torch.nn import functional as F

import splitgrow
from splitgrow.layers.types import Start, layer_type_of
from splitgrow.layers.types.structural_norms import NormForm, structural_norm


class Rms(nn.Module):
    """As Llama's."""

    def __init__(self, width: int, eps: float = 1e-2) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self._eps()))

    def _eps(self) -> float:
        return self.variance_epsilon


class SingleRms(Rms):
    """It computes in single precision whatever it is given."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._eps())
        return self.weight * wide.to(x.dtype)


class OneMore(nn.Module):
    """As Gemma's: the gain is one more than the weight."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.eps, self.weight = 1e-2, nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1.0 + self.weight)


class Annotated(nn.Module):
    """A LayerNorm by the standard deviation of a sample, with eps beside the root."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.a_2, self.b_2 = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        self.eps = 1e-2

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return self.a_2 * centred / (x.std(-1, keepdim=True) + self.eps) + self.b_2


class Channels(nn.LayerNorm):
    """Over the channels of maps, as ConvNeXt's."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Checked(nn.LayerNorm):
    """One that checks its width."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == self.normalized_shape[0]
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class Either(nn.LayerNorm):
    """Over the last dimension or over the channels of maps, as a flag says."""

    def __init__(self, width: int, *, first: bool) -> None:
        super().__init__(width, eps=0.01)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        if not self.first:
            return super().forward(x)
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_two_modules_of_a_class_may_be_of_different_forms() -> None:
    forms = [structural_norm(Either(6, first=first)) for first in (False, True, False)]
    assert [found.form.dim for found in forms if found is not None] == [-1, 1, -1]


class Written(Rms):
    """Its eps is written down in forward."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-2))


FORMS: dict[type[nn.Module], dict[str, Any]] = {
    Rms: {"centred": False, "eps": "variance_epsilon"},
    SingleRms: {"centred": False, "eps": "variance_epsilon"},
    OneMore: {"centred": False, "offset": 1.0},
    Annotated: {"centred": True, "outside": True, "correction": 1, "weight": "a_2", "bias": "b_2"},
    Channels: {"centred": True, "dim": 1},
    Checked: {"centred": True, "dim": -1, "bias": "bias"},
    Written: {"centred": False, "eps": ""},
}


def make(kind: type[nn.Module], width: int) -> nn.Module:
    return kind(width, eps=0.01) if issubclass(kind, nn.LayerNorm) else kind(width)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", FORMS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("width", [2, 6, 33])
def test_the_form_is_found_at_any_width(kind: type[nn.Module], width: int) -> None:
    found = structural_norm(make(kind, width))
    assert found is not None
    assert {name: getattr(found.form, name) for name in FORMS[kind]} == FORMS[kind]


class Stream(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        maps = isinstance(norm, Channels)
        self.first, self.second, self.read = (
            nn.Conv2d(*sizes, 1) if maps else nn.Linear(*sizes)
            for sizes in ((3, 6), (3, 6), (6, 4))
        )
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.norm(self.first(x) + self.second(x)))


def stream(kind: type[nn.Module]) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5) if kind is Channels else torch.randn(4, 5, 3)
    model = randomise(Stream(make(kind, 6))).double().eval()
    return splitgrow.growable(model, x.double()), x.double()


def _name(value: Any) -> str:
    return value if isinstance(value, str) else value.__name__


WAYS_THROUGH = [
    (kind, way)
    for kind in FORMS
    for way in ("", "duplicate")
    if way or kind is not Written  # whose eps cannot follow: see below
]


@pytest.mark.parametrize(
    ("kind", "way"), WAYS_THROUGH, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_stream_through_it_grows_exactly_and_merges_to_its_class(
    kind: type[nn.Module], way: str
) -> None:
    model, x = stream(kind)
    before = outputs_of(model, x)
    tolerance = {"rtol": 0, "atol": 1e-5} if kind is SingleRms else {"rtol": 0, "atol": 1e-12}
    for n in (6, 12) if way else (2, 3):
        now = outputs_of(model, x)
        model.expand_layer("first", n, initializer=way or "zero")
        torch.testing.assert_close(outputs_of(model, x), now, **tolerance)
        randomise_new_blocks(model)
        assert not torch.allclose(outputs_of(model, x), now, rtol=1e-3)
    merged: Any = splitgrow.merge(model)
    assert type(merged.norm) is kind
    torch.testing.assert_close(outputs_of(merged, x), outputs_of(model, x), **tolerance)
    with model.at(0):
        assert_identical(outputs_of(model, x), before)


def test_an_eps_that_cannot_follow_leaves_copies_only() -> None:
    model, x = stream(Written)
    before = outputs_of(model, x)
    with pytest.raises(ValueError, match="nearest widths are 12 and 18"):
        model.expand_layer("first", 2)
    model.expand_layer("first", 6)
    assert_equal(outputs_of(model, x), before)


@pytest.mark.parametrize("kind", [Rms, OneMore, Annotated, Channels])
def test_gradients_are_those_of_the_merged_norm(kind: type[nn.Module]) -> None:
    model, x = stream(kind)
    model.expand_layer("first", 2, freeze=False)
    randomise_new_blocks(model)
    merged: Any = splitgrow.merge(model)
    model(x).square().sum().backward()
    merged(x).square().sum().backward()
    old, new = model.norm
    for name, whole in merged.norm.named_parameters():
        # Old weights count for less since there are more channels, which add nothing to the sum.
        ratio = (6 - 1) / (8 - 1) if kind is Annotated else 6 / 8
        factor = math.sqrt(ratio) if name == model.norm.layer_type.names[0] else 1.0
        assert_equal(old.get_parameter(name).grad, factor * whole.grad[:6])
        assert_equal(new.get_parameter(name).grad, whole.grad[6:])
    assert_equal(model.read[1].weight.grad, merged.read.weight.grad[:, 6:])


class Scaled(Rms):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Sum(Rms):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.variance_epsilon)


class Holding(Rms):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("seen", torch.zeros(()))


@pytest.mark.parametrize("kind", [Scaled, Sum, Holding], ids=lambda kind: kind.__name__)
def test_control_other_functions_and_modules_are_no_norms(kind: type[nn.Module]) -> None:
    assert layer_type_of(make(kind, 6)) is None


def test_looking_leaves_the_module_and_the_random_state_alone() -> None:
    class Counting(Rms):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.calls: list[int] = []

        def forward(self, x: Tensor) -> Tensor:
            self.calls.append(1)
            torch.rand(3)
            return super().forward(x)

    norm, state = Counting(6), torch.get_rng_state()
    assert structural_norm(norm) is not None
    assert norm.calls == []
    assert torch.equal(torch.get_rng_state(), state)


def test_the_oracle_of_the_forms_is_torchs_own() -> None:
    x, weight, bias = torch.randn(3, 6).double(), torch.rand(6).double(), torch.rand(6).double()
    form = NormForm(-1, True, False, 0, 0.0, "weight", "bias")
    assert_equal(
        form.output(x, {"weight": weight, "bias": bias}, 0.1),
        F.layer_norm(x, (6,), weight, bias, 0.1),
    )
    form = NormForm(-1, False, False, 0, 0.0, "weight", "")
    assert_equal(form.output(x, {"weight": weight}, 0.1), F.rms_norm(x, (6,), weight, 0.1))
    assert Start.COPY in layer_type_of(nn.LayerNorm(6)).starts(nn.LayerNorm(6))  # type: ignore[union-attr]

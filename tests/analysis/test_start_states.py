"""If all channels share a statistic, new ones join as zeros, as means or as copies."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import assert_equal, leading, outputs_of, randomise, randomise_new_blocks, split_layers
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
def test_where_zeros_do_not_stay_zeros_a_stream_grows_by_copies_only(op: nn.Module) -> None:
    model = stream(nn.RMSNorm(6), op)
    before = outputs_of(model, X)
    for name in ("first", "second"):
        with pytest.raises(ValueError, match="something else than zeros of zeros"):
            model.expand_layer(name, 1)
    model.expand_layer("read", 1)
    model.expand_layer("first", 6)
    assert_equal(leading(outputs_of(model, X), before), before)


@pytest.mark.parametrize("op", [*NOISY, Shifted(), Turned()], ids=lambda op: type(op).__name__)
def test_behind_the_norm_zeros_need_not_stay_zeros(op: nn.Module) -> None:
    model = stream(nn.RMSNorm(6), None, op)
    before = outputs_of(model, X)
    model.expand_layer("first", 1)
    assert_equal(outputs_of(model, X), before)
    assert not model.read[1].weight.any()  # what it reads is not zero


@pytest.mark.parametrize("op", [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Tanh(), nn.Dropout(0.1)])
def test_what_leaves_zeros_alone_does_not(op: nn.Module) -> None:
    model = stream(nn.RMSNorm(6), op)
    before = outputs_of(model, X)
    model.expand_layer("first", 1)
    assert_equal(outputs_of(model, X), before)


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
def test_without_a_weight_nothing_makes_up_for_the_width(norm: type[nn.Module]) -> None:
    model = stream(norm(6, elementwise_affine=False))  # type: ignore[call-arg]
    before = outputs_of(model, X)
    with pytest.raises(ValueError, match="nearest widths are 12 and 18"):
        model.expand_layer("first", 1)
    for gain in (6, 24):
        model.expand_layer("first", gain)
        assert_equal(outputs_of(model, X), before)
        assert_equal(outputs_of(splitgrow.merge(model), X), before)


# -- LayerNorm -----------------------------------------------------------------------------------

CENTRED = [nn.LayerNorm(6), nn.LayerNorm(6, eps=0.5), nn.LayerNorm(6, bias=False, eps=0.1)]


@pytest.mark.parametrize("norm", CENTRED, ids=repr)
@pytest.mark.parametrize("mode", ["blockwise", "merged"])
def test_a_stream_that_a_layer_norm_reads_grows_to_any_width(norm: nn.Module, mode: Any) -> None:
    with splitgrow.execution(mode):
        _grows_exactly_and_again(stream(copy.deepcopy(norm)), nn.LayerNorm)


@pytest.mark.parametrize("norm", [*NORMS, *CENTRED], ids=repr)
@pytest.mark.parametrize("steps", [(6,), (6, 12), (12, 18)])
@pytest.mark.usefixtures("_halved")
def test_copies_are_exact_for_any_such_norm(norm: nn.Module, steps: tuple[int, ...]) -> None:
    model = stream(copy.deepcopy(norm))
    for n in steps:
        now = outputs_of(model, X)
        edit = model.expand_layer("first", n, initializer="duplicate")
        assert set(edit.ways.values()) == {"duplicate"}
        assert_equal(outputs_of(model, X), now)
        randomise_new_blocks(model)
        assert not torch.allclose(outputs_of(model, X), now)
    assert_equal(outputs_of(splitgrow.merge(model), X), outputs_of(model, X))


def test_ways_may_take_turns() -> None:
    model = stream(nn.LayerNorm(6, eps=0.1))
    for n, way in ((2, "average"), (8, "duplicate"), (5, "average"), (21, "duplicate")):
        now = outputs_of(model, X)
        model.expand_layer("first", n, initializer=way)
        assert_equal(outputs_of(model, X), now)
        randomise_new_blocks(model)
    assert_equal(outputs_of(splitgrow.merge(model), X), outputs_of(model, X))
    assert model.norm.eps == pytest.approx(0.1 * 6 / 8 * 16 / 21)


class Residual(nn.Module):
    """Pre-norm or post-norm blocks between an embedding and a head."""

    def __init__(self, *, post: bool, norm: Any = nn.LayerNorm) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.up = nn.ModuleList(nn.Linear(6, 10) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(10, 6) for _ in range(2))
        self.norms = nn.ModuleList(norm(6) for _ in range(2))
        self.last, self.head, self.post = norm(6), nn.Linear(6, 4), post

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for up, down, norm in zip(self.up, self.down, self.norms, strict=True):
            if self.post:
                x = norm(x + down(torch.nn.functional.gelu(up(x))))
            else:
                x = x + down(torch.nn.functional.gelu(up(norm(x))))
        return self.head(x if self.post else self.last(x))


WORDS = torch.arange(18).view(2, 9) % 9


def residual(**options: Any) -> Any:
    torch.manual_seed(0)
    model: Any = randomise(Residual(**options)).double().eval()
    return splitgrow.growable(model, WORDS)


def test_pre_norm_blocks_grow_by_averages_and_post_norm_blocks_by_copies() -> None:
    for post, n, way in ((False, 1, "average"), (False, 6, "duplicate"), (True, 6, "duplicate")):
        model = residual(post=post)
        before = outputs_of(model, WORDS)
        model.expand_layer("embed", n, initializer=way)
        assert_equal(outputs_of(model, WORDS), before)
        randomise_new_blocks(model)
        assert not torch.allclose(outputs_of(model, WORDS), before)
        assert_equal(outputs_of(splitgrow.merge(model), WORDS), outputs_of(model, WORDS))
        with model.at(0):
            assert torch.equal(outputs_of(model, WORDS), before)


def test_the_default_way_is_the_exact_one_and_another_is_refused_with_the_exact_ones() -> None:
    model = residual(post=True)
    assert model.layers[0].step == 6
    with pytest.raises(ValueError, match=r"steps of 6, so the nearest widths are 12 and 18 \('dup"):
        model.expand_layer("embed", 4)
    with pytest.raises(
        ValueError, match=r"cannot grow by 'average'.*exact here: 'duplicate', to 12"
    ):
        model.expand_layer("embed", 6, initializer="average")
    assert set(model.plan({"embed": 6}).ways.values()) == {"duplicate"}
    with pytest.raises(ValueError, match="exact here: 'duplicate'"):
        model.plan({"embed": 6}, initializer="average")
    before = outputs_of(model, WORDS)
    model.expand_layer("embed", 6)
    assert_equal(outputs_of(model, WORDS), before)


def test_control_zeros_and_random_units_would_change_what_a_layer_norm_gives() -> None:
    model = residual(post=False)
    before = outputs_of(model, WORDS)
    model.expand_layer("embed", 2)
    for value in (0.0, 0.3):
        with torch.no_grad():
            model.embed[1].weight.fill_(value)
        assert not torch.allclose(outputs_of(model, WORDS), before)


def test_a_norm_whose_statistic_covers_more_than_the_channels_stays_fixed() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 6, 1), nn.LayerNorm((6, 4, 4)), nn.Conv2d(6, 2, 1))
    model = splitgrow.growable(model.double(), torch.randn(1, 3, 4, 4).double())
    with pytest.raises(FixedWidthError, match="takes its statistics over all its channels"):
        model.expand_layer("0", 6)


def test_units_that_no_such_norm_reads_may_have_any_values() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), nn.RMSNorm(4))
    model = splitgrow.growable(model.double(), X)
    model.expand({"0": 2, "2": 1})
    first, last, _ = split_layers(model)
    assert first[1].weight.all()
    assert not last[1].weight.any()  # its helper reads units that are not zero
    assert not last[2].weight.any()


# -- half precision --------------------------------------------------------------------------------


def _half(norm: nn.Module, dtype: torch.dtype) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    model: Any = randomise(Stream(norm)).to(dtype).eval()
    return splitgrow.growable(model, X.to(dtype)), X.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_told_of_with_the_difference_and_the_exact_width(
    dtype: torch.dtype,
) -> None:
    model, x = _half(nn.RMSNorm(6), dtype)
    before = outputs_of(model, x)
    told = r"have moved by \S+ of the largest.*to 12 channels, or by zeros to 24"
    with pytest.warns(splitgrow.SplitGrowWarning, match=told):
        model.expand_layer("first", 5)
    assert not torch.equal(outputs_of(model, x), before)


@pytest.mark.parametrize(("n", "way"), [(6, "duplicate"), (18, "zero")])
def test_norms_make_up_to_the_bit_for_exact_widths(n: int, way: str) -> None:
    model, x = _half(nn.RMSNorm(6), torch.bfloat16)
    wide = model.first(x) + model.second(x)
    before = model.norm(wide)
    model.expand_layer("first", n, initializer=way)  # without a warning
    wider = torch.zeros(*wide.shape[:-1], n) if way == "zero" else wide
    after = model.norm(torch.cat((wide, wider.to(wide.dtype)), -1))
    assert torch.equal(after[..., :6], before)

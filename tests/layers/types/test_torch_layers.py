"""A batch norm over several processes grows as one of a single process does."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import assert_equal, randomise
from torch import Tensor, nn

import splitgrow
from splitgrow.errors import SplitGrowError, StructureChangedError

Sync = nn.SyncBatchNorm
X = {
    dims: torch.randn(4, 3, *[6] * dims, generator=torch.Generator().manual_seed(0)).double()
    for dims in range(4)
}
LAYERS: dict[int, Any] = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def net(dims: int = 2, norm: Any = Sync, **options: Any) -> Any:
    torch.manual_seed(0)
    layer, size = LAYERS[dims], () if dims == 0 else (3,)
    model = nn.Sequential(
        layer(3, 6, *size), norm(6, **options), nn.ReLU(), layer(6, 4, *([1] * bool(dims)))
    )
    return randomise(model.double()).eval()


OPTIONS = [
    {},
    {"affine": False},
    {"momentum": None},
    {"track_running_stats": False},
    {"eps": 0.1, "momentum": 0.5},
]


@pytest.mark.parametrize("dims", LAYERS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_grows_and_merges_to_one(dims: int, options: dict[str, Any]) -> None:
    model = splitgrow.growable(net(dims, **options), X[dims])
    before = model(X[dims])
    for _ in range(2):
        model.expand_layer("0", 2)
        assert_equal(model(X[dims]), before)
    randomise(model)
    merged = splitgrow.merge(model)
    assert type(merged[1]) is Sync
    assert merged[1].num_features == 10
    assert_equal(merged(X[dims]), model(X[dims]))
    with model.at(0):
        assert type(model[1][0]) is Sync


def test_a_model_with_another_norm_in_its_place_would_differ() -> None:
    model = splitgrow.growable(net(), X[2])
    before = model(X[2])
    model.expand_layer("0", 2)
    model[1][0].running_mean.add_(1)
    assert not torch.allclose(model(X[2]), before)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, Sync])
def test_in_one_process_it_trains_as_a_plain_norm_does(norm: Any) -> None:
    def trained(kind: Any) -> list[Tensor]:
        model = splitgrow.growable(net(2, kind), X[2])
        torch.manual_seed(1)
        model.expand_layer("0", 2)
        model.train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(X[2]).square().mean().backward()
            optimizer.step()
        return [model.eval()(X[2]), *(buffer.double() for buffer in model.buffers())]

    for one, other in zip(trained(norm), trained(nn.BatchNorm2d), strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("dims", LAYERS)
def test_fused_it_is_folded(dims: int) -> None:
    model = splitgrow.growable(net(dims), X[dims])
    model.expand_layer("0", 2)
    randomise(model)
    fused = splitgrow.fuse(model)
    assert not [m for m in fused.modules() if "Norm" in type(m).__name__]
    assert_equal(fused(X[dims]), model(X[dims]))


@pytest.mark.parametrize("dims", [0, 1, 2, 3])
def test_fused_where_it_cannot_be_folded_it_is_the_norm_of_one_process(dims: int) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net(dims)

        def forward(self, x: Tensor) -> Tensor:
            first = self.body[0](x)
            return self.body[3](self.body[1](first).relu() + first)

    model = splitgrow.growable(Twice().double().eval(), X[dims])
    model.expand_layer("body.0", 2)
    fused = splitgrow.fuse(model)
    norms = [type(m) for m in fused.modules() if "Norm" in type(m).__name__]
    plain = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
    assert norms == [plain[dims]]
    assert_equal(fused(X[dims]), model(X[dims]))


def test_a_model_converted_before_it_grows_gives_what_it_gave() -> None:
    plain = net(2, nn.BatchNorm2d)
    before = plain(X[2])
    model = splitgrow.growable(plain, X[2])
    model = Sync.convert_sync_batchnorm(model)
    with pytest.raises(StructureChangedError, match="growable"):
        model.expand_layer("0", 2)
    model = splitgrow.growable(model, X[2])
    model.expand_layer("0", 2)
    assert_equal(model(X[2]), before)


def test_a_grown_model_that_is_converted_is_noticed_and_goes_on_when_analysed_again() -> None:
    model = splitgrow.growable(net(2, nn.BatchNorm2d), X[2])
    before = model(X[2])
    model.expand_layer("0", 2)
    model = Sync.convert_sync_batchnorm(model)
    assert {type(block) for block in model[1]} == {Sync}
    assert_equal(model(X[2]), before)
    for refused in (
        lambda: model.expand_layer("0", 2),
        lambda: model.at(0).__enter__(),
        lambda: splitgrow.merge(model, generation=0),
        lambda: model.plan({"0": 2}),
    ):
        with pytest.raises(StructureChangedError, match="growable"):
            refused()
    model = splitgrow.growable(model, X[2])
    model.expand_layer("0", 2)
    assert_equal(model(X[2]), before)
    with pytest.raises(SplitGrowError, match="no longer exact"):
        splitgrow.merge(model, generation=0)
    merged = splitgrow.merge(model)
    assert type(merged[1]) is Sync
    assert_equal(merged(X[2]), before)


def test_a_checkpoint_brings_it_back(tmp_path: Path) -> None:
    model = splitgrow.growable(net(), X[2])
    model.expand_layer("0", 2)
    splitgrow.save(model, tmp_path / "a.safetensors")
    fresh = net()
    splitgrow.load(fresh, tmp_path / "a.safetensors")
    assert torch.equal(fresh.eval()(X[2]), model(X[2]))


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_in_a_process_group_it_grows_and_runs_in_evaluation() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on a CPU it runs in evaluation only
        model = splitgrow.growable(net(), X[2])
    before = model(X[2])
    model.expand_layer("0", 2)
    assert_equal(model(X[2]), before)
    model.train()
    held = model[1][0].running_mean.clone()
    try:  # torch has it train on GPUs only, grown or not
        model(X[2])
    except ValueError as error:
        assert "GPU" in str(error)  # noqa: PT017
    assert torch.equal(model[1][0].running_mean, held)
    assert_equal(splitgrow.fuse(model)(X[2]), before)


@pytest.mark.usefixtures("group")
def test_in_a_process_group_each_block_asks_the_others(monkeypatch: Any) -> None:
    model = splitgrow.growable(net().eval(), X[2])
    model.expand_layer("0", 2)
    model.train()
    asked = []
    monkeypatch.setattr(Sync, "forward", lambda self, x: (asked.append(self.training), x)[1])
    model(X[2])
    assert sorted(asked) == [False, True]


# --- other norms of torch -----------------------------------------------------------------------


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_lazy_norm_grows_once_it_is_initialised(dims: int) -> None:
    lazy = {1: nn.LazyBatchNorm1d, 2: nn.LazyBatchNorm2d, 3: nn.LazyBatchNorm3d}[dims]
    model: Any = nn.Sequential(LAYERS[dims](3, 6, 1), lazy(), LAYERS[dims](6, 2, 1)).double()
    with pytest.raises(SplitGrowError, match="not initialised"):
        splitgrow.growable(model, X[dims])
    model(X[dims])
    model = splitgrow.growable(model.eval(), X[dims])
    before = model(X[dims])
    model.expand_layer("0", 2)
    assert_equal(model(X[dims]), before)


def _qat() -> list[tuple[str, nn.Module]]:
    qconfig = torch.ao.quantization.get_default_qat_qconfig()
    return [
        ("qat.Conv2d", torch.ao.nn.qat.Conv2d(6, 6, 1, qconfig=qconfig)),
        ("qat.ConvBn2d", torch.ao.nn.intrinsic.qat.ConvBn2d(6, 6, 1, qconfig=qconfig)),
        ("qat.ConvBnReLU2d", torch.ao.nn.intrinsic.qat.ConvBnReLU2d(6, 6, 1, qconfig=qconfig)),
        ("qat.Linear", torch.ao.nn.qat.Linear(6, 6, qconfig=qconfig)),
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("index", range(4))
def test_layers_prepared_for_quantization_are_fixed_with_a_reason(index: int) -> None:
    name, layer = _qat()[index]
    make: Any = nn.Linear if "Linear" in name else (lambda i, o: nn.Conv2d(i, o, 1))
    x = torch.randn(2, 3) if "Linear" in name else torch.randn(2, 3, 4, 4)
    model = splitgrow.growable(nn.Sequential(make(3, 6), layer, make(6, 2)).eval(), x)
    for each in model.layers:
        if each.name in {"0", "1"}:
            assert not each.growable
            assert len(each.reason) > 15


@pytest.mark.filterwarnings("ignore")
def test_a_fused_pair_that_is_not_prepared_grows_as_its_parts_do() -> None:
    pair = torch.ao.nn.intrinsic.ConvBn2d(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6))
    model = splitgrow.growable(nn.Sequential(pair, nn.Conv2d(6, 2, 1)).double().eval(), X[2])
    before = model(X[2])
    model.expand_layer("0.0", 2)
    assert_equal(model(X[2]), before)
    assert_equal(splitgrow.merge(model)(X[2]), before)


class Renamed(nn.BatchNorm2d):
    """A library's norm that changes nothing."""


class Clamped(nn.BatchNorm2d):
    """A library's norm with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-1, 1)


def test_a_subclass_that_changes_nothing_grows_and_another_is_fixed_with_a_reason() -> None:
    model = splitgrow.growable(net(2, Renamed), X[2])
    before = model(X[2])
    model.expand_layer("0", 2)
    assert_equal(model(X[2]), before)
    fixed = splitgrow.growable(net(2, Clamped), X[2])
    assert not fixed.layers[0].growable
    assert "`batch_norm` at" in fixed.layers[0].reason
    assert copy.deepcopy(fixed).layers[0].reason == fixed.layers[0].reason

"""Fusing: the layers that are folded, those that must not be, and the check of the result."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from helpers import assert_equal, outputs_of, randomise, randomise_new_blocks
from torch import Tensor, nn
from torch.nn import functional as F

import splitgrow
from splitgrow.deploy import fuse as fusion


def kinds(network: nn.Module) -> list[str]:
    return [type(module).__name__ for name, module in network.named_modules() if name][:20]


def grown(model: nn.Module, x: Tensor, **request: int) -> Any:
    model = splitgrow.growable(randomise(model).double().eval(), x)
    model.expand({name.replace("_", "."): n for name, n in request.items()} or {0: 2})
    randomise_new_blocks(model)
    return model


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d(6), (2, 4, 8)),
        (nn.Conv2d(4, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8, affine=False), (2, 4, 8, 8)),
        (nn.Conv3d(4, 4, 3, groups=4), nn.BatchNorm3d(4), (2, 4, 4, 4, 4)),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), nn.BatchNorm1d(6), (2, 4, 8)),
        (nn.ConvTranspose2d(4, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), (2, 4, 4, 4)),
        (nn.ConvTranspose2d(4, 8, 3, groups=4), nn.BatchNorm2d(8, eps=0.1), (2, 4, 4, 4)),
        (nn.ConvTranspose3d(2, 4, 2), nn.BatchNorm3d(4), (2, 2, 3, 3, 3)),
        (nn.Linear(4, 6), nn.BatchNorm1d(6), (3, 4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_norm_is_folded_into_the_layer_before_it(
    layer: nn.Module, norm: nn.Module, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    around: Any = {2: nn.Linear, 3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(shape)]
    kernel = () if around is nn.Linear else (1,)
    first = around(shape[1], shape[1], *kernel)
    last = around(norm.num_features, 2, *kernel)
    net = nn.Sequential(first, copy.deepcopy(layer), copy.deepcopy(norm), nn.ReLU(), last)
    model: Any = splitgrow.growable(randomise(net).double().eval(), x)
    for name in "01":
        model.expand_layer(name, 2 * model.layers[int(name)].step)
    randomise_new_blocks(model)
    fused = splitgrow.fuse(model)
    assert "BatchNorm" not in " ".join(kinds(fused))
    assert_equal(fused(x), model(x))


class CalledTwice(nn.Module):
    """One convolution, two norms: folding either would change the other call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.last, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.conv(self.one(self.conv(x))))
        return self.norm(self.last(x))


def test_a_layer_that_is_called_twice_keeps_its_norms() -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    model = grown(CalledTwice(), x, last=2)
    fused = splitgrow.fuse(model)
    assert kinds(fused) == ["Conv2d", "BatchNorm2d", "BatchNorm2d", "Conv2d"]
    assert_equal(fused(x), model(x))


class ReadTwice(nn.Module):
    """What the norm reads is read by something else as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class OtherAxis(nn.Module):
    """The norm works on the second dimension, the Linear on the third, both six wide."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.out = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.fc(x)))


class ChangedBetween(nn.Module):
    """An in-place op changes what the norm reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.clamp_(-0.1, 0.1)
        return self.norm(y)


@pytest.mark.parametrize("make", [ReadTwice, OtherAxis, ChangedBetween])
def test_a_norm_stays_where_folding_it_would_be_wrong(make: Any) -> None:
    shape = (2, 6, 6) if make is OtherAxis else (2, 3, 4, 4)
    x = torch.randn(shape, dtype=torch.float64)
    model = grown(make(), x, **({"out": 2} if make is OtherAxis else {"conv": 2}))
    fused = splitgrow.fuse(model)
    assert any("BatchNorm" in kind for kind in kinds(fused))
    assert_equal(fused(x), model(x))


def test_a_norm_without_statistics_stays() -> None:
    x = torch.randn(4, 3, 4, 4, dtype=torch.float64)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    model = grown(net, x)
    assert kinds(splitgrow.fuse(model)) == ["Conv2d", "BatchNorm2d"]


class Drops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.drop, self.same = nn.Linear(4, 4), nn.Dropout(0.5), nn.Identity()
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.drop(self.fc(x)), 0.3, self.training)
        return self.out(F.dropout(self.same(x), p=0.1, training=self.training))


def test_dropouts_and_identities_are_gone_and_dropout_that_stays_on_is_not() -> None:
    x = torch.randn(2, 4, dtype=torch.float64)
    model = grown(Drops(), x, fc=2)
    fused = splitgrow.fuse(model)
    assert kinds(fused) == ["Linear", "Linear"]
    assert "dropout" not in fused.code

    class AlwaysOn(Drops):
        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.dropout(self.fc(x), 0.0, training=True))

    assert "dropout" in splitgrow.fuse(grown(AlwaysOn(), x, fc=2)).code


def test_tensors_that_forward_makes_and_arguments_with_defaults_come_along() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, scale: float = 2.0, mask: Any = None) -> dict[str, Tensor]:
            x = self.fc(x) * scale if mask is None else x
            return {"y": self.out(x) + torch.tensor([1.0, 2.0], dtype=torch.float64)}

    x = torch.randn(2, 4, dtype=torch.float64)
    model = grown(Scaled(), x, fc=3)
    assert_equal(splitgrow.fuse(model)(x), model(x))


def test_the_fused_network_is_evaluated_checked_and_a_thing_of_its_own() -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model = grown(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)), x)
    model.train()
    fused = splitgrow.fuse(model)
    assert not any(module.training for module in fused.modules())
    assert fused.meta["largest_difference"] < 1e-12
    assert "largest_difference" not in splitgrow.fuse(model, check=False).meta
    mine = {t.data_ptr() for t in fused.state_dict().values()}
    assert not mine & {t.data_ptr() for t in model.state_dict().values()}
    for again in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert_equal(again(x), fused(x))


def test_a_fusion_that_went_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(network: torch.fx.GraphModule) -> None:
        with torch.no_grad():
            next(network.parameters()).mul_(1.001)

    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model = grown(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)), x)
    monkeypatch.setattr(fusion, "PASSES", (spoil,))
    with pytest.raises(splitgrow.FusionError, match="differs from the model by"):
        splitgrow.fuse(model)
    splitgrow.fuse(model, check=False)


def test_the_check_follows_the_models_dtype_and_keeps_its_memory_format() -> None:
    net: Any = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    model: Any = randomise(net).to(memory_format=torch.channels_last).eval()
    splitgrow.growable(model, torch.randn(1, 3, 8, 8))
    model.expand_layer("0", 4)
    model = model.double()
    fused = splitgrow.fuse(model)
    assert fused.meta["largest_difference"] < 1e-12
    conv = fused.get_submodule("0")
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert splitgrow.fuse(model.bfloat16()).meta["largest_difference"] < 5e-2


def test_norms_fold_apart_where_two_layers_share_a_weight():
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
            self.two.weight = self.one.weight
            self.norm1, self.norm2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm2(self.two(self.norm1(self.one(x))))

    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model = splitgrow.growable(randomise(Twins().double().eval()), x)
    fused = splitgrow.fuse(model)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in fused.modules())
    assert_equal(outputs_of(fused, x), outputs_of(model, x))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_large_weight_is_folded_a_few_rows_at_a_time(layer, groups, monkeypatch):
    monkeypatch.setattr("splitgrow.layers.norm_folding._AT_ONCE", 7)
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    net = nn.Sequential(layer(4, 6, 3, groups=groups), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1))
    model = splitgrow.growable(randomise(net.double().eval()), x)
    fused = splitgrow.fuse(model)
    assert len(list(fused.children())) == 2
    assert_equal(outputs_of(fused, x), outputs_of(model, x))

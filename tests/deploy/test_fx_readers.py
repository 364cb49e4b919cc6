"""Fusing leaves tensors and modules alone that others read, run, write or have hooks on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import assert_equal, randomise
from torch import Tensor, nn
from torch.nn import functional as F

import splitgrow
from splitgrow.deploy import passes

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Base(nn.Module):
    """A layer with a norm behind it, and whatever else reads a part of them."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.norm(self.encode(x)).relu())


class WeightTransposed(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(self.encode(x)).relu(), self.encode.weight.t())


class WeightInAList(Base):
    """Forward finds the weight where torch.fx does not see it, as a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.held = [self.encode.weight]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(super().forward(x), self.held[0])


class BiasRead(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.encode(x)).relu() + self.encode.bias)


class WeightDecay(Base):
    """A regularizer's term among the outputs."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), self.encode.weight.square().sum()


class WeightNormalised(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.encode(x)).relu()
        return h @ F.normalize(self.encode.weight, dim=1)


class StatisticsRead(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.encode(x))
        return self.last(h * self.norm.running_var + self.norm.running_mean)


class ScaleRead(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.encode(x)) * self.norm.weight + self.norm.bias)


class StatisticsWritten(Base):
    """The norm's mean is another one in the next call."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.encode(x))
        self.norm.running_mean.add_(1.0)
        return self.last(h)


class OutputReadTwice(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.encode(x)
        return self.last(self.norm(h).relu() + h)


class SharedUnderTwoNames(Base):
    def __init__(self) -> None:
        super().__init__()
        self.again = self.encode

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.encode(x)).relu() + self.again(x))


class NormCalledTwice(Base):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.other(self.norm(self.encode(x)).relu())))


class NormUnderTwoNames(NormCalledTwice):
    def __init__(self) -> None:
        super().__init__()
        self.same = self.norm

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.same(self.other(self.norm(self.encode(x)).relu())))


class ParameterOfTwo(Base):
    """Two layers with one weight, of which one has a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.twin = nn.Linear(6, 8)
        self.twin.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.encode(x)).relu() + self.twin(x))


class BiasOfTwo(ParameterOfTwo):
    def __init__(self) -> None:
        super().__init__()
        self.twin = nn.Linear(6, 8)
        self.twin.bias = self.encode.bias


class PartOfAWhole(nn.Module):
    """A layer that is run by itself, and as a part of one that torch.fx takes as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
        self.norm, self.last = nn.BatchNorm1d(8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.whole.linear1(x)).relu()
        return self.last(h) + self.whole(x.unsqueeze(0)).squeeze(0)


class GateWritten(Base):
    """A gate that gives its input now, and something else in the next call."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 8)
        nn.init.zeros_(self.gate.weight)
        nn.init.ones_(self.gate.bias)
        self.gate.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encode(x)
        made = self.last(h * self.gate(h))
        self.gate.weight.add_(0.5)
        return made


class FadeUsedTwice(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fade = splitgrow.FadeIn(nn.Linear(6, 6), nn.Linear(6, 6), alpha=0.25)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(self.fade(self.fade(x))), self.fade.share * x


class AssignedInForward(Base):
    def __init__(self) -> None:
        super().__init__()
        self.act: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.act = nn.ReLU()
        return self.last(self.act(self.norm(self.encode(x))))


CASES = [v for v in list(vars().values()) if isinstance(v, type) and v.__module__ == __name__]


@pytest.mark.filterwarnings("ignore:growth could be tried out by shapes only")
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_fuse_computes_what_the_model_does_whoever_reads_its_tensors(make: Any) -> None:
    net = randomise(make()).double().eval()
    if isinstance(net, GateWritten):
        nn.init.zeros_(net.gate.weight)
        nn.init.ones_(net.gate.bias)
    model = splitgrow.growable(net, X)
    alone = copy.deepcopy(model)
    fused = splitgrow.fuse(model, check=False)
    for _ in range(3):  # forward may change something
        ours, theirs = fused(X), alone(X)
        pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]
        for one, other in pairs:
            assert_equal(one, other)


def test_a_pass_that_knows_modules_by_path_only_folds_what_others_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(passes, "_is_apart", lambda module, readers: True)
    wrong = []
    for make in (WeightTransposed, BiasRead, SharedUnderTwoNames):
        model = splitgrow.growable(randomise(make()).double().eval(), X)
        try:
            splitgrow.fuse(model)
        except splitgrow.FusionError:
            wrong.append(make.__name__)
    assert wrong == ["WeightTransposed", "BiasRead", "SharedUnderTwoNames"]


def test_a_norm_that_nobody_else_knows_of_is_folded() -> None:
    fused = splitgrow.fuse(splitgrow.growable(randomise(Base()).double().eval(), X))
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm1d)]
    assert isinstance(fused, torch.fx.GraphModule)

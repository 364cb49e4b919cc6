"""Norms that are folded where torch.fx cannot trace, those that stay, and the reasons."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from helpers import assert_equal, largest_difference, randomise
from torch import Tensor, nn

from benchmarks.vision import torchvision
from splitgrow.deploy import trace_folding
from splitgrow.deploy.trace_folding import FoldPlan, fold_plan, fold_planned_, frozen_norm
from splitgrow.utils.example_call import ExampleCall

X = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.manual_seed(0))


def planned(model: nn.Module, x: Tensor = X) -> FoldPlan:
    """The plan of a model; folding by it leaves the outputs as they are."""
    randomise(model.double().eval())
    plan = fold_plan(model, ExampleCall((x,)))
    folded = copy.deepcopy(model)
    fold_planned_(folded, plan.folds)
    assert_equal(folded(x), model(x))
    kinds = [type(module).__name__ for module in folded.modules()]
    before = [type(module).__name__ for module in model.modules()]
    for name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "BatchNormAct2d"):
        gone = sum(type(model.get_submodule(norm)).__name__ == name for norm in plan.folds)
        assert kinds.count(name) == before.count(name) - gone
    return plan


class Pair(nn.Module):
    """A convolution and its norm; subclasses differ in the way they call them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.conv(x)
        x = self.norm(x)
        return self.last(x)


class Nested(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.conv(x)).relu())


class OtherName(Pair):
    def forward(self, x: Tensor) -> Tensor:
        made = self.conv(x)
        normed = self.norm(made)
        return self.last(normed) + self.last(normed.relu())


class InTheSameBranch(Pair):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            x = self.conv(x)
            if self.norm is not None and self.conv.out_channels > 1:
                x = self.norm(x)
        return self.last(x)


class InOneBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1))
        self.block = nn.Sequential(self.inner, nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.last = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())
        self.before = nn.ConvTranspose2d(4, 4, 2, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        x = self.before(x)
        return self.last(x)


class ThroughAList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()])
        self.others = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return self.others[1](self.others[0](x))


class ReadByTwo(Pair):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.last(self.norm(y) + y)


class CalledTwice(Pair):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return self.last(y + self.conv(x * 2))


class NormCalledTwice(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.norm(self.conv(x))))


class ReadsTheNorm(Pair):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return self.last(x) * self.norm.eps


class ReadsTheNormsWeight(Pair):
    def forward(self, x: Tensor) -> Tensor:
        held = dict(self.named_parameters())  # by no name of the source
        x = self.norm(self.conv(x))
        return self.last(x * held["norm.weight"].mean())


class ReadsTheLayersWeight(Pair):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return self.last(x) + self.conv.weight.mean()


class DecidesWhetherToNormalise(Pair):
    def forward(self, x: Tensor) -> Tensor:
        few = x.amax() < 9
        x = self.conv(x)
        if few:
            x = self.norm(x)
        return self.last(x)


class DecidesBetween(Pair):
    def forward(self, x: Tensor) -> Tensor:
        many = x.amax() > 9
        x = self.conv(x)
        if many:
            x = x * 2
        x = self.norm(x)
        return self.last(x)


class MayLeaveBefore(Pair):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if x.amax() > 9:
            return self.last(x)
        return self.last(self.norm(y))


class MayReadLater(Pair):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.norm(y)
        return self.last(z if x.amax() < 9 else z + y)


class HasAnotherMethod(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.conv(x))) if x.amax() < 9 else self.raw(x)

    def raw(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x))


class HasAMethodOfTheSameOrder(Pair):
    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class TurnsItsSwitch(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.normalise = True

    def forward(self, x: Tensor) -> Tensor:
        self.normalise = bool(x.amax() < 9)
        x = self.conv(x)
        if self.normalise:
            x = self.norm(x)
        return self.last(x)


class ChoosesAmongNorms(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        del self.norm

    def forward(self, x: Tensor, domain: int = 0) -> Tensor:
        return self.last(self.norms[domain](self.conv(x)))


class FromOutside(nn.Module):
    """A method of another module calls the layer without its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x) if x.amax() < 9 else self.pair.conv(x)


class PartOfAList(ThroughAList):
    def forward(self, x: Tensor) -> Tensor:
        if x.amax() > 9:
            return self.parts[0](x)
        return super().forward(x)


@pytest.mark.parametrize(
    "make", [Pair, Nested, OtherName, InTheSameBranch, HasAMethodOfTheSameOrder]
)
def test_a_norm_is_folded_where_it_alone_reads_its_layer_at_every_call(make: Any) -> None:
    assert planned(make()) == FoldPlan({"norm": "conv"}, {})


def test_a_norm_is_folded_across_the_containers_that_hand_a_value_through() -> None:
    assert planned(InOneBlock()).folds == {"block.1": "inner.1", "last.0": "before"}
    assert planned(ThroughAList()).folds == {"parts.1": "parts.0", "others.1": "others.0"}
    assert planned(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))).folds == {"1": "0"}


REFUSALS: dict[Callable[[], nn.Module], str] = {
    ReadByTwo: "the output of `conv` has other readers",
    CalledTwice: "`conv` is called several times",
    NormCalledTwice: "not called exactly once",
    ReadsTheNorm: "`forward` also reads it, besides",
    ReadsTheNormsWeight: "forward itself reads its tensors",
    ReadsTheLayersWeight: "forward itself reads its tensors",
    DecidesWhetherToNormalise: "decides whether",
    DecidesBetween: "for something else",
    MayLeaveBefore: "may leave before",
    MayReadLater: "for something else",
    HasAnotherMethod: "`raw` may call it",
    TurnsItsSwitch: "decides whether",
    ChoosesAmongNorms: "in one place, by its name",
    FromOutside: "`forward` may call it",
}


@pytest.mark.parametrize("make", REFUSALS)
def test_a_norm_stays_where_another_call_could_differ(make: Any) -> None:
    plan = planned(make())
    assert not plan.folds
    assert any(REFUSALS[make] in reason for reason in plan.kept.values()), plan.kept


def test_a_norm_in_a_list_stays_where_a_part_of_the_list_is_called_by_itself() -> None:
    assert planned(PartOfAList()).folds == {"others.1": "others.0"}


@pytest.mark.parametrize("make", [DecidesWhetherToNormalise, DecidesBetween, MayReadLater])
def test_control_a_fold_that_the_trace_alone_allows_is_wrong_for_other_inputs(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_folding, "_refusal_of_calls", lambda *_: "")
    model = make()
    assert planned(model).folds == {"norm": "conv"}
    other = X + 10
    folded = copy.deepcopy(model)
    fold_planned_(folded, {"norm": "conv"})
    assert largest_difference(folded(other), model(other)) > 1e-3


@pytest.mark.parametrize("part", ["conv", "norm"])
def test_a_layer_or_a_norm_with_a_hook_stays(part: str) -> None:
    model = Pair()
    model.get_submodule(part).register_forward_hook(lambda *_: None)
    assert "hooks" in planned(model).kept["norm"]


def test_a_container_with_a_hook_keeps_what_the_hook_sees() -> None:
    model = InOneBlock()
    model.inner.register_forward_hook(lambda *_: None)
    assert "hooks" in planned(model).kept["block.1"]


def test_a_method_without_source_is_believed_in_nothing() -> None:
    names: dict[str, Any] = {"Pair": Pair}
    exec("class Unread(Pair):\n  def forward(self, x):\n    return self.norm(self.conv(x))", names)
    assert "cannot be read" in planned(names["Unread"]()).kept["norm"]


def test_a_norm_without_statistics_stays_and_says_so() -> None:
    model = Pair()
    model.norm = nn.BatchNorm2d(4, track_running_stats=False)
    assert "no running statistics" in planned(model).kept["norm"]


def test_a_weight_that_is_shared_or_computed_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    model[2].weight = model[0].weight
    assert planned(model).folds == {"1": "0"}
    made = Pair()
    torch.nn.utils.parametrizations.weight_norm(made.conv)
    assert planned(made).kept.keys() == {"norm"}


class Frozen(nn.Module):
    """A batch norm of buffers alone, as models for detection write it."""

    def __init__(self, width: int, power: float = -0.5) -> None:
        super().__init__()
        self.power = power
        for name, value in {"weight": 1.0, "bias": 0.0, "running_mean": 0.0}.items():
            self.register_buffer(name, torch.full((width,), value))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5) ** self.power
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


def test_a_frozen_norm_of_any_class_is_told_by_what_it_computes() -> None:
    model = Pair()
    model.norm = Frozen(4)
    assert planned(model).folds == {"norm": "conv"}
    other = Pair()
    other.norm = Frozen(4, power=-1.0)
    assert planned(other) == FoldPlan({}, {})
    assert frozen_norm(randomise(nn.BatchNorm2d(4))) is None


def test_planning_leaves_the_model_as_it_was() -> None:
    model = Pair().eval()
    model.norm = Frozen(4).eval()
    kinds = [type(module) for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    fold_plan(model, ExampleCall((X.float(),)))
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_an_activation_in_one_layer_with_its_norm_stays() -> None:
    torchvision()  # timm imports it
    model = Pair()
    model.norm = import_module("timm.layers").BatchNormAct2d(4)
    randomise(model.double().eval())
    plan = fold_plan(model, ExampleCall((X,)))
    folded = copy.deepcopy(model)
    fold_planned_(folded, plan.folds)
    assert [type(part) for part in folded.norm] == [nn.ReLU]
    assert_equal(folded(X), model(X))

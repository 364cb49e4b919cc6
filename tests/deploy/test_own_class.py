"""Fusing a model that torch.fx cannot trace: the merged model itself, with its norms folded."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from cases import CASES, Case
from helpers import assert_equal, assert_identical, outputs_of, randomise, randomise_new_blocks
from torch import Tensor, nn

import splitgrow
from splitgrow.deploy import fuse as fusion
from splitgrow.deploy import own_class, trace_folding
from splitgrow.errors import TraceError

X = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.manual_seed(0))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()


class Checked(nn.Module):
    """Checks its input, as models of transformers do; torch.fx cannot trace that."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(3, 4), Block(4, 6), Block(6, 4)])
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError("three channels are expected")
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Pair(nn.Module):
    """One norm's layer is read by something else as well."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.conv, self.norm = Block(3, 4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise ValueError("a batch of images is expected")
        y = self.conv(self.block(x))
        return self.norm(y) + y


def grown(make: Any = Checked, x: Tensor = X, name: str = "blocks.0.conv") -> Any:
    torch.manual_seed(0)
    model = splitgrow.growable(randomise(make().to(x.dtype).eval()), x)
    model.expand_layer(name, 2)
    randomise_new_blocks(model)
    return model


def fused(model: Any, *, match: str = "batch norms folded", **options: Any) -> Any:
    with pytest.warns(UserWarning, match=match):
        return splitgrow.fuse(model, **options)


def norms_in(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


NORMED = {"plain", "residual", "bottleneck", "squeeze and excite", "u-net", "conv to linear"}
NORMED |= {"1-d", "3-d", "mlp", "causal"}
"""The cases that have norms which can be folded."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fused_without_a_graph_it_equals_the_model(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise TraceError("torch.fx cannot trace it")

    monkeypatch.setattr(fusion, "_simplified", fail)
    inputs = case.inputs()
    model: Any = splitgrow.growable(randomise(case.model()), inputs)
    layer = next(each for each in model.layers if each.growable)
    model.expand_layer(layer.name, layer.step)
    randomise_new_blocks(model)
    network = fused(model, match="torch.fx cannot trace it")
    assert type(network) is type(case.model())
    assert_equal(outputs_of(network, *inputs), outputs_of(model, *inputs))
    assert network.meta["way"] == "own class"
    assert bool(network.meta["folded"]) == (case.name in NORMED)


def test_the_result_tells_the_way_and_each_norm() -> None:
    network = fused(grown(), match="merged, with 3 of its 3 batch norms folded.*torch.fx cannot")
    assert type(network) is Checked
    assert norms_in(network) == 0
    assert network.meta["folded"] == {f"blocks.{n}.norm": f"blocks.{n}.conv" for n in range(3)}
    assert network.meta["kept"] == {}
    assert "torch.fx cannot trace" in network.meta["reason"]
    assert network.meta["largest_difference"] < 1e-12
    partly = fused(grown(Pair, name="block.conv"), match="1 of its 2.*`norm` could not be folded")
    assert list(partly.meta["folded"]) == ["block.norm"]
    assert "other readers" in partly.meta["kept"]["norm"]


def test_a_graph_says_so_too() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    assert splitgrow.fuse(grown(lambda: net, name="0")).meta["way"] == "graph"


def test_a_model_keeps_its_own_meta() -> None:
    class Described(Checked):
        def __init__(self) -> None:
            super().__init__()
            self.meta = "mine"

    assert fused(grown(Described)).meta == "mine"


def test_the_model_itself_is_untouched_and_shares_no_tensor() -> None:
    model = grown().train()
    state = copy.deepcopy(model.state_dict())
    network = fused(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not any(module.training for module in network.modules())
    mine = {tensor.data_ptr() for tensor in network.state_dict().values()}
    assert not mine & {tensor.data_ptr() for tensor in model.state_dict().values()}


def test_an_earlier_generation_is_fused_as_it_was() -> None:
    model = grown()
    model.next_generation()
    before = model(X)
    model.expand_layer("blocks.1.conv", 2)
    with torch.no_grad():
        for parameter in model.generation_parameters():
            parameter.normal_()
    now = model(X)
    assert_equal(fused(model, generation=1)(X), before)
    assert_equal(fused(model)(X), now)


def test_half_precision_is_compared_by_its_own_rounding() -> None:
    model = grown(x=X.bfloat16())
    network = fused(model)
    assert norms_in(network) == 0
    assert network.blocks[0].conv.weight.dtype is torch.bfloat16


def test_a_model_on_meta_is_refused() -> None:
    model = splitgrow.growable(Checked().double().to("meta"), X.to("meta"))
    with pytest.raises(splitgrow.UnsupportedModelError, match="no values that could be folded"):
        splitgrow.fuse(model)


def test_what_is_fused_is_pickled_copied_exported_and_compiled() -> None:
    network = fused(grown())
    expected = network(X)
    assert_identical(pickle.loads(pickle.dumps(network))(X), expected)
    assert_identical(copy.deepcopy(network)(X), expected)
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    assert_identical(torch.load(file, weights_only=False)(X), expected)
    assert_equal(torch.export.export(network, (X,)).module()(X), expected)
    assert_equal(torch.compile(network, backend="eager", fullgraph=True)(X), expected)


def test_no_loader_makes_a_network_with_norms_of_what_is_fused() -> None:
    plain = fused(grown(lambda: Checked().double()))
    state = plain.state_dict()
    fresh = splitgrow.merge(grown())
    with pytest.raises(RuntimeError, match=r"norm.running_mean: copying a param with shape"):
        fresh.load_state_dict(state, strict=False)  # as loaders do that pass over unknown keys
    again = copy.deepcopy(plain)
    for parameter in again.parameters():
        parameter.data.zero_()
    again.load_state_dict(state)
    assert_identical(outputs_of(again, X), outputs_of(plain, X))


def test_a_fold_that_changes_the_outputs_is_found_and_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = trace_folding.fold_norm_

    def wrong(layer: Any, norm: Any, *, shared: bool) -> None:
        right(layer, norm, shared=shared)
        if layer.in_channels == 4:
            layer.weight.data.mul_(1.001)

    monkeypatch.setattr(trace_folding, "fold_norm_", wrong)
    model = grown(name="blocks.1.conv")  # which reads four channels
    network = fused(model, match="2 of its 3")
    assert "differs from the model by" in network.meta["kept"]["blocks.1.norm"]
    assert norms_in(network) == 1
    assert_equal(network(X), model(X))
    with pytest.raises(AssertionError):  # the check is what finds it
        assert_equal(fused(model, check=False)(X), model(X))


def test_control_the_check_finds_a_norm_that_should_not_be_folded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = own_class.fold_plan

    def too_much(model: nn.Module, inputs: Any) -> Any:
        found = plan(model, inputs)
        return own_class.FoldPlan({**found.folds, "norm": "conv"}, {})

    monkeypatch.setattr(own_class, "fold_plan", too_much)
    model = grown(Pair, name="block.conv")
    network = fused(model, match="1 of its 2")
    assert "differs" in network.meta["kept"]["norm"]
    assert_equal(network(X), model(X))

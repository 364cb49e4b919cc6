"""The arguments of a graph: their order, names and defaults, and those by which forward decides."""

from __future__ import annotations

import inspect
import pickle
from enum import Enum
from typing import Any

import pytest
import torch
from helpers import assert_equal, assert_identical
from torch import Tensor, nn

import splitgrow

X, Y = torch.randn(2, 4, 3, dtype=torch.float64)


class Mode(Enum):
    ONE = 1
    TWO = 2


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    def compute(self, x: Any) -> Any:
        return self.b(self.a(x).relu())


def fused(model: nn.Module, *inputs: Any, **kwargs: Any) -> tuple[Any, Any]:
    """A grown model and its graph."""
    grown = splitgrow.growable(model.double().eval(), inputs, kwargs)
    grown.expand_layer("a", 2)
    network = splitgrow.fuse(grown)
    assert isinstance(network, torch.fx.GraphModule)
    return grown, network


def names(network: Any) -> list[str]:
    return list(inspect.signature(network.forward).parameters)


class Defaults(Net):
    def forward(
        self,
        x: Tensor,
        mode: Mode = Mode.ONE,
        limit: float = float("nan"),
        sizes: tuple[int, ...] = (1, 2),
        y: Tensor | None = None,
    ) -> Tensor:
        assert mode is Mode.ONE
        assert limit != limit
        out = self.compute(x if y is None else x + y)
        return out * sizes[1]


def test_defaults_that_a_graph_can_compare_stay_and_others_are_left_out() -> None:
    model, network = fused(Defaults(), X)
    assert names(network) == ["x", "sizes", "y"]
    assert_equal(network(X, sizes=(1, 2), y=None), model(X))
    for wrong in ({"sizes": (1, 3)}, {"y": Y}, {"mode": Mode.TWO}, {"limit": 1.0}):
        with pytest.raises((AssertionError, TypeError)):
            network(X, **wrong)


def test_an_argument_behind_one_that_is_left_out_keeps_its_place_in_forward() -> None:
    model, network = fused(Defaults(), X, y=Y)
    assert_equal(network(X, y=Y), model(X, y=Y))
    assert_equal(network(x=2 * X, y=X), model(2 * X, y=X))


class Ordered(Net):
    def forward(self, *, scale: float = 2.0, x: Tensor, bias: Tensor, **more: Tensor) -> Tensor:
        return self.compute(x) * scale + bias + more["y"]


def test_arguments_without_defaults_behind_those_with_one_are_asked_for() -> None:
    bias = torch.ones(2, dtype=torch.float64)
    model, network = fused(Ordered(), x=X, bias=bias, y=bias)
    assert names(network) == ["scale", "x", "bias", "y"]
    for graph in (network, pickle.loads(pickle.dumps(network))):
        expected = model(y=bias, bias=2 * bias, x=X)
        assert_equal(graph(y=bias, bias=2 * bias, x=X), expected)
        with pytest.raises(AssertionError, match="bias is missing"):
            graph(x=X, y=bias)


class Containers(Net):
    def forward(self, batch: Any, options: Any = None) -> Any:
        total = sum(tensor for tensor in batch["images"])
        for name, tensor in batch.items():
            if name.startswith("mask"):
                total = total * tensor
        return {**{key: self.compute(total) for key in options["heads"]}, "n": len(batch)}


def test_forward_may_walk_through_containers_and_the_graph_knows_their_form() -> None:
    batch = {"images": [X, Y, X], "mask0": X, "mask1": Y}
    options = {"heads": ("a", "b"), "off": []}
    model, network = fused(Containers(), batch, options=options)
    other = {"images": (2 * X, X, Y), "mask0": Y, "mask1": Y}
    for graph in (network, pickle.loads(pickle.dumps(network))):
        expected = model(batch, options)
        given = graph(batch, options)
        assert_equal([given["a"], given["b"]], [expected["a"], expected["b"]])
        assert given["n"] == expected["n"] == 3
        listed = {**other, "images": list(other["images"])}
        assert_equal(graph(listed, options)["b"], model(other, options)["b"])
        for wrong in (
            {**batch, "mask2": X},
            {**batch, "images": [X, Y, X, X]},
            {**batch, "images": [X, Y]},
            {"images": batch["images"], "mask0": X},
        ):
            with pytest.raises((AssertionError, IndexError, KeyError), match=r"batch|range|mask1"):
                graph(wrong, options)
        for other_options in ({"heads": ("a", "c"), "off": []}, {"heads": ("a", "b"), "off": [1]}):
            with pytest.raises(AssertionError, match="options"):
                graph(batch, other_options)


class Numbers(Net):
    def forward(self, x: Tensor, scale: float, shift: int = 1) -> Tensor:
        return self.compute(x) * scale + shift


def test_numbers_that_are_given_stay_arguments() -> None:
    model, network = fused(Numbers(), X, 2.0, 3)
    assert_equal(network(X, 5.0, shift=-1), model(X, 5.0, shift=-1))


class Open(Net):
    def forward(self, **inputs: Any) -> Tensor:
        return self.compute(inputs["in"])


def test_a_keyword_that_no_signature_can_have_leads_to_a_merged_model() -> None:
    model = splitgrow.growable(Open().double(), {"in": X})
    with pytest.warns(UserWarning, match="merged, not fused: torch.fx has no argument of the name"):
        network = splitgrow.fuse(model)
    assert_identical(network(**{"in": X}), model(**{"in": X}))


class Constants(Net):
    def forward(self, x: Tensor, args_0: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        return self.compute(x + args_0 + args[0]) + kwargs["input"] + kwargs["self_"].sum()


def test_names_that_meet_are_told_apart() -> None:
    bias = torch.ones(2, dtype=torch.float64)
    model, network = fused(Constants(), X, Y, X, input=bias, self_=X)
    expected = model(X, X, Y, input=2 * bias, self_=Y)
    assert_equal(network(X, X, Y, input=2 * bias, self_=Y), expected)

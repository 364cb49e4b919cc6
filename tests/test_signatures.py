"""The laws of growth for forwards that take their arguments in other ways than by position."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    assert_equal,
    assert_identical,
    largest_difference,
    randomise,
    randomise_new_blocks,
)
from snapshots import unchanged
from torch import Tensor, nn

import splitgrow
from splitgrow.growth.history_lookup import history_of
from splitgrow.pruning.dead_units.without_dead_units import without_dead_units

X = torch.randn(4, 3, generator=torch.manual_seed(1), dtype=torch.float64)
Y = torch.randn(4, 3, generator=torch.manual_seed(2), dtype=torch.float64)


class Net(nn.Module):
    """Two layers for one input, and one for the other, which is added to the first's units."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.b = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def compute(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.a(x)
        return self.b((h if y is None else h + self.c(y)).relu())


class KeywordOnly(Net):
    def forward(self, *, scale: float = 1.0, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.compute(x, y) * scale


class Keywords(Net):
    def forward(self, **inputs: Any) -> Tensor:
        return self.compute(inputs["x"], inputs.get("y"))


class Several(Net):
    def forward(self, *inputs: Tensor) -> Tensor:
        return self.compute(inputs[0], sum(inputs[1:]) if len(inputs) > 1 else None)


class Everything(Net):
    def forward(
        self, x: Tensor, /, scale: float = 1.0, *more: Tensor, y: Any, **others: Any
    ) -> Any:
        for z in more:
            x = x + z
        return self.compute(x, y) * scale + others["x"].mean()


class PositionalOnly(Net):
    def forward(self, x: Tensor, y: Tensor | None = None, /) -> Tensor:
        return self.compute(x, y)


class Flags(Net):
    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        mode: str = "sum",
        negate: bool = False,
        scale: float = 1.0,
        weights: tuple[float, ...] = (1.0, 2.0),
    ) -> dict[str, Tensor]:
        out = self.compute(x, y) * scale * weights[1]
        out = -out if negate else out
        return {"out": out.exp() if mode == "exp" else out}


class Batch(Net):
    def forward(self, batch: Any) -> Tensor:
        assert batch.get("nothing") is None
        return self.compute(batch["x"], batch["more"][0] if "more" in batch else batch["y"])


class Images(Net):
    """As a detector has it: images of other sizes in a list, and targets that may be None."""

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        if targets is not None:
            images = [x + target["boxes"] for x, target in zip(images, targets, strict=True)]
        return [{"scores": self.compute(x)} for x in images]


@dataclass
class Pair:
    x: Tensor
    y: Tensor | None = None
    name: str = "pair"


@dataclass(frozen=True, slots=True)
class FrozenPair:
    x: Tensor
    y: Tensor | None


NamedPair = namedtuple("NamedPair", ["x", "y"])


class Attributes(Net):
    def forward(self, pair: Any) -> Tensor:
        return self.compute(pair.x, pair.y)


class Cached(Net):
    """Writes into an object that it gets: a second run on the same one would add to it."""

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        cache.seen.append(x)
        assert len(cache.seen) == 1
        return self.compute(sum(cache.seen))


class Cache:
    def __init__(self) -> None:
        self.seen: list[Tensor] = []


@dataclass(frozen=True)
class Signature:
    """A forward, and an example call of it in the form that users give.

    Attributes:
        name: The special thing about it.
        build: Makes the model.
        give: Makes `example_inputs` and `example_kwargs` of its two tensors.
        grows: The inputs that can grow, by name, each with the number of its tensor.
        refused: An input that cannot grow.
        fused: Whether torch.fx can follow it.
        plain: Whether its inputs are plain data, so that a checkpoint has them.
    """

    name: str
    build: Callable[[], nn.Module]
    give: Callable[[Tensor, Tensor], tuple[Any, Any]]
    grows: Mapping[str, int]
    refused: str = "nowhere"
    fused: bool = True
    plain: bool = True


X_AND_Y = {"x": 0, "y": 1}
FLAGS = {"y": None, "mode": "exp", "negate": True, "scale": 0.5}
SIGNATURES = (
    Signature("a tensor", PositionalOnly, lambda x, y: (x, None), {"x": 0}),
    Signature("a tuple", PositionalOnly, lambda x, y: ((x, y), None), X_AND_Y),
    Signature("none", PositionalOnly, lambda x, y: ((x, None), None), {"x": 0}, "y"),
    Signature("a mapping", Flags, lambda x, y: ({"y": y, "x": x}, None), X_AND_Y, "mode"),
    Signature("both", Flags, lambda x, y: (x, {"y": y}), X_AND_Y),
    Signature("a tuple and keywords", Flags, lambda x, y: ((x,), {"y": y}), X_AND_Y),
    Signature("keywords alone", Flags, lambda x, y: ((), {"y": y, "x": x}), X_AND_Y),
    Signature("flags", Flags, lambda x, y: (x, FLAGS), {"x": 0}, "negate"),
    Signature("an ordered dict", Flags, lambda x, y: (OrderedDict(x=x), None), {"x": 0}),
    Signature("a user dict", Flags, lambda x, y: (UserDict(x=x, mode="exp"), None), {"x": 0}),
    Signature("keyword-only", KeywordOnly, lambda x, y: ({"x": x, "y": y}, None), X_AND_Y),
    Signature("a default before", KeywordOnly, lambda x, y: ({"x": x}, None), {"x": 0}, "y"),
    Signature("**kwargs", Keywords, lambda x, y: ({"y": y, "x": x}, None), X_AND_Y, "inputs"),
    Signature("*args", Several, lambda x, y: ((x, y, y), None), {"inputs[0]": 0}, "inputs"),
    Signature(
        "everything", Everything, lambda x, y: ((x, 0.5, x), {"y": y, "x": x}), {"y": 1}, "more[0]"
    ),
    Signature(
        "a dict", Batch, lambda x, y: (({"x": x, "y": y},), None), {"batch['x']": 0}, "batch"
    ),
    Signature(
        "a dict by name", Batch, lambda x, y: ({"batch": {"x": x, "y": y}}, None), {"batch['y']": 1}
    ),
    Signature(
        "a nested dict",
        Batch,
        lambda x, y: (({"x": x, "more": (y, None), "nothing": None},), None),
        {"batch['more'][0]": 1, "batch['x']": 0},
        "batch['nothing']",
    ),
    Signature(
        "a user dict inside",
        Batch,
        lambda x, y: ((UserDict(x=x, y=y),), None),
        {"batch['x']": 0},
        plain=False,
        fused=False,
    ),
    Signature("images", Images, lambda x, y: (([x],), None), {"images[0]": 0}, "images"),
    Signature(
        "images and targets",
        Images,
        lambda x, y: ({"images": [x], "targets": [{"boxes": y}]}, None),
        {},
        "targets",
    ),
    Signature(
        "a named tuple",
        Attributes,
        lambda x, y: ((NamedPair(x, y),), None),
        {"pair.x": 0},
        plain=False,
    ),
    Signature(
        "a dataclass",
        Attributes,
        lambda x, y: ((Pair(x, y),), None),
        {"pair.y": 1, "pair.x": 0},
        "pair.name",
        plain=False,
    ),
    Signature(
        "a frozen dataclass",
        Attributes,
        lambda x, y: ({"pair": FrozenPair(x, y)}, None),
        {"pair.x": 0},
        plain=False,
    ),
    Signature(
        "an object that forward writes into",
        Cached,
        lambda x, y: (x, {"cache": Cache()}),
        {"x": 0},
        plain=False,
        fused=False,
    ),
)

signature = pytest.mark.parametrize("one", SIGNATURES, ids=lambda one: one.name)


def called(model: Any, given: tuple[Any, Any]) -> Any:
    """The output of a call, written as a user would."""
    inputs, kwargs = given
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*((inputs,) if isinstance(inputs, Tensor) else inputs), **(kwargs or {}))


def made(one: Signature) -> Any:
    torch.manual_seed(0)
    return randomise(one.build().double().eval())


def growing(one: Signature) -> Any:
    inputs, kwargs = one.give(X, Y)
    return splitgrow.growable(made(one), inputs, kwargs)


def grown(one: Signature) -> Any:
    model = growing(one)
    model.expand_layer("a", 4)
    randomise_new_blocks(model)
    return model


def fused(one: Signature, model: Any, **options: Any) -> Any:
    if one.fused:
        network = splitgrow.fuse(model, **options)
        assert isinstance(network, torch.fx.GraphModule)
        return network
    with pytest.warns(UserWarning, match="merged, not fused"):
        return splitgrow.fuse(model, **options)


@signature
def test_layers_grow_and_the_output_stays(one: Signature) -> None:
    model, before = growing(one), called(made(one), one.give(X, Y))
    assert [layer.name for layer in model.layers if layer.growable][:1] == ["a"]
    model.expand_layer("a", 4)
    assert_equal(called(model, one.give(X, Y)), before)
    randomise_new_blocks(model)
    assert largest_difference(called(model, one.give(X, Y)), before) > 1e-3  # the control
    with model.at(0):
        assert_identical(called(model, one.give(X, Y)), before)


@signature
def test_layers_are_inserted_and_the_output_stays(one: Signature) -> None:
    model, before = growing(one), called(made(one), one.give(X, Y))
    model.insert_layer("a", "gate")
    model.insert_layer("b", "replacement", module=nn.Linear(6, 2).double())
    assert_equal(called(model, one.give(X, Y)), before)


@signature
def test_inputs_grow_by_their_names(one: Signature, tmp_path: Path) -> None:
    for name, which in one.grows.items():
        model, before = growing(one), called(made(one), one.give(X, Y))
        model.expand_input(2, name=name)
        wide = [torch.cat([t, 3 * t[:, :2]], 1) if i == which else t for i, t in enumerate((X, Y))]
        assert_equal(called(model, one.give(*wide)), before)
        model.expand_layer("a", 2)
        randomise_new_blocks(model)
        now = called(model, one.give(*wide))
        assert largest_difference(now, before) > 1e-3
        assert_equal(called(splitgrow.merge(model), one.give(*wide)), now)
        assert_equal(called(fused(one, model), one.give(*wide)), now)
        assert_equal(called(fused(one, model, generation=0), one.give(X, Y)), before)
        restored = growing(one)
        restored.load_state_dict(model.state_dict())
        splitgrow.save(model, tmp_path / "a.safetensors")
        loaded, (inputs, kwargs) = made(one), one.give(X, Y)
        splitgrow.load(
            loaded, tmp_path / "a.safetensors", example_inputs=inputs, example_kwargs=kwargs
        )
        for again in (restored, loaded, copy.deepcopy(model)):
            assert_identical(called(again, one.give(*wide)), now)
            again.expand_layer("a", 1)
            with again.at(0):
                assert_identical(called(again, one.give(X, Y)), before)


@signature
def test_another_name_is_refused_with_those_that_there_are(one: Signature) -> None:
    model = growing(one)
    error = splitgrow.FixedWidthError if one.refused in names_of(model) else ValueError
    with unchanged(model), pytest.raises(error, match=re.escape(one.refused)) as info:
        model.expand_input(2, name=one.refused)
    assert error is not ValueError or all(name in str(info.value) for name in one.grows)


def names_of(model: Any) -> dict[str, Tensor]:
    return history_of(model).inputs.tensors(model)


@signature
def test_copies_and_pickles_go_on_growing(one: Signature) -> None:
    model, given = grown(one), one.give(X, Y)
    before = called(model, given)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    pickled = pickle.loads(pickle.dumps(model))
    copies = [copy.deepcopy(model), pickled, torch.load(buffer, weights_only=False)]
    for copied in copies:
        assert_identical(called(copied, one.give(X, Y)), before)
        copied.expand_layer("a", 2)
        assert_equal(called(copied, one.give(X, Y)), before)


@signature
def test_checkpoints_come_back(one: Signature, tmp_path: Path) -> None:
    model, path = grown(one), tmp_path / "a.safetensors"
    before = called(model, one.give(X, Y))
    splitgrow.save(model, path)
    fresh, (inputs, kwargs) = made(one), one.give(X, Y)
    if not one.plain:
        with unchanged(fresh), pytest.raises(splitgrow.CheckpointError, match="example_inputs"):
            splitgrow.load(fresh, path)
        splitgrow.load(fresh, path, example_inputs=inputs, example_kwargs=kwargs)
    else:
        splitgrow.load(fresh, path)
    assert_identical(called(fresh, one.give(X, Y)), before)
    fresh.expand_layer("a", 2)
    assert_equal(called(fresh, one.give(X, Y)), before)
    again = growing(one)
    again.load_state_dict(model.state_dict())
    assert_identical(called(again, one.give(X, Y)), before)


@signature
def test_merged_and_fused_networks_are_called_as_the_model(one: Signature) -> None:
    model = grown(one)
    now = called(model, one.give(X, Y))
    assert_equal(called(splitgrow.merge(model), one.give(X, Y)), now)
    network = fused(one, model)
    for graph in (network, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert_equal(called(graph, one.give(X, Y)), now)
        assert_equal(
            called(graph, one.give(2 * X[:3], Y[1:])), called(model, one.give(2 * X[:3], Y[1:]))
        )


@signature
def test_dead_units_go(one: Signature) -> None:
    network, (inputs, kwargs) = made(one), one.give(X, Y)
    nn.init.zeros_(network.b.weight[:, 1:3].detach())
    smaller, record = without_dead_units(network, inputs, kwargs)
    assert network.a.out_features - smaller.a.out_features == 2, record
    assert_equal(called(smaller, one.give(X, Y)), called(network, one.give(X, Y)))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("flags", lambda graph: graph(X, **{**FLAGS, "negate": False})),
        ("flags", lambda graph: graph(X, **{**FLAGS, "mode": "sum"})),
        ("flags", lambda graph: graph(X, **{**FLAGS, "y": Y})),
        ("flags", lambda graph: graph(X)),
        ("flags", lambda graph: graph(X, weights=(1.0, 3.0), **FLAGS)),
        ("flags", lambda graph: graph(X, other=1, **FLAGS)),
        ("keyword-only", lambda graph: graph(x=X)),
        ("a default before", lambda graph: graph(scale=1.0)),
        ("a default before", lambda graph: graph(x=X, scale=2.0)),
        ("**kwargs", lambda graph: graph(x=X)),
        ("**kwargs", lambda graph: graph(x=X, y=Y, z=Y)),
        ("*args", lambda graph: graph(X, Y)),
        ("*args", lambda graph: graph(X, Y, Y, Y)),
        ("a dict", lambda graph: graph({"x": X, "y": Y, "more": (Y,)})),
        ("a dict", lambda graph: graph({"x": X})),
        ("images", lambda graph: graph([X, X])),
        ("images", lambda graph: graph([])),
        ("images", lambda graph: graph([X], [{"boxes": X}])),
    ],
)
def test_a_graph_refuses_calls_that_it_was_not_made_for(name: str, call: Any) -> None:
    (one,) = (each for each in SIGNATURES if each.name == name)
    network = fused(one, grown(one))
    for graph in (network, pickle.loads(pickle.dumps(network))):
        with pytest.raises((AssertionError, TypeError, KeyError, IndexError)):
            call(graph)


@pytest.mark.parametrize(
    ("inputs", "kwargs", "error", "words"),
    [
        ({3: X}, None, TypeError, r"the key 3.*\(\{\.\.\.\},\)"),
        (X, {3: X}, TypeError, "example_kwargs has the key 3"),
        ({"x": X}, {"y": Y}, TypeError, "one of them"),
        ({"x": X}, {}, TypeError, "one of them"),
        (X, [Y], TypeError, "example_kwargs must be a mapping"),
        ([X], None, TypeError, r"is \(x,\)"),
        (X, {"z": Y}, ValueError, "'z'.*its arguments are: x, y, mode, negate, scale, weights"),
        (X, {"x": Y}, ValueError, "multiple values for argument 'x'"),
        ({"y": Y}, None, ValueError, "missing a required argument: 'x'"),
        ((), None, ValueError, "missing a required argument: 'x'"),
    ],
)
def test_calls_that_are_none_are_refused(
    inputs: Any, kwargs: Any, error: type[Exception], words: str, tmp_path: Path
) -> None:
    model = Flags().double()
    with unchanged(model), pytest.raises(error, match=words):
        splitgrow.growable(model, inputs, kwargs)
    with pytest.raises(error, match=words):
        without_dead_units(model, inputs, kwargs)
    if error is TypeError:
        with unchanged(model), pytest.raises(error, match=words):
            splitgrow.load(model, tmp_path / "none", example_inputs=inputs, example_kwargs=kwargs)


def test_a_model_without_tensors_to_grow_says_so() -> None:
    class Constant(Net):
        def forward(self, times: int = 1) -> Tensor:
            return self.compute(torch.ones(2, 3).double() * times)

    model = splitgrow.growable(Constant().double(), {"times": 2})
    with pytest.raises(ValueError, match="no tensor"):
        splitgrow.handle(model).expand_input(1)

"""A layer that forward does not reach as a child of its module grows, or is fixed."""

from __future__ import annotations

import copy
import functools
import itertools
import types
import weakref
from collections import OrderedDict, UserList, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_equal, assert_identical, randomise
from torch import Tensor, nn
from torch.nn import functional as F

import splitgrow

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
GLOBAL: dict[str, nn.Module] = {}


class Reached(nn.Module):
    """Takes its first layer from somewhere, by `get`, or runs it in some way, by `run`."""

    held: Any

    def __init__(self, hide: Callable[[Any], None], *, looks: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.looks = looks
        hide(self)

    def forward(self, x: Tensor) -> Tensor:
        if self.looks:  # so that the run needs values
            assert torch.isfinite(x).all()
        h = self.run(x) if hasattr(self, "run") else self.get()(x)
        return self.c(self.b(h.tanh()).tanh())


@dataclass
class Record:
    layer: nn.Module


class Plain:
    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer


class Slotted:
    __slots__ = ("layer",)

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer


def in_list(m: Any) -> None:
    m._steps = [m.a]
    m.get = lambda: m._steps[0]


def in_public_list(m: Any) -> None:
    m.steps = [m.a]
    m.get = lambda: m.steps[0]


def in_dict(m: Any) -> None:
    m._table = {"first": m.a}
    m.get = lambda: m._table["first"]


def in_ordered_dict(m: Any) -> None:
    m._table = OrderedDict(first=m.a)
    m.get = lambda: m._table["first"]


def in_defaultdict(m: Any) -> None:
    m._table = defaultdict(list, first=[m.a])
    m.get = lambda: m._table["first"][0]


def nested(m: Any) -> None:
    m._plan = {"stages": [[m.a], {"rest": [m.b]}]}
    m.get = lambda: m._plan["stages"][0][0]


def list_in_tuple(m: Any) -> None:
    m._plan = ([m.a],)
    m.get = lambda: m._plan[0][0]


def past_setattr(m: Any) -> None:
    object.__setattr__(m, "_first", m.a)
    m.get = lambda: m._first


def in_vars(m: Any) -> None:
    m.__dict__["first"] = m.a
    m.get = lambda: m.first


def by_path(m: Any) -> None:
    m.get = lambda: m.get_submodule("a")


def by_children(m: Any) -> None:
    m.get = lambda: next(m.children())


def by_name(m: Any) -> None:
    m._name = "a"
    m.get = lambda: getattr(m, m._name)


def of_a_parent(m: Any) -> None:
    class Child(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return self.__dict__["parent"].a(x)

    m.child = Child()
    m.child.__dict__["parent"] = m
    m.run = lambda x: m.child(x)  # noqa: PLW0108 - a child otherwise


def by_weakref_to_the_model(m: Any) -> None:
    ref = weakref.ref(m)
    m.get = lambda: ref().a


GROWS = (
    *(in_list, in_public_list, in_dict, in_ordered_dict, in_defaultdict, nested, list_in_tuple),
    *(past_setattr, in_vars, by_path, by_children, by_name, of_a_parent, by_weakref_to_the_model),
)


def in_tuple(m: Any) -> None:
    m._steps = (m.a, m.b)
    m.get = lambda: m._steps[0]


def in_set(m: Any) -> None:
    m._steps = {m.a}
    m.get = lambda: next(iter(m._steps))


def in_deque(m: Any) -> None:
    m._steps = deque([m.a])
    m.get = lambda: m._steps[0]


def in_user_list(m: Any) -> None:
    m._steps = UserList([m.a])
    m.get = lambda: m._steps[0]


def in_dataclass(m: Any) -> None:
    m._record = Record(m.a)
    m.get = lambda: m._record.layer


def in_object(m: Any) -> None:
    m._record = Plain(m.a)
    m.get = lambda: m._record.layer


def in_slots(m: Any) -> None:
    m._record = Slotted(m.a)
    m.get = lambda: m._record.layer


def in_namespace(m: Any) -> None:
    m.ns = types.SimpleNamespace(layer=m.a)
    m.get = lambda: m.ns.layer


def in_closure(m: Any) -> None:
    a = m.a
    m.run = lambda x: a(x)  # noqa: PLW0108 - a child otherwise


def in_default(m: Any) -> None:
    m.run = lambda x, a=m.a: a(x)


def in_partial(m: Any) -> None:
    m.run = functools.partial(lambda layer, x: layer(x), m.a)


def stored_call(m: Any) -> None:
    m.run = m.a.__call__


def stored_forward(m: Any) -> None:
    m.run = m.a.forward


def unbound_forward(m: Any) -> None:
    a = m.a
    m.run = lambda x: nn.Linear.forward(a, x)


def functional(m: Any) -> None:
    a = m.a
    m.run = lambda x: F.linear(x, a.weight, a.bias)


def on_the_class(m: Any) -> None:
    Reached.held = m.a
    m.get = lambda: Reached.held


def in_global(m: Any) -> None:
    GLOBAL["first"] = m.a
    m.get = lambda: GLOBAL["first"]


def by_weakref(m: Any) -> None:
    ref = weakref.ref(m.a)
    m.get = lambda: ref()  # noqa: PLW0108 - a child otherwise


def by_weak_table(m: Any) -> None:
    m._table = weakref.WeakValueDictionary(first=m.a)
    m.get = lambda: m._table["first"]


def by_generator(m: Any) -> None:
    layers = itertools.cycle([m.a])
    m.get = lambda: next(layers)


def by_cache(m: Any) -> None:
    first = functools.lru_cache(lambda: m.a)
    first()
    m.get = first


def by_identity(m: Any) -> None:
    table = {m.a: 1.0, m.b: 2.0}
    m.run = lambda x: m.a(x) * table[m.a]


def by_chain(m: Any) -> None:
    steps = [m.a]
    m.run = lambda x: functools.reduce(lambda h, f: f(h), steps, x)


FIXED = (
    *(in_tuple, in_set, in_deque, in_user_list, in_dataclass, in_object, in_slots, in_namespace),
    *(in_closure, in_default, in_partial, stored_call, stored_forward, unbound_forward, functional),
    *(on_the_class, in_global, by_weakref, by_weak_table, by_generator, by_cache, by_identity),
    by_chain,
)


def made(hide: Callable[[Any], None], *, looks: bool = False, check: bool = True) -> Any:
    torch.manual_seed(0)
    model = randomise(Reached(hide, looks=looks).double().eval())
    return splitgrow.growable(model, X, check=check)


@pytest.mark.parametrize("check", [True, False], ids=["in values", "by shapes"])
@pytest.mark.parametrize("looks", [False, True], ids=["without values", "with values"])
@pytest.mark.parametrize("hide", GROWS, ids=lambda f: f.__name__)
def test_a_layer_in_lists_and_dicts_grows_with_the_rest(
    hide: Callable[[Any], None], looks: bool, check: bool
) -> None:
    model = made(hide, looks=looks, check=check)
    before = model(X).detach()
    model.expand_layer("a", 4)
    assert_equal(model(X), before)
    with torch.no_grad():
        for p in model.generation_parameters():
            p.add_(torch.randn_like(p) * 0.3)
    after = model(X).detach()
    assert (after - before).abs().max() > 1e-3  # the new units are reached
    with model.at(0):
        assert_identical(model(X).detach(), before)
    assert_equal(copy.deepcopy(model)(X), after)


@pytest.mark.parametrize("check", [True, False], ids=["in values", "by shapes"])
@pytest.mark.parametrize("looks", [False, True], ids=["without values", "with values"])
@pytest.mark.parametrize("hide", FIXED, ids=lambda f: f.__name__)
def test_a_layer_that_growth_could_not_replace_is_fixed_with_that_reason(
    hide: Callable[[Any], None], looks: bool, check: bool
) -> None:
    model = made(hide, looks=looks, check=check)
    before = model(X).detach()
    layer = next(layer for layer in model.layers if layer.name == "a")
    assert not layer.growable
    words = ("otherwise than", "tuple or set", "directly", "by what objects they are")
    assert any(word in layer.reason for word in words), layer.reason
    assert "test_stand_ins.py:" in layer.reason or "`_steps`" in layer.reason
    with pytest.raises(splitgrow.SplitGrowError):
        model.expand_layer("a", 4)
    assert_identical(model(X).detach(), before)


@pytest.mark.parametrize("hide", [f for f in FIXED if f not in (by_identity, in_tuple)])
def test_the_other_layers_still_grow(hide: Callable[[Any], None]) -> None:
    model = made(hide)
    before = model(X).detach()
    model.expand_layer("b", 2)
    assert_equal(model(X), before)


def test_a_failed_growth_leaves_lists_and_dicts_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = made(nested)
    before = [model._plan["stages"][0][0], model._plan["stages"][1]["rest"][0]]

    def failing(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("splitgrow.growth.apply.join_", failing)
    with pytest.raises(MemoryError):
        model.expand_layer("a", 4)
    assert [model._plan["stages"][0][0], model._plan["stages"][1]["rest"][0]] == before
    assert model.a is before[0]


def test_analysis_leaves_lists_as_they_were_though_forward_changes_them() -> None:
    def popping(m: Any) -> None:
        m._plan = {"todo": [m.b, m.a]}
        m.get = lambda: m._plan["todo"][-1] if len(m._plan["todo"]) == 2 else m._plan["todo"].pop()

    model = made(popping)
    assert model._plan["todo"] == [model.b, model.a]


def test_a_list_of_layers_is_plain_again_in_the_merged_model_and_after_loading(
    tmp_path: Path,
) -> None:
    model = made(in_list)
    model.expand_layer("a", 4)
    merged = splitgrow.merge(model)
    assert type(merged._steps[0]) is nn.Linear
    assert merged._steps[0] is merged.a
    splitgrow.save(model, tmp_path / "m.safetensors")
    fresh = made(in_list)
    splitgrow.load(fresh, tmp_path / "m.safetensors")
    assert fresh._steps[0] is fresh.a
    assert_equal(fresh(X), model(X))


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.f = nn.BatchNorm1d(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(self.norm(x)).tanh()


class WithBlock(nn.Module):
    """Reaches a block of layers in some way; its layers are children of the block either way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.block, self.c = nn.Linear(3, 8), Inner(), nn.Linear(8, 2)
        block = self.block
        self._list = [block] if way == "list" else []
        self._tuple = (block,) if way == "tuple" else ()
        ways: dict[str, Callable[[], nn.Module]] = {
            "child": lambda: self.block,
            "list": lambda: self._list[0],
            "tuple": lambda: self._tuple[0],
            "closure": lambda: block,
        }
        self.get = ways[way]

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.get()(self.a(x)))


@pytest.mark.parametrize("way", ["child", "list", "tuple", "closure"])
def test_layers_of_a_block_grow_however_the_block_is_reached(way: str) -> None:
    model = splitgrow.growable(randomise(WithBlock(way).double().eval()), X)
    before = model(X).detach()
    model.expand_layer("a", 3)
    assert_equal(model(X), before)


@pytest.mark.parametrize(
    ("way", "seen"), [("child", True), ("list", True), ("tuple", False), ("closure", False)]
)
def test_an_insertion_at_a_block_runs_or_is_refused(way: str, seen: bool) -> None:
    model = splitgrow.growable(randomise(WithBlock(way).double().eval()), X)
    before = model(X).detach()
    if not seen:
        with pytest.raises(splitgrow.InsertionError, match="tuple"):
            model.insert_layer("block", "block")
        assert model.generation == 0
        assert type(model.block) is Inner
        return
    model.insert_layer("block", "block")
    assert_equal(model(X), before)
    with torch.no_grad():
        for p in model.generation_parameters():
            p.add_(torch.randn_like(p) * 0.3)
    assert (model(X) - before).abs().max() > 1e-3


def test_an_insertion_at_a_layer_that_is_reached_otherwise_is_refused() -> None:
    model = made(in_closure)
    with pytest.raises(splitgrow.InsertionError, match="otherwise than as `a`"):
        model.insert_layer("a", "residual")


def test_links_that_forward_does_not_take_fix_nothing() -> None:
    def linked(m: Any) -> None:
        m._parent_links = [m]
        m.b.__dict__["owner"] = m
        m._watched = Plain(m.a)
        m._names = {"a": "first"}
        m.optimizer = torch.optim.SGD(m.parameters(), 0.1)
        m.scheduler = torch.optim.lr_scheduler.StepLR(m.optimizer, 1)
        m.a.register_forward_hook(lambda module, args, out: None)
        m.get = lambda: m.a

    model = made(linked)
    assert all(layer.growable for layer in model.layers[:2])
    model.expand_layer("a", 2)

"""An example call: from the forms that users give, through torch's pytree, and by names."""

from __future__ import annotations

import copy
import pickle
import threading
from collections import OrderedDict, UserDict
from dataclasses import FrozenInstanceError, dataclass, field
from enum import Enum
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from splitgrow.utils.example_call import ExampleCall, example_call

X, Y, Z = (torch.full((2, 3), float(number)) for number in range(1, 4))


class Mode(Enum):
    ONE = 1


@dataclass
class Point:
    x: Tensor
    label: str = "p"
    others: list[Any] = field(default_factory=list)


class Slotted:
    __slots__ = ("x",)

    def __init__(self, x: Tensor) -> None:
        self.x = x


SENTINEL = object()


def everything() -> ExampleCall:
    return example_call(
        (X, None, [Y, {"deep": (Z, 3)}], UserDict(x=X), Point(Y, others=[Z])),
        {
            "flag": True,
            "mode": Mode.ONE,
            "slotted": Slotted(Z),
            "kept": SENTINEL,
            "like": torch.cat,
        },
    )


@pytest.mark.parametrize(
    ("inputs", "kwargs", "args", "names"),
    [
        (X, None, 1, []),
        ((), None, 0, []),
        ((X, None), None, 2, []),
        ({"x": X}, None, 0, ["x"]),
        (OrderedDict(b=X, a=Y), None, 0, ["b", "a"]),
        (UserDict(x=X), None, 0, ["x"]),
        (({"x": X},), None, 1, []),
        (X, {"y": Y}, 1, ["y"]),
        ((), UserDict(y=Y), 0, ["y"]),
    ],
)
def test_every_form_becomes_arguments_by_place_and_by_name(
    inputs: Any, kwargs: Any, args: int, names: list[str]
) -> None:
    call = example_call(inputs, kwargs)
    assert type(call.args) is tuple
    assert type(call.kwargs) is dict
    assert len(call.args) == args
    assert list(call.kwargs) == names
    assert example_call(call) is call


def test_tree_map_reaches_every_tensor_and_leaves_the_rest() -> None:
    call = everything()
    doubled: ExampleCall = pytree.tree_map_only(Tensor, lambda tensor: 2 * tensor, call)
    x, none, (y, deep), user, point = doubled.args
    assert none is None
    assert deep["deep"][1] == 3
    assert (type(user), type(point), point.label) == (UserDict, Point, "p")
    found = [x, y, deep["deep"][0], user["x"], point.x, *point.others, doubled.kwargs["slotted"].x]
    for tensor, first in zip(found, (X, Y, Z, X, Y, Z, Z), strict=True):
        assert torch.equal(tensor, 2 * first)
    assert doubled.kwargs["flag"] is True
    assert doubled.kwargs["mode"] is Mode.ONE
    assert doubled.kwargs["kept"] is SENTINEL
    assert doubled.kwargs["like"] is torch.cat
    again = [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, Tensor)]
    for tensor, first in zip(again, (X, Y, Z, X, Y, Z, Z), strict=True):
        assert torch.equal(tensor, first)


def test_a_mapped_call_has_containers_and_objects_of_its_own() -> None:
    call = everything()
    other = call.map(torch.clone)
    other.args[2].append(1)
    other.args[2][1]["new"] = 1
    other.args[3]["new"] = 1
    other.args[4].others.append(1)
    other.kwargs["new"] = 1
    assert len(call.args[2]) == 2
    assert "new" not in {*call.args[2][1], *call.args[3], *call.kwargs}
    assert len(call.args[4].others) == 1


@pytest.mark.parametrize("again", [copy.deepcopy, lambda call: pickle.loads(pickle.dumps(call))])
def test_copies_and_pickles_are_calls(again: Any) -> None:
    call = example_call((X, UserDict(x=Y)), {"z": Z, "mode": Mode.ONE})
    copied = again(call)
    assert copied.kwargs["mode"] is Mode.ONE
    assert torch.equal(copied.args[1]["x"], Y)
    assert copied.args[1]["x"] is not call.args[1]["x"]
    assert torch.equal(copied.map(torch.neg).kwargs["z"], -Z)


def test_a_call_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        example_call(X).args = ()  # type: ignore[misc]


def test_equal_tensors_in_two_places_are_two_tensors() -> None:
    call = example_call((X, X), {"x": X})
    assert len({id(tensor) for tensor in (*call.args, call.kwargs["x"])}) == 3


def test_results_of_autograd_and_cut_out_tensors_stand_by_themselves() -> None:
    big = torch.ones(100, 3, requires_grad=True)
    call = example_call((Point(2 * big, others=[big[:2]]),))
    point = call.args[0]
    assert not point.x.requires_grad
    assert not point.others[0].requires_grad
    assert point.others[0].untyped_storage().nbytes() == 24


class Net(nn.Module):
    def forward(self, x: Any, /, y: Any = 2, *more: Any, z: Any = None, **others: Any) -> Any:
        return x, y, more, z, others


def test_arguments_and_tensors_are_found_by_name() -> None:
    call = example_call((X, [Y], Z, {"a": Y}), {"z": Point(X, others=[Z]), "x": Z, "w": None})
    arguments = call.arguments(Net())
    assert list(arguments) == ["x", "y", "more[0]", "more[1]", "z", "others['x']", "w"]
    found = call.tensors(Net())
    names = ["x", "y[0]", "more[0]", "more[1]['a']", "z.x", "z.others[0]", "others['x']"]
    assert list(found) == names
    for tensor, first in zip(found.values(), (X, Y, Z, Y, X, Z, Z), strict=True):
        assert torch.equal(tensor, first)
    x, y, more, z, others = call.run(Net())
    assert x is found["x"]
    assert y[0] is found["y[0]"]
    assert more[1]["a"] is found["more[1]['a']"]
    assert (z.label, others["w"]) == ("p", None)


def test_an_object_that_holds_itself_comes_to_an_end() -> None:
    point = Point(X)
    point.others.append(point)
    call = example_call((point,))
    assert list(call.tensors(Net())) == ["x.x"]
    mapped = call.map(torch.neg).args[0]
    assert mapped.others[0] is mapped
    assert torch.equal(mapped.x, -X)


def test_copies_of_an_object_share_its_modules() -> None:
    point = Point(X, others=[Net(), {"net": Net()}])
    copied = example_call((point,)).map(torch.clone).args[0]
    assert copied.others is not point.others
    assert copied.others[0] is point.others[0]
    assert copied.others[1]["net"] is point.others[1]["net"]


class Locked:
    def __init__(self, x: Any) -> None:
        self.x, self.lock = x, threading.Lock()


def test_what_cannot_be_copied_stays_unless_it_holds_tensors() -> None:
    locked = Locked(3)
    assert example_call((locked,)).map(torch.clone).args[0] is locked
    with pytest.raises(TypeError, match=r"is a Locked, which holds tensors and cannot be copied"):
        example_call((Locked(X),))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (ExampleCall((1, 2)), "(1, 2)"),
        (ExampleCall((1,)), "(1,)"),
        (ExampleCall((1,), {"a": (2, 3)}), "(1, a=(2, 3))"),
        (ExampleCall((), {"a": None}), "(a=None)"),
    ],
)
def test_a_call_is_written_as_in_python(call: ExampleCall, text: str) -> None:
    assert str(call) == text

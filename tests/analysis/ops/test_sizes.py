"""Numbers that forward computes from widths are followed, kept in step, or fix the layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from between import IMAGES, ROWS, convs_between, growth_of, linear_between
from torch import Tensor, nn
from torch.nn import functional as F

import splitgrow
from splitgrow.analysis.channels.tracked_int import Tracked, plain_value

Op = Callable[[Any, Tensor], Tensor]


def shuffled(m: Any, h: Tensor) -> Tensor:
    b, c, y, x = h.shape
    assert c % m.groups == 0, "channels come in groups"
    each = c // m.groups
    return h.view(b, m.groups, each, y, x).transpose(1, 2).reshape(b, c, y, x)


def shuffled_by_literals(m: Any, h: Tensor) -> Tensor:
    b, c, y, x = h.shape
    each, left = divmod(c, 2)
    if left:
        raise ValueError("an odd number of channels")
    return h.view(b, 2, each, y, x).transpose(1, 2).contiguous().view(b, -1, y, x)


def checked(m: Any, h: Tensor) -> Tensor:
    assert h.size(1) % 4 == 0
    return h.relu()


def counted(m: Any, h: Tensor) -> Tensor:
    assert h.numel() == h.size(0) * h.size(1) * 16
    return h if h.numel() > 0 else h.new_zeros(h.shape)


def by_product(m: Any, h: Tensor) -> Tensor:
    return h.reshape(h.size(0), math.prod(h.shape[1:]))


def by_numel(m: Any, h: Tensor) -> Tensor:
    return h.reshape(h.size(0), h.nelement() // h.size(0))


def by_numel_of_the_shape(m: Any, h: Tensor) -> Tensor:
    return h.reshape(2, h.shape[1:].numel())


def shifted(m: Any, h: Tensor) -> Tensor:
    half = h.size(1) >> 1
    return torch.cat([h[:, half:], h[:, :half]], 1)


FOLLOWED: dict[str, Op] = {
    "channel shuffle by a held number": shuffled,
    "channel shuffle by literals": shuffled_by_literals,
    "remainder in an assertion": checked,
    "numbers of elements compared": counted,
    "product of a shape": by_product,
    "number of elements of a row": by_numel,
    "half by a shift": shifted,
    "half": lambda m, h: F.relu(h[:, : h.size(1) // 2]),
    "twice by a shift": lambda m, h: h.repeat(1, 2, 1, 1)[:, : h.size(1) << 1],
    "conjugate": lambda m, h: h.view(2, h.size(1).conjugate(), 16).view(2, -1, 4, 4),
    "the real part": lambda m, h: h.view(2, h.size(1).real, 16).view(2, -1, 4, 4),
}

looks = pytest.mark.parametrize("looks", [False, True], ids=["without values", "on values"])


@looks
@pytest.mark.parametrize("name", FOLLOWED)
def test_a_number_that_follows_a_width_lets_it_grow(name: str, looks: bool) -> None:
    network = convs_between(FOLLOWED[name], also={"groups": 2}, looks=looks)
    assert growth_of(network, IMAGES) == ""


USED: dict[str, Op] = {
    "bit_length": lambda m, h: h / h.size(1).bit_length(),
    "bit_count": lambda m, h: h * h.size(1).bit_count(),
    "to_bytes": lambda m, h: h * sum(h.size(1).to_bytes(2, "big")),
    "as_integer_ratio": lambda m, h: h / h.size(1).as_integer_ratio()[0],
    "hash": lambda m, h: h * {8: 2.0}.get(h.size(1), 3.0),
    "float": lambda m, h: h / float(h.size(1)),
    "truediv": lambda m, h: h / (1 / h.size(1)),
    "power": lambda m, h: h * h.size(1) ** -0.5,
    "remainder that is used": lambda m, h: h * (1 + h.size(1) % 3),
    "divmod of an odd part": lambda m, h: h * (1 + divmod(h.size(1), 3)[0]),
    "and": lambda m, h: h * (1 + (h.size(1) & 8)),
    "sum of a shape": lambda m, h: h / sum(h.shape),
    "largest of a shape": lambda m, h: h / max(h.shape),
    "sorted shape": lambda m, h: h / sorted(h.shape)[-1],
    "len": lambda m, h: h / len(h.t()),
}


@looks
@pytest.mark.parametrize("name", USED)
def test_control_a_number_that_is_used_as_a_value_keeps_the_width_from_growing(
    name: str, looks: bool
) -> None:
    assert growth_of(linear_between(USED[name], looks=looks), ROWS)


class Notes:
    def __init__(self) -> None:
        self.told: list[Any] = []

    def number(self, target: Any, args: Any, value: Any, name: str = "") -> Any:
        self.told.append((target, name))
        return value


OF_OBJECTS = set(dir(object)) - {"__eq__", "__hash__"}
SAME = {"__trunc__", "__floor__", "__ceil__", "__pos__", "__round__", "__abs__"}
SAME |= {"real", "numerator", "conjugate"}
NOT_CALLED = {"__index__", "__getnewargs__", "from_bytes"}
ARGUMENTS: dict[str, tuple[Any, ...]] = {"to_bytes": (2, "big")}


@pytest.mark.parametrize("name", sorted(set(dir(int)) - OF_OBJECTS - NOT_CALLED))
def test_every_method_of_ints_is_tracked_or_tells_that_the_value_is_used(name: str) -> None:
    notes: Any = Notes()
    number = Tracked.of(7, notes, None)
    found = getattr(number, name)
    arguments = ARGUMENTS.get(name, ())
    if callable(found) and not isinstance(found, int):
        try:
            found = found(*arguments)
        except TypeError:
            found = found(2)
    if name in SAME:
        assert found is number
    else:
        assert notes.told
        assert found is not number


def test_control_a_plain_int_tells_nobody() -> None:
    notes: Any = Notes()
    assert int.__int__(Tracked.of(7, notes, None)).bit_length() == 3
    assert notes.told == []


def test_what_is_used_as_a_mere_value_is_said_by_name() -> None:
    notes: Any = Notes()
    Tracked.of(7, notes, None).bit_length()
    assert notes.told == [(plain_value, "bit_length")]


class Attention(nn.Module):
    """The number of heads is held, and their width computed of the stream's."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.heads, self.inner, self.form = 2, 8, form
        self.q, self.k, self.v = (nn.Linear(3, 8).double() for _ in range(3))
        self.out = nn.Linear(8, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        inner = {"shape": k.shape[-1], "held": self.inner, "literal": 8}[self.form]
        assert inner % self.heads == 0
        each = inner // self.heads
        q, k, v = (t.view(1, -1, self.heads, each).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out(y.reshape(1, -1, self.heads * each))


@pytest.mark.parametrize("form", ["shape", "held"])
def test_heads_follow_a_width_that_is_divided_by_their_number(form: str) -> None:
    network = Attention(form)
    x = ROWS[None]
    before = network(x).detach()
    model: Any = splitgrow.growable(network, x)
    layers = {layer.name: layer for layer in model.layers}
    assert all(layers[name].growable for name in "qkv"), layers["q"].reason
    model.expand_layer("q", 4)
    assert (model.heads, model.v.out_features) == (3, 12)
    assert torch.allclose(model(x), before, atol=1e-12)


def test_control_heads_of_a_width_that_is_written_down_do_not_grow() -> None:
    model: Any = splitgrow.growable(Attention("literal"), ROWS[None])
    assert not next(layer for layer in model.layers if layer.name == "q").growable


class Head(nn.Module):
    """As detectors read their maps: so many anchors, each with so many numbers."""

    def __init__(self, *, sizes: bool, classes: bool) -> None:
        super().__init__()
        self.anchors, self.outs = 3, 8
        self.conv = nn.Conv2d(3, 24, 1)
        self.conv.to(torch.float64)
        self.reads = nn.Linear(8 if not classes else 3, 2).double()
        self.classes = classes
        if sizes:
            self.sizes = torch.rand(3, 1).double()  # no buffer, so it cannot grow along

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        y = self.conv(x).view(n, self.anchors, self.outs, h, w).permute(0, 3, 4, 1, 2)
        if hasattr(self, "sizes"):
            y = y * self.sizes.view(self.anchors, 1)
        if self.classes:
            y = y.transpose(-1, -2) * torch.arange(8).double()[:, None]
        return self.reads(y)


@pytest.mark.parametrize(
    ("sizes", "classes", "grows", "kept"),
    [(True, False, "outs", "anchors"), (False, True, "anchors", "outs"), (True, True, "", "")],
)
def test_the_number_of_a_view_that_can_grow_is_the_one_that_does(
    sizes: bool, classes: bool, grows: str, kept: str
) -> None:
    head = Head(sizes=sizes, classes=classes)
    before = head(IMAGES).detach()
    model: Any = splitgrow.growable(head, IMAGES)
    layer = next(layer for layer in model.layers if layer.name == "conv")
    assert layer.growable == bool(grows)
    if not grows:
        return
    old = {"anchors": 3, "outs": 8}
    model.expand_layer("conv", 24 // old[grows])
    assert (getattr(model, grows), getattr(model, kept)) == (old[grows] + 1, old[kept])
    assert torch.allclose(model(IMAGES)[:, :, :, : before.shape[3]], before, atol=1e-12)

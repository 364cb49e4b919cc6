"""Insertions, in any order and at any places, come out of merge and fuse unchanged."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from helpers import assert_equal
from torch import Tensor, nn

import splitgrow
from splitgrow.layers import unwrap as unwrapping

KINDS = ("identity", "residual", "gate", "fade", "replacement", "block")
SHARES = (0.0, 0.25, 1.0)


class Block(nn.Module):
    """A residual block, whose copy can be inserted; its argument has a name of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(width), nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.down(self.up(self.norm(features)).relu())


class Scaled(nn.Module):
    """A module with several arguments, one of which goes by its name only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: Tensor, scale: Tensor | None = None, *, shift: float = 0.0) -> Tensor:
        made = self.layer(x)
        return made + shift if scale is None else made * scale + shift


class Net(nn.Module):
    """Layers, blocks, and a module that is called by the names of its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Linear(4, 6), nn.ReLU()
        self.block = Block(6)
        self.scaled = Scaled(6)
        self.last = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.block(features=self.act(self.first(x)))
        return self.last(self.scaled(h, h.sigmoid(), shift=0.5))


EVERYWHERE: tuple[Any, ...] = (
    "first",
    "block",
    "scaled",
    "last.0",
    "last.2",
    ("first", "block"),
    ("block", "scaled"),
    ("scaled", "last.0"),
    ("last.0", "last.2"),
)
"""Behind layers, behind blocks, and on edges, into modules that are places themselves."""
PLACES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("residual", "gate", "fade"), EVERYWHERE),
    "identity": ("first", "last.0", ("first", "block"), ("last.0", "last.2")),
    "replacement": ("first", "block", "scaled", "last.0", "last.2"),
    "block": ("block",),
}


def given(kind: str, after: Any) -> nn.Module | None:
    """What is to be faded in there."""
    if kind == "fade":
        width = 2 if after == "last.2" else 6
        return nn.Linear(width, width).double()
    if kind == "replacement":
        makers: dict[str, Any] = {"block": Block, "scaled": Scaled}
        sizes = {"first": (4, 6), "last.2": (6, 2)}.get(after, (6, 6))
        module: nn.Module = makers[after](6) if after in makers else nn.Linear(*sizes)
        return module.double()
    return None


def stir(model: nn.Module, seed: int) -> None:
    """Gives everything other values, so that nothing is zero, one or an identity any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.3 * noise)


def deepened(seed: int, count: int) -> tuple[Any, Tensor, dict[int, Tensor]]:
    """A network that random things were inserted into, and what each closed generation made."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    x = torch.randn(3, 4, dtype=torch.float64)
    model: Any = splitgrow.growable(Net().double().eval(), x)
    handle = splitgrow.handle(model)
    stir(model, seed)
    closed: dict[int, Tensor] = {}
    for _ in range(count):
        kind = draw.choice(KINDS)
        after = draw.choice(PLACES[kind])
        if handle.edits and draw.random() < 0.4:
            closed[handle.generation] = model(x).detach()
            handle.next_generation()
        before = model(x).detach()
        try:
            edit = handle.insert_layer(after, kind, module=given(kind, after))
        except splitgrow.InsertionError:  # not exact behind what was inserted there before
            continue
        closed.setdefault(0, before)
        stir_new(model, edit, draw)
    return model, x, closed


def stir_new(model: Any, edit: Any, draw: random.Random) -> None:
    """New values for what an edit brought, and a share for its fade."""
    (insertion,) = edit.inserted
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(insertion.name):
                parameter.add_(0.3 * torch.randn_like(parameter))
    for name, module in model.named_modules():
        if name == insertion.name and isinstance(module, splitgrow.FadeIn):
            module.alpha = draw.choice(SHARES)


def left_of_splitgrow(model: nn.Module) -> list[splitgrow.FadeIn]:
    """The fades that are left, if nothing else of splitgrow is."""
    fades = [m for m in model.modules() if isinstance(m, splitgrow.FadeIn)]
    inside = {id(part) for fade in fades for part in fade.modules()}
    others = [m for m in model.modules() if type(m).__module__.startswith("splitgrow")]
    assert {id(module) for module in others} <= inside
    return fades


@pytest.mark.parametrize("seed", range(24))
def test_whatever_was_inserted_wherever_comes_out_of_merge_and_fuse(seed: int) -> None:
    model, x, closed = deepened(seed, count=1 + seed % 5)
    expected = model(x)
    merged = splitgrow.merge(model)
    assert_equal(merged(x), expected)
    assert all(0 < fade.alpha < 1 for fade in left_of_splitgrow(merged))
    assert_equal(splitgrow.fuse(model)(x), expected)
    for generation, before in closed.items():
        with model.at(generation):
            shown = model(x)
        assert torch.equal(shown, before)
        then = splitgrow.merge(model, generation)
        assert torch.equal(then(x), shown)
        assert all(0 < fade.alpha < 1 for fade in left_of_splitgrow(then))
    assert torch.equal(model(x), expected)


def changed_in_front_and_itself() -> tuple[Any, Tensor]:
    """A layer that something was put in front of, and that another one fades into."""
    x = torch.randn(3, 4, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    model: Any = splitgrow.growable(net, x)
    for after, kind in ((("0", "2"), "gate"), ("2", "replacement")):
        module = nn.Linear(6, 2).double() if kind == "replacement" else None
        edit = model.insert_layer(after, kind, module=module)
        stir_new(model, edit, random.Random(0))
    for fade in model.modules():
        if isinstance(fade, splitgrow.FadeIn):
            fade.alpha = 0.25
    return model.eval(), x


def test_a_merge_that_reads_before_the_edge_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = changed_in_front_and_itself()
    assert_equal(splitgrow.merge(model)(x), model(x))
    passed = unwrapping._passed

    def too_early(module: nn.Module, arguments: Any, given: Any) -> Any:
        if isinstance(module, nn.Linear):  # what replaces it reads what was there before the gate
            placeholder = next(iter(given.values())).graph.find_nodes(op="placeholder")[0]
            given = {**given, arguments[0].name: placeholder}
        return passed(module, arguments, given)

    monkeypatch.setattr(unwrapping, "_passed", too_early)
    with pytest.raises(splitgrow.MergeError, match="differs from the model by"):
        splitgrow.merge(model)
    wrong = splitgrow.merge(model, check=False)
    assert not torch.allclose(wrong(x), model(x))


class Heads(nn.Module):
    """Holds a number that follows growth."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.q, self.o = 2, nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.q(x).view(b, t, self.heads, -1).transpose(1, 2)
        return x + self.o((q @ q.transpose(-1, -2) @ q).transpose(1, 2).reshape(b, t, -1))


def test_what_growth_froze_trains_in_the_merged_model_and_what_the_user_froze_does_not() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(2, 1))
    model[1].bias.requires_grad_(False)
    model[3].weight.requires_grad_(False)
    model = splitgrow.growable(model, torch.randn(2, 3))
    for _ in range(2):
        model.expand_layer("0", 2)
        model.next_generation()
    assert not any(p.requires_grad for p in model.parameters())
    for generation in (None, 0, 1):
        merged = splitgrow.merge(model, generation)
        held = {name for name, p in merged.named_parameters() if not p.requires_grad}
        assert held == {"1.bias", "3.weight"}


def test_a_merged_norm_has_counted_the_batches_of_the_block_that_trains() -> None:
    x = torch.randn(4, 2, 3, 3)
    norm = nn.BatchNorm2d(3, momentum=None)
    model: Any = nn.Sequential(nn.Conv2d(2, 3, 1), norm, nn.Conv2d(3, 2, 1))
    model = splitgrow.growable(model, x).train()
    for batches in (3, 2):
        for _ in range(batches):
            model(x)
        if batches == 3:
            model.expand_layer("0", 2)
    assert [int(block.num_batches_tracked) for block in model[1]] == [3, 2]
    assert int(splitgrow.merge(model)[1].num_batches_tracked) == 2
    assert int(splitgrow.merge(model, generation=0)[1].num_batches_tracked) == 3


def test_an_earlier_generation_knows_nothing_of_numbers_in_later_modules() -> None:
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    model: Any = splitgrow.growable(nn.Sequential(Heads(), nn.Linear(8, 3)).double().eval(), x)
    before = model(x).detach()
    model.insert_layer("0", "block")
    for name in ("0.q", next(layer.name for layer in model.layers if "inserted" in layer.name)):
        layer = next(layer for layer in model.layers if layer.name == name)
        model.expand_layer(name, layer.step)
    assert torch.equal(splitgrow.merge(model, 0)(x), before)
    merged = splitgrow.merge(model)
    assert_equal(merged(x), model(x))
    assert merged[0].original.heads > 2


def test_a_number_that_was_set_by_hand_is_merged_as_it_is() -> None:
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    model: Any = splitgrow.growable(nn.Sequential(Heads(), nn.Linear(8, 3)).double().eval(), x)
    layer = next(layer for layer in model.layers if layer.name == "0.q")
    model.expand_layer("0.q", layer.step)
    model[0] = Heads().double().eval()  # known to no edit
    merged = splitgrow.merge(model)
    assert torch.equal(merged(x), model(x))


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["fade", "replacement"])
@pytest.mark.parametrize("after", ["first", "block", "scaled", "last.0"])
def test_of_a_fade_that_does_not_blend_nothing_of_splitgrow_is_left(
    kind: str, after: str, alpha: float
) -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    model: Any = splitgrow.growable(Net().double().eval(), x)
    model.insert_layer(after, kind, module=given(kind, after))
    for fade in model.modules():
        if isinstance(fade, splitgrow.FadeIn):
            fade.alpha = alpha
    merged = splitgrow.merge(model)
    assert not [m for m in merged.modules() if type(m).__module__.startswith("splitgrow")]
    assert torch.equal(merged(x), model(x))


class Watching(nn.Module):
    """Its forward asks a fade how far it has come."""

    def __init__(self) -> None:
        super().__init__()
        self.fade = splitgrow.FadeIn(nn.Linear(4, 4), nn.Linear(4, 4), alpha=1.0)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.fade(x) * self.fade.alpha)


def test_a_fade_of_the_models_own_goes_when_it_is_over_unless_forward_asks_for_it() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    fade = splitgrow.FadeIn(nn.Linear(4, 4), nn.Linear(4, 4), alpha=1.0)
    for net, kept in ((nn.Sequential(fade, nn.ReLU(), nn.Linear(4, 2)), 0), (Watching(), 1)):
        model: Any = splitgrow.growable(net.double().eval(), x)
        merged = splitgrow.merge(model)
        assert len(left_of_splitgrow(merged)) == kept
        assert_equal(merged(x), model(x))
        assert len(left_of_splitgrow(splitgrow.merge(model, check=False))) == 1

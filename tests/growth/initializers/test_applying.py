"""Initializers see the whole edit, and a check holds them to their own claims.

Two ways of the literature stand for all of them: see tests/ways.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, Case
from helpers import assert_equal, largest_difference
from snapshots import unchanged
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from ways import PAIR, Net2Net

import splitgrow
from splitgrow.errors import InexactError
from splitgrow.growth.edits import Edit
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.initializers import Initializer, registry
from splitgrow.growth.initializers.silent_helpers import Zero
from splitgrow.growth.prepared import PreparedEdit
from splitgrow.layers.types import Start


class Liar(Initializer):
    """Leaves helpers as torch has drawn them, and says that this changes nothing."""

    name = "liar"

    def apply(self, prepared: PreparedEdit) -> None:
        assert prepared.layers


class Honest(Liar):
    name = "honest"
    exact = False


class Meddler(Net2Net):
    """Changes what there is, and then fails."""

    name = "meddler"

    def apply(self, prepared: PreparedEdit) -> None:
        super().apply(prepared)
        raise MemoryError("that was too much")


class Doubler(Initializer):
    """Doubles what there is, and says that it has to."""

    name = "doubler"
    needs_unfrozen = True

    def apply(self, prepared: PreparedEdit) -> None:
        for layer in prepared.layers.values():
            for key in layer.tensors:
                value = layer.value(key)
                if value is not None:
                    layer.fill_(key, 2 * value)


class Sly(Initializer):
    """Writes into what there is, and does not say so."""

    name = "sly"

    def apply(self, prepared: PreparedEdit) -> None:
        for layer in prepared.layers.values():
            layer.existing[0].weight.mul_(1.0)


class Curious(Initializer):
    """Keeps what it is shown."""

    name = "curious"
    exact = False
    seen: PreparedEdit

    def apply(self, prepared: PreparedEdit) -> None:
        self.seen = prepared
        for layer in prepared.layers.values():
            for key in layer.tensors:
                value = layer.value(key)
                if value is not None:
                    layer.fill_(key, value + 1)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def trained() -> tuple[Any, torch.optim.Optimizer, Tensor]:
    """A two-layer network that has learned a little, its optimizer and an input."""
    model, x = mlp(), torch.randn(4, 3, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model = splitgrow.growable(model, x)
    for _ in range(3):
        step(model, optimizer, x)
    return model, optimizer, x


def step(model: Any, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


@pytest.fixture
def registered() -> Iterator[None]:
    splitgrow.register_initializer(Net2Net())
    yield
    del registry._INITIALIZERS["net2net"]


# -- ways of the literature -----------------------------------------------------------------------


def test_units_are_copied_and_what_reads_the_old_ones_is_shared_out(registered: None) -> None:
    model, optimizer, x = trained()
    wanted, old = model(x), copy.deepcopy(model)
    edit = model.expand_layer("0", 4, initializer="net2net", freeze=False, optimizer=optimizer)
    assert edit.initializer == "net2net"
    assert_equal(model(x), wanted)
    plain = splitgrow.merge(model)
    rows = plain[0].weight
    assert all((rows[:5] == row).all(1).any() for row in rows[5:])
    assert not torch.equal(plain[2].weight[:, :5], old[2].weight)
    # No two copies are alike to what reads them, so that they part as they learn.
    step(model, optimizer, x)
    rows = splitgrow.merge(model)[0].weight
    assert len(torch.unique(rows, dim=0)) == 9


@pytest.mark.parametrize("freeze", [False, True])
def test_pairs_cancel_each_other_out_until_they_learn(freeze: bool) -> None:
    model, optimizer, x = trained()
    wanted = model(x)
    model.expand_layer("0", 4, initializer=PAIR, freeze=freeze, optimizer=optimizer)
    assert_equal(model(x), wanted)
    weight = splitgrow.merge(model)[2].weight
    assert (weight[:, 5:] != 0).all()
    born = model.generation_parameters()
    step(model, optimizer, x)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in born)
    assert largest_difference(model(x), wanted) > 1e-6


EXACT = [each for each in registry._INITIALIZERS.values() if each.exact]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("initializer", [*EXACT, Net2Net(), PAIR], ids=repr)
def test_what_is_exact_keeps_what_any_network_computes(
    case: Case, initializer: Initializer
) -> None:
    """Every layer grows once and the first once more, by which time it has several blocks."""
    torch.manual_seed(0)
    model: Any = splitgrow.growable(case.model().eval(), case.inputs())
    x, graph = case.inputs(3), history_of(model).graph
    wanted, grown = tree_leaves(model(*x)), 0
    names = [layer.name for layer in model.layers if layer.growable]
    for name in (*names, *names[:1]):
        graph = history_of(model).graph
        node, way = graph.nodes[name], initializer.way
        watched = {g: graph.ways[g] for g in graph.growing_groups(node.outs) if g in graph.ways}
        if any(way not in ways for ways in watched.values()) and initializer.name != "zero":
            continue  # a norm over all channels would read other values than it can take in
        units = min(graph.steps(node, way).values()) * max(2, initializer.divides)
        model.expand_layer(name, units, initializer=initializer, freeze=False)
        grown += 1
    for now, before in zip(tree_leaves(model(*x)), wanted, strict=True):
        assert_equal(now[tuple(slice(length) for length in before.shape)], before)
    assert grown or not names or initializer.name != "zero"


# -- what it is shown -----------------------------------------------------------------------------


def test_it_sees_all_blocks_of_all_layers_and_where_their_units_lie() -> None:
    model, _, _ = trained()
    model.expand_layer("0", 2)
    shown = Curious()
    edit = model.expand({"0": 3, "2": 1}, initializer=shown)
    seen = shown.seen
    assert seen.model is model
    assert seen.edit == edit
    assert [*seen.layers] == ["0", "2"]
    first, last = seen.layers.values()
    assert [tuple(b.weight.shape) for b in first.existing] == [(5, 3), (2, 3)]
    assert {kind: tuple(b.weight.shape) for kind, b in last.added.items()} == {
        "helper": (2, 3),
        "new": (1, 10),
    }
    assert (first.original, last.original) == (model[0][0], model[2][0])
    assert seen.frozen == {"0", "2"}
    assert seen.generator is None
    assert seen.loss is None
    made = [unit for unit, _ in seen.places("0")["weight"][0]]
    assert made == [unit for unit, _ in seen.places("2")["weight"][1]]
    assert (first.reading_dim("weight"), first.reading_dim("bias")) == (1, None)
    assert seen.units[made[0].home] == (*made[7:],)  # type: ignore[index]
    assert first.composition.outs.length == 10
    assert first.starts("new") == [Start.FREE] * 3


def test_what_exists_keeps_its_values_unless_it_says_that_it_changes_them() -> None:
    model, _, _ = trained()
    model.expand_layer("0", 2, freeze=False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.expand_layer("0", 3, initializer=Curious(), freeze=False)
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in before.items())
    assert (now["2.2.weight"] != 0).all()


def test_a_growth_as_zero_draws_what_it_always_drew() -> None:
    """Blocks are made in order, helper first, as torch makes a layer of their shape."""
    model, _, _ = trained()
    torch.manual_seed(5)
    model.expand({"0": 2, "2": 1})
    after = torch.rand(2)
    torch.manual_seed(5)
    wanted = nn.Linear(3, 2, dtype=torch.float64)
    nn.Linear(2, 2, bias=False, dtype=torch.float64)
    other = nn.Linear(7, 1, dtype=torch.float64)
    assert torch.equal(model[0][1].weight, wanted.weight)
    assert torch.equal(model[2][2].weight, other.weight)
    assert torch.equal(torch.rand(2), after)


# -- what it is held to ---------------------------------------------------------------------------


def test_one_that_is_wrong_in_saying_that_it_is_exact_is_refused() -> None:
    model, optimizer, _ = trained()
    with unchanged(model, optimizer), pytest.raises(InexactError, match="Initializer 'liar' may"):
        model.expand_layer("0", 2, initializer=Liar(), optimizer=optimizer)
    with unchanged(model, optimizer), pytest.raises(InexactError, match="Initializer 'doubler' m"):
        model.expand_layer(
            "0", 2, initializer=Doubler(), freeze=False, optimizer=optimizer, check=True
        )
    with unchanged(model, optimizer), pytest.raises(InexactError, match="Initializer 'liar' may"):
        model.expand_input(2, initializer=Liar(), optimizer=optimizer)


def test_one_that_fails_leaves_everything_as_it_was() -> None:
    model, optimizer, _ = trained()
    with unchanged(model, optimizer), pytest.raises(MemoryError):
        model.expand_layer("0", 2, initializer=Meddler(), freeze=False, optimizer=optimizer)


def test_one_that_is_not_exact_may_change_outputs_and_nothing_else() -> None:
    model, optimizer, x = trained()
    wanted = model(x)
    drawn = copy.deepcopy(model)
    torch.manual_seed(1)
    edit = model.expand_layer("0", 2, initializer=Honest(), optimizer=optimizer)
    assert largest_difference(model(x), wanted) > 1e-3
    assert (model[2][1].weight != 0).all()
    assert Edit.from_json(edit.to_json()).initializer == "honest"
    # The check leaves what was drawn; a hook that mixes channels is still found.
    torch.manual_seed(1)
    drawn.expand_layer("0", 2, initializer=Honest(), check=False)
    assert torch.equal(model[2][1].weight, drawn[2][1].weight)
    model[1].register_forward_hook(lambda module, args, y: y - y.mean(-1, keepdim=True))
    with unchanged(model, optimizer), pytest.raises(InexactError, match="may be wrong"):
        model.expand_layer("0", 2, initializer=Honest(), optimizer=optimizer)


def test_one_that_writes_into_what_exists_must_say_so() -> None:
    model, _, _ = trained()
    with pytest.raises(ValueError, match=r"'sly' has written into 0\.0\.weight, 2\.0\.weight"):
        model.expand_layer("0", 2, initializer=Sly(), freeze=False)


class NeedsData(Liar):
    name = "needs data"
    needs_data = True


@pytest.mark.parametrize(
    ("initializer", "options", "reason"),
    [
        (Net2Net(), {}, r"'net2net' changes values that exist, and those of '0', '2' are frozen"),
        (PAIR, {"n": 3}, r"'pair' adds units by multiples of 2, and '0' would gain 3"),
        (NeedsData(), {}, r"'needs data' needs data, and is given no loss"),
    ],
    ids=repr,
)
def test_one_is_refused_where_it_cannot_keep_what_it_says(
    initializer: Initializer, options: dict[str, int], reason: str
) -> None:
    model, optimizer, _ = trained()
    with unchanged(model, optimizer), pytest.raises(ValueError, match=reason):
        model.expand_layer("0", options.get("n", 2), initializer=initializer, optimizer=optimizer)


def test_what_somebody_froze_by_hand_is_frozen() -> None:
    model, optimizer, _ = trained()
    model[2].bias.requires_grad_(False)
    with unchanged(model, optimizer), pytest.raises(ValueError, match="those of '2' are frozen"):
        model.expand_layer("0", 2, initializer=Net2Net(), freeze=False, optimizer=optimizer)


# -- the registry ---------------------------------------------------------------------------------


def test_a_name_is_registered_once(registered: None) -> None:
    with pytest.raises(ValueError, match="there is an initializer 'net2net' already"):
        splitgrow.register_initializer(Net2Net())
    with pytest.raises(ValueError, match="there is an initializer 'zero' already"):
        splitgrow.register_initializer(Zero())


class Nameless(Liar):
    name = ""


class Halved(Liar):
    divides = 0


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (Liar, r"an initializer is an instance of .* \(.*zero.*\), got <class"),
        ("zero", r"got 'zero'"),
        (Nameless(), r"Nameless\.name must be a text, got ''"),
        (Halved(), r"liar\.divides must be an int of at least 1, got 0"),
    ],
)
def test_what_is_no_initializer_is_a_type_error(given: Any, reason: str) -> None:
    known = dict(registry._INITIALIZERS)
    with pytest.raises(TypeError, match=reason):
        splitgrow.register_initializer(given)
    assert known == registry._INITIALIZERS


def test_a_checkpoint_needs_no_initializer(tmp_path: Path) -> None:
    model, _, x = trained()
    model.expand_layer("0", 2, initializer=PAIR)
    splitgrow.save(model, tmp_path / "grown.pt")
    fresh: Any = splitgrow.growable(mlp(), x)
    splitgrow.load(fresh, tmp_path / "grown.pt")
    assert torch.equal(fresh(x), model(x))
    assert history_of(fresh).edits[0].initializer == "pair"

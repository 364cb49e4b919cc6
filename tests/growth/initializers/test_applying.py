"""Initializers see the whole edit, and a check holds them to their own claims."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import largest_difference
from snapshots import unchanged
from torch import Tensor, nn

import splitgrow
from splitgrow.errors import InexactError
from splitgrow.growth.edits import Edit
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.initializers import Initializer
from splitgrow.growth.initializers.net2net import Net2Net
from splitgrow.growth.initializers.pairs import Pair
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


# -- what it is shown -----------------------------------------------------------------------------


def test_it_sees_all_blocks_of_all_layers_and_where_their_units_lie() -> None:
    model, _, _ = trained()
    model.expand_layer("0", 2)
    shown = Curious()
    edit = model.expand({"0": 3, "2": 1}, initializer=shown)
    seen = shown.seen
    assert seen.model is model
    assert seen.edit == replace(edit, moved=None)
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
    known = Edit.from_json(edit.to_json())
    assert (known.initializer, known.moved) == ("honest", edit.moved)
    assert edit.moved == pytest.approx(largest_difference(model(x), wanted))
    assert edit in splitgrow.handle(model).edits
    assert f"initializer 'honest' moved the outputs by {edit.moved:.1%} of" in str(edit)
    # The check leaves what was drawn; a hook that mixes channels is still found.
    torch.manual_seed(1)
    unseen = drawn.expand_layer("0", 2, initializer=Honest(), check=False)
    assert (unseen.moved, "moved" in str(unseen)) == (None, False)
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
        (Pair(), {"n": 3}, r"'pair' adds units by multiples of 2, and '0' would gain 3"),
        (NeedsData(), {}, r"'needs data' needs data, and is given no loss: pass loss=closure"),
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


def test_what_a_plan_cannot_keep_is_refused_with_the_plan() -> None:
    model, _, _ = trained()
    with pytest.raises(ValueError, match="'pair' adds units by multiples of 2, and '0' would gain"):
        model.plan({"0": 3}, initializer="pair")
    with pytest.raises(ValueError, match="are frozen or would be: grow with freeze=False, after"):
        model.plan({"0": 3}, initializer="net2net")
    assert model.plan({"0": 3}, initializer="net2net", freeze=False).initializer == "net2net"
    assert model.plan({"2": 3}, initializer="pair").growth  # nothing reads these


class Endless(Liar):
    name = "endless"
    exact = False

    def apply(self, prepared: PreparedEdit) -> None:
        for block in prepared.layers["2"].added.values():
            block.weight.fill_(torch.inf)


def test_one_that_makes_outputs_infinite_is_refused() -> None:
    model, optimizer, _ = trained()
    with unchanged(model, optimizer), pytest.raises(InexactError, match="'endless' would make"):
        model.expand_layer("0", 2, initializer=Endless(), optimizer=optimizer)


class Halving(Initializer):
    """Changes existing values, and says so and that it is not exact."""

    name = "halving"
    exact = False
    needs_unfrozen = True

    def apply(self, prepared: PreparedEdit) -> None:
        for layer in prepared.layers.values():
            for key in layer.tensors:
                value = layer.value(key)
                assert value is not None
                layer.fill_(key, 0.5 * value)


def test_one_that_changes_old_values_and_outputs_is_compared_with_these_as_they_were() -> None:
    model, optimizer, x = trained()
    wanted, weight = model(x), model[2].bias.detach().clone()
    edit = model.expand_layer("0", 2, initializer=Halving(), freeze=False, optimizer=optimizer)
    assert edit.moved == pytest.approx(largest_difference(model(x), wanted))
    assert torch.equal(model[2][0].bias, 0.5 * weight)
    model[1].register_forward_hook(lambda module, args, y: y - y.mean(-1, keepdim=True))
    with unchanged(model, optimizer), pytest.raises(InexactError, match="'halving' may be wrong"):
        model.expand_layer("0", 2, initializer=Halving(), freeze=False, optimizer=optimizer)


# -- afterwards -----------------------------------------------------------------------------------


def test_a_checkpoint_needs_no_initializer(tmp_path: Path) -> None:
    model, _, x = trained()
    model.expand_layer("0", 2, initializer="pair")
    splitgrow.save(model, tmp_path / "grown.pt")
    fresh: Any = splitgrow.growable(mlp(), x)
    splitgrow.load(fresh, tmp_path / "grown.pt")
    assert torch.equal(fresh(x), model(x))
    assert history_of(fresh).edits[0].initializer == "pair"

"""The places and readers of units, against networks that are changed to find them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import CASES, Case
from lessons import BODIES, Featured, net, scattered
from torch import Tensor, nn

from splitgrow.analysis.channels.channel_groups import Groups
from splitgrow.analysis.units import CONSTANT, Unit, places_on
from splitgrow.continual.body import Body
from splitgrow.continual.units import Units
from splitgrow.errors import UnsupportedModelError
from splitgrow.growth.history_lookup import history_of
from splitgrow.utils.example_call import ExampleCall


def body_of(case: Case, grown: bool) -> Body:
    """A body of random values, of which every layer has grown twice, if asked for."""
    body = Body(Featured(case.model()), ExampleCall(case.inputs()), None)
    for _ in range(2 * grown):
        groups = Units(body).growing
        body.grow_units(dict.fromkeys(groups, 1))
    return scattered(body)


@torch.no_grad()
def outputs(body: Body, x: tuple[Tensor, ...]) -> Tensor:
    body.model.eval()
    found: Tensor = body.model(*x)
    return found


@torch.no_grad()
def remade(body: Body, units: Units, unit: Unit) -> None:
    """Gives a unit other incoming weights and biases."""
    number = units.order.index(unit)
    for part in units.parts:
        if part.layer in units.makers and part.key.startswith(("weight", "bias")):
            tensor = body.slots[part.slot].tensor
            rows = part.leading(tensor)
            rows[part.outs == number] += 1 + torch.rand_like(rows[part.outs == number])


@torch.no_grad()
def unread(body: Body, units: Units, unit: Unit) -> None:
    """Has no layer read a unit."""
    number = units.order.index(unit)
    for part in units.parts:
        if part.dims[1] is not None:
            part.leading(body.slots[part.slot].tensor)[:, part.ins == number] = 0


def some_units(units: Units) -> list[Unit]:
    """The first and the last unit of every group that can grow.

    But for those that only ops read, and those that norms over all channels read.
    """
    known = units.chosen(~units.unread)
    groups = [group for group in units.growing if group not in units.graph.ways]
    return sorted({Unit(g, n) for g in groups for n in (0, units.width(g) - 1)} & known)


@pytest.mark.parametrize(
    ("case", "grown"),
    [pytest.param(case, index % 3 > 0, id=case.name) for index, case in enumerate(BODIES)],
)
def test_a_unit_is_read_where_the_table_says_and_nowhere_else(case: Case, grown: bool) -> None:
    """With what reads it set to zero, only its own features notice other incoming weights."""
    body, x = body_of(case, grown), case.inputs(3)
    units = Units(body)
    noticed = 0
    for unit in some_units(units):
        mine = torch.tensor([own == unit for own, _ in units.features])
        deaf, other = body.copied(), body.copied()
        unread(deaf, units, unit)
        before, whole = outputs(deaf, x), outputs(other, x)
        for each in (deaf, other):
            remade(each, units, unit)
        now = outputs(deaf, x)
        assert torch.equal(now[:, ~mine], before[:, ~mine]), unit
        assert not mine.any() or not torch.equal(now[:, mine], before[:, mine])
        # The control: as long as something reads it, others notice.
        noticed += not torch.equal(outputs(other, x), whole)
    assert noticed or not some_units(units)


@pytest.mark.parametrize("case", BODIES, ids=lambda case: case.name)
def test_every_tensor_is_covered_by_its_parts_and_every_unit_is_made(case: Case) -> None:
    body = body_of(case, grown=True)
    units = Units(body)
    for part in units.parts:
        dim, other = part.dims
        assert part.shape[dim] == len(part.outs)
        assert other is None or part.shape[other] == len(part.ins)
    made = units._on(part.outs for part in units.parts if part.layer in units.makers)
    embedded = units._on(part.outs for part in units.parts)
    assert {unit for unit, _ in units.features} - {CONSTANT} <= embedded
    assert made <= {*units.order}
    values = {name: slot.tensor for name, slot in body.slots.items()}
    plain = body.plain({}, body.edit, nn.Identity())[0]
    modules = dict(plain.named_modules())
    for layer, key in {(part.layer, part.key) for part in units.parts}:
        whole = units.whole(layer, key, values)
        assert whole is not None
        assert torch.equal(whole, getattr(modules[layer], key))
        lengths = [len(places) for places in units.places(layer)[key].values()]
        assert lengths == [whole.shape[dim] for dim in units.places(layer)[key]]


def test_a_projected_lstm_is_refused_whose_weights_read_for_no_unit_in_particular() -> None:
    case = next(case for case in CASES if case.name == "projected")
    with pytest.raises(UnsupportedModelError, match=r"`model\.rnn` reads units by `weight_ih_l0`"):
        Units(body_of(case, grown=False))


class Conv1D(nn.Module):
    """Stands for a layer that the library knows by this name: its weight is (in, out)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


Conv1D.__module__, Conv1D.__qualname__ = "transformers.pytorch_utils", "Conv1D"


@pytest.mark.parametrize("width", [4, 5])
def test_a_block_may_have_its_tensor_the_other_way_round(width: int) -> None:
    """Those that such a layer gains to read new inputs are plain Linear layers."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Conv1D(width, 4)).double()
    body = Body(model, ExampleCall((torch.randn(2, 3, dtype=torch.float64),)), None)
    first, last = Units(body).growing
    body.grow_units({first: width, last: 1})
    body = scattered(body)
    units = Units(body)
    helper = next(part for part in units.parts if part.block.kind == "helper")
    assert helper.dims == (0, 1)
    values = {name: slot.tensor for name, slot in body.slots.items()}
    whole, places = units.whole("2", "weight", values), units.places("2")["weight"]
    plain: Any = body.plain({}, body.edit, nn.Identity())[0][2]
    assert whole is not None
    assert torch.equal(whole, plain.weight)
    assert [unit.home for unit, _ in places[1]] == [last] * (width + 1)
    assert [unit.home for unit, _ in places[0]] == [first] * (width + 4)


def pruned(seed: int) -> Body:
    """A small residual network of smooth activations, most weights of which are zero."""

    class Smooth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1)
            self.deep, self.side = nn.Conv2d(5, 4, 3), nn.Conv2d(5, 3, 3)
            self.norm, self.own = nn.BatchNorm2d(7), nn.Conv2d(7, 7, 3, padding=1, groups=7)
            self.hidden = nn.Linear(7 * 4, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).tanh()
            x = (x + self.inner(x)).tanh()
            x = torch.cat([self.deep(x), self.side(x)], 1)
            x = self.own(self.norm(x).tanh())
            return self.hidden(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)).tanh()

    torch.manual_seed(seed)
    body = Body(
        Smooth().double(), ExampleCall((torch.randn(2, 2, 6, 6, dtype=torch.float64),)), None
    )
    body = scattered(body)
    with torch.no_grad():
        for name, slot in body.shared.items():
            # Of a kernel, some positions only, which make an edge all the same.
            few = 0.06 if slot.tensor.dim() > 2 else 0.1
            if not name.startswith("own"):
                slot.tensor.mul_(torch.rand_like(slot.tensor) < few)
    return body


@pytest.mark.parametrize("seed", range(6))
def test_the_units_that_are_needed_are_those_whose_change_is_noticed(seed: int) -> None:
    body = pruned(seed)
    units = Units(body)
    x = (torch.randn(8, 2, 6, 6, dtype=torch.float64),)
    read = torch.zeros(len(units.features), dtype=torch.bool)
    read[:2] = True
    values = {name: slot.tensor for name, slot in body.shared.items()}
    found = units.needed(values, read)
    before, wanted = outputs(body, x)[:, read], set()
    for unit in units.order[1:]:
        other = body.copied()
        remade(other, units, unit)
        if not torch.equal(outputs(other, x)[:, read], before):
            wanted.add(unit)
    assert found - {CONSTANT} == wanted
    assert len(wanted) < len(units.order) - 1


def test_flattening_repeats_a_unit_and_an_addition_makes_two_layers_make_it() -> None:
    body = Body(net(), ExampleCall((torch.randn(2, 2, 6, 6),)), "auto")
    units = Units(body)
    (group, _), *_ = [unit for unit, _ in units.features]
    stem, hidden = units.growing
    assert group == hidden
    of_unit = Unit(stem, 2)
    makers = {part.layer for part in units.parts if of_unit in units._on([part.outs])}
    assert makers == {"stem", "norm", "inner", "norm2"}
    graph = history_of(body.model).graph
    places = places_on(graph.groups, graph.nodes["hidden"].ins)
    assert [n for n, (unit, _) in enumerate(places) if unit == of_unit] == [8, 9, 10, 11]
    mask = units.between({of_unit, Unit(hidden, 1)})
    assert mask["hidden:0.weight"].nonzero().tolist() == [[1, n] for n in (8, 9, 10, 11)]
    assert not mask["stem:0.weight"].any()  # it reads the input, which was not among them
    assert mask["inner:0.weight"].flatten(2).all(2).nonzero().tolist() == [[2, 2]]


def test_constants_have_no_owner_where_they_are_read() -> None:
    groups = Groups()
    (first,) = groups.new(4)
    before, _ = groups.cut((first,), 1, "cut")
    groups.fix(before, "fixed")
    places = places_on(groups, (first, first))
    assert [turn for _, turn in places] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert len({unit for unit, _ in places}) == 4

"""New units of a body: of use or not, and duplicates of others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splitgrow.analysis.units import Unit, values_like
from splitgrow.continual.body import Body
from splitgrow.continual.parts import UnitPart
from splitgrow.continual.studies import Study
from splitgrow.continual.units import Units
from splitgrow.growth.initializers import Initializer, Zero
from splitgrow.growth.prepared import PreparedEdit

RegrowthSource = Callable[[Unit], Unit]
"""Maps a unit to the one whose values it takes."""


@dataclass
class UnitValues:
    """A task's network: its tensors besides the body's shared ones.

    Attributes:
        own: Its own biases and its norms' tensors, by slots' names.
        head: Its head.
    """

    own: dict[str, Tensor]
    head: nn.Linear


def all_values(study: Study) -> dict[str, Tensor]:
    """All tensors of a study's network except its head's, by slots' names."""
    found = {name: slot.tensor.detach() for name, slot in study.body.slots.items()}
    return {**found, **{name: value.detach() for name, value in study.values().items()}}


def widened_head(head: nn.Linear, old: Units, new: Units, source: RegrowthSource) -> nn.Linear:
    """A head for the features of other units; units without a source get zeros."""
    position = {place: n for n, place in enumerate(old.features)}
    found = [position.get((source(unit), turn), -1) for unit, turn in new.features]
    index = torch.tensor(found, dtype=torch.long, device=head.weight.device)
    weight = head.weight.detach().index_select(1, index.clamp(min=0))
    return _reading(head, weight * (index >= 0).to(weight.dtype))


def _reading(head: nn.Linear, weight: Tensor) -> nn.Linear:
    """A head with another weight."""
    made = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    made.weight = nn.Parameter(weight.detach())
    made.bias = nn.Parameter(head.bias.detach().clone())
    return made


class Drawn(Initializer):
    """Draws all new weights, helpers too, so that all of them learn from the first step."""

    name = "drawn"
    exact = False

    def apply(self, prepared: PreparedEdit) -> None:
        """Draws new weights; those that torch has drawn already stay."""
        Zero().apply(prepared)
        for _, tensor in sorted(_weights_added(prepared), key=lambda named: named[0]):
            drawn = nn.init.kaiming_uniform_(torch.empty_like(tensor), a=math.sqrt(5))
            tensor.copy_(torch.where(tensor == 0, drawn, tensor))


def _weights_added(prepared: PreparedEdit) -> Iterator[tuple[str, nn.Parameter]]:
    """The new weights by the names of their slots."""
    for layer in prepared.layers.values():
        for index, block in enumerate(layer.added.values(), len(layer.existing)):
            for key, tensor in block.named_parameters():
                if tensor.dim() > 1:
                    yield f"{layer.name}:{index}.{key}", tensor


@dataclass(frozen=True, repr=False)
class Regrown(Initializer):
    """Makes new units begin as copies of others.

    Attributes:
        old: The units of a network with all layers, and with all units that are to be copied.
        values: All tensors of that network, by slots' names.
        source: Maps a new unit to the unit there that it copies.
    """

    old: Units
    values: Mapping[str, Tensor]
    source: RegrowthSource
    name = "regrown"
    exact = False

    def apply(self, prepared: PreparedEdit) -> None:
        """Copies the parts of every tensor from the source of each unit."""
        for name, layer in prepared.layers.items():
            before, width = self.old.places(name), layer.change.width[1]
            for key, along in prepared.places(name).items():
                whole = self.old.whole(name, key, self.values)
                if whole is None or not along:
                    continue
                whole = values_like(whole, along, self.source, before[key])
                layer.fill_(key, self.old.carried(name, key, whole, width))


@torch.no_grad()
def draw_head_(body: Body, head: nn.Linear, features: Tensor) -> None:
    """Draws a head's weights for new features.

    Args:
        body: The body.
        head: The head that reads it.
        features: The features that are new, as bools.
    """
    drawn = body.new_head(head.out_features).weight
    head.weight.copy_(torch.where(features, drawn, head.weight))


def regrow_(
    body: Body,
    growth: Mapping[int, int],
    old: Units,
    values: Mapping[str, Tensor],
    head: nn.Linear,
    source: RegrowthSource,
) -> tuple[Units, UnitValues]:
    """Grows a body by units with given values.

    Args:
        body: The body, which grows. Its shared tensors stay as they are.
        growth: The number of units that each group gains.
        old: The units that `values` are of.
        values: All tensors of a network whose layers are the body's, by slots' names.
        head: That network's head.
        source: Maps a unit of the body to the unit there whose values it takes.

    Returns:
        The body's units, and the tensors of a network with these values besides the shared ones.
    """
    if growth:
        body.grow_units(growth, Regrown(old, values, source))
    units = Units(body)
    own = _own_values(body, units.born_in(body.edit) if growth else [], values)
    return units, UnitValues(own, widened_head(head, old, units, source))


def _own_values(
    body: Body, born: Iterable[UnitPart], values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of a network besides the shared ones: new ones as in the body, others given."""
    new = {part.slot for part in born}
    return {
        name: (slot.tensor if name in new else values.get(name, slot.tensor)).detach().clone()
        for name, slot in body.slots.items()
        if not slot.shared
    }


def disconnect_(units: Units, study: Study, weights: Mapping[str, Tensor], dead: Tensor) -> None:
    """Sets the weights to zero that read units whose groups are zero, and these units' biases.

    So they are silent, and their removal changes nothing.

    Args:
        units: The units.
        study: The network.
        weights: The shared tensors that are new, by slots' names.
        dead: The units, by number.
    """
    if not bool(dead.any()):
        return
    own = study.own_parameters
    with torch.no_grad():
        for part in units.given(weights):
            if part.dims[1] is not None:
                weight = weights[part.slot]
                weight.masked_fill_(part.columns(dead), 0.0)
        for part in units.parts:
            if part.slot in own and part.key == "bias":
                own[part.slot].masked_fill_(dead[part.outs], 0.0)
        study.head.weight.masked_fill_(units.on_features(dead), 0.0)


def without_(
    body: Body, units: Units, values: UnitValues, dead: Tensor
) -> tuple[Units, UnitValues]:
    """Takes silent units of the last growth out of a body.

    Args:
        body: The body, with its new weights.
        units: Its units.
        values: The tensors of a network of it, besides the shared ones.
        dead: The units, by number.

    Returns:
        The units that stay, and that network without the others.
    """
    gone: dict[int, list[int]] = {}
    for unit in sorted(units.chosen(dead)):
        gone.setdefault(int(unit.home), []).append(unit.nth)
    for group, dying in gone.items():  # where some kernel wants multiples, a few stay
        del dying[: len(dying) % units.graph.multiples.get(group, (1, ""))[0]]
    narrow = units.graph.groups.grown({group: -len(dying) for group, dying in gone.items()})
    own, nodes, edit = values.own, units.graph.nodes, body.edit
    for part in units.born_in(edit):
        if part.slot in own:
            length = narrow.length(nodes[part.layer].outs)
            value = units.carried(part.layer, part.key, own[part.slot], length)
            body.set_values({part.slot: value})
    out = units.marks(Unit(group, nth) for group, dying in gone.items() for nth in dying)
    head = _reading(values.head, values.head.weight[:, ~units.on_features(out)])
    if bool(out.any()):
        body.shrink_units({group: dying for group, dying in gone.items() if dying})
    left = Units(body)
    return left, UnitValues(_own_values(body, left.born_in(edit), own), head)


def split_(
    body: Body,
    units: Units,
    first: Units,
    before: Mapping[str, Tensor],
    parents: Mapping[Unit, Unit],
) -> None:
    """Gives units that were duplicated their earlier incoming weights back.

    Args:
        body: The body, in which the duplicates have the new weights already.
        units: Its units.
        first: The units that earlier tasks use.
        before: The shared tensors that these use, by slots' names.
        parents: For each duplicate, the unit that it copies.
    """
    twins, drifted = units.marks({*parents}), units.marks({*parents.values()})
    fresh = units.marks(units.since(first))
    changed: dict[str, Tensor] = {}
    for part in units.parts:
        if not part.shared:
            continue
        tensor = body.slots[part.slot].tensor.detach().clone()
        old = before.get(part.slot)
        back = part.rows(drifted)
        tensor = torch.where(back, torch.zeros_like(tensor) if old is None else old, tensor)
        if part.dims[1] is not None:
            own = part.rows(fresh)
            # The task's own weights read the duplicates, shared ones read the units themselves.
            for reader, read in ((own, drifted), (~own, twins)):
                tensor.masked_fill_(reader & part.columns(read), 0.0)
        changed[part.slot] = tensor
    body.set_values(changed)

"""New units of a body: of use or not, and duplicates of others."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splitgrow.analysis.units import Unit, values_like
from splitgrow.continual.body import Body
from splitgrow.continual.studies import Study
from splitgrow.continual.units import Units
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.initializers import Initializer, Zero
from splitgrow.growth.prepared import PreparedEdit
from splitgrow.layers.tensor_holder import split_of
from splitgrow.layers.types import Join, Joined

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
    made = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    made.weight = nn.Parameter(weight * (index >= 0).to(weight.dtype))
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
            before, merging = self.old.places(name), layer.layer_type.merging
            joined = Joined(Join.DILUTES, self.old.length(name), layer.change.width[1])
            carry = merging.carry([joined])
            for key, along in prepared.places(name).items():
                whole = self.old.whole(name, key, self.values)
                if whole is None or not along:
                    continue
                whole = values_like(whole, along, self.source, before[key])
                layer.fill_(key, merging.carried_over(key, whole, carry))


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
    born = {part.slot for part in units.parts if growth and part.block.edit == body.edit}
    own = {
        name: (slot.tensor if name in born else values.get(name, slot.tensor)).detach().clone()
        for name, slot in body.slots.items()
        if not slot.shared
    }
    return units, UnitValues(own, widened_head(head, old, units, source))


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
    body: Body, units: Units, values: UnitValues, dead: Tensor, known: Container[str]
) -> tuple[Units, UnitValues]:
    """Takes new units out of a body that nothing reads.

    Args:
        body: The body, with its new weights.
        units: Its units.
        values: The tensors of a network of it, besides the shared ones.
        dead: The units, by number.
        known: The names of the tensors that are not new.

    Returns:
        The units that stay, and that network without the others.
    """
    gone: dict[int, list[int]] = {}
    for unit in sorted(units.chosen(dead)):
        gone.setdefault(int(unit.home), []).append(unit.nth)
    for group, own in gone.items():  # where some kernel wants multiples, a few stay
        del own[: len(own) % units.graph.multiples.get(group, (1, ""))[0]]
    out = [Unit(group, nth) for group, own in gone.items() for nth in own]
    if not out:
        return units, values
    body.set_values(
        {n: v for n, v in _carried(body, units, values, gone).items() if n not in known}
    )
    body.shrink_units(gone)
    slots = {name: slot for name, slot in body.slots.items() if not slot.shared}
    own_values = {
        name: values.own[name] if name in known else slot.tensor.detach().clone()
        for name, slot in slots.items()
    }
    head = nn.Linear(len(units.features), values.head.out_features, device="meta")
    head.weight = nn.Parameter(values.head.weight.detach()[:, ~units.on_features(units.marks(out))])
    head.bias = nn.Parameter(values.head.bias.detach().clone())
    return Units(body), UnitValues(own_values, head)


def _carried(
    body: Body, units: Units, values: UnitValues, gone: Mapping[int, Sequence[int]]
) -> dict[str, Tensor]:
    """A network's own tensors, made up for silent units that norms over all channels will miss."""
    narrow = units.graph.groups.grown({group: -len(own) for group, own in gone.items()})
    found, modules = dict(values.own), history_of(body.model).modules
    for part in units.parts:
        if part.slot in found:
            merging = split_of(modules[part.layer]).composition().layer_type.merging
            width = narrow.length(units.graph.nodes[part.layer].outs)
            joined = Joined(Join.DILUTES, units.length(part.layer), width)
            value = found[part.slot]
            found[part.slot] = merging.carried_over(part.key, value, merging.carry([joined]))
    return found


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

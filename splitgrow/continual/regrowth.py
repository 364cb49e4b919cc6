"""Units that are added to a body with values of their own: survivors of a trial, and duplicates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splitgrow.analysis.units import Unit, values_like
from splitgrow.continual.body import Body
from splitgrow.continual.studies import Study
from splitgrow.continual.units import Units
from splitgrow.growth.initializers import Initializer, Zero
from splitgrow.growth.prepared import PreparedEdit

RegrowthSource = Callable[[Unit], Unit]
"""Of a unit the one that it is to be like."""


@dataclass
class UnitValues:
    """A task's network: all that it has besides the body's shared tensors.

    Attributes:
        own: Its own biases and what norms have, by slots' names.
        head: Its head.
    """

    own: dict[str, Tensor]
    head: nn.Linear


def all_values(study: Study) -> dict[str, Tensor]:
    """Every tensor that a study's network has, but its head's, by slots' names."""
    found = {name: slot.tensor.detach() for name, slot in study.body.slots.items()}
    return {**found, **{name: value.detach() for name, value in study.values().items()}}


def widened_head(head: nn.Linear, old: Units, new: Units, source: RegrowthSource) -> nn.Linear:
    """A head for the features of other units; for those that have no source with zeros."""
    position = {place: n for n, place in enumerate(old.features)}
    found = [position.get((source(unit), turn), -1) for unit, turn in new.features]
    index = torch.tensor(found, dtype=torch.long, device=head.weight.device)
    weight = head.weight.detach().index_select(1, index.clamp(min=0))
    made = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    made.weight = nn.Parameter(weight * (index >= 0).to(weight.dtype))
    made.bias = nn.Parameter(head.bias.detach().clone())
    return made


class Drawn(Initializer):
    """Draws all that is new, helpers too, so that all of it learns from the first step."""

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
    """Has new units begin like others.

    Attributes:
        old: The units of a network that has all layers, and all units that are asked for.
        values: All tensors of that network, by slots' names.
        source: The unit there that a unit is to be like.
    """

    old: Units
    values: Mapping[str, Tensor]
    source: RegrowthSource
    name = "regrown"
    exact = False

    def apply(self, prepared: PreparedEdit) -> None:
        """Takes every tensor's parts from where the units are that they are to be like."""
        for name, layer in prepared.layers.items():
            before, widths = self.old.places(name), (self.old.length(name), layer.change.width[1])
            for key, along in prepared.places(name).items():
                whole = self.old.whole(name, key, self.values)
                if whole is None or not along:
                    continue
                whole = values_like(whole, along, self.source, before[key])
                layer.fill_(key, layer.layer_type.merging.carried_over(key, whole, *widths))


@torch.no_grad()
def draw_head_(body: Body, head: nn.Linear, features: Tensor) -> None:
    """Draws a head's weights for what is new.

    Args:
        body: The body.
        head: The head that reads it.
        features: Which features are new, as bools.
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
        growth: How many units each group gains.
        old: The units that `values` are of.
        values: All tensors of a network whose layers are the body's, by slots' names.
        head: That network's head.
        source: The unit there that a unit of the body is to be like.

    Returns:
        The body's units, and what a network with these values has besides the shared tensors.
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
    """Has nothing read units whose groups are zero, and takes their biases.

    So they are silent, and taking them out changes nothing.

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


def alive_in(units: Units, fresh: Iterable[Unit], dead: Tensor) -> dict[int, list[int]]:
    """By group, the places of the new units that are not dead, in order."""
    gone = units.chosen(dead)
    found: dict[int, list[int]] = {}
    for home, nth in sorted(unit for unit in fresh if unit not in gone):
        assert isinstance(home, int)
        found.setdefault(home, []).append(nth)
    return found


def split_(
    body: Body,
    units: Units,
    first: Units,
    before: Mapping[str, Tensor],
    parents: Mapping[Unit, Unit],
) -> None:
    """Gives units that were duplicated their old incoming weights back.

    Args:
        body: The body, in which the duplicates have the new ones already.
        units: Its units.
        first: The units that earlier tasks use.
        before: The shared tensors that these use, by slots' names.
        parents: Of each duplicate, the unit that it was made of.
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
            # What is the task's own reads the duplicates, what is shared the units themselves.
            for reader, read in ((own, drifted), (~own, twins)):
                tensor.masked_fill_(reader & part.columns(read), 0.0)
        changed[part.slot] = tensor
    body.set_values(changed)

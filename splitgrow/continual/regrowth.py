"""Units that are added to a body with values of their own: survivors of a trial, and duplicates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splitgrow.continual.body import Body
from splitgrow.continual.parts import Unit
from splitgrow.continual.studies import Study
from splitgrow.continual.units import Units

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


@torch.no_grad()
def draw_(body: Body, new: Iterable[str], head: nn.Linear, features: Tensor) -> None:
    """Draws values for what is zero of what is new, so that all of it learns from the first step.

    Args:
        body: The body.
        new: The new shared tensors, by slots' names.
        head: The head that reads it.
        features: Which features are new, as bools.
    """
    for name in sorted(new):
        tensor = body.slots[name].tensor
        drawn = nn.init.kaiming_uniform_(torch.empty_like(tensor), a=math.sqrt(5))
        tensor.copy_(torch.where(tensor == 0, drawn, tensor))
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
    born: dict[str, Tensor] = {}
    if growth:
        body.grow_units(growth)
    units = Units(body)
    if growth:
        born = units.born(old, values, source)
    shared = body.shared
    body.set_values({name: value for name, value in born.items() if name in shared})
    own = {
        name: born.get(name, values.get(name, slot.tensor)).detach().clone()
        for name, slot in body.slots.items()
        if name not in shared
    }
    return units, UnitValues(own, widened_head(head, old, units, source))


def silence_(units: Units, study: Study, weights: Mapping[str, Tensor], dead: Tensor) -> None:
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

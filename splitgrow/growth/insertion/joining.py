"""Which parameters an insertion's new ones are like, so that they join the param groups of these.

Users make groups by rules: no weight decay for norms and biases, a rate for each depth. A rule is
not known; its results are. So a copied block's parameters go where their originals are, and others
where parameters of their role are, the nearest first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from splitgrow.growth.edit_parts import Insertion
from splitgrow.growth.optimizers import NewParameter
from splitgrow.layers.split_layer import stock
from splitgrow.layers.types import layer_type_of


@dataclass(frozen=True)
class _Role:
    """What a parameter is in its module.

    Attributes:
        kind: The kind of the module: a norm, another layer that works channel by channel, a layer
            that mixes channels, or the name of its class.
        name: The parameter's name there.
        vector: Whether it has one dimension, or none.
    """

    kind: str
    name: str
    vector: bool

    def unlike(self, other: _Role) -> tuple[bool, bool, bool]:
        """How much another role differs, most important first."""
        same = self.kind == other.kind and self.name == other.name
        return not same, self.vector != other.vector, self.name != other.name


def _roles(module: nn.Module) -> Iterator[tuple[nn.Parameter, nn.Module, _Role]]:
    """Each parameter, once, with the module that has it and its role there."""
    known: set[int] = set()
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if id(parameter) not in known:
                known.add(id(parameter))
                yield parameter, owner, _Role(_kind(owner), name, parameter.dim() <= 1)


def _kind(module: nn.Module) -> str:
    layer = stock(module)
    entry = layer_type_of(layer)
    if entry is None:
        return type(layer).__name__
    if entry.norm(layer) is not None:
        return "norm"
    return "each channel" if entry.diagonal(layer) else "layer"


def _near(model: nn.Module, beside: tuple[nn.Module, ...]) -> dict[int, nn.Parameter]:
    """The parameters of modules, by id; or of their neighbours in the model's order."""
    near = {id(p): p for host in beside for p in host.parameters()}
    if near:
        return near
    modules = list(model.modules())
    place = next((place for place, module in enumerate(modules) if module in beside), 0)
    for side in (modules[:place][::-1], modules[place:]):
        owned = (tuple(module.parameters(recurse=False)) for module in side)
        near.update((id(p), p) for p in next((found for found in owned if found), ()))
    return near


def new_parameters(
    model: nn.Module,
    module: nn.Module,
    insertion: Insertion,
    beside: Iterable[nn.Module],
    originals: Mapping[int, nn.Module],
) -> Iterator[NewParameter]:
    """The parameters of an insertion, each with those whose group it joins.

    Args:
        model: The model, without the insertion.
        module: The inserted module.
        insertion: Its record.
        beside: The modules next to it, of which the optimizer must train one; where these have no
            parameters, such as an activation, the modules in front of them and behind them.
        originals: The module that a part of it is a copy of, by the part's id.
    """
    near = _near(model, tuple(beside))
    older = tuple(near.values())
    found = [(parameter, role) for parameter, _, role in _roles(model)]
    places = [place for place, (parameter, _) in enumerate(found) if id(parameter) in near]
    first, last = min(places, default=0), max(places, default=0)
    names = {id(p): name for name, p in module.named_parameters()}
    for parameter, owner, role in _roles(module):
        ranked = sorted(
            (*role.unlike(other), max(first - place, place - last, 0), place)
            for place, (_, other) in enumerate(found)
        )
        alike = [found[place][0] for *_, place in ranked]
        original = stock(originals[id(owner)]) if id(owner) in originals else None
        copied = getattr(original, role.name, None)
        if isinstance(copied, nn.Parameter):
            alike.insert(0, copied)
        name = f"{insertion.name}.{names[id(parameter)]}"
        yield NewParameter(name, parameter, older, tuple(alike))

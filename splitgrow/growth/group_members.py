"""The parameters of a param group, each with the items that the group's other lists have for it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from splitgrow.growth.rates import AS_THE_GROUP, RATES, Rates, rates_as_data, rates_in
from splitgrow.utils.rollback import Undo


class Member(NamedTuple):
    """A parameter of a group.

    Attributes:
        parameter: The parameter.
        name: Its name in torch's ``param_names``; empty if the group has none.
        rates: Its learning rate, relative to the group's.
    """

    parameter: nn.Parameter
    name: str
    rates: Rates = AS_THE_GROUP


def members_of(group: dict[str, Any]) -> list[Member]:
    """The parameters of a group, in their order.

    Raises:
        OptimizerError: If it has rates of other parameters.
    """
    params = group["params"]
    names = group.get("param_names", [""] * len(params))
    members = zip(params, names, rates_in(group), strict=True)
    return [Member(parameter, name, rates) for parameter, name, rates in members]


def set_members_(group: dict[str, Any], members: Iterable[Member], undo: Undo) -> None:
    """Gives a group these parameters, in the lists that it has."""
    chosen = list(members)
    undo.keep(group)
    found = {"params": [m.parameter for m in chosen], "param_names": [m.name for m in chosen]}
    for key, items in found.items():
        if key in group:
            undo.on_failure(partial(group[key].__setitem__, slice(None), list(group[key])))
            group[key][:] = items
    rates = rates_as_data([m.rates for m in chosen])
    if rates is not None:
        group[RATES] = rates
    else:
        group.pop(RATES, None)

"""Criteria by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from splitgrow.pruning.criteria.activations import Activation, Reconstruction
from splitgrow.pruning.criteria.criterion import Criterion
from splitgrow.pruning.criteria.gradients import FisherInformation, Taylor
from splitgrow.pruning.criteria.magnitudes import GroupNorm, Magnitude, Random, Scale

CRITERIA: Mapping[str, Criterion] = MappingProxyType(
    {
        each.name: each
        for each in (
            *(GroupNorm(), Magnitude(1), Magnitude(2), Scale(), Taylor(), FisherInformation()),
            *(Activation(), Reconstruction(), Random()),
        )
    }
)
"""The criteria that `prune` accepts by name."""


def chosen_criterion(given: object) -> Criterion:
    """The requested criterion, given by its name or as an object.

    Raises:
        TypeError: If it is neither a text nor a criterion.
        ValueError: If there is none of that name.
    """
    if isinstance(given, Criterion):
        if not isinstance(getattr(given, "name", None), str) or not given.name:
            raise TypeError(f"{type(given).__name__}.name must be a text")
        return given
    names = ", ".join(CRITERIA)
    if not isinstance(given, str):
        raise TypeError(
            f"a criterion is a name ({names}) or a splitgrow.pruning.Criterion, got {given!r}"
        )
    if given not in CRITERIA:
        raise ValueError(f"no criterion {given!r}; there are {names}")
    return CRITERIA[given]

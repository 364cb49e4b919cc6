"""The measures: for each group of channels a number that says how much it wants to grow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from splitgrow.growth.initializers.best_steps import is_linear
from splitgrow.growth.initializers.natural import Fisher, Tiny
from splitgrow.growth.prepared import PreparedEdit
from splitgrow.growth.probe import Probe, probing
from splitgrow.growth.starting import set_start_values_
from splitgrow.growth.unit_tensors import UnitWeights

ROUNDS = 2
"""The rounds in which the best new units are searched for, where a measure needs these."""


@dataclass(frozen=True)
class Measured:
    """The numbers of a measure, and their cost.

    Attributes:
        by_group: The number of each group that it could measure.
        forwards: The forward passes over all batches together.
        backwards: The backward passes.
        reasons: Why it could not measure other groups.
    """

    by_group: Mapping[int, float]
    forwards: int
    backwards: int
    reasons: Mapping[int, str] = field(default_factory=dict)


def gradient(prepared: PreparedEdit) -> Measured:
    """The squared norm of the gradient of helpers that are zero, for random new units.

    New units have the size of the old ones. It is the measure that GradMax maximises (Evci et al.
    2022, https://arxiv.org/abs/2201.05125, equation 4).
    """
    with probing(prepared) as probe:
        _make_alike_(probe)
        if not probe.helpers:
            return Measured({}, 0, 0)
        squares = [found.double().square() for found in probe.gradients(probe.helpers)]
        return _by_group(probe, zip(probe.helpers, squares, strict=True))


def gain(prepared: PreparedEdit, *, fisher: bool = False) -> Measured:
    """The decrease of the loss that the best new units promise, to first order: TINY's measure.

    See `splitgrow.growth.initializers.natural`.
    """
    with probing(prepared) as probe:
        _make_alike_(probe)
        reasons = _keep_linear_(probe)
        if not probe.helpers:
            return Measured({}, probe.forwards, probe.backwards, reasons)
        best = (Fisher if fisher else Tiny)(ROUNDS).searched_(probe)
        return _by_group(probe, ((each.helper, each.gains) for each in best), reasons)


def natural(prepared: PreparedEdit) -> Measured:
    """The same in the metric of the Fisher information: SENN's natural expansion score."""
    return gain(prepared, fisher=True)


def _make_alike_(probe: Probe) -> None:
    """Gives new units rows of the size of the old ones, apart from each other's."""
    for layer in probe.prepared.layers.values():
        set_start_values_(layer)
    for each in probe.new:
        rows = torch.nn.functional.normalize(each.rows, dim=1)
        each.set_(each.as_tensor(rows * (each.size or 1.0)))
        each.part_from_new_inputs_()
        bias = getattr(each.block, "bias", None)
        if isinstance(bias, Tensor):
            torch.nn.init.zeros_(bias)


def _keep_linear_(probe: Probe) -> dict[int, str]:
    """Leaves only layers whose best steps can be told; returns why, for groups that others read."""
    blocks = [each.block for each in (*probe.new, *probe.helpers)]
    with torch.no_grad(), probe.watching(blocks) as calls:
        probe.loss()
    ran = {block for block, found in calls.items() if found and is_linear(block)}
    others = [each for each in probe.helpers if each.block not in ran]
    probe.helpers = [each for each in probe.helpers if each.block in ran]
    probe.new = [each for each in probe.new if each.block in ran]
    return {
        int(home): f"`{each.layer.name}` reads its units: a {each.layer.change.kind}, or not run"
        for each in others
        for home in each.homes_of_inputs()
    }


def _by_group(
    probe: Probe,
    parts: Iterable[tuple[UnitWeights, Tensor]],
    reasons: Mapping[int, str] | None = None,
) -> Measured:
    """The numbers of helpers' weights, added up for each group of the units that they read."""
    found: dict[int, float] = defaultdict(float)
    for helper, numbers in parts:
        dim = helper.layer.reading_dim(helper.key)
        assert dim is not None
        each = numbers.movedim(dim, 0).flatten(1).sum(1).tolist()
        for home, number in zip(helper.homes_of_inputs(), each, strict=True):
            found[int(home)] += number
    missing = {home: why for home, why in (reasons or {}).items() if home not in found}
    return Measured(found, probe.forwards, probe.backwards, missing)


@dataclass(frozen=True)
class Measure:
    """A measure, by its name.

    Attributes:
        says: The meaning of its numbers.
        of: Measures them on an edit that gives each group new units; None for a measure of the
            values that layers read.
        most_first: Whether a group with a larger number wants more to grow.
    """

    says: str
    of: Callable[[PreparedEdit], Measured] | None
    most_first: bool = True


MEASURES: dict[str, Measure] = {
    "gain": Measure("decrease of the loss that new units promise", gain),
    "natural": Measure("the same, in the metric of the Fisher information", natural),
    "gradient": Measure("squared gradient norm of helpers at zero", gradient),
    "dead": Measure("share of units that are the same for all inputs", None, most_first=False),
    "rank": Measure("effective rank of the units, as a share of the width", None),
}
"""The measures by name."""

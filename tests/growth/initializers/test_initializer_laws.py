"""Each registered initializer keeps its contract, on each layer of each model of the table.

The laws themselves are in tests/initializer_laws.py, which prints how many growths they hold.
"""

from __future__ import annotations

import math

import pytest
from cases import CASES, Case
from initializer_laws import VARIANCE, held_to_contract

from splitgrow.growth.initializers import Initializer, initializers
from splitgrow.growth.initializers.drawn_units import Kaiming
from splitgrow.growth.initializers.gradient import Gradient
from splitgrow.growth.initializers.natural import Fisher, Tiny
from splitgrow.growth.initializers.net2net import Net2Net
from splitgrow.growth.initializers.silent_helpers import Average, Zero
from splitgrow.growth.prepared import PreparedEdit

PASSES = {"tiny": Tiny(passes=1), "fisher": Fisher(passes=1), "gradient": Gradient(passes=2)}
"""Searches of fewer rounds, which make the same claims."""
EACH = [PASSES.get(name, each) for name, each in initializers().items()]
PLAIN = next(case for case in CASES if case.name == "conv to linear")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("initializer", EACH, ids=repr)
def test_initializers_keep_their_contracts(case: Case, initializer: Initializer) -> None:
    found = held_to_contract(case, initializer)
    assert found.broken == []
    assert initializer.needs_data or not found.refused
    assert found.growths or found.refused or initializer.way or initializer.needs_data
    if initializer.keeps_variance and found.ratios:
        mean = sum(found.ratios.values()) / len(found.ratios)
        assert abs(mean) < math.log(VARIANCE)


class LoudZero(Zero):
    """Helpers that are not zero."""

    name = "loud zero"

    def apply(self, prepared: PreparedEdit) -> None:
        super().apply(prepared)
        for layer in prepared.layers.values():
            for block in layer.added.values():
                for parameter in block.parameters():
                    parameter.add_(0.1)


class SlyZero(Zero):
    """Claims to leave old values alone, and writes to them where no version counter sees it."""

    name = "sly zero"

    def apply(self, prepared: PreparedEdit) -> None:
        super().apply(prepared)
        for layer in prepared.layers.values():
            for parameter in layer.original.parameters():
                parameter.data.add_(0.0).mul_(1 + 1e-14)


class EagerZero(Zero):
    first_gradients = frozenset(("new", "helper"))


class LateZero(Zero):
    first_gradients = frozenset(("new",))


class PartedAverage(Average):
    differ_from = "birth"


class LaterPartedAverage(Average):
    differ_from = "step"


class EqualNet2Net(Net2Net):
    """Claims that copies differ at birth."""

    differ_from = "birth"


class StrongKaiming(Kaiming):
    keeps_variance = True

    def __init__(self) -> None:
        super().__init__(gain=5.0)


@pytest.mark.parametrize(
    ("liar", "claim"),
    [
        (LoudZero(), "exact"),
        (SlyZero(), "needs_unfrozen"),
        (EagerZero(), "first_gradients"),
        (LateZero(), "first_gradients"),
        (PartedAverage(), "differ_from"),
        (LaterPartedAverage(), "differ_from"),
        (EqualNet2Net(), "differ_from"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_control_each_broken_claim_is_noticed(liar: Initializer, claim: str) -> None:
    found = held_to_contract(PLAIN, liar)
    assert any(broken.startswith(f"{claim} of ") for broken in found.broken)


def test_control_another_variance_is_noticed() -> None:
    ratios = held_to_contract(PLAIN, StrongKaiming()).ratios.values()
    assert sum(ratios) / len(ratios) > math.log(VARIANCE)

"""Numbers taken from shapes: how they follow growth, and the axis whose length each of them is."""

from __future__ import annotations

from fractions import Fraction

import pytest

from splitgrow.analysis.channels.channel_axes import Run, Size, scaled
from splitgrow.analysis.channels.channel_groups import Groups


def test_a_number_knows_how_it_follows_growth() -> None:
    groups = Groups()
    conv = groups.new(6)
    half = groups.size(conv).scaled(Fraction(1, 2))
    part = groups.sections(conv, 2, "halves")
    assert groups.same_size(half, groups.size(part))
    assert not groups.same_size(half, Size(3))
    assert not groups.slope(Size(3))
    with pytest.raises(ArithmeticError):
        groups.size(conv).scaled(Fraction(1, 4))
    assert Run(None, 2, "one reason") == Run(None, 2, "another")


def test_the_axis_of_a_number_is_one_of_its_length() -> None:
    groups = Groups()
    conv = groups.new(6)
    size = groups.size(conv)
    assert groups.axis_of(size) == conv
    assert groups.axis_of(Size(12, {conv[0].group: Fraction(2)})) == scaled(conv, 2)
    assert groups.axis_of(Size(3, {conv[0].group: Fraction(1, 2)})) is None
    assert groups.axis_of(size + Size(1)) is None
    assert groups.axis_of(Size(6)) is None
    assert groups.axis_of(size + groups.size(groups.new(2))) is None

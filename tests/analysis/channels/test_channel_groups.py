"""Every fact noted of channel axes stays true under every growth that is allowed afterwards."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from axes import positions
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from splitgrow.analysis.channels.channel_axes import Axis, Size, constant, groups_of, scaled
from splitgrow.analysis.channels.channel_groups import Groups


def units(found: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [position[:2] for position in found]


def grow_everything(groups: Groups, axes: list[Axis], step: int) -> dict[int, int]:
    """Grows each group that can by a number of its own."""
    free = {g for axis in axes for g in groups_of(groups.resolve(axis)) if not groups.is_fixed(g)}
    growth = {group: step + index for index, group in enumerate(sorted(free))}
    groups.grow(growth)
    return growth


class Statements:
    """Random statements on random axes, each with a check that does not use the algebra."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self.draw = draw
        self.groups = Groups()
        self.axes = [self.groups.new(draw(st.integers(1, 12))) for _ in range(3)]
        self.checks: list[Callable[[], bool]] = []

    def axis(self) -> Axis:
        axis: Axis = ()
        for _ in range(self.draw(st.integers(1, 3))):
            one = self.draw(st.sampled_from(self.axes))
            kind = self.draw(st.sampled_from(["plain", "plain", "scaled", "tiled", "constant"]))
            forms = {"plain": one, "scaled": scaled(one, 2), "tiled": one + one}
            axis += forms.get(kind, constant(2))
        return axis

    def number(self) -> tuple[Size, Callable[[], Fraction]]:
        """A number, and how to read it off the positions at any time."""
        kind = self.draw(st.sampled_from(["written down", "axis", "held", "sum", "part"]))
        if kind == "written down":
            value = self.draw(st.integers(1, 12))
            return Size(value), lambda: Fraction(value)
        if kind == "sum":
            (one, mine), (other, theirs) = self.number(), self.number()
            sign = self.draw(st.sampled_from([1, -1]))
            return one + other.scaled(Fraction(sign)), lambda: mine() + sign * theirs()
        if kind == "part":
            whole, value_of = self.number()
            share = Fraction(1, self.draw(st.sampled_from(divisors(abs(whole.value) or 1))))
            return whole.scaled(share), lambda: share * value_of()
        axis, groups = self.axis(), self.groups
        if kind == "held":
            axis = groups.new_number(self.draw(st.sampled_from([groups.length(axis), 2, 5])))
            self.axes.append(axis)
        return groups.size(axis), lambda: Fraction(len(positions(groups, axis)))

    def state(self) -> None:
        kinds = ["tie", "sections", "bundle", "cut", "fix", "equate", "settle", "cut_at_number"]
        getattr(self, self.draw(st.sampled_from(kinds)))()

    def equate(self) -> None:
        axis, groups = self.axis(), self.groups
        number, value_of = self.number()
        if self.draw(st.booleans()):  # one that fits, as a number that a module holds does
            held = groups.new_number(groups.length(axis))
            self.axes.append(held)
            number, value_of = groups.size(held), lambda: Fraction(len(positions(groups, held)))
        stated = groups.equate(axis, number, "equate")
        event(f"equal: {stated}")
        self.checks.append(lambda: not stated or len(positions(groups, axis)) == value_of())

    def settle(self) -> None:
        (one, mine), (other, theirs) = self.number(), self.number()
        self.groups.settle(one, other, "settle")
        sign = compared(mine(), theirs())
        self.checks.append(lambda: compared(mine(), theirs()) == sign)

    def cut_at_number(self) -> None:
        axis, groups = self.axis(), self.groups
        number, value_of = self.number()
        if not 0 <= number.value <= groups.length(axis):
            return
        before, behind = groups.cut_at(axis, number, "cut")
        self.axes.append(axis)

        def check() -> bool:
            left, right = positions(groups, before), positions(groups, behind)
            return left + right == positions(groups, axis) and len(left) == value_of()

        self.checks.append(check)

    def tie(self) -> None:
        one, other, groups = self.axis(), self.axis(), self.groups
        short, long = sorted((one, other), key=groups.length)
        missing = groups.length(long) - groups.length(short)
        short += self.groups.new(missing) if missing else ()
        self.axes.append(short)
        groups.tie(short, long, "tie")
        self.checks.append(lambda: positions(groups, short) == positions(groups, long))

    def sections(self) -> None:
        axis, groups = self.axis(), self.groups
        count = self.draw(st.sampled_from(divisors(groups.length(axis))))
        groups.sections(axis, count, "sections")

        def check() -> bool:
            found = positions(groups, axis)
            size, rest = divmod(len(found), count)
            parts = [found[i * size : (i + 1) * size] for i in range(count)]
            return rest == 0 and all(part == parts[0] for part in parts)

        self.checks.append(check)

    def bundle(self) -> None:
        axis, groups = self.axis(), self.groups
        size = self.draw(st.sampled_from(divisors(groups.length(axis))))
        bundles = groups.bundle(axis, size, "bundle")

        def check() -> bool:
            found = units(positions(groups, axis))
            parts = [found[i : i + size] for i in range(0, len(found), size)]
            whole = all(len(set(part)) == 1 and len(part) == size for part in parts)
            return whole and groups.length(bundles) == len(parts)

        self.checks.append(check)

    def cut(self) -> None:
        axis, groups = self.axis(), self.groups
        whole = groups.size(axis)
        at = self.draw(st.integers(0, whole.value))
        kind = self.draw(st.sampled_from(["written down", "from the end", "share", "other axis"]))
        position = Size(at)
        if kind == "from the end":
            position = whole + Size(at - whole.value)
        elif kind == "share":
            count = self.draw(st.sampled_from(divisors(whole.value)))
            position = whole.scaled(Fraction(1, count))
        elif kind == "other axis":
            position = groups.size(axis[:1])
        before, behind = groups.cut_at(axis, position, "cut")
        self.axes.append(axis)

        def check() -> bool:
            found = positions(groups, axis)
            left, right = positions(groups, before), positions(groups, behind)
            moved = groups.slope(position).items()
            value = position.value + sum(by * self.grown.get(group, 0) for group, by in moved)
            return left + right == found and len(left) == value

        self.checks.append(check)

    def fix(self) -> None:
        axis, groups = self.draw(st.sampled_from(self.axes)), self.groups
        groups.fix(axis, "fix")
        length = groups.length(axis)
        self.checks.append(lambda: groups.length(axis) == length)

    grown: dict[int, int]


def compared(one: Fraction, other: Fraction) -> int:
    return (one > other) - (one < other)


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def stay_true(data: Any, step: int) -> None:
    statements = Statements(data.draw)
    for _ in range(data.draw(st.integers(1, 5))):
        statements.state()
    groups, axes = statements.groups, statements.axes
    before = [positions(groups, axis) for axis in axes]
    statements.grown = {}
    assert all(check() for check in statements.checks)
    statements.grown = grow_everything(groups, axes, step)
    event("something grew" if statements.grown else "nothing could grow")
    assert all(check() for check in statements.checks)
    for axis, old in zip(axes, before, strict=True):
        # What was there is still there, in the same order.
        now = positions(groups, axis)
        kept = iter(now)
        assert all(position in kept for position in old)


@settings(max_examples=600, deadline=None)
@given(st.data(), st.integers(1, 3))
def test_statements_stay_true_under_any_growth(data: Any, step: int) -> None:
    stay_true(data, step)


UNSTATED = {
    "equate": lambda groups, axis, size, reason: True,
    "settle": lambda groups, one, other, reason: None,
    "tie": lambda groups, one, other, reason: None,
    "cut_at": lambda groups, axis, position, reason: groups.cut(axis, position.value, reason),
}


@pytest.mark.parametrize("name", UNSTATED)
def test_control_what_is_not_stated_does_not_stay_true(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(Groups, name, UNSTATED[name])
    search = settings(
        max_examples=600,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with pytest.raises(AssertionError):
        search(given(st.data(), st.integers(1, 3))(stay_true))()


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 3))
def test_insertions_say_where_growth_lands(data: Any, step: int) -> None:
    statements = Statements(data.draw)
    for _ in range(data.draw(st.integers(0, 3))):
        statements.state()
    axis, groups = statements.axis(), statements.groups
    old = positions(groups, axis)
    free = [g for g in groups_of(groups.resolve(axis)) if not groups.is_fixed(g)]
    growth = {group: step + index for index, group in enumerate(free)}
    landed = groups.insertions(axis, growth)
    groups.grow(growth)
    expected: list[Any] = list(old)
    for position, count in landed[::-1]:
        expected[position:position] = ["new"] * count
    known = set(old)
    assert [p if p in known else "new" for p in positions(groups, axis)] == expected


def test_half_an_axis_grows_as_its_other_half() -> None:
    groups = Groups()
    conv = groups.new(8)
    half = groups.sections(conv, 2, "chunk")
    assert groups.resolve(conv) == half + half
    groups.grow({half[0].group: 1})
    assert (groups.length(conv), groups.length(half)) == (10, 5)


def test_a_group_that_meets_a_constant_is_fixed_and_says_why() -> None:
    groups = Groups()
    conv = groups.new(3)
    groups.tie(conv, constant(3, "the input has 3 channels"), "the add needs it")
    assert not groups.can_grow(conv)
    assert groups.reasons(conv) == ("the input has 3 channels",)


def test_reasons_travel_through_ties() -> None:
    groups = Groups()
    one, other, third = groups.new(4), groups.new(4), groups.new(2)
    groups.fix(one, "first")
    groups.tie(other, one, "tied")
    groups.tie(other, third + third, "chunked")
    assert groups.reasons(third) == groups.reasons(other) == ("first",)


def test_interleaved_against_side_by_side_cannot_grow() -> None:
    groups = Groups()
    conv = groups.new(6)
    groups.tie(scaled(conv, 2), conv + conv, "shuffled twice")
    assert not groups.can_grow(conv)
    assert groups.reasons(conv) == ("shuffled twice",)


def test_axes_of_other_lengths_cannot_be_tied() -> None:
    groups = Groups()
    with pytest.raises(AssertionError):
        groups.tie(groups.new(3), groups.new(4), "wrong")


def test_a_number_that_is_held_follows_the_width_it_turns_out_to_measure() -> None:
    groups = Groups()
    conv, held = groups.new(6), groups.new_number(6)
    number = groups.size(held)
    assert groups.is_free(number)
    assert not groups.is_free(groups.size(conv))
    assert groups.equate(conv, number, "view")
    assert not groups.is_free(number)
    groups.grow(dict.fromkeys(groups_of(groups.resolve(conv)), 2))
    assert groups.length(held) == groups.length(conv) == 8


def test_a_number_of_heads_follows_three_sections_of_them() -> None:
    groups = Groups()
    linear, heads = groups.new(18), groups.new_number(2)
    bundles = groups.bundle(groups.sections(linear, 3, "qkv"), 3, "head size")
    assert groups.equate(bundles, groups.size(heads), "view")
    (group,) = groups_of(groups.resolve(heads))
    groups.grow({group: 1})
    assert (groups.length(linear), groups.length(heads)) == (27, 3)


def test_a_number_that_is_split_or_bundled_is_still_one_that_is_held() -> None:
    groups = Groups()
    held = groups.new_number(12)
    groups.cut(held, 4, "cut")
    assert groups.is_free(groups.size(held))
    groups.bundle(held, 2, "bundle")
    assert groups.is_free(groups.size(held))
    groups.tie(held, groups.new_number(12), "tie")
    assert groups.is_free(groups.size(held))
    groups.tie(held, groups.new(12), "tie")
    assert not groups.is_free(groups.size(held))


def test_equating_with_a_number_that_is_written_down_or_does_not_fit_states_nothing() -> None:
    groups = Groups()
    conv, held = groups.new(6), groups.new_number(5)
    for number in (Size(6), groups.size(held), groups.size(conv) + Size(1)):
        assert not groups.equate(conv, number, "view")
    assert groups.can_grow(conv)
    assert groups.can_grow(held)


@pytest.mark.parametrize(
    ("apart", "grows"), [(-1, True), (-6, True), (0, False), (1, False), (100, False)]
)
def test_settling_a_width_against_a_written_number_fixes_it_where_it_could_be_passed(
    apart: int, grows: bool
) -> None:
    groups = Groups()
    conv = groups.new(6)
    groups.settle(groups.size(conv), Size(6 + apart), "compared")
    assert groups.can_grow(conv) == grows
    assert groups.reasons(conv) == (() if grows else ("compared",))


def test_settling_two_equal_widths_ties_them_and_two_unequal_ones_fixes_them() -> None:
    groups = Groups()
    one, other, third = groups.new(6), groups.new(6), groups.new(4)
    groups.settle(groups.size(one), groups.size(other), "compared")
    assert groups.resolve(one) == groups.resolve(other)
    assert groups.can_grow(one)
    groups.settle(groups.size(one), groups.size(third), "compared")
    assert not groups.can_grow(one)
    assert not groups.can_grow(third)


def test_an_axis_is_cut_at_a_number_that_a_module_holds() -> None:
    groups = Groups()
    conv, held = groups.new(8), groups.new_number(3)
    before, behind = groups.cut_at(conv, groups.size(held), "split")
    assert groups.can_grow(before)
    assert groups.can_grow(behind)
    (group,) = groups_of(groups.resolve(held))
    groups.grow({group: 2})
    assert [groups.length(axis) for axis in (before, behind, held, conv)] == [5, 5, 5, 10]

"""The algebra of channel axes: which stretches of an axis must grow together.

Pure integers, no torch. A `Groups` store holds one entry for every group of channels that grow as
one. Ops never guess. They state constraints (`Groups.tie`, `Groups.cut`, `Groups.sections`,
`Groups.bundle`, `Groups.equate`), and the store refines its groups until these hold: it splits a
group in two, merges it with another, or bundles its units. Where no refinement makes a constraint
hold under growth, the store fixes the groups concerned, with a reason. Every refinement lowers the
freedom to grow and none raises it, so a constraint that was stated once stays true.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction

from splitgrow.analysis.channels.channel_axes import Axis, Run, Size, constant, groups_of, scaled


class Groups:
    """The store of groups: their widths, their refinements, and the reasons why some are fixed."""

    def __init__(self) -> None:
        self._widths: list[int] = []
        self._becomes: dict[int, Axis] = {}  # in order of refinement: reasons sit on the way
        self._resolved: dict[int, Axis] = {}  # the same in fewer steps
        self._reasons: dict[int, tuple[str, ...]] = {}
        self._numbers: set[int] = set()

    # -- reading ---------------------------------------------------------------------------------

    def resolve(self, axis: Axis) -> Axis:
        """The same axis in terms of today's groups."""
        if len(axis) == 1 and axis[0].group not in self._becomes:
            return axis
        resolved: list[Run] = []
        for run in axis:
            pieces: Axis = (run,)
            if run.group is not None and run.group in self._becomes:
                known = self._resolved.get(run.group, self._becomes[run.group])
                self._resolved[run.group] = self.resolve(known)
                pieces = scaled(self._resolved[run.group], run.repeat)
            for piece in pieces:
                if piece.group is None and resolved and resolved[-1].group is None:
                    last = resolved.pop()
                    piece = Run(None, last.repeat + piece.repeat, last.reason or piece.reason)
                resolved.append(piece)
        return tuple(resolved)

    def width(self, group: int) -> int:
        """The number of units of a group."""
        return self._widths[group]

    def length(self, axis: Axis) -> int:
        """The number of positions on an axis."""
        axis = self.resolve(axis)
        return self._run_length(axis[0]) if len(axis) == 1 else sum(map(self._run_length, axis))

    def _run_length(self, run: Run) -> int:
        return run.repeat if run.group is None else run.repeat * self._widths[run.group]

    def is_fixed(self, group: int) -> bool:
        """Whether a group of today cannot grow."""
        return group in self._reasons

    def can_grow(self, axis: Axis) -> bool:
        """Whether any group on the axis is free to grow."""
        return any(not self.is_fixed(group) for group in groups_of(self.resolve(axis)))

    def reasons(self, axis: Axis) -> tuple[str, ...]:
        """Why stretches of the axis are fixed, each reason once."""
        found: dict[str, None] = {}
        pending = list(axis[::-1])
        while pending:
            run = pending.pop()
            if run.group is None:
                found.update({run.reason: None} if run.reason else {})
            else:
                found.update(dict.fromkeys(self._reasons.get(run.group, ())))
                pending.extend(self._becomes.get(run.group, ())[::-1])
        return tuple(found)

    def size(self, axis: Axis) -> Size:
        """The length of an axis, as a number with its change under growth."""
        slope: dict[int, Fraction] = {}
        for run in axis:
            if run.group is not None:
                slope[run.group] = slope.get(run.group, Fraction(0)) + run.repeat
        return Size(self.length(axis), slope, axis)

    def axis_of(self, size: Size) -> Axis | None:
        """An axis whose length is this number, now and after growth; None if none is known."""
        if size.axis is not None:
            return self.resolve(size.axis)
        if len(size.slope) != 1:
            return None
        ((group, change),) = size.slope.items()
        whole = change.denominator == 1 and size.value == change * self._widths[group]
        return self.resolve((Run(group, int(change)),)) if whole and change > 0 else None

    def is_free(self, size: Size) -> bool:
        """Whether a number, a module's attribute, could follow a width but is tied to none yet."""
        slope = self.slope(size)
        return bool(slope) and self._numbers.issuperset(slope)

    def slope(self, size: Size) -> dict[int, Fraction]:
        """The change of a number with each group of today that is free to grow."""
        slope: dict[int, Fraction] = {}
        for group, change in size.slope.items():
            for run in self.resolve((Run(group, 1),)):
                if run.group is not None and not self.is_fixed(run.group):
                    slope[run.group] = slope.get(run.group, Fraction(0)) + change * run.repeat
        return {group: change for group, change in slope.items() if change}

    def same_size(self, one: Size, other: Size) -> bool:
        """Whether two numbers are equal now and after any growth that is allowed."""
        return one.value == other.value and self.slope(one) == self.slope(other)

    # -- numbers that must be equal ---------------------------------------------------------------

    def equate(self, axis: Axis, size: Size, reason: str) -> bool:
        """Makes the length of an axis equal to a number now and after growth, if possible.

        A number that measures another axis ties the two. A number that a module holds is tied to
        this one. A number that is written down states nothing, and the answer is False.
        """
        if self.same_size(self.size(axis), size):
            return True
        other = self.axis_of(size)
        if other is None or self.length(axis) != size.value:
            return False
        axis = self.resolve(axis)
        count = other[0].repeat if len(other) == 1 else 1
        if count > 1 and axis == axis[: len(axis) // count] * count:
            # Three times a width: three sections, not units of three neighbours.
            axis, other = axis[: len(axis) // count], (replace(other[0], repeat=1),)
        self.tie(axis, other, reason)
        return self.same_size(self.size(axis), self.size(other))

    def settle(self, one: Size, other: Size, reason: str) -> None:
        """Makes two numbers compare after growth as they do now."""
        change = {group: Fraction(0) for group in (*self.slope(one), *self.slope(other))}
        for group, rise in self.slope(one).items():
            change[group] += rise
        for group, rise in self.slope(other).items():
            change[group] -= rise
        apart = one.value - other.value
        if not any(change.values()) or (
            apart and all(rise * apart >= 0 for rise in change.values())
        ):
            return  # their distance stays or rises
        axis = self.axis_of(one)
        if apart or axis is None or not self.equate(axis, other, reason):
            self.fix_size(one, reason)
            self.fix_size(other, reason)

    # -- constraints ------------------------------------------------------------------------------

    def new(self, width: int) -> Axis:
        """A new group of `width` units on an axis of its own."""
        return self._derived(width, ())

    def new_number(self, value: int) -> Axis:
        """A new group for a number that a module holds; no axis has its units until it is tied.

        Such a number can follow the width that it turns out to measure. A number that is written
        down would prevent growth there.
        """
        return self._derived(value, (), number=True)

    def _derived(self, width: int, reasons: tuple[str, ...], *, number: bool = False) -> Axis:
        """A group made of older ones, which is fixed if they were."""
        self._widths.append(width)
        group = len(self._widths) - 1
        if reasons:
            self._reasons[group] = reasons
        if number:
            self._numbers.add(group)
        return (Run(group, 1),)

    def fix(self, axis: Axis, reason: str) -> None:
        """Makes the axis unable to grow, for this reason."""
        self._fix_groups(groups_of(self.resolve(axis)), reason)

    def fix_size(self, size: Size, reason: str) -> None:
        """Makes a number unable to change, for this reason."""
        self._fix_groups(list(self.slope(size)), reason)

    def _fix_groups(self, groups: Iterable[int], reason: str) -> None:
        for group in groups:
            known = self._reasons.get(group, ())
            # A group that is fixed already keeps its first reason: the later ones follow from it.
            self._reasons[group] = known or (reason,)

    def tie(self, one: Axis, other: Axis, reason: str) -> None:
        """Makes two axes of equal length grow alike, position by position.

        Refines both until their runs match one to one. Where they cannot (a unit on two
        neighbouring positions against one on two distant ones), it fixes the groups in the way.
        """
        assert self.length(one) == self.length(other), (one, other)
        while True:
            one, other = self.resolve(one), self.resolve(other)
            if one == other:
                return
            self._tie_first_difference(one, other, reason)

    def _tie_first_difference(self, one: Axis, other: Axis, reason: str) -> None:
        ours, theirs, position = self._first_difference(one, other)
        ours_length, theirs_length = self._run_length(ours), self._run_length(theirs)
        end = position + min(ours_length, theirs_length)
        if ours.group is not None and ours_length > theirs_length:
            self.cut(one, end, reason)
        elif theirs.group is not None and theirs_length > ours_length:
            self.cut(other, end, reason)
        elif ours.group is None or theirs.group is None:
            constant_run, run = (ours, theirs) if ours.group is None else (theirs, ours)
            assert run.group is not None, "two constants do not differ"
            self._make_constant(run.group, constant_run.reason or reason)
        else:
            self._merge(ours, theirs, reason)

    def _first_difference(self, one: Axis, other: Axis) -> tuple[Run, Run, int]:
        """The runs where two axes first differ, and the position at which those start."""
        left, right = list(one[::-1]), list(other[::-1])
        position = 0
        while True:
            ours, theirs = left.pop(), right.pop()
            if ours != theirs and not (ours.group is None and theirs.group is None):
                return ours, theirs, position
            # Constants can be cut anywhere at no cost: the rest of the longer one stays.
            common = min(self._run_length(ours), self._run_length(theirs))
            if ours.repeat > theirs.repeat:
                left.append(replace(ours, repeat=ours.repeat - common))
            elif theirs.repeat > ours.repeat:
                right.append(replace(theirs, repeat=theirs.repeat - common))
            position += common

    def _merge(self, ours: Run, theirs: Run, reason: str) -> None:
        """Makes one group of two whose runs start at the same position and are equally long."""
        assert ours.group is not None
        assert theirs.group is not None
        assert ours.group != theirs.group, "runs of one group and one length are equal"
        common = math.lcm(ours.repeat, theirs.repeat)
        length = self._run_length(ours)
        if length % common:
            self._make_constant(ours.group, reason)
            self._make_constant(theirs.group, reason)
            return
        reasons = self._reasons.get(ours.group, ()) or self._reasons.get(theirs.group, ())
        number = self._numbers.issuperset((ours.group, theirs.group))
        merged = self._derived(length // common, reasons, number=number)
        self._becomes[ours.group] = scaled(merged, common // ours.repeat)
        self._becomes[theirs.group] = scaled(merged, common // theirs.repeat)

    def _make_constant(self, group: int, reason: str) -> None:
        self._fix_groups([group], reason)
        self._becomes[group] = constant(self._widths[group], self._reasons[group][0])

    def cut(self, axis: Axis, position: int, reason: str) -> tuple[Axis, Axis]:
        """The axis before and from a position, its groups refined so that none lies across it."""
        while True:
            axis = self.resolve(axis)
            start = 0
            for index, run in enumerate(axis):
                length = self._run_length(run)
                if start == position:
                    return axis[:index], axis[index:]
                if start < position < start + length:
                    break
                start += length
            else:
                return axis, ()
            offset = position - start
            if run.group is None:
                head, tail = constant(offset, run.reason), constant(length - offset, run.reason)
                return axis[:index] + head, tail + axis[index + 1 :]
            if offset % run.repeat:
                # The cut goes through the middle of a unit.
                self._make_constant(run.group, reason)
            else:
                self._split(run.group, offset // run.repeat)

    def _split(self, group: int, units: int) -> None:
        reasons, number = self._reasons.get(group, ()), group in self._numbers
        first = self._derived(units, reasons, number=number)
        rest = self._derived(self._widths[group] - units, reasons, number=number)
        self._becomes[group] = first + rest

    def cut_at(self, axis: Axis, position: Size, reason: str) -> tuple[Axis, Axis]:
        """The axis before and from a position that may itself move as the axis grows.

        A position that stays fixes the groups before it. One that keeps its distance from the end
        fixes the groups behind it. A share of the axis, such as its half, makes the shares grow
        alike.
        """
        if self._at_boundary(axis, position.value):
            before, behind = self.cut(axis, position.value, reason)
            if self.same_size(self.size(before), position):
                return before, behind
        whole = self.size(axis)
        if not self.slope(position):
            before, behind = self.cut(axis, position.value, reason)
            self.fix(before, reason)
        elif self.slope(position) == self.slope(whole):
            before, behind = self.cut(axis, position.value, reason)
            self.fix(behind, reason)
        elif self.axis_of(position) is not None:
            before, behind = self.cut(axis, position.value, reason)
            if not self.equate(before, position, reason):
                self.fix(before, reason)
                self.fix_size(position, reason)
        else:
            self.sections(axis, whole.value // math.gcd(whole.value, position.value), reason)
            before, behind = self.cut(axis, position.value, reason)
            if not self.same_size(self.size(before), position):
                self.fix(axis, reason)
                self.fix_size(position, reason)
        return self.resolve(before), self.resolve(behind)

    def _at_boundary(self, axis: Axis, position: int) -> bool:
        start = 0
        for run in self.resolve(axis):
            if start >= position:
                break
            start += self._run_length(run)
        return start == position

    def sections(self, axis: Axis, count: int, reason: str) -> Axis:
        """One of `count` equal sections of the axis, all of them made to grow alike."""
        length = self.length(axis)
        assert length % count == 0, (length, count)
        first, rest = self.cut(axis, length // count, reason)
        for _ in range(count - 1):
            section, rest = self.cut(rest, length // count, reason)
            self.tie(first, section, reason)
        return self.resolve(first)

    def bundle(self, axis: Axis, size: int, reason: str) -> Axis:
        """The axis with every `size` neighbouring positions taken as one that grows whole.

        Returns the axis of the bundles: ``length // size`` positions.
        """
        assert self.length(axis) % size == 0, (axis, size)
        while True:
            axis = self.resolve(axis)
            if not self._bundle_first_misfit(axis, size, reason):
                # Constants lie between whole bundles now, so they divide as well.
                return tuple(replace(run, repeat=run.repeat // size) for run in axis)

    def _bundle_first_misfit(self, axis: Axis, size: int, reason: str) -> bool:
        start = 0
        for run in axis:
            length = self._run_length(run)
            if run.group is not None:
                units = math.lcm(run.repeat, size) // run.repeat
                if start % size or length % size:
                    # A bundle lies across the border of two runs.
                    self._make_constant(run.group, reason)
                    return True
                if units > 1:
                    reasons = self._reasons.get(run.group, ())
                    number = run.group in self._numbers
                    width = self._widths[run.group] // units
                    bundled = self._derived(width, reasons, number=number)
                    self._becomes[run.group] = scaled(bundled, units)
                    return True
            start += length
        return False

    # -- growth ----------------------------------------------------------------------------------

    def grow(self, growth: Mapping[int, int]) -> None:
        """Adds units to groups: ``growth[g]`` units at the end of each run of group `g`."""
        for group, units in growth.items():
            assert group not in self._becomes
            assert not self.is_fixed(group)
            self._widths[group] += units

    def grown(self, growth: Mapping[int, int]) -> Groups:
        """The store after growth; this one stays as it is. Only the widths are copied."""
        grown = copy.copy(self)
        grown._widths = list(self._widths)  # noqa: SLF001 - of this same class
        grown.grow(growth)
        return grown

    def insertions(self, axis: Axis, growth: Mapping[int, int]) -> tuple[tuple[int, int], ...]:
        """Where growth lands on an axis: (position before growth, number of new positions)."""
        landed = []
        end = 0
        for run in self.resolve(axis):
            end += self._run_length(run)
            if run.group is not None and run.group in growth:
                landed.append((end, run.repeat * growth[run.group]))
        return tuple(landed)

"""Where the channels of a grown axis came from: the births of its segments, in order of position.

Pure integers, no torch. An axis starts as one segment of birth 0. Each edit inserts segments of its
own birth, at the end or in the middle, and never reorders the others. So leaving out the later
births gives the axis as it was at any earlier edit, in the same order, and a block made then finds
its channels again at their new positions.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

Stretches = tuple[tuple[int, int], ...]
"""Stretches (start, length) of positions, in order, with a gap between each and the next."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighbouring positions that were born in the same edit (0: the original layer)."""

    birth: int
    length: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring positions of one of two tensors that are joined into one."""

    new: bool
    start: int
    length: int


@dataclass(frozen=True)
class Layout:
    """The segments of one channel axis, in order of position.

    Where the positions of each birth lie is found once, for all births: a layer that has grown a
    thousand times asks for each of them.
    """

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        if any([segment.length < 1 or segment.birth < 0 for segment in self.segments]):  # noqa: C419 - faster
            raise ValueError(f"segments need a length of at least 1 and a birth, got {self}")
        if any([left.birth == right.birth for left, right in pairwise(self.segments)]):  # noqa: C419
            raise ValueError(f"neighbouring segments of one birth are one segment, got {self}")

    def __getstate__(self) -> dict[str, Any]:
        """The segments, without all that follows from them."""
        return {"segments": self.segments}

    @classmethod
    def original(cls, length: int) -> Layout:
        """The layout of an axis that has not grown."""
        return cls((Segment(0, length),) if length else ())

    @property
    def length(self) -> int:
        """The number of positions."""
        return sum([segment.length for segment in self.segments])  # noqa: C419 - faster

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        """The position behind each segment."""
        return tuple(accumulate([segment.length for segment in self.segments]))

    @cached_property
    def _born(self) -> dict[int, Stretches]:
        """The positions of each birth, the births in rising order."""
        found: dict[int, list[tuple[int, int]]] = {}
        for segment, end in zip(self.segments, self._ends, strict=True):
            found.setdefault(segment.birth, []).append((end - segment.length, segment.length))
        return {birth: tuple(found[birth]) for birth in sorted(found)}

    @cached_property
    def _grown(self) -> tuple[list[int], list[Stretches]]:
        """The births in rising order, and the positions of all births up to each."""
        ends_of, starts_of, grown = dict[int, int](), dict[int, int](), list[Stretches]()
        for stretches in self._born.values():
            for start, length in stretches:
                first, last = starts_of.pop(start, start), start + length
                last = ends_of.pop(last, last)
                ends_of[first], starts_of[last] = last, first
            grown.append(tuple((start, ends_of[start] - start) for start in sorted(ends_of)))
        return list(self._born), grown

    @cached_property
    def _behind(self) -> frozenset[int]:
        """The births that were behind all older positions."""
        found, end = list[int](), 0
        for birth, stretches in self._born.items():
            start, length = stretches[0]
            if start >= end > 0:
                found.append(birth)
            start, length = stretches[-1]
            end = max(end, start + length)
        return frozenset(found)

    @cached_property
    def _rising(self) -> tuple[int, ...]:
        """The births, if each is behind all older ones, as in most layouts; otherwise none.

        Then all else is found without looking at every segment.
        """
        births = [segment.birth for segment in self.segments]
        return tuple(births if births == sorted(births) else ())

    def all_behind(self, births: Iterable[int]) -> bool:
        """Whether each birth of the axis is behind all older ones, and these are some of them."""
        return set(self._rising[1:]).issuperset(births)

    def is_behind(self, birth: int) -> bool:
        """Whether the positions of an edit were behind all those that existed."""
        if self._rising:
            return birth != self._rising[0] and self._place(birth) is not None
        return birth in self._behind

    def _place(self, birth: int) -> int | None:
        """The segment of a birth, where births are rising."""
        place = bisect_left(self._rising, birth)
        return place if place < len(self._rising) and self._rising[place] == birth else None

    def born_in(self, birth: int) -> Stretches:
        """The positions that were born in an edit."""
        if self._rising:
            place = self._place(birth)
            if place is None:
                return ()
            length = self.segments[place].length
            return ((self._ends[place] - length, length),)
        return self._born.get(birth, ())

    def born_until(self, birth: int) -> Stretches:
        """The positions that existed after an edit."""
        if self._rising:
            count = bisect_right(self._rising, birth)
            return ((0, self._ends[count - 1]),) if count else ()
        births, grown = self._grown
        if not births or birth < births[0]:
            return ()
        return grown[-1] if birth >= births[-1] else grown[bisect_right(births, birth) - 1]

    def until(self, birth: int) -> Layout:
        """The axis as it was after the edit of that number."""
        return Layout(_joined(segment for segment in self.segments if segment.birth <= birth))

    def inserted(self, insertions: Sequence[tuple[int, int]], birth: int) -> Layout:
        """The axis after an edit.

        Args:
            insertions: Pairs of a position before the edit and the number of positions inserted
                there, in rising order.
            birth: The number of the edit; higher than any on the axis.
        """
        if not insertions:
            return self
        parts: list[Sequence[Segment]] = []
        start, index, rest = 0, 0, 0  # up to here; the segment there, and how much of it is taken
        for position, count in insertions:
            if start < position:
                end = bisect_right(self._ends, position)  # the segments before it end by then
                if end > index and rest:
                    first = self.segments[index]
                    parts.append((Segment(first.birth, first.length - rest),))
                    index, rest = index + 1, 0
                parts.append(self.segments[index:end])
                before = max(start, self._ends[end - 1] if end else 0)
                index = max(index, end)
                if position > before:
                    parts.append((Segment(self.segments[index].birth, position - before),))
                    rest += position - before
                start = position
            parts.append((Segment(birth, count),))
        if rest:
            first = self.segments[index]
            parts.append((Segment(first.birth, first.length - rest),))
            index += 1
        parts.append(self.segments[index:])
        return Layout(_strung(parts))

    def without(self, gone: Iterable[tuple[int, int]]) -> Layout:
        """The axis without some positions.

        Args:
            gone: Stretches (start, length) in order of position.
        """
        segments: list[Segment] = []
        pending, start = list(self.segments[::-1]), 0
        for first, count in (*gone, (self.length, 0)):
            for end, stays in ((first, True), (first + count, False)):
                while start < end:
                    segment = pending.pop()
                    taken = min(segment.length, end - start)
                    if stays:
                        segments.append(Segment(segment.birth, taken))
                    if taken < segment.length:
                        pending.append(Segment(segment.birth, segment.length - taken))
                    start += taken
        return Layout(_joined(segments))

    def births_at(self, positions: Iterable[tuple[int, int]]) -> frozenset[int]:
        """The births of the positions on some stretches (start, length)."""
        found, start = set[int](), 0
        stretches = list(positions)
        for segment in self.segments:
            end = start + segment.length
            if any(first < end and start < first + count for first, count in stretches):
                found.add(segment.birth)
            start = end
        return frozenset(found)

    def renamed(self, births: Collection[int], birth: int) -> Layout:
        """The axis as if the segments of some births had been born in one other edit."""
        return Layout(
            _joined(
                Segment(birth if segment.birth in births else segment.birth, segment.length)
                for segment in self.segments
            )
        )

    def spans(self, chosen: Callable[[int], bool]) -> tuple[tuple[int, int], ...]:
        """The stretches (start, length) of positions whose birth is chosen, neighbours joined."""
        spans: list[tuple[int, int]] = []
        start = 0
        for segment in self.segments:
            if chosen(segment.birth):
                if spans and sum(spans[-1]) == start:
                    spans[-1] = (spans[-1][0], spans[-1][1] + segment.length)
                else:
                    spans.append((start, segment.length))
            start += segment.length
        return tuple(spans)

    def pieces(self, birth: int) -> tuple[Piece, ...]:
        """How the axis after edit `birth` is put together from the older and the new channels.

        It reads all segments, which torch's compiler can follow, whose numbers may be symbols.
        """
        pieces: list[Piece] = []
        taken = {True: 0, False: 0}
        for segment in self.until(birth).segments:
            new = False
            if segment.birth == birth:  # torch's compiler cannot compare the results of comparisons
                new = True
            if pieces and pieces[-1].new == new:
                last = pieces.pop()
                pieces.append(Piece(new, last.start, last.length + segment.length))
            else:
                pieces.append(Piece(new, taken[new], segment.length))
            taken[new] += segment.length
        return tuple(pieces)

    def turns(self, birth: int) -> tuple[Piece, ...]:
        """As `pieces`, by what is found once for all births."""
        pieces: list[Piece] = []
        old = new = passed = 0  # positions before this one, and those of the stretches before it
        if self.is_behind(birth):
            new = sum(count for _, count in self.born_in(birth))
            old = sum(count for _, count in self.born_until(birth)) - new
            return Piece(new=False, start=0, length=old), Piece(new=True, start=0, length=new)
        for start, length in self.born_until(birth):
            for first, count in self.born_in(birth):
                if not start <= first < start + length:
                    continue
                place = passed + first - start
                if place > old + new:
                    pieces.append(Piece(False, old, place - old - new))
                    old = place - new
                if pieces and pieces[-1].new:
                    pieces[-1] = Piece(True, pieces[-1].start, pieces[-1].length + count)
                else:
                    pieces.append(Piece(True, new, count))
                new += count
            passed += length
        if passed > old + new:
            pieces.append(Piece(False, old, passed - old - new))
        return tuple(pieces)

    def repeated(self, count: int) -> Layout:
        """The layout of as many such axes, one behind the other."""
        return self if count == 1 else Layout(_joined(self.segments * count))

    def section(self, count: int) -> Layout:
        """The layout of one of `count` equal sections, such as one group of a grouped conv.

        Raises:
            ValueError: If the sections are not equal.
        """
        if count == 1:
            return self
        if self.length % count:
            raise ValueError(f"{self.length} positions do not make {count} equal sections")
        segments: list[Segment] = []
        left = self.length // count
        for segment in self.segments:
            segments.append(Segment(segment.birth, min(segment.length, left)))
            left -= segments[-1].length
            if not left:
                break
        section = Layout(tuple(segments))
        if _joined(section.segments * count) != self.segments:
            raise ValueError(f"the {count} sections of {self} differ")
        return section


def _joined(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    joined: list[Segment] = []
    for segment in segments:
        if joined and joined[-1].birth == segment.birth:
            segment = Segment(segment.birth, joined.pop().length + segment.length)
        joined.append(segment)
    return tuple(joined)


def _strung(parts: Iterable[Sequence[Segment]]) -> tuple[Segment, ...]:
    """Segments one behind the other; those of one part are not joined yet only at its ends."""
    strung: list[Segment] = []
    for part in parts:
        if strung and part and strung[-1].birth == part[0].birth:
            strung[-1] = Segment(part[0].birth, strung[-1].length + part[0].length)
            strung += part[1:]
        else:
            strung += part
    return tuple(strung)

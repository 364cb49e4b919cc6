"""Where the channels of a grown axis came from: the births of its segments, in order of position.

Pure integers, no torch. An axis starts as one segment of birth 0. Each edit inserts segments of its
own birth, at the end or in the middle, and never reorders the others. So leaving out the later
births gives the axis as it was at any earlier edit, in the same order, and a block made then finds
its channels again at their new positions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise


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
    """The segments of one channel axis, in order of position."""

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        if any(segment.length < 1 or segment.birth < 0 for segment in self.segments):
            raise ValueError(f"segments need a length of at least 1 and a birth, got {self}")
        if any(left.birth == right.birth for left, right in pairwise(self.segments)):
            raise ValueError(f"neighbouring segments of one birth are one segment, got {self}")

    @classmethod
    def original(cls, length: int) -> Layout:
        """The layout of an axis that has not grown."""
        return cls((Segment(0, length),) if length else ())

    @property
    def length(self) -> int:
        """The number of positions."""
        return sum(segment.length for segment in self.segments)

    def until(self, birth: int) -> Layout:
        """The axis as it was after the edit of that number."""
        return Layout(_joined(segment for segment in self.segments if segment.birth <= birth))

    def inserted(self, insertions: Iterable[tuple[int, int]], birth: int) -> Layout:
        """The axis after an edit.

        Args:
            insertions: Pairs of a position before the edit and the number of positions inserted
                there, in rising order.
            birth: The number of the edit; higher than any on the axis.
        """
        segments: list[Segment] = []
        pending = list(self.segments[::-1])
        start = 0
        for position, count in insertions:
            while start < position:
                segment = pending.pop()
                taken = min(segment.length, position - start)
                segments.append(Segment(segment.birth, taken))
                if taken < segment.length:
                    pending.append(Segment(segment.birth, segment.length - taken))
                start += taken
            segments.append(Segment(birth, count))
        return Layout(_joined((*segments, *pending[::-1])))

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
        """How the axis after edit `birth` is put together from the older and the new channels."""
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

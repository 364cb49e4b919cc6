"""Trials of other choices where several numbers could follow a width, for the whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from splitgrow.analysis.channels.channel_axes import groups_of
from splitgrow.analysis.channels.channel_groups import Groups
from splitgrow.analysis.ops.op import Choice

MOST_TRIES = 8
"""The most times that a model is followed again, for any number of choices."""


class Followed(Protocol):
    """A model whose channels were followed, with the choices that were made on the way."""

    groups: Groups
    choices: Any
    preferred: Any

    @property
    def growing(self) -> int:
        """The number of layers that can grow."""
        ...

    @property
    def sized(self) -> int:
        """The number of layers that would grow if all could."""
        ...

    @property
    def buffered(self) -> frozenset[int]:
        """The groups that buffers of modules would have to grow along with."""
        ...


F = TypeVar("F", bound=Followed)


def best_of(follow: Callable[[Mapping[str, int]], F]) -> F:
    """The way of following a model that lets most layers grow.

    Where a number that was chosen to follow a width cannot, another is tried: first everywhere at
    once, then at one line of the user's source after the other. So is one that a buffer would have
    to follow: the buffer is data, such as the sizes of anchors, of which new ones could only be
    copies.

    Args:
        follow: Follows the model, with the given choice of a number at each place.
    """
    best = follow({})
    tried: list[Mapping[str, int]] = [{}]
    while len(tried) <= MOST_TRIES and (best.growing < best.sized or best.buffered):
        ways = other_ways(best.choices, best.preferred, best.groups, best.buffered)
        way = next((way for way in ways if way not in tried), None)
        if way is None:
            break
        tried.append(way)
        best = max(best, follow(way), key=lambda found: (found.growing, -len(found.buffered)))
    return best


def other_ways(
    choices: Sequence[Choice],
    made: Mapping[str, int],
    groups: Groups,
    buffered: frozenset[int] = frozenset(),
) -> Iterator[dict[str, int]]:
    """Other choices that might let more layers grow than those that were made.

    Those that were made do not where their number cannot grow, or where it measures nothing.
    """
    rests = {choice.place: choice.rest for choice in choices if choice.rest is not None}
    if rests:
        yield {**made, **rests}
    counts: dict[str, int] = {}
    for choice in choices:
        taken = choice.taken
        doubtful = not buffered.isdisjoint(groups_of(groups.resolve(taken)))
        if doubtful or not groups.can_grow(taken) or groups.is_free(groups.size(taken)):
            counts[choice.place] = max(choice.count, counts.get(choice.place, 0))
    steps = range(1, max(counts.values(), default=0))
    for places in (list(counts), *([place] for place in counts)):
        for step in steps:
            shifted = {place: (made.get(place, 0) + step) % counts[place] for place in places}
            yield {**made, **shifted}

"""All or nothing: after any fault at any place, everything is as it was, and works.

``python tests/faults.py`` strikes each line of each operation, which takes hours; here it is a
sample of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from faults import ERRORS, OPERATIONS, Functions, Kernels, Lines, Stage, Struck, strike
from helpers import MANY

from splitgrow.growth import apply as growth
from splitgrow.utils.rollback import Undo, all_or_nothing, temporarily

LINES, OPS = int(5 * MANY), int(2 * MANY)
"""How many lines of each operation, and how many ops of torch in it, are struck here."""
every_operation = pytest.mark.parametrize("make", OPERATIONS.values(), ids=OPERATIONS.keys())


def last_runs(places: list[tuple[str, int]]) -> list[int]:
    """The numbers at which each line runs for the last time: what is changed is changed late."""
    return sorted({place: number for number, place in enumerate(places, 1)}.values())


def spread(numbers: list[int], count: int) -> list[int]:
    """As many of the numbers, evenly spread, the last ones among them."""
    step = max(1, -(-len(numbers) // count))
    return numbers[::-1][::step][::-1]


def counted(make: Callable[[], Stage], context: Any) -> Any:
    """Counts what an operation passes that has run before: the library learns types it meets."""
    make().act()
    stage = make()
    stage.picture()  # which fills caches, too
    with context:
        stage.act()
    return context


def strike_each(make: Callable[[], Stage], contexts: Iterator[Any]) -> None:
    """Strikes one stage again and again, ever later, and then has it do what it should."""
    twin, done_anyway = make(), False
    done = twin.result(twin.act())
    stage = make()
    before = stage.picture()
    for context in contexts:
        found = strike(stage, before, done, context)
        where = getattr(context, "places", [])[-3:]
        assert not found.wrong, (found.wrong[:30], context.at, context.error, where)
        assert found.done or found.missed or not done_anyway, "done at one place, and not later"
        done_anyway = done_anyway or found.done
        if found.done or found.missed:
            stage = make()
            before = stage.picture()
    assert stage.result(stage.act()) == done


@every_operation
def test_an_operation_is_all_or_nothing_at_each_line(make):
    lines = counted(make, Lines())
    numbers = spread(last_runs(lines.places), LINES)
    assert numbers[-1] == lines.seen
    errors = itertools.cycle(ERRORS)
    strike_each(make, (Lines(number, next(errors)) for number in numbers))


@pytest.mark.parametrize(
    ("make", "faulty"),
    [
        pytest.param(make, faulty, id=f"{name}-{faulty.__name__}")
        for index, (name, make) in enumerate(OPERATIONS.items())
        for faulty in [(Functions, Kernels)[index % 2]]
    ],
)
def test_an_operation_is_all_or_nothing_at_each_op_of_torch(make, faulty):
    ops = counted(make, faulty())
    numbers = spread(list(range(1, ops.seen + 1)), OPS)
    errors = itertools.cycle(ERRORS)
    strike_each(make, (faulty(number, next(errors)) for number in numbers))


# --- the mechanism itself -------------------------------------------------------------------------


LAST = ("apply.py", max(line for *_, line in growth.carry_out_.__code__.co_lines() if line))
"""The last line in which a growth changes anything."""


def about_to_grow() -> tuple[Stage, dict[str, object], list[object]]:
    """A stage, its picture, and the result of growing it."""
    make = OPERATIONS["expand_layer"]
    twin = make()
    done = twin.result(twin.act())
    stage = make()
    return stage, stage.picture(), done


FORGOTTEN = (
    "_open",
    "set_rng_state",
    "_put_back",
    "_thaw",
    "dict.__setitem__",
    "set_number_",
    "list.__setitem__",
)


@pytest.mark.parametrize("forgotten", FORGOTTEN)
def test_a_step_that_is_forgotten_is_found(monkeypatch, forgotten):
    """The negative control: a growth that forgets to take something back."""
    met: list[str] = []

    def on_failure(undo: Undo, step: Any) -> None:
        met.append(getattr(step, "func", step).__qualname__)
        if met[-1] != forgetting:
            undo._steps.append(step)

    monkeypatch.setattr(Undo, "on_failure", on_failure)
    forgetting = ""
    stage, before, done = about_to_grow()
    assert strike(stage, before, done, Lines(LAST)) == Struck()
    assert forgotten in met
    forgetting = forgotten
    assert strike(stage, before, done, Lines(LAST)).wrong.startswith("changed: ")


# --- faults while something is taken back ---------------------------------------------------------


@pytest.mark.parametrize("kind", [all_or_nothing, temporarily])
def test_every_step_is_taken_back_wherever_a_second_fault_strikes(kind):
    struck = 0
    for number in itertools.count(1):
        lines = Lines(number, KeyboardInterrupt)
        begun, taken = failing(kind, lines)
        if lines.seen < number:
            break
        if begun:  # or it was the first fault
            struck += 1
            assert sorted({*taken}) == [0, 1, 2, 3], lines.places[-1]
            assert taken[-1] == 0
    assert struck > 10


def failing(kind: Any, lines: Lines) -> tuple[bool, list[int]]:
    """Whether four steps were registered before a fault struck, and those that were taken back."""
    begun, taken = list[bool](), list[int]()

    def work(undo: Undo) -> None:
        for step in range(4):
            undo.on_failure(partial(taken.append, step))
        begun.append(lines.seen < lines.at)
        raise MemoryError

    with suppress(MemoryError, KeyboardInterrupt), lines:
        kind(work)()
    return any(begun), taken


def test_a_step_that_fails_keeps_none_from_being_taken_back():
    taken: list[str] = []

    def fails() -> None:
        taken.append("fails")
        raise RuntimeError("a step")

    undo = Undo()
    for step in (partial(taken.append, "first"), fails, partial(taken.append, "last")):
        undo.on_failure(step)
    with pytest.raises(RuntimeError, match="a step"):
        undo.take_back()
    assert taken == ["last", "fails", "fails", "first"]


def test_a_dictionary_is_kept_in_its_order():
    kept, original = {"a": 1, "b": 2}, {"a": 1, "b": 2}

    @all_or_nothing
    def work(undo: Undo) -> None:
        undo.keep(kept)
        del kept["a"]
        kept.update(c=3, a=1)
        raise MemoryError

    with suppress(MemoryError):
        work()
    assert list(kept.items()) == list(original.items())


def test_growth_is_taken_back_wherever_a_second_fault_strikes():
    stage, before, done = about_to_grow()
    for then in range(1, 10_000, 211):
        stage = OPERATIONS["expand_layer"]()  # it takes fewer lines the second time
        before = stage.picture()
        struck = strike(stage, before, done, context := Lines(LAST, then=then))
        assert not struck.wrong, (then, context.places[-1], struck.wrong)
        assert not struck.done
        if context.seen < context.at + then:
            break
    assert then > 100
    assert stage.result(stage.act()) == done

"""A tracked number computes like an int, and reports every computation to its keeper."""

from __future__ import annotations

import copy
import math
import operator
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from written import X, written

from splitgrow.analysis.channels.tracked_int import Tracked, plain_value
from splitgrow.analysis.tracer import trace_model
from splitgrow.utils.example_call import ExampleCall


class Notes:
    """A keeper that writes down all that it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[Callable[..., Any], tuple[Any, ...], Any]] = []

    def number(
        self, target: Callable[..., Any], args: tuple[Any, ...], value: Any, name: str = ""
    ) -> Any:
        self.steps.append((target, args, value))
        return Tracked.of(value, self, len(self.steps)) if type(value) is int else value

    def tracked(self, value: int) -> Tracked:
        return Tracked.of(value, self, None)


def plain(value: Any) -> Any:
    """The value with plain numbers only, read off without telling the keeper."""
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    return int.__int__(value) if isinstance(value, Tracked) else value


def answer(operation: Callable[..., Any], *args: Any) -> Any:
    """What it returns, or the type of what it raises."""
    try:
        return operation(*args)
    except (ArithmeticError, ValueError, TypeError) as error:
        return type(error)


ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod]
OTHERS = [operator.truediv, operator.pow, operator.and_, operator.or_, operator.xor]
SHIFTS = [operator.lshift, operator.rshift]
COMPARISONS = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]
BINARY = [*ARITHMETIC, *OTHERS, *SHIFTS, *COMPARISONS]
UNARY = [operator.neg, operator.pos, operator.invert, operator.abs, operator.not_, bool]
ROUNDED = [math.floor, math.ceil, math.trunc, round]

numbers = st.integers(-40, 40)


@pytest.mark.parametrize("operation", BINARY, ids=lambda operation: operation.__name__)
@given(numbers, numbers, st.sampled_from(["left", "right", "both"]))
def test_what_is_computed_of_two_numbers_is_as_of_ints_and_is_noted(
    operation: Callable[..., Any], one: int, other: int, side: str
) -> None:
    notes = Notes()
    args = (
        notes.tracked(one) if side != "right" else one,
        notes.tracked(other) if side != "left" else other,
    )
    found, expected = answer(operation, *args), answer(operation, one, other)
    assert plain(found) == expected
    assert type(plain(found)) is type(expected)
    if isinstance(expected, type):
        return
    ((target, given_, value),) = notes.steps
    assert target(*plain(given_)) == value == expected
    assert any(isinstance(argument, Tracked) for argument in given_)
    assert isinstance(found, Tracked) == (type(expected) is int)


@pytest.mark.parametrize("operation", UNARY, ids=lambda operation: operation.__name__)
@given(numbers)
def test_what_is_computed_of_one_number_is_as_of_an_int(
    operation: Callable[..., Any], value: int
) -> None:
    notes = Notes()
    found, expected = operation(notes.tracked(value)), operation(value)
    assert plain(found) == expected
    assert isinstance(found, Tracked) == (type(expected) is int)


@pytest.mark.parametrize("operation", ROUNDED, ids=lambda operation: operation.__name__)
@given(numbers)
def test_rounding_a_number_keeps_it(operation: Callable[..., Any], value: int) -> None:
    notes = Notes()
    number = notes.tracked(value)
    assert operation(number) is number
    assert notes.steps == []


@given(st.integers(-4000, 4000), st.integers(-4, 2))
def test_rounding_to_tens_is_as_of_an_int(value: int, digits: int) -> None:
    notes = Notes()
    assert plain(round(notes.tracked(value), digits)) == round(value, digits)
    assert bool(notes.steps) == (digits < 0)


@pytest.mark.parametrize("operation", [*ARITHMETIC, operator.truediv, *COMPARISONS])
@given(numbers, st.floats(-9, 9))
def test_what_is_computed_with_a_float_behind_it_is_as_of_an_int_and_is_noted(
    operation: Callable[..., Any], value: int, other: float
) -> None:
    notes = Notes()
    assert answer(operation, notes.tracked(value), other) == answer(operation, value, other)
    assert [target for target, *_ in notes.steps] == [plain_value]


VALUES = {"float": float, "int": int, "hash": hash, "root": math.sqrt}


@pytest.mark.parametrize("use", VALUES.values(), ids=VALUES.keys())
@given(st.integers(0, 40))
def test_a_number_turned_into_a_mere_value_is_that_value_and_is_noted(
    use: Callable[[Any], Any], value: int
) -> None:
    notes = Notes()
    found = use(notes.tracked(value))
    assert found == use(value)
    assert not isinstance(found, Tracked)
    assert [(target, plain(args)) for target, args, _ in notes.steps] == [(plain_value, (value,))]


TEXTS: list[Callable[[Any], Any]] = [str, repr, hex, lambda n: f"{n:>5}", lambda n: f"{n:,d}"]


@pytest.mark.parametrize("text", TEXTS)
@given(numbers)
def test_a_number_reads_as_an_int(text: Callable[[Any], str], value: int) -> None:
    assert text(Notes().tracked(value)) == text(value)


@given(st.integers(0, 9))
def test_a_number_can_be_used_where_an_int_can(value: int) -> None:
    number = Notes().tracked(value)
    items = list(range(20))
    assert isinstance(number, int)
    assert items[number] == items[value]
    assert items[:number] == items[:value]
    assert list(range(number)) == list(range(value))
    assert {number: "it"} == {value: "it"}
    assert number in {value}
    assert value in {number}
    assert torch.zeros(number).shape == (value,)
    assert number + Fraction(1, 2) == value + Fraction(1, 2)
    assert [1] * number == [1] * value
    assert sum([number, number]) == 2 * value


@pytest.mark.parametrize("other", [None, "3", (), [3], object()])
@pytest.mark.parametrize("operation", [*ARITHMETIC, *COMPARISONS])
def test_with_anything_else_it_does_as_an_int_does(
    operation: Callable[..., Any], other: Any
) -> None:
    number = Notes().tracked(3)
    assert answer(operation, number, other) == answer(operation, 3, other)
    assert answer(operation, other, number) == answer(operation, other, 3)


def by_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, by_pickle])
@given(numbers)
def test_a_copy_is_a_plain_int(copied: Callable[[Any], Any], value: int) -> None:
    notes = Notes()
    for again in (copied(notes.tracked(value)), copied([notes.tracked(value)])[0]):
        if copied is copy.copy and isinstance(again, Tracked):
            continue  # a shallow copy of the list holds the number itself
        assert type(again) is int
        assert again == value
    assert notes.steps == []


def test_after_the_recording_a_number_is_as_a_plain_int_is() -> None:
    kept: list[Any] = []

    def forward(model: Any, x: Tensor) -> Tensor:
        y = model.one(x)
        kept.append(y.shape[-1])
        return model.head(y)

    steps = trace_model(written(forward), ExampleCall((X,)), training=False).steps
    (number,) = kept
    count = len(steps)
    assert isinstance(number, Tracked)
    assert [number + 1, 2 * number, -number, number // 3] == [9, 16, -8, 2]
    assert {type(n) for n in (number + 1, 2 * number, -number, number // 3)} == {int}
    assert (number == 8, number > 8, bool(number), hash(number)) == (True, False, True, hash(8))
    assert (float(number), type(int(number)), divmod(number, 3)) == (8.0, int, (2, 2))
    assert len(steps) == count


def test_a_number_of_an_earlier_recording_is_a_plain_one_in_the_next() -> None:
    kept: list[Any] = []

    def forward(model: Any, x: Tensor) -> Tensor:
        kept.append(x.shape[1])
        return model.head(model.one(x).view(2, kept[0], 8))

    model = written(forward)
    first, second = (
        trace_model(model, ExampleCall((X,)), training=training).steps for training in (False, True)
    )
    (view,) = (step for step in second if step.name == "view")
    assert [type(number) for number in view.args[1:]] == [int, int, int]
    (view,) = (step for step in first if step.name == "view")
    assert type(view.args[2]) is not int  # the control

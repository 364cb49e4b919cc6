"""The arguments of learners, as help and type checkers show them."""

from __future__ import annotations

import inspect

import pytest

from splitgrow import continual
from splitgrow.continual import METHODS
from splitgrow.continual.options import LearnerOptions

COMMON = [*inspect.signature(continual.Learner).parameters.values()]


@pytest.mark.parametrize("method", [*METHODS.values()], ids=[*METHODS])
def test_a_method_shows_its_own_arguments_and_all_common_ones(
    method: type[continual.Learner],
) -> None:
    shown = inspect.signature(method).parameters
    assert all(each.kind is not each.VAR_KEYWORD for each in shown.values())
    assert {each.name: each.default for each in COMMON}.items() <= {
        name: each.default for name, each in shown.items()
    }.items()
    assert {*method.settings} <= {*shown}


def test_the_types_of_common_arguments_are_complete() -> None:
    named = {each.name for each in COMMON if each.kind is each.KEYWORD_ONLY}
    assert named == {*LearnerOptions.__annotations__}


def test_methods_of_one_s_own_show_them_too() -> None:
    class Named(continual.EWC):
        def __init__(
            self, model: object, example_inputs: object, *, further: int = 1, **common: object
        ) -> None:
            super().__init__(model, example_inputs, **common)  # type: ignore[arg-type]

    class Unnamed(continual.EWC):
        def __init__(self, *args: object, further: int = 1, **common: object) -> None:
            super().__init__(*args, **common)  # type: ignore[arg-type]

    shown = inspect.signature(Named).parameters
    assert {"further", "strength", "seed"} <= {*shown}
    assert "common" not in shown
    assert [*inspect.signature(Unnamed).parameters] == ["args", "further", "common"]

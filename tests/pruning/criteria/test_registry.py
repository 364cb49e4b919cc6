"""Criteria by name."""

from __future__ import annotations

import pytest

from splitgrow.pruning import CRITERIA, Activation, Criterion
from splitgrow.pruning.criteria.registry import chosen_criterion


def test_each_criterion_has_its_name_and_says_what_it_is() -> None:
    assert [*CRITERIA] == [
        *("group", "l1", "l2", "scale", "taylor", "fisher"),
        *("activation", "reconstruction", "random"),
    ]
    for name, criterion in CRITERIA.items():
        assert criterion.name == name
        assert chosen_criterion(name) is criterion
        assert type(criterion).__name__ in repr(criterion)
    assert [name for name, each in CRITERIA.items() if each.comparable] == ["scale", "random"]
    assert [name for name, each in CRITERIA.items() if each.refits] == ["reconstruction"]
    assert [name for name, each in CRITERIA.items() if each.draws] == ["random"]


def test_objects_are_taken_as_they_are_and_all_else_is_refused() -> None:
    own = Activation("std")
    assert chosen_criterion(own) is own
    for other in (None, 1, Activation, lambda view: {}):
        with pytest.raises(TypeError, match="a criterion is a name"):
            chosen_criterion(other)
    with pytest.raises(ValueError, match="no criterion 'L1'"):
        chosen_criterion("L1")
    with pytest.raises(TypeError):
        Criterion()  # type: ignore[abstract]

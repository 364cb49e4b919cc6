"""Users' rules are checked at once and at the first use, and can be removed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import assert_equal, randomise
from torch import Tensor, nn

import splitgrow
from splitgrow.analysis.ops import Shaped, Unknown, registry
from splitgrow.errors import SplitGrowError

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    rules = dict(registry.OPS)
    yield
    registry.OPS.clear()
    registry.OPS.update(rules)


def op(x: Tensor) -> Tensor:
    return torch.special.airy_ai(x)


class Through(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.special.airy_ai(self.a(x)))


def through() -> Any:
    return splitgrow.growable(randomise(Through().double().eval()), X)


def test_an_op_is_registered_and_taken_back() -> None:
    assert not through().layers[0].growable
    splitgrow.register_op(torch.special.airy_ai, keeps_zeros=True)(lambda op: op.x)
    model = through()
    before = model(X)
    model.expand_layer("a", 2)
    assert_equal(model(X), before)
    splitgrow.unregister_op(torch.special.airy_ai)
    assert not through().layers[0].growable
    model.expand_layer("a", 2)  # analysed before
    assert_equal(model(X), before)


@pytest.mark.parametrize(
    ("targets", "error"),
    [
        ((), ValueError),
        (("",), ValueError),
        (("no_such_method",), ValueError),
        (("a b",), ValueError),
        (("a..b",), ValueError),
        ((None,), TypeError),
        ((3,), TypeError),
        (([],), TypeError),
        ((nn.ReLU(),), TypeError),
        ((torch.special.airy_ai, ""), ValueError),
    ],
)
def test_what_cannot_be_a_target_is_refused(targets: tuple[Any, ...], error: Any) -> None:
    before = dict(registry.OPS)
    with pytest.raises(error):
        splitgrow.register_op(*targets)(lambda op: op.x)
    assert before == registry.OPS


def test_a_misspelt_method_is_told_the_closest_names() -> None:
    with pytest.raises(ValueError, match="there is transpose"):
        splitgrow.register_op("transpos")


@pytest.mark.parametrize("rule", [None, 3, "rule", int, lambda: None, lambda op, more: op])
def test_what_cannot_be_a_rule_is_refused(rule: Any) -> None:
    with pytest.raises(TypeError, match="rule"):
        splitgrow.register_op(torch.special.airy_ai)(rule)
    assert torch.special.airy_ai not in registry.OPS


def test_targets_are_registered_all_or_none() -> None:
    with pytest.raises(ValueError, match="has a rule already"):
        splitgrow.register_op(torch.special.airy_ai, torch.relu)(lambda op: op.x)
    assert torch.special.airy_ai not in registry.OPS


def failing(op: Any) -> Any:
    return {}["axes"]


@pytest.mark.parametrize(
    "rule",
    [
        failing,
        lambda op: None,
        lambda op: 3,
        lambda op: op.x.axes,
        lambda op: [op.x],
        lambda op: Shaped("axes"),
        lambda op: Shaped((3, 4)),
        lambda op: Shaped(None),
        lambda op: op.no_such_thing,
        lambda op: 1 / 0,
        lambda op: next(iter(())),
        lambda op: torch.zeros(3),
    ],
)
def test_a_rule_that_fails_or_answers_with_something_else_is_named(rule: Any) -> None:
    splitgrow.register_op(torch.special.airy_ai)(rule)
    with pytest.raises(SplitGrowError) as caught:
        through()
    text = str(caught.value)
    assert f"`{rule.__name__}`" in text
    assert "`special_airy_ai`" in text or "i0" in text
    assert "test_registry.py" in text
    assert "unregister_op" in text


def test_a_rule_that_cannot_tell_or_does_not_explain_the_shapes_fixes_with_a_reason() -> None:
    def shy(op: Any) -> Any:
        raise Unknown("does what nobody knows")

    for rule, reason in ((shy, "nobody knows"), (lambda op: Shaped(op.x.axes[:1]), "explain")):
        splitgrow.register_op(torch.special.airy_ai)(rule)
        assert reason in through().layers[0].reason
        splitgrow.unregister_op(torch.special.airy_ai)


@pytest.mark.parametrize(
    "targets", [(), (torch.relu,), (torch.special.zeta,), ("relu",), (nn.ReLU,)]
)
def test_only_rules_that_were_registered_are_taken_back(targets: tuple[Any, ...]) -> None:
    before = dict(registry.OPS)
    with pytest.raises(ValueError, match=r"own rules|has no rule|needs the targets"):
        splitgrow.unregister_op(*targets)
    assert before == registry.OPS


def test_a_rule_stays_for_the_targets_that_are_left() -> None:
    splitgrow.register_op(torch.special.airy_ai, torch.special.zeta, follows_sizes=True)(
        lambda op: op.x
    )
    splitgrow.unregister_op(torch.special.airy_ai)
    assert registry.entry_of(torch.special.airy_ai) is None
    assert registry.entry_of(torch.special.zeta).follows_sizes
    splitgrow.unregister_op(torch.special.zeta)
    assert registry.entry_of(torch.special.zeta) is None

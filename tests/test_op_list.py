"""Torch's own list of ops: growth after any op is exact, or does not happen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_list import list_of_ops, tried
from torch import Tensor

from splitgrow.analysis.ops import registry

try:
    OPS = list_of_ops()
except ImportError as error:  # torch keeps the list to itself and may move it
    pytest.skip(f"this torch comes without its list of ops: {error}", allow_module_level=True)

PARTS = 16
KNOWN = 20
"""How many cases of each part grow at least: one of which nothing grows shows nothing."""


@pytest.mark.parametrize("part", range(PARTS))
def test_growth_before_and_behind_an_op_is_exact_or_fixed(part: int) -> None:
    _, cases = tried(OPS[part::PARTS], most=1)
    bad = [case for case in cases if case[1] not in ("exact", "fixed", "refused", "not finite")]
    assert not bad
    assert all(reason for _, verdict, reason in cases if verdict == "fixed")
    assert sum(verdict == "exact" for _, verdict, _ in cases) >= KNOWN


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("softmax", lambda op: op.x),
        ("fliplr", lambda op: op.x),
        ("flip", lambda op: op.x),
        ("addmm", lambda op: op.x),
    ],
)
def test_control_a_wrong_rule_is_found(name: str, rule: Any, monkeypatch: Any) -> None:
    for target in (getattr(torch, name), name if hasattr(Tensor, name) else None):
        monkeypatch.setitem(registry.OPS, target, registry.Entry(rule, built_in=True))
    counts, _ = tried([info for info in OPS if info.name == name], most=2)
    assert counts["wrong"] > 0


def test_what_a_rule_runs_into_fixes_what_it_was_given(monkeypatch: Any) -> None:
    def broken(op: Any) -> Any:
        raise IndexError("no such thing")

    monkeypatch.setattr(registry, "STRICT", False)
    for target in (torch.cumsum, "cumsum"):
        monkeypatch.setitem(registry.OPS, target, registry.Entry(broken, built_in=True))
    _, cases = tried([info for info in OPS if info.name == "cumsum"], most=1)
    assert cases
    for _, verdict, reason in cases:
        assert verdict == "fixed"
        assert "`cumsum` at " in reason
        assert "IndexError" in reason
        assert "op_list.py" in reason


def test_control_the_tests_see_what_a_rule_runs_into(monkeypatch: Any) -> None:
    def broken(op: Any) -> Any:
        raise IndexError("no such thing")

    for target in (torch.cumsum, "cumsum"):
        monkeypatch.setitem(registry.OPS, target, registry.Entry(broken, built_in=True))
    counts, _ = tried([info for info in OPS if info.name == "cumsum"], most=1)
    assert counts["internal"] == counts.total()

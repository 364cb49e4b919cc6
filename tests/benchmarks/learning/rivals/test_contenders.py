"""The networks beside gromo grow by splitgrow to the widths asked for, and compute the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import splitgrow
from benchmarks.learning.rivals import training
from benchmarks.learning.rivals.case_networks import CASES, Case
from benchmarks.learning.rivals.contenders import Splitgrow, picture
from benchmarks.learning.rivals.gromo_growth import moved
from benchmarks.learning.rivals.grounds import GROUNDS, Ground
from benchmarks.learning.rivals.records import Job
from benchmarks.learning.tasks import Data


@pytest.mark.parametrize("ground", GROUNDS.values(), ids=[*GROUNDS])
def test_a_network_reaches_its_widths_and_computes_the_same(ground: Ground) -> None:
    torch.manual_seed(0)
    own = Splitgrow(ground, "zero", ground.start, "kept")
    optimizer = torch.optim.AdamW(own.model.parameters())
    x = torch.randn(2, *picture(ground))
    own.model.eval()
    before = own.model(x)
    for widths in ground.stages(3):
        own.grow(widths, optimizer, [(x, torch.zeros(2, dtype=torch.long))])
    assert torch.allclose(own.model(x), before, atol=1e-4)
    sizes = [sorted(p.shape) for p in own.model.parameters()]
    assert sizes == [sorted(p.shape) for p in ground.make(ground.end).parameters()]


def test_stages_are_even_and_end_at_the_end() -> None:
    for ground in GROUNDS.values():
        stages = ground.stages(3)
        assert stages[-1] == ground.end
        assert all(width % 2 == 0 for widths in stages for width in widths)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_case_is_one_that_splitgrow_grows(case: Case) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 1, 16, 16)
    model = splitgrow.growable(case.plain().eval(), x)
    before = model(x)
    model.expand(dict.fromkeys(case.grows, case.units), freeze=False)
    assert torch.allclose(model(x), before, atol=1e-5)
    assert model(x).shape == (4, 10)


def test_moments_move_to_the_old_entries_of_wider_parameters() -> None:
    old, new = nn.Linear(2, 2), nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(old.parameters(), lr=0.5, weight_decay=0.25)
    old(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    other = moved(optimizer, dict(old.named_parameters()), new)
    group = other.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)
    state = other.state[new.weight]
    assert torch.equal(state["exp_avg"][:2, :2], optimizer.state[old.weight]["exp_avg"])
    assert float(state["exp_avg"][2:].abs().sum() + state["exp_avg"][:, 2:].abs().sum()) == 0
    assert state["step"] == 1


def data(_: Path) -> Data:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 1, 32, 32, generator=generator), torch.arange(300) % 4
    part = x + y[:, None, None, None], y
    return Data(part, part, part)


@pytest.mark.parametrize(("library", "way"), [("splitgrow", "pair"), ("none", "")])
def test_a_run_uses_its_budget(library: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ground = replace(GROUNDS["mlp"], end=(96, 96), data=data, budget=0.2)
    monkeypatch.setitem(training.GROUNDS, "mlp", ground)
    run = training.run(Job("mlp", library, way, 16, 1e-3, 0, "kept"), Path())
    assert run.steps > 5
    assert len(run.jumps) == (3 if library == "splitgrow" else 0)
    assert all(before == pytest.approx(after, abs=0.5) for before, after in run.jumps)
    assert run.test > 50

"""The functions that processes of tests/grower run: a module of its own, to be imported."""

from __future__ import annotations

from typing import Any

import distributed_work as work
import pytest
import torch
import torch.distributed as dist

import splitgrow
from splitgrow import Budget, ComputeShares, Cycles, Every, Factor, Grower, Plateau, Score
from splitgrow.grower import When

RULES: dict[str, When] = {
    "steps": Every(2),
    "metric": Plateau("loss", patience=2),
    "shares": ComputeShares([0.2, 0.5], macs=1e6),
}


def grows(rank: int, how: str, rule: str) -> dict[str, torch.Tensor]:
    """The steps at which a model grew, its widths, and the arithmetic spent by the last growth."""
    model = work.network()
    wrapped = work.wrapped(model, how)
    optimizer = work.adam(wrapped)
    where = Score(lambda net: {"3": 1.0 + rank, "6": 2.0 - rank}, only=["3", "6"], share=0.5)
    grower = Grower(
        wrapped,
        optimizer,
        to=Factor(1.5),
        when=RULES[rule],
        where=where if rule == "metric" else None,
        steps=2,
        absorb=rule == "steps",
    )
    grown, spent = [], 0
    for step in range(1, 9):
        work.train(wrapped, optimizer, range(step, step + 1))
        # Only the first process has metrics, and the number of samples differs.
        metrics = {"loss": 1.0 / step if step < 4 else 1.0} if rank == 0 else None
        edit = grower.step(metrics, samples=4 + rank)
        grown.append(edit is not None)
        spent = grower.macs_spent if edit is not None else spent
    parameters = torch.cat([p.flatten() for p in work.tensors_of(wrapped).values()])
    return {
        "grown": torch.tensor(grown),
        "widths": torch.tensor([layer.width for layer in splitgrow.handle(model).layers]),
        "macs": torch.tensor([grower.macs, grower.plan().growths[-1].macs]),
        "spent": torch.tensor(spent),
        "parameters": parameters,
    }


MEASURED = ("gain", "gradient", "rank")


def chosen(rank: int, how: str, score: str) -> torch.Tensor:
    """The widths after a growth where a measured score says; only the first process's counts."""
    model = work.network()
    wrapped = work.wrapped(model, how)
    optimizer = work.adam(wrapped)
    work.train(wrapped, optimizer, range(2))

    def loss(net: Any, batch: Any) -> torch.Tensor:
        return (net(batch[0]) - batch[1]).square().mean()

    if how == "fsdp" and score != "rank":
        with pytest.raises(splitgrow.UnsupportedModelError, match="gathered"):
            splitgrow.scores.rank(model, loss, [work.batch(9)], score=score)
    where = Score(score, loss=loss, batches=[work.batch(9 + rank)])
    grower = Grower(wrapped, optimizer, to=Factor(1.5), when=Every(1), where=where, steps=1)
    grower.step(samples=4)
    work.train(wrapped, optimizer, range(2, 4))
    return torch.tensor([layer.width for layer in splitgrow.handle(model).layers])


def shrinks(rank: int, how: str, to: Any) -> dict[str, torch.Tensor]:
    """The widths and parameters after a policy that shrinks."""
    model = work.network()
    wrapped = work.wrapped(model, how)
    optimizer = work.adam(wrapped)
    grower = Grower(
        wrapped, optimizer, to=to, when=Every(2), steps=None if isinstance(to, Cycles) else 2
    )
    for step in range(1, 5):
        work.train(wrapped, optimizer, range(step, step + 1))
        grower.step(samples=4)
    return {
        "done": torch.tensor(grower.done),
        "widths": torch.tensor([layer.width for layer in splitgrow.handle(model).layers]),
        "macs": torch.tensor(grower.macs),
        "parameters": torch.cat([p.flatten() for p in work.tensors_of(wrapped).values()]),
    }


SHRINKS = {
    "factor": Factor(0.5),
    "cycles": Cycles(Budget(params=600), grow=1.5, times=1),
}


def all_shrinks(rank: int) -> dict[str, Any]:
    """Each policy that shrinks, replicated and sharded."""
    return {
        f"{how} {name}": shrinks(rank, how, to)
        for how in ("ddp", "fsdp")
        for name, to in SHRINKS.items()
    }


def all_rules(rank: int) -> dict[str, Any]:
    """Each rule, replicated and sharded, and one for a model that each process has for itself."""
    found = {}
    for how in ("ddp", "fsdp"):
        for rule in RULES:
            found[f"{how} {rule}"] = grows(rank, how, rule)
            dist.barrier()
        found |= {f"{how} {score}": chosen(rank, how, score) for score in MEASURED}
        dist.barrier()
    found["alone"] = grows(rank, "alone", "metric")
    return found

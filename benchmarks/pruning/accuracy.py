"""Accuracy at half the multiply-adds: train, prune and recover, with equal budgets for all.

The budget of a run is in multiply-adds, forward and backward: `TRAINED` of it before pruning, the
rest after it. "Dense" trains the whole network for all of it, "from the start" a pruned one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

import splitgrow
from benchmarks.coverage.results import machine
from benchmarks.learning.tasks import TASKS, Task, loss_of, prepare, score_of
from benchmarks.learning.training import multiply_adds as step_multiply_adds
from benchmarks.learning.training import scheduled, widths_of
from benchmarks.pruning.tools import multiply_adds, pruned

NAMES = ("resnet-cifar10", "vgg-cifar10")
SHARE = 0.5
TRAINED = 0.6
GROWN_AT = (0.2, 0.35, 0.5)
SEEDS = 3
BATCH = 32
SOME = 16
"""The training batches that criteria and fits get."""
TRAIN_RATE = 3e-3
RATES = (1e-3, 3e-3)
SCOPES = ("global", "layer")


@dataclass(frozen=True)
class Arm:
    """A way to a network of half the multiply-adds.

    Attributes:
        start: "large"; "grown" from the small one; or "small", pruned before it trains.
        tool: What prunes it; empty if nothing does.
        criterion: By what units are chosen.
        refit: Whether the readers of the units that go are fitted.
    """

    start: str
    tool: str = ""
    criterion: str = ""
    refit: bool = False


ARMS = {
    "dense": Arm("large"),
    "from the start": Arm("small", "splitgrow", "random"),
    "random": Arm("large", "splitgrow", "random"),
    "splitgrow, group": Arm("large", "splitgrow", "group"),
    "torch-pruning, group": Arm("large", "torch-pruning", "group"),
    "splitgrow, l1": Arm("large", "splitgrow", "l1"),
    "torch-pruning, l1": Arm("large", "torch-pruning", "l1"),
    "splitgrow, taylor": Arm("large", "splitgrow", "taylor"),
    "torch-pruning, taylor": Arm("large", "torch-pruning", "taylor"),
    "splitgrow, group, readers fitted": Arm("large", "splitgrow", "group", refit=True),
    "grown, then group": Arm("grown", "splitgrow", "group"),
}


@dataclass(frozen=True)
class Job:
    """A run to make.

    Attributes:
        task: The task's name.
        arm: The arm's name.
        budget: The multiply-adds in billions.
        scope: Whether units of all layers are compared.
        rate: The rate after pruning.
        seed: The seed.
    """

    task: str
    arm: str
    budget: float
    scope: str
    rate: float
    seed: int


@dataclass(frozen=True)
class Run:
    """A run that was made.

    Attributes:
        job: The job.
        share: The share of the multiply-adds that stayed.
        trained: The accuracy on the test data before pruning.
        before: The same right after it: without recovery.
        test: The same in the end.
        validation: The last accuracy on the validation data.
        parameters: How many are left.
        refused: Why it failed; empty if it did not.
    """

    job: Job
    share: float
    trained: float
    before: float
    test: float
    validation: float
    parameters: int
    refused: str = ""


def read(path: Path) -> list[Run]:
    """The runs in a file; none if there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = []
    for line in lines:
        fields = json.loads(line)
        fields.pop("machine", None)
        found.append(Run(Job(**fields.pop("job")), **fields))
    return found


def settings_of(arm: str) -> list[tuple[str, float]]:
    """The scopes and rates that are tried for an arm."""
    if arm == "dense":
        return [("layer", TRAIN_RATE)]
    if arm == "from the start":
        return [("layer", rate) for rate in RATES]
    return [(scope, rate) for scope in SCOPES for rate in RATES]


def missing(task: str, budget: float, runs: Sequence[Run], seeds: int) -> Iterator[Job]:
    """The runs that are still to be made: all settings on one seed, the best on all."""
    done = {run.job for run in runs}
    for arm in ARMS:
        tried = [Job(task, arm, budget, *settings, 0) for settings in settings_of(arm)]
        left = [job for job in tried if job not in done]
        yield from left
        if left:
            continue
        best = best_job(runs, tried)
        for seed in range(1, seeds):
            job = Job(task, arm, budget, best.scope, best.rate, seed)
            if job not in done:
                yield job


def best_job(runs: Sequence[Run], tried: Sequence[Job]) -> Job:
    """The one of some jobs with the best validation score."""
    found = [run for run in runs if run.job in tried]
    return max(found, key=lambda run: (not run.refused, run.validation)).job


def run_all(
    folder: Path, data: Path | None, only: str | None, share: float, console: Console
) -> None:
    """Makes the runs that are missing.

    Args:
        folder: Where the results are, and what is kept between runs.
        data: CIFAR-10 as splitgrow's demos read it, or as `cifar10.pt` of the learning benchmark.
        only: One task.
        share: The share of the task's short budget that a run gets.
        console: Told each result.
    """
    kept = folder / "kept" / "cifar10.pt"
    if not kept.exists():
        if data is None:
            raise SystemExit("give CIFAR-10 by --data")
        kept.parent.mkdir(parents=True, exist_ok=True)
        if data.suffix == ".pt":
            kept.write_bytes(data.read_bytes())
        else:
            prepare(data, kept)
    for name in NAMES:
        task, path = TASKS[name], folder / f"accuracy-{name}.jsonl"
        if only not in {None, name}:
            continue
        budget = task.budgets[0] * share
        while left := [*missing(name, budget, read(path), SEEDS)]:
            run = Training(task, left[0], kept.parent).run()
            with path.open("a") as file:
                file.write(json.dumps({**asdict(run), "machine": machine()}) + "\n")
            told = run.refused or f"{run.trained:.1f}, {run.before:.1f}, {run.test:.1f} %"
            console.print(f"{run.job}: {told}; {len(left) - 1} left", highlight=False)


@dataclass
class Training:
    """A run: train, prune, recover.

    Attributes:
        task: The task.
        job: The job.
        folder: Where the data are, and networks that were trained before.
    """

    task: Task
    job: Job
    folder: Path

    def run(self) -> Run:
        """Makes the run."""
        job, task, data = self.job, self.task, self.task.data(self.folder)
        arm = ARMS[job.arm]
        example = data.validation[0][:2]
        model, whole = self._start(arm.start), multiply_adds(task.large(), example)
        first = 0.0 if arm.start == "small" else TRAINED if arm.tool else 1.0
        if arm.start != "small":
            model = self._trained(model, arm.start, first * job.budget)
        trained = score_of(model, task, data.test)
        if not arm.tool:
            validation = score_of(model, task, data.validation)
            return Run(job, 1.0, trained, trained, trained, validation, _count(model))
        torch.manual_seed(job.seed)
        try:
            share = SHARE * whole / multiply_adds(model, example)
            model = pruned(
                *(arm.tool, model, self._some(data), arm.criterion, job.scope, share),
                refit=arm.refit,
            )
        except (splitgrow.SplitGrowError, ValueError, RuntimeError) as error:
            return Run(job, 1.0, trained, 0.0, 0.0, 0.0, 0, refused=str(error))
        left = multiply_adds(model, example) / whole
        before = score_of(model, task, data.test)
        self._train(model, (1 - first) * job.budget, job.rate, job.seed + 100)
        test, validation = (score_of(model, task, part) for part in (data.test, data.validation))
        return Run(job, left, trained, before, test, validation, _count(model))

    def _some(self, data: Any) -> list[Any]:
        """A few batches of training data."""
        return [*islice(data.batches(BATCH, self.job.seed + 200), SOME)]

    def _start(self, start: str) -> nn.Module:
        torch.manual_seed(self.job.seed)
        return self.task.small() if start == "grown" else self.task.large()

    def _trained(self, model: nn.Module, start: str, budget: float) -> nn.Module:
        """The network after training: made once for all that start from it."""
        name = f"{self.task.name}-{start}-{budget:g}-{TRAIN_RATE:g}-{self.job.seed}.pt"
        path = self.folder / name
        if start == "grown":
            large = self.task.large()
            if not path.exists():
                model = self._train(model, budget, TRAIN_RATE, self.job.seed, grows=True)
                torch.save(model.state_dict(), path)
            model = large
        elif not path.exists():
            self._train(model, budget, TRAIN_RATE, self.job.seed)
            torch.save(model.state_dict(), path)
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.train()

    def _train(
        self, model: Any, budget: float, rate: float, seed: int, *, grows: bool = False
    ) -> nn.Module:
        """Trains until the budget is used up, by AdamW and a rate that rises and falls."""
        task, data = self.task, self.task.data(self.folder)
        probe = next(data.batches(BATCH, 0))
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
        pending = [*GROWN_AT] * grows
        if grows:
            large = widths_of(task.large(), probe[0][:2])
            model = splitgrow.growable(model, probe[0][:2])
        each, used = step_multiply_adds(model, probe), 0.0
        model.train()
        for batch in data.batches(BATCH, seed):
            if pending and used >= pending[0] * budget:
                _grow(model, optimizer, large, len(pending))
                pending.pop(0)
                each = step_multiply_adds(model, probe)
            for group in optimizer.param_groups:
                group["lr"] = rate * scheduled(used / budget)
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
            used += each
            if used >= budget:
                break
        return splitgrow.merge(model) if grows else model


def _grow(model: Any, optimizer: torch.optim.Optimizer, large: list[int], left: int) -> None:
    """Grows towards the large network's widths, in geometric steps, and makes it plain."""
    request = {}
    layers = [layer for layer in model.layers if layer.growable]
    for layer, end in zip(layers, large, strict=True):
        wanted = round(layer.width * (end / layer.width) ** (1 / left))
        more = min(end, wanted + wanted % 2) - layer.width
        if more > 0:
            request[layer.name] = more
    if request:
        model.expand(request, freeze=False, optimizer=optimizer, check=False)
    model.absorb(optimizer=optimizer, check=False)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())

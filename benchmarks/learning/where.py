"""Whether scores tell where to grow: their rank correlation with the measured gain.

A small network is trained, and each layer is scored. Then each layer grows alone by half, from the
same state, and trains on with the same batches. Its gain is the fall of the validation loss below
that of the network that did not grow.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

import splitgrow
from benchmarks.learning.tasks import Batch, Data, Task, loss_of
from splitgrow.scores import MEASURES, rank

STEPS = (400, 800)
"""The training steps before growth, and after it."""


@dataclass(frozen=True)
class Trial:
    """The scores and the gains of a network's layers, for one seed.

    Attributes:
        task: The task.
        seed: The seed.
        scores: For each score the numbers of the layers.
        gains: The gain of each layer.
    """

    task: str
    seed: int
    scores: dict[str, dict[str, float]]
    gains: dict[str, float]

    def correlation(self, score: str) -> float:
        """Spearman's rank correlation of a score with the gain."""
        own = self.scores[score]
        sign = 1 if MEASURES[score].most_first else -1
        layers = [layer for layer in self.gains if layer in own]
        return spearman([sign * own[n] for n in layers], [self.gains[n] for n in layers])


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """The correlation of two lists' ranks; ties have the mean of their ranks.

    Not a number if all of one list are equal.
    """
    if len({*one}) == 1 or len({*other}) == 1:
        return math.nan
    return statistics.correlation(_ranks(one), _ranks(other))


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(v) + (ordered.count(v) - 1) / 2 for v in values]


@torch.no_grad()
def _loss_on(model: nn.Module, batch: Batch) -> float:
    model.eval()
    parts = zip(batch[0].split(250), batch[1].split(250), strict=True)
    found = statistics.mean(float(loss_of(model, part)) for part in parts)
    model.train()
    return found


def _trained(model: nn.Module, optimizer: Any, batches: Iterator[Batch], steps: int) -> None:
    for batch in islice(batches, steps):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()


def tried(task: Task, data: Data, seed: int, steps: tuple[int, int]) -> Trial:
    """Scores the layers of a network, and grows each of them alone.

    Args:
        task: The task.
        data: Its data.
        seed: The seed.
        steps: The training steps before growth, and after it.
    """
    size, rate = task.batches[1], task.rates[0]
    torch.manual_seed(seed)
    batches = data.batches(size, seed)
    model: Any = splitgrow.growable(task.small(), next(data.batches(2, 0))[0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    _trained(model, optimizer, batches, steps[0])
    probe = [next(batches) for _ in range(4)]
    scores = {
        name: {row.layer: row.score for row in rank(model, loss_of, probe, score=name)}
        for name in MEASURES
    }
    layers = {layer.name: layer for layer in model.layers}
    chosen = [name for name in scores["gain"] if layers[name].growable]
    losses = {}
    for name in ["", *chosen]:
        own, follower = copy.deepcopy((model, optimizer))
        torch.manual_seed(seed)
        if name:
            layer = layers[name]
            units = -(-layer.width // 2 // layer.step) * layer.step
            own.expand_layer(name, units, freeze=False, optimizer=follower, check=False)
        _trained(own, follower, data.batches(size, seed + 1000), steps[1])
        losses[name] = _loss_on(own, data.validation)
    return Trial(task.name, seed, scores, {name: losses[""] - losses[name] for name in chosen})


def read_trials(path: Path) -> list[Trial]:
    """The trials in a file; none if there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Trial(**json.loads(line)) for line in lines]


def write_trial(path: Path, trial: Trial) -> None:
    """Adds a trial to a file."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(trial)) + "\n")


def trials_table(trials: Sequence[Trial]) -> str:
    """The rank correlations of each score, as a table in Markdown."""
    seeds = sorted({trial.seed for trial in trials})
    rows = ["| task | score | " + " | ".join(f"seed {s}" for s in seeds) + " | mean |"]
    rows.append("|---|---|" + "---|" * (len(seeds) + 1))
    for task in dict.fromkeys(trial.task for trial in trials):
        own = sorted((t for t in trials if t.task == task), key=lambda trial: trial.seed)
        for score in MEASURES:
            found = [trial.correlation(score) for trial in own]
            told = " | ".join("all equal" if math.isnan(n) else f"{n:+.2f}" for n in found)
            known = [number for number in found if not math.isnan(number)]
            mean = f"{statistics.mean(known):+.2f}" if known else ""
            rows.append(f"| {task} | {score} | {told} | {mean} |")
    return "\n".join(rows)

"""What is measured: data made into tasks, and the methods that learn them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Suite:
    """Data made into tasks, with a network and a budget that all methods have alike.

    Attributes:
        name: Its name, under which `--data` gives the path.
        title: As the page has it.
        tasks: The number of tasks; classes are divided in their order.
        limit: Training images of a task, of which a tenth is set apart to decide on.
        backbone: The network.
        width: A factor for its widths.
        epochs: Passes through a task's data.
        tried: For how many seeds `benchmarks.continual.tuning` tries a choice: more where there are
            few tasks to average over.
        chosen: What `benchmarks.continual.tuning` chose for a contestant, without test images.
    """

    name: str
    title: str
    tasks: int
    limit: int
    backbone: str = "cnn"
    width: float = 0.5
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 0.01
    momentum: float = 0.9
    tried: int = 3
    chosen: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


SUITES = (
    Suite(
        "glyph100",
        "Glyph-100, 20 tasks of 5 classes",
        tasks=20,
        limit=1000,
        tried=1,
        chosen={
            "ewc": {"strength": 100.0},
            "lwf": {"strength": 0.3},
            "avalanche ewc": {"ewc-lambda": 100.0},
            "avalanche lwf": {"lwf-alpha": 3.0},
            "progressive, mlp": {"learning-rate": 0.1},
            "avalanche pnn, mlp": {"learning-rate": 0.03},
        },
    ),
    Suite(
        "cifar10",
        "Split CIFAR-10 (JPEG), 5 tasks of 2 classes",
        tasks=5,
        limit=1000,
        chosen={
            "ewc": {"strength": 10.0},
            "lwf": {"strength": 0.3},
            "avalanche ewc": {"ewc-lambda": 300.0},
            "avalanche lwf": {"lwf-alpha": 3.0},
            "progressive, mlp": {"learning-rate": 0.01},
            "avalanche pnn, mlp": {"learning-rate": 0.01},
        },
    ),
    Suite(
        "fashion",
        "Split Fashion-MNIST, 5 tasks of 2 classes",
        tasks=5,
        limit=1000,
        chosen={
            "ewc": {"strength": 1_000.0},
            "lwf": {"strength": 0.3},
            "avalanche ewc": {"ewc-lambda": 10_000.0},
            "avalanche lwf": {"lwf-alpha": 3.0},
            "progressive, mlp": {"learning-rate": 0.03},
            "avalanche pnn, mlp": {"learning-rate": 0.03},
        },
    ),
)


@dataclass(frozen=True)
class Contestant:
    """A way of learning the tasks.

    Attributes:
        name: Its name in results.
        method: The method.
        options: Its own options.
        decide_on: What it makes decisions on.
        backbone: Another network than the suite's.
        peer: Whether it is Avalanche's.
        retrains: How many more epochs it has after pruning, as a share of the suite's; ours add
            them themselves.
        epochs: How many times the suite's epochs it has.
        only: The suites that it takes part in; all if there are none.
    """

    name: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    decide_on: Literal["validation", "test"] = "validation"
    backbone: str = ""
    peer: bool = False
    retrains: float = 0.0
    epochs: int = 1
    only: tuple[str, ...] = ()


OURS = (
    Contestant("separate", "separate"),
    Contestant("separate, 5x epochs", "separate", epochs=5, only=("glyph100",)),
    Contestant("joint", "joint"),
    Contestant("finetuning", "finetuning"),
    Contestant("ewc", "ewc"),
    Contestant("lwf", "lwf"),
    Contestant("packnet", "packnet"),
    Contestant("piggyback", "piggyback"),
    Contestant("progressive", "progressive", {"column": 0.25}),
    Contestant("progressive, mlp", "progressive", {"column": 1.0}, backbone="mlp"),
    Contestant("den", "den", {"largest": 1.5}),
    Contestant("pack-and-expand", "pack-and-expand"),
    Contestant("cpg", "cpg"),
    Contestant("cpg, test", "cpg", decide_on="test", only=("glyph100",)),
)
PEERS = (
    Contestant("avalanche naive", "naive", peer=True),
    Contestant("avalanche ewc", "ewc", peer=True),
    Contestant("avalanche lwf", "lwf", peer=True),
    Contestant("avalanche packnet", "packnet", peer=True, retrains=0.5),
    Contestant("avalanche pnn, mlp", "pnn", backbone="mlp", peer=True),
)
CANDIDATES: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "ewc": {"strength": (0.1, 1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0)},
    "lwf": {"strength": (0.03, 0.1, 0.3, 1.0, 3.0)},
    "avalanche ewc": {
        "ewc-lambda": (1.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 30_000.0)
    },
    "avalanche lwf": {"lwf-alpha": (0.3, 1.0, 3.0, 10.0)},
    "progressive, mlp": {"learning-rate": (0.01, 0.03, 0.1)},
    "avalanche pnn, mlp": {"learning-rate": (0.01, 0.03, 0.1)},
}
"""What to choose from, for methods that are nothing without the right strength.

Networks without norms need another learning rate than the suites', too.
"""

PAIRS = {
    "avalanche naive": "finetuning",
    "avalanche ewc": "ewc",
    "avalanche lwf": "lwf",
    "avalanche packnet": "packnet",
    "avalanche pnn, mlp": "progressive, mlp",
}
"""Avalanche's methods, each with ours of the same kind."""


def ordered() -> list[Contestant]:
    """All of them, ours and Avalanche's of one kind one after the other."""
    of_peer = {ours: peer for peer, ours in PAIRS.items()}
    peers = {each.name: each for each in PEERS}
    found = []
    for each in OURS:
        found.append(each)
        if each.name in of_peer:
            found.append(peers[of_peer[each.name]])
    return found

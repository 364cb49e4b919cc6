"""Learns tasks one after the other with Avalanche's strategies, and writes what came of it.

python -m benchmarks.continual.avalanche_peer --method ewc --tasks TASKS.npz --out RESULT.json

It runs in an environment of its own, see avalanche-requirements.txt, and imports nothing of
splitgrow; the backbones, plain torch, are read from their file. Each task has a head, and its
number is known in training and test. The tasks come from a file that `task_files` describes; images
set aside for validation are not used. Every method spends `--epochs` on a task, PackNet those after
pruning included.

The result: `accuracy[i][j]` of task j's test images when task i had been learnt (j <= i);
`training_seconds` of each task, with what a strategy does after its last step; `total_seconds` of
training and tests; `parameters` at the end, heads included; `drift[j]`, the largest change of task
j's logits on its test images from when it was learnt to the end, null where one is not finite; and
`notes`, what one should know of Avalanche's method before comparing.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.continual.task_files import Task, read_tasks

METHODS = ("naive", "packnet", "pnn", "ewc", "lwf")
_BACKBONES = Path(__file__).parents[2] / "splitgrow" / "demos" / "backbones.py"


def backbones() -> Mapping[str, Callable[..., Any]]:
    """The networks by name, without importing splitgrow."""
    spec = util.spec_from_file_location("backbones", _BACKBONES)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {_BACKBONES}")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Mapping[str, Callable[..., Any]] = module.BACKBONES
    return found


NETWORKS = backbones()


def _methods() -> Any:
    """The module that imports Avalanche, which needs torchvision to have been imported."""
    if util.find_spec("avalanche") is None:
        raise click.ClickException(
            "Avalanche is not installed here; benchmarks/continual/avalanche-requirements.txt says "
            "how to make an environment for it"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that it imports and that are not used
        from benchmarks.vision import torchvision  # noqa: PLC0415

        torchvision()
        from benchmarks.continual import avalanche_methods  # noqa: PLC0415
    return avalanche_methods


@torch.no_grad()
def logits_of(model: Any, task: Task, number: int) -> Tensor:
    """The logits of a task's test images `(N, classes)`, in evaluation mode."""
    training = model.training
    model.eval()
    found = []
    for start in range(0, len(task.x_test), 512):
        images = torch.from_numpy(task.x_test[start : start + 512])
        label = torch.full((len(images),), number)
        found.append(model(images, label)[:, : task.classes])
    model.train(training)
    return torch.cat(found)


def accuracy_of(logits: Tensor, task: Task) -> float:
    """The share of test images whose largest logit is that of their class."""
    return float((logits.argmax(1) == torch.from_numpy(task.y_test)).float().mean())


def learn(
    strategy: Any, experiences: Sequence[Any], tasks: Sequence[Task], say: Callable[[str], None]
) -> dict[str, Any]:
    """Learns the tasks and tests each after every one; the numbers of the result.

    Args:
        strategy: Avalanche's.
        experiences: Avalanche's, of the same tasks.
        tasks: What is tested.
        say: Told after each task how it went.
    """
    accuracy: list[list[float]] = []
    seconds: list[float] = []
    learnt: list[Tensor] = []
    now: list[Tensor] = []
    began = time.perf_counter()
    for number, experience in enumerate(experiences):
        started = time.perf_counter()
        strategy.train(experience)
        seconds.append(time.perf_counter() - started)
        now = [logits_of(strategy.model, tasks[old], old) for old in range(number + 1)]
        learnt.append(now[-1])
        accuracy.append([accuracy_of(found, tasks[old]) for old, found in enumerate(now)])
        mean = sum(accuracy[-1]) / len(accuracy[-1])
        say(
            f"task {number + 1} of {len(tasks)}: {accuracy[-1][-1]:.3f}, "
            f"mean so far {mean:.3f}, {seconds[-1]:.1f} s"
        )
    return {
        "accuracy": accuracy,
        "training_seconds": seconds,
        "total_seconds": time.perf_counter() - began,
        "parameters": sum(values.numel() for values in strategy.model.parameters()),
        "drift": [drift_of(before, after) for before, after in zip(learnt, now, strict=True)],
    }


def drift_of(before: Tensor, after: Tensor) -> float | None:
    """The largest change of a logit; None where one is not finite, for which JSON has no number."""
    drift = float((after - before).abs().max())
    return drift if math.isfinite(drift) else None


def run(path: Path, asked: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """The whole result, as JSON data.

    Args:
        path: The file of tasks.
        asked: The fields of `avalanche_methods.Settings`.
        say: Told after each task how it went.
    """
    try:
        tasks = read_tasks(path)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    methods = _methods()
    settings = methods.Settings(**asked)
    random.seed(settings.seed)
    np.random.seed(settings.seed)  # noqa: NPY002  what Avalanche may draw from
    torch.manual_seed(settings.seed)
    strategy, notes = methods.strategy(settings, NETWORKS[settings.backbone], tasks)
    numbers = learn(strategy, methods.experiences(tasks), tasks, say)
    lost = [str(number) for number, drift in enumerate(numbers["drift"]) if drift is None]
    if lost:
        notes.append(f"Training diverged: there are logits of task {', '.join(lost)} not finite.")
    return {
        "method": settings.method,
        "library": "avalanche",
        "avalanche": metadata.version("avalanche-lib"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "settings": settings.used(),
        **numbers,
        "notes": notes,
    }


def check(asked: dict[str, Any]) -> None:
    """Refuses what Avalanche would fail at later, or do other than asked."""
    if asked["method"] == "pnn" and asked["backbone"] != "mlp":
        raise click.UsageError(
            "Avalanche's pnn is made of linear layers and takes no backbone: say --backbone mlp, "
            "which it is comparable with"
        )
    epochs, after = asked["epochs"], asked["packnet_post_prune_epochs"]
    if asked["method"] == "packnet" and not 0 < after < epochs:
        raise click.UsageError(
            f"packnet needs epochs before and after pruning: of {epochs}, {after} are after it"
        )


@click.command()
@click.option("--method", type=click.Choice(METHODS), required=True)
@click.option(
    "--tasks",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="A file as benchmarks/continual/task_files.py describes it.",
)
@click.option("--backbone", type=click.Choice(list(NETWORKS)), default="cnn", show_default=True)
@click.option("--width", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True)
@click.option(
    "--epochs", type=click.IntRange(1), default=10, show_default=True, help="For each task."
)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@click.option("--lr", type=click.FloatRange(0, min_open=True), default=0.05, show_default=True)
@click.option("--momentum", type=click.FloatRange(0, 1), default=0.9, show_default=True)
@click.option("--nesterov", is_flag=True, help="Nesterov's momentum.")
@click.option(
    "--schedule",
    type=click.Choice(["constant", "cosine"]),
    default="constant",
    show_default=True,
    help="How the learning rate falls within a task.",
)
@click.option("--weight-decay", type=click.FloatRange(0), default=0.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of torch; default: its own.")
@click.option(
    "--out", type=click.Path(dir_okay=False, writable=True, path_type=Path), required=True
)
@click.option(
    "--ewc-lambda",
    type=click.FloatRange(0),
    default=0.4,
    show_default=True,
    help="Weight of the penalty; default of Avalanche's example ewc_mnist.py.",
)
@click.option(
    "--ewc-mode",
    type=click.Choice(["separate", "online"]),
    default="separate",
    show_default=True,
    help="A penalty for each old task, or one for all.",
)
@click.option(
    "--ewc-decay",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Of old importances in mode online; default of the same example.",
)
@click.option(
    "--lwf-alpha",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="Weight of the distillation; default of Avalanche's multi-head baseline on Tiny ImageNet.",
)
@click.option(
    "--lwf-temperature",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    show_default=True,
    help="Of the softmax in the distillation; default of the same baseline.",
)
@click.option(
    "--packnet-post-prune-epochs",
    type=int,
    help="Those of --epochs that come after pruning. Default: half of them, as in Avalanche's "
    "baseline on Tiny ImageNet.",
)
@click.option(
    "--packnet-prune",
    type=click.FloatRange(0, 1),
    help="The share of a task's weights that is given up for later ones. Default: so that all "
    "tasks keep equally many, as in the same baseline.",
)
@click.option(
    "--packnet-norms",
    type=click.Choice(["held", "own", "shared"]),
    default="own",
    show_default=True,
    help="Batch norms, which Avalanche's PackNet refuses: held after the first task as in its "
    "paper, one for each task, or trained by all, which harms old tasks.",
)
def main(tasks: Path, out: Path, threads: int | None, **asked: Any) -> None:
    """Learns tasks one after the other with one of Avalanche's strategies."""
    if asked["packnet_post_prune_epochs"] is None:
        asked["packnet_post_prune_epochs"] = asked["epochs"] // 2
    check(asked)
    if not out.parent.is_dir():
        raise click.UsageError(f"there is no folder {out.parent} to write the result to")
    if threads:
        torch.set_num_threads(threads)
    result = run(tasks, asked, lambda line: click.echo(line, file=sys.stderr))
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Growth of a model that FSDP2 spreads over several processes: time, and what is sent."""

from __future__ import annotations

import gc
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from torch import nn
from torch.distributed import distributed_c10d
from torch.distributed.fsdp import fully_shard

import splitgrow
from benchmarks.coverage.results import machine
from benchmarks.scale.models import FAMILIES
from benchmarks.scale.traffic import Traffic, Words
from benchmarks.speed.child import GIVE_BACK
from benchmarks.speed.machine import commit
from splitgrow import distributed

NAME = "ranks.jsonl"
WORLDS = (1, 2, 4, 8)
LAYERS, WIDTH = 4, 512
STEPS = {
    "training": "a training step, to compare with",
    "inner": "`distributed.expand_layer` of the inner units of one block, 12.5 % wider",
    "stream": "`distributed.expand_layer` of the residual stream, 12.5 % wider",
    "insert": "`distributed.insert_layer` of a copy of one block",
    "close": "`distributed.next_generation`",
}
_PATIENCE = 300.0


def measure_ranks(
    runs: Path, repeats: int, console: Console, size: tuple[int, int] = (LAYERS, WIDTH)
) -> None:
    """Makes the measurements that are missing.

    Args:
        runs: The folder of results.
        repeats: How often each number of processes is to be measured.
        console: Told each step.
        size: Layers and width of the Llama that grows.
    """
    os.environ.update(GIVE_BACK, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    path = runs / NAME
    for repeat in range(repeats):
        for world in WORLDS:
            key = {"world": world, "size": [*size], "repeat": repeat}
            if any(key.items() <= record.items() for record in read_ranks(path)):
                continue
            record = {**key, "ranks": _in_processes(world, size)}
            for step, found in record["ranks"][0].items():
                console.print(f"{world} ranks, {step}, rank 0: {found}", highlight=False)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                where = {**machine(), "commit": commit()}
                file.write(json.dumps({**record, "machine": where}) + "\n")


def read_ranks(path: Path) -> list[dict[str, Any]]:
    """The records so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _in_processes(world: int, size: tuple[int, int]) -> list[dict[str, dict[str, float]]]:
    """What each rank tells of each step.

    Raises:
        RuntimeError: If one of them fails or is silent for too long.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.scale.warm", "splitgrow.distributed"])
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipes = [context.Pipe(duplex=False) for _ in range(world)]
    processes = [
        context.Process(target=_measuring, args=(theirs, rank, world, store.port, size))
        for rank, (_, theirs) in enumerate(pipes)
    ]
    for process, (_, theirs) in zip(processes, pipes, strict=True):
        process.start()
        theirs.close()
    try:
        found = []
        for rank, (ours, _) in enumerate(pipes):
            if not ours.poll(_PATIENCE):
                raise RuntimeError(f"rank {rank} of {world} was silent for {_PATIENCE:.0f} s")
            found.append(ours.recv())
        return found
    except EOFError as error:
        raise RuntimeError(f"a rank of {world} ended without an answer") from error
    finally:
        for process in processes:
            process.kill()
            process.join()


def _measuring(answers: Any, rank: int, world: int, port: int, size: tuple[int, int]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    words = Words(distributed_c10d._get_default_store())  # noqa: SLF001
    distributed_c10d._get_default_store = lambda: words  # noqa: SLF001 - of this process alone
    try:
        found = dict(_steps(words, size))
        dist.barrier()  # who has answered is stopped, and the others may still need it
        answers.send(found)
    finally:
        dist.destroy_process_group()


def _steps(words: Any, size: tuple[int, int]) -> Iterator[tuple[str, dict[str, float]]]:
    family = FAMILIES["Llama"]
    torch.manual_seed(0)
    plain, inputs = family.make(*size), family.inputs()
    model: Any = splitgrow.growable(plain, example_kwargs=inputs, check=False)
    for number in range(size[0]):
        fully_shard(model.get_submodule(family.block.format(number)))
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for step, call in _calls(model, inputs, optimizer, size):
        gc.collect()
        dist.barrier()
        before = words.sent
        started, wall = time.process_time(), time.perf_counter()
        with Traffic() as traffic:
            call()
        yield (
            step,
            {
                "seconds": time.process_time() - started,
                "wall": time.perf_counter() - wall,
                "sent": traffic.sent,
                "words": words.sent - before,
                "calls": sum(traffic.calls.values()),
            },
        )


def _calls(
    model: Any, inputs: dict[str, Any], optimizer: Any, size: tuple[int, int]
) -> Iterator[tuple[str, Callable[[], object]]]:
    family, middle = FAMILIES["Llama"], size[0] // 2
    inner, options = family.inner.format(middle), {"optimizer": optimizer}

    def train() -> None:
        optimizer.zero_grad()
        model(**inputs).logits.square().mean().backward()
        optimizer.step()

    train()  # what the first step sets up is not counted
    yield "training", train
    for step, layer in (("inner", inner), ("stream", family.stream)):
        units = max(1, _layer(model, layer).width // 8)
        yield step, lambda n=units, at=layer: distributed.expand_layer(model, at, n, **options)
    block = family.block.format(middle)
    yield "insert", lambda: distributed.insert_layer(model, block, "block", **options)
    yield "close", lambda: distributed.next_generation(model)


def _layer(model: nn.Module, name: str) -> Any:
    return next(layer for layer in splitgrow.handle(model).layers if layer.name == name)

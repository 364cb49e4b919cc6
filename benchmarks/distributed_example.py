"""Growing a model while several processes train it, as docs/processes.md has it.

    torchrun --nproc-per-node 2 benchmarks/distributed_example.py

With gloo on the CPU, with NCCL where there is a GPU for each process. Run it again, with as many
processes as you like, and it goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import splitgrow
from splitgrow import distributed

GROWTHS = {40: {"0": 8, "3": 16}, 80: {"3": 16, "7": 32}}
"""After how many steps which layers grow, and by how many units."""
BATCH = 96
"""Of all processes together; 1, 2, 3, 4 and 6 of them share it evenly."""


def network() -> nn.Module:
    """A small classifier of pictures of digits, made growable."""
    torch.manual_seed(0)  # what is there before the first growth must be the same in all processes
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.GroupNorm(4, 8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    return splitgrow.growable(model, torch.zeros(1, 1, 8, 8))


def wrapped(model: nn.Module, how: str) -> nn.Module:
    """The model in the wrapper that was asked for."""
    if how == "fsdp":
        for layer in (model[3], model[7]):  # type: ignore[index]
            fully_shard(layer)
        return fully_shard(model)
    return DistributedDataParallel(model)


def batches(start: int, steps: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's shares of the batches: noisy pictures of ten patterns."""
    rank, world = dist.get_rank(), dist.get_world_size()
    patterns = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(1000 + step)
        labels = torch.randint(10, (BATCH,), generator=generator)
        pictures = patterns[labels] + 3 * torch.randn(BATCH, 1, 8, 8, generator=generator)
        share = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        yield pictures[share].to(device), labels[share].to(device)


def train(model: nn.Module, optimizer: Any, step: int, options: argparse.Namespace) -> float:
    """Trains to the end, growing and saving on the way; returns the last loss."""
    device = next(model.parameters()).device
    loss = torch.zeros(())
    for pictures, labels in batches(step, options.steps, device):
        loss = nn.functional.cross_entropy(model(pictures), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step in GROWTHS:
            edit = distributed.expand(model, GROWTHS[step], optimizer=optimizer)
            say(f"step {step}, loss {loss.item():.3f}: {edit}")
        if step % 40 == 0:
            distributed.save(model, options.out, optimizer=optimizer, extra=step)
    return loss.item()


def say(text: str) -> None:
    """Prints a text once, not once in each process."""
    if dist.get_rank() == 0:
        print(text, flush=True)


def main() -> None:
    """Runs in every process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="distributed_example", help="where checkpoints go")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--wrapper", choices=["ddp", "fsdp"], default="ddp")
    options = parser.parse_args()
    place = int(os.environ["LOCAL_RANK"])
    cuda = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    device = torch.device("cuda", place) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        model = wrapped(network().to(device), options.wrapper)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        step = 0
        if os.path.exists(os.path.join(options.out, "latest")):  # noqa: PTH110, PTH118
            step = distributed.load(model, options.out, optimizer=optimizer)
            say(f"going on from step {step} in {dist.get_world_size()} processes")
        loss = train(model, optimizer, step, options)
        say(f"done: step {options.steps}, loss {loss:.3f}")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

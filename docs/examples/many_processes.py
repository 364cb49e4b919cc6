"""Grows a model in two processes: all ranks or none, and equal bit for bit."""

import os
import socket

import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

import splitgrow

STEPS = 2 if os.environ.get("SPLITGROW_EXAMPLE") == "small" else 50
RANKS = 2


def train(model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
    for _ in range(STEPS):
        x = torch.randn(16, 8, generator=generator)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), x[:, :2]).backward()
        optimizer.step()


def work(rank: int, port: int) -> None:
    """What each process does."""
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=RANKS)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(rank)  # each rank has its own data
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    model = splitgrow.growable(model, torch.randn(1, 8))
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(wrapped, optimizer, generator)

    edit = splitgrow.distributed.expand_layer(wrapped, "0", 16, freeze=False, optimizer=optimizer)
    train(wrapped, optimizer, generator)

    mine = torch.cat([p.detach().flatten() for p in model.parameters()])
    all_ranks = [torch.empty_like(mine) for _ in range(RANKS)]
    distributed.all_gather(all_ranks, mine)
    if rank == 0:
        print(edit)
        print("equal on all ranks:", all(torch.equal(mine, other) for other in all_ranks))
    distributed.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(work, (port,), nprocs=RANKS)

"""A run of Lightning or accelerate in one of several processes of torchrun, which grows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import splitgrow
from benchmarks.vision import torchvision

X = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    """A growable network, the same in every process."""
    torch.manual_seed(0)
    return splitgrow.growable(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)), X[:4])


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    """The loss on a batch."""
    return (model(x) - x.sum(1, keepdim=True)).square().mean()


def write(folder: str, rank: int, model: nn.Module, seen: float) -> None:
    """Writes the parameters of this process."""
    growing = splitgrow.handle(model)
    found = {"parameters": [p.detach() for p in model.parameters()], "data": seen}
    torch.save({**found, "width": growing.layers["0"].width}, Path(folder) / f"{rank}.pt")


def accelerate(folder: str) -> None:
    """Trains by accelerate's loop, and once more from the middle, to the same end."""
    from accelerate import Accelerator  # noqa: PLC0415

    from splitgrow.integrations.accelerate import grow_as_saved  # noqa: PLC0415

    ends = []
    for resumed in (False, True):
        accelerator = Accelerator(cpu=True)
        model: Any = network()
        if resumed:
            grow_as_saved(model, f"{folder}/state")
        optimizer: Any = splitgrow.by_name(torch.optim.AdamW(model.parameters(), 0.05), model)
        model, optimizer = accelerator.prepare(model, optimizer)
        rule: Any = splitgrow.Every(3)
        grower = splitgrow.Grower(model, optimizer, when=rule, to=splitgrow.Factor(2.0), steps=2)
        accelerator.register_for_checkpointing(grower)
        if resumed:
            accelerator.load_state(f"{folder}/state")
        seen = 0.0
        for step in range(5 if resumed else 0, 8):
            batch = X[8 * step + 4 * accelerator.process_index :][:4]
            seen += float(batch.sum())
            accelerator.backward(loss_of(model, batch))
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            grower.step(samples=4)
            if step == 4 and not resumed:
                accelerator.save_state(f"{folder}/state")
        plain = accelerator.unwrap_model(model)
        ends.append([p.detach() for p in plain.parameters()])
        write(folder, accelerator.process_index, plain, seen)
        del model, grower
    assert len(ends[0]) == len(ends[1])
    assert all(map(torch.equal, *ends))
    accelerator.end_training()


def lightning(callback: str, folder: str) -> None:
    """Trains by Lightning's Trainer."""
    import lightning.pytorch as pl  # noqa: PLC0415

    from splitgrow.integrations.lightning import GrowerCallback, GrowthCallback  # noqa: PLC0415

    class Task(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.seen = network(), 0.0

        def training_step(self, batch: Any) -> Tensor:
            self.seen += float(batch[0].sum())
            return loss_of(self.net, batch[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.05)

    grows = (
        GrowthCallback({3: {"0": 4}}, freeze=False)
        if callback == "growth"
        else GrowerCallback(when=splitgrow.Every(3), to=splitgrow.Factor(2.0), steps=1)
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        max_epochs=1,
        callbacks=[grows],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    task = Task()
    trainer.fit(task, DataLoader(TensorDataset(X), batch_size=4))
    write(folder, trainer.global_rank, task.net, task.seen)


if __name__ == "__main__":
    torchvision()
    if sys.argv[1] == "accelerate":
        accelerate(sys.argv[2])
    else:
        lightning(*sys.argv[1:])

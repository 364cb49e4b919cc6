"""A run of Lightning in one of several processes that torchrun starts, which grows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import splitgrow
from benchmarks.vision import torchvision


def main(callback: str, folder: str) -> None:
    """Trains, and writes the parameters of this process."""
    torchvision()
    import lightning.pytorch as pl  # noqa: PLC0415

    from splitgrow.integrations.lightning import GrowerCallback, GrowthCallback  # noqa: PLC0415

    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))

    class Task(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
            self.net, self.seen = splitgrow.growable(net, x[:4]), 0.0

        def training_step(self, batch: Any) -> Tensor:
            self.seen += float(batch[0].sum())
            return (self.net(batch[0]) - batch[0].sum(1, keepdim=True)).square().mean()

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
    trainer.fit(task, DataLoader(TensorDataset(x), batch_size=4))
    found = {"parameters": [p.detach() for p in task.parameters()], "data": task.seen}
    found["width"] = splitgrow.handle(task.net).layers["0"].width
    torch.save(found, Path(folder) / f"{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])

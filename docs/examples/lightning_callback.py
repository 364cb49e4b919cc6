"""Grows a network inside of a LightningModule by a policy, and resumes the run from its file."""

import os
import tempfile

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import splitgrow
from splitgrow.integrations.lightning import GrowerCallback

EPOCHS = 2 if os.environ.get("SPLITGROW_EXAMPLE") == "small" else 20

x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
y = (x[:, :4].sum(1) > x[:, 4:].sum(1)).long()


class Classifier(lightning.LightningModule):
    """Two layers, with Lightning's methods."""

    def __init__(self) -> None:
        super().__init__()
        net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        self.net = splitgrow.growable(net, x[:1])

    def training_step(self, batch: list[Tensor]) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def trainer(folder: str, epochs: int) -> lightning.Trainer:
    grows = GrowerCallback(when=splitgrow.Every(8), to=splitgrow.Factor(4.0), steps=2)
    return lightning.Trainer(
        max_epochs=epochs,
        callbacks=[grows, ModelCheckpoint(folder, save_last=True)],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


with tempfile.TemporaryDirectory() as folder:
    data = DataLoader(TensorDataset(x, y), 32)
    first = Classifier()
    trainer(folder, EPOCHS).fit(first, data)
    print("grown to", first.net.layers[0].width)

    second = Classifier()  # as it was before it grew
    trainer(folder, 2 * EPOCHS).fit(second, data, ckpt_path=f"{folder}/last.ckpt")
    accuracy = (second.net(x).argmax(1) == y).float().mean()
    print(f"resumed, and grown to {second.net.layers[0].width}: accuracy {accuracy:.3f}")

"""What a training script writes with splitgrow, as type checkers see it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, ReduceLROnPlateau

import splitgrow
from splitgrow.typing import Schedulers


def growth_with_schedulers(path: Path) -> splitgrow.Edit:
    """Several optimizers and schedulers, in a growth, a policy and a checkpoint."""
    network = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    handle = splitgrow.handle(splitgrow.growable(network, torch.ones(1, 2)))
    optimizer = torch.optim.AdamW(network.parameters())
    cosine: LRScheduler = CosineAnnealingLR(optimizer, 10)
    plateau = ReduceLROnPlateau(optimizer)
    both: Schedulers = [cosine, plateau]
    handle.expand_layer("0", 4, optimizer=[optimizer], scheduler=cosine, lr_scale=2.0, warmup=3)
    handle.expand({"0": 2}, optimizer=optimizer, scheduler=both, freeze=False)
    inserted = handle.insert_layer("0", "residual", optimizer=optimizer, scheduler=plateau)
    policy = splitgrow.Grower(
        network, optimizer, cosine, when=splitgrow.Every(2), steps=1, absorb=False
    )
    grown: splitgrow.Edit | None = policy.step({"loss": 1.0})
    fade = splitgrow.FadeIn(nn.Identity(), nn.Linear(2, 2))
    schedule = splitgrow.FadeSchedule(fade, steps=2)
    splitgrow.save(network, path, optimizer=optimizer, scheduler=[cosine, schedule])
    return grown or inserted


def edit_as_text(edit: splitgrow.Edit) -> str:
    """What an edit says, and its way through a file."""
    request: Mapping[str, int] = edit.request
    names = [change.name for change in edit.changes]
    widths: list[tuple[int, int]] = [change.width for change in edit.changes]
    paths: list[str] = [each.name for each in edit.inserted]
    again = splitgrow.Edit.from_json(edit.to_json())
    return f"{again.index} {dict(request)} {names} {widths} {paths} {edit.parameters} {edit.moved}"


def summary_of(network: nn.Module) -> tuple[str, int]:
    """The table of a model, and a figure from it."""
    summary: splitgrow.Summary = splitgrow.handle(network).summary()
    training = [layer.training for layer in summary.layers if layer.blocks > 1]
    return str(summary), sum(training)


def narrower(network: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> int:
    """Pruned by a loss, to half of the multiply-adds."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        output: Tensor = model(batch[0])
        return nn.functional.mse_loss(output, batch[1])

    handle = splitgrow.handle(network)
    edit = handle.prune(
        target=splitgrow.Target(macs=0.5), criterion="taylor", loss=loss, batches=batches
    )
    return 0 if edit is None or edit.macs is None else edit.macs[1]

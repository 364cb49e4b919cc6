"""Policies in the Trainer of Lightning."""

from __future__ import annotations

import doctest
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import splitgrow
from benchmarks.vision import torchvision
from splitgrow.integrations import growable_part

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]
X = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))


def integration() -> Any:
    torchvision()  # torchmetrics imports it
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    from splitgrow.integrations import lightning  # noqa: PLC0415

    return lightning


def network(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    return splitgrow.growable(net, X[:4])


def task(net: nn.Module) -> Any:
    """A module that logs its loss in training and in validation, with a scheduler."""
    integration()
    import lightning.pytorch as pl  # noqa: PLC0415

    class Task(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.steps = net, []

        def _loss(self, x: Tensor) -> Tensor:
            return nn.functional.mse_loss(self.net(x), x.sum(1, keepdim=True))

        def training_step(self, batch: Any, index: int) -> Tensor:
            torch.manual_seed(self.global_step)  # no checkpoint of Lightning has the generators
            loss = self._loss(batch[0])
            self.steps.append(self.global_step)
            self.log("loss", loss)
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val_loss", self._loss(batch[0]))

        def configure_optimizers(self) -> Any:
            adam = torch.optim.AdamW(self.parameters(), 1e-2)
            scheduler = torch.optim.lr_scheduler.OneCycleLR(adam, 1e-2, total_steps=20)
            return [adam], [{"scheduler": scheduler, "interval": "step"}]

    return Task()


def fit(
    net: Any, folder: Path, *, resume: Path | None = None, steps: int = 8, **options: Any
) -> tuple[Any, Any]:
    """Trains by a policy: each epoch has two steps and a validation."""
    ours = integration()
    import lightning.pytorch as pl  # noqa: PLC0415
    from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: PLC0415

    accumulate, validated = options.pop("accumulate", 1), options.pop("validated", False)
    each = {"save_on_train_epoch_end": False} if validated else {"every_n_train_steps": 1}
    callback = ours.GrowerCallback(**{"to": splitgrow.Factor(1.5), "steps": 2, **options})
    saver = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **each)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=1.0,
        callbacks=[callback, saver],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    module = task(net)
    size = 32 // accumulate
    data = DataLoader(TensorDataset(X), batch_size=size)
    trainer.fit(module, data, DataLoader(TensorDataset(X), batch_size=32), ckpt_path=resume)
    module.trained = trainer
    return module, callback


def at(folder: Path, step: int) -> Path:
    (found,) = folder.glob(f"step={step}.ckpt")
    return found


RULES = {
    "steps": splitgrow.Every(2),
    "validation": splitgrow.Plateau("val_loss", patience=1, min_delta=10.0),
    "training": splitgrow.Plateau("loss", patience=2, min_delta=10.0),
}


@pytest.mark.parametrize("absorb", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_a_resumed_run_grows_by_the_policy_to_the_same_values(
    rule: str, absorb: bool, tmp_path: Path
) -> None:
    whole = network()
    options = {"when": RULES[rule], "absorb": absorb, "steps": 12}
    options["validated"] = rule == "validation"  # a checkpoint behind the validation has its value
    _, callback = fit(whole, tmp_path / "whole", **options)
    assert callback.grower.done
    assert [layer.width for layer in whole.layers] == [12, 1]
    for step in (2, 4, 8):  # at the end of an epoch: Lightning begins others with other data
        resumed = network(seed=9)
        path = at(tmp_path / "whole", step)
        _, again = fit(resumed, tmp_path / f"{step}", resume=path, **options)
        assert again.grower.state_dict() == callback.grower.state_dict()
        ours, theirs = resumed.state_dict(), whole.state_dict()
        assert ours.keys() == theirs.keys()
        tensors = [name for name, value in ours.items() if isinstance(value, Tensor)]
        assert all(torch.equal(ours[name], theirs[name]) for name in tensors)


@pytest.mark.parametrize(
    ("to", "width"),
    [
        (splitgrow.Factor(0.5), 4),
        (splitgrow.Cycles(splitgrow.Budget(params=60), grow=2.0, times=1), 8),
    ],
    ids=["factor", "cycles"],
)
def test_a_resumed_run_shrinks_by_the_policy_to_the_same_values(
    to: Any, width: int, tmp_path: Path
) -> None:
    whole, options = network(), {"when": splitgrow.Every(2), "to": to}
    _, callback = fit(whole, tmp_path / "whole", **options)
    assert callback.grower.done
    assert [layer.width for layer in whole.layers] == [width, 1]
    resumed = network(seed=9)
    _, again = fit(resumed, tmp_path / "2", resume=at(tmp_path / "whole", 2), **options)
    assert again.grower.state_dict() == callback.grower.state_dict()
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_it_counts_optimizer_steps_and_samples_not_batches(tmp_path: Path) -> None:
    edits: list[Any] = []
    net = network()
    module, callback = fit(
        net, tmp_path, when=splitgrow.Every(3), accumulate=4, steps=7, callbacks=edits.append
    )
    assert len(module.steps) == 4 * 7
    saved = [torch.load(at(tmp_path, n), weights_only=False) for n in (2, 3, 5, 6)]
    widths = [each["state_dict"]["net.0.weight"].shape[0] for each in saved]
    assert widths == [8, 10, 10, 12], "growth comes before the checkpoint of its step"
    assert len(edits) == 2
    _, alike = fit(network(), tmp_path / "alike", when=splitgrow.Every(3), steps=7)
    assert callback.grower.macs_spent == alike.grower.macs_spent


def test_each_value_that_is_logged_counts_once(tmp_path: Path) -> None:
    """A validation comes every two steps: the third one is seen in the step behind it, the 7th."""
    grown: dict[str, list[int]] = {}
    for name in ("val_loss", "loss"):
        rule = splitgrow.Plateau(name, patience=2, min_delta=10.0)
        fit(network(), tmp_path / name, when=rule, steps=8)
        widths = [
            torch.load(at(tmp_path / name, n), weights_only=False)["state_dict"]["net.0.weight"]
            for n in range(1, 9)
        ]
        grown[name] = [n for n in range(2, 9) if len(widths[n - 1]) > len(widths[n - 2])]
    assert grown == {"val_loss": [7], "loss": [3, 6]}


def test_a_metric_that_is_never_logged_is_told(tmp_path: Path) -> None:
    with pytest.warns(splitgrow.SplitGrowWarning, match="waits for 'accuracy'.* loss, val_loss"):
        fit(network(), tmp_path, when=splitgrow.Plateau("accuracy"), steps=2)


def test_what_it_cannot_grow_is_refused() -> None:
    ours = integration()
    callback = ours.GrowerCallback(when=splitgrow.Every(1))
    with pytest.raises(splitgrow.UnsupportedModelError, match="no part of the Sequential"):
        callback.on_fit_start(SimpleNamespace(), nn.Sequential())
    strategy = SimpleNamespace(restore_checkpoint_after_setup=True, model=None)
    with pytest.raises(splitgrow.UnsupportedModelError, match="in pieces of its own"):
        callback.on_fit_start(SimpleNamespace(strategy=strategy), network())
    batch = {"names": ["a"], "size": torch.ones(())}
    with pytest.raises(ValueError, match="give samples="):
        ours._samples_of(batch)
    assert ours._samples_of({"names": ["a"], "x": torch.ones(5, 2)}) == 5


def test_a_checkpoint_of_another_policy_is_refused(tmp_path: Path) -> None:
    fit(network(), tmp_path / "one", when=splitgrow.Every(2), steps=4)
    path = at(tmp_path / "one", 3)
    with pytest.raises(ValueError, match="the state is that of another policy"):
        fit(network(), tmp_path / "two", when=splitgrow.Every(3), resume=path, steps=6)


def test_its_examples_run() -> None:
    module = integration()
    found = doctest.testmod(sys.modules[module.__name__])
    assert found.failed == 0
    assert found.attempted > 1
    assert doctest.testmod(growable_part).failed == 0

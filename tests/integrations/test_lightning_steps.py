"""Growth at given steps in the Trainer of Lightning, with averages, and in two processes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trainers.torchrun import in_two_processes

import splitgrow
from benchmarks.vision import torchvision

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]
X = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))


def integration() -> Any:
    torchvision()  # torchmetrics imports it
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    from splitgrow.integrations import lightning  # noqa: PLC0415

    return lightning


def fit(callbacks: list[Any], *, epochs: int = 4, seed: int = 0, **options: Any) -> Any:
    """Trains: an epoch has two steps."""
    integration()
    import lightning.pytorch as pl  # noqa: PLC0415

    class Task(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 1))
            self.net = splitgrow.growable(net, X[:2])

        def training_step(self, batch: Any) -> Tensor:
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.05, momentum=0.5)

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False}
    resume = options.pop("ckpt_path", None)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=callbacks, **{**quiet, **options}
    )
    task = Task()
    task.trained = trainer
    trainer.fit(task, DataLoader(TensorDataset(X), batch_size=8), ckpt_path=resume)
    return task


def deepen(model: Any, optimizers: list[Any]) -> None:
    model.insert_layer("2", "residual", freeze=False, optimizer=optimizers)


GROWTHS = {2: {"0": 6}, 5: deepen}


def test_it_grows_at_its_steps_and_new_parameters_train() -> None:
    ours = integration()
    task = fit([ours.GrowthCallback(GROWTHS, freeze=False)])
    assert [edit.index for edit in splitgrow.handle(task.net).edits] == [1, 2]
    assert task.net.layers["0"].width == 12
    (optimizer,) = task.trained.optimizers
    assert {id(p) for p in task.parameters()} == {id(p) for p in optimizer.state}


def test_it_trains_on_in_every_setting_and_loads_from_its_checkpoint(tmp_path: Path) -> None:
    ours = integration()
    from lightning.pytorch.loggers import CSVLogger  # noqa: PLC0415

    settings = {"gradient_clip_val": 1.0, "accumulate_grad_batches": 2, "precision": "bf16-mixed"}
    logger = CSVLogger(tmp_path)
    task = fit([ours.GrowthCallback({2: {"0": 6}})], logger=logger, **settings)
    task.trained.save_checkpoint(tmp_path / "last.ckpt")
    assert task.trained.global_step == 4
    fresh = type(task).load_from_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(fresh.net(X), task.net(X))
    assert (fresh.net[0].out_features, task.net[0].out_features) == (12, 12)


@pytest.mark.parametrize(
    ("growths", "error"),
    [({0: {"0": 1}}, ValueError), ({2: 5}, TypeError), ({True: {}}, TypeError)],
)
def test_growths_of_other_kinds_are_refused(growths: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="growth"):
        integration().GrowthCallback(growths)


def test_growth_of_a_resumed_run_draws_the_same_numbers_whatever_was_drawn_since(
    tmp_path: Path,
) -> None:
    """Lightning's checkpoints have no generators."""
    ours = integration()
    from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: PLC0415

    def run(seed: int, **options: Any) -> Any:
        saver = ModelCheckpoint(tmp_path / str(seed), filename="{epoch}", save_top_k=-1)
        callbacks = [ours.GrowthCallback({2: {"0": 2}, 6: {"0": 3}}), saver]
        return fit(callbacks, seed=seed, enable_checkpointing=True, **options)

    whole = run(0)
    resumed = run(9, ckpt_path=tmp_path / "0" / "epoch=1.ckpt")
    assert len(splitgrow.handle(resumed.net).edits) == 2
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_growth_leaves_the_random_numbers_of_training_alone() -> None:
    ours = integration()
    states = []
    for growths in ({}, {7: {"0": 4}}):
        torch.manual_seed(1)
        fit([ours.GrowthCallback(growths)])
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def expected_averages(ema: bool) -> Any:
    """A callback that averages by the parameters' identities; new ones begin with their values."""
    integration()
    import lightning.pytorch as pl  # noqa: PLC0415

    class Averages(pl.Callback):
        def __init__(self) -> None:
            self.values: dict[int, Tensor] = {}
            self.count = 0

        def begin(self, module: Any) -> None:
            for parameter in module.parameters():
                self.values.setdefault(id(parameter), parameter.detach().double().clone())

        def update(self, module: Any) -> None:
            self.begin(module)
            for parameter in module.parameters():
                value, old = parameter.detach().double(), self.values[id(parameter)]
                share = 0.5 if ema else 1 / (self.count + 1)
                old.add_(value - old, alpha=share if self.count else 1)
            self.count += 1

    return Averages()


@pytest.mark.parametrize("name", ["WeightAveraging", "EMAWeightAveraging"])
def test_an_average_of_each_step_follows_by_itself(name: str) -> None:
    """The run ends with the average, which Lightning copies into the model by position."""
    ours, expected = integration(), expected_averages(ema=name.startswith("EMA"))
    from lightning.pytorch import callbacks  # noqa: PLC0415

    type(expected).on_train_batch_end = lambda self, trainer, module, *_: self.update(module)
    average = getattr(callbacks, name)(**({"decay": 0.5} if "EMA" in name else {}))
    task = fit([average, ours.GrowthCallback(GROWTHS, freeze=False), expected])
    _compare(task, expected)


def test_a_stochastic_average_of_each_epoch_follows_by_itself() -> None:
    ours, expected = integration(), expected_averages(ema=False)
    from lightning.pytorch.callbacks import StochasticWeightAveraging  # noqa: PLC0415

    updates = type(expected)
    updates.on_train_epoch_start = lambda self, trainer, module: self.update(module)
    updates.on_train_batch_end = lambda self, trainer, module, *_: self.begin(module)
    average = StochasticWeightAveraging(0.05, swa_epoch_start=1)
    growths = ours.GrowthCallback(GROWTHS, freeze=False)
    _compare(fit([average, growths, expected], epochs=5), expected)


def _compare(task: Any, expected: Any) -> None:
    assert len(splitgrow.handle(task.net).edits) == 2
    for name, parameter in task.named_parameters():
        value = expected.values[id(parameter)]
        assert torch.allclose(parameter.double(), value, atol=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("callback", ["growth", "grower"])
def test_two_processes_grow_alike_through_the_wrapper_that_is_found(
    callback: str, tmp_path: Path
) -> None:
    for result in in_two_processes(callback, tmp_path):
        assert result["width"] == 8

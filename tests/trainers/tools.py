"""The same training run as people write it in each tool."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import splitgrow
from benchmarks.vision import torchvision
from trainers.runs import DIES, STEPS, How, Program, Trained, batch, network


def plain() -> Program:
    """A loop by hand with torch's AveragedModel, and `torch.save` of all state_dicts."""

    def run(how: How) -> Trained:
        model = network(int(how.resumed))
        adam = torch.optim.AdamW(model.parameters(), 1e-2, fused=how.fused)
        optimizer = splitgrow.by_name(adam, model)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
        splitgrow.follow(average, model)
        parts = {"model": model, "optimizer": optimizer, "average": average}
        first, path = 0, how.folder / "last.pt"
        if how.resumed:
            saved = torch.load(path, weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(saved[name])
            torch.set_rng_state(saved["random"])
            first = DIES
        for step in range(first, STEPS):
            x, y = batch(step)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            average.update_parameters(model)
            how.grow(step + 1, model, optimizer)
            if step + 1 == DIES and not how.resumed:
                states = {name: part.state_dict() for name, part in parts.items()}
                torch.save({**states, "random": torch.get_rng_state()}, path)
                how.die()
        return Trained(model, optimizer, average)

    return run


def lightning_ema() -> Program:
    """The same with EMAWeightAveraging, whose average follows."""
    return lightning("EMAWeightAveraging", decay=0.5)


def lightning_swa() -> Program:
    """The same with StochasticWeightAveraging, from the second epoch on."""
    return lightning("StochasticWeightAveraging", swa_lrs=1e-2, swa_epoch_start=1)


def lightning(average: str = "", **options: Any) -> Program:
    """Lightning: GrowthCallback, ModelCheckpoint, `fit(ckpt_path=...)`."""
    torchvision()  # torchmetrics imports it
    import lightning.pytorch as pl  # noqa: PLC0415
    from lightning.pytorch import callbacks  # noqa: PLC0415

    from splitgrow.integrations.lightning import GrowthCallback  # noqa: PLC0415

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Task(pl.LightningModule):
        def __init__(self, how: How) -> None:
            super().__init__()
            self.net, self.how = network(int(how.resumed)), how

        def training_step(self, *_: Any) -> Tensor:
            x, y = batch(self.global_step)
            return nn.functional.mse_loss(self.net(x), y)

        def configure_optimizers(self) -> Any:
            adam = torch.optim.AdamW(self.parameters(), 1e-2, fused=self.how.fused)
            if average.startswith("Stochastic"):  # which has a scheduler of its own
                return adam
            scheduler = torch.optim.lr_scheduler.StepLR(adam, 2, 0.7)
            return [adam], [{"scheduler": scheduler, "interval": "step"}]

    class Die(callbacks.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == DIES:
                pl_module.how.die()

    def run(how: How) -> Trained:
        task = Task(how)
        averages = [getattr(callbacks, average)(**options)] if average else []
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=STEPS // 2,
            gradient_clip_val=1.0,
            callbacks=[
                *averages,
                GrowthCallback(how.growths),
                callbacks.ModelCheckpoint(how.folder, save_last=True),
                Die(),
            ],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=how.folder,
        )
        data = DataLoader(TensorDataset(torch.zeros(2)))  # the step says which data it has
        trainer.fit(task, data, ckpt_path=how.folder / "last.ckpt" if how.resumed else None)
        held = averages[0]._average_model if average else None
        return Trained(task.net, trainer.optimizers[0], held)

    return run


class Items(Dataset[dict[str, Tensor]]):
    """The first item of each step's batch."""

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        x, y = batch(step)
        return {"x": x[0], "labels": y[0]}


class Loss(nn.Module):
    """Hugging Face's Trainer asks for a loss in the model's output."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.mse_loss(self.net(x), labels)}


def transformers() -> Program:
    """Hugging Face's Trainer: GrowthCallback, `resume_from_checkpoint`."""
    torchvision()
    import transformers as hf  # noqa: PLC0415

    from splitgrow.integrations.transformers import (  # noqa: PLC0415
        GrowingTrainerMixin,
        GrowthCallback,
    )

    class GrowingTrainer(GrowingTrainerMixin, hf.Trainer):
        pass

    class Die(hf.TrainerCallback):
        def __init__(self, how: How) -> None:
            self.how = how

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == DIES:
                self.how.die()

    def run(how: How) -> Trained:
        arguments = hf.TrainingArguments(
            output_dir=str(how.folder),
            max_steps=STEPS,
            per_device_train_batch_size=1,
            learning_rate=1e-2,
            weight_decay=0.1,
            optim="adamw_torch_fused" if how.fused else "adamw_torch",
            save_steps=1,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            logging_steps=100,
        )
        trainer = GrowingTrainer(
            model=Loss(network(int(how.resumed))),
            args=arguments,
            train_dataset=Items(),
            callbacks=[GrowthCallback(how.growths), Die(how)],
        )
        trainer.train(resume_from_checkpoint=how.resumed)
        return Trained(trainer.model.net, trainer.optimizer)

    return run


def accelerate() -> Program:
    """accelerate: `prepare`, `save_state`, `load_state`."""
    torchvision()
    from accelerate import Accelerator  # noqa: PLC0415

    def run(how: How) -> Trained:
        accelerator = Accelerator(cpu=True)
        model = network(int(how.resumed))
        adam = torch.optim.AdamW(model.parameters(), 1e-2, fused=how.fused)
        optimizer: Any = splitgrow.by_name(adam, model)
        scheduler: Any = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.7)
        model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
        first = 0
        if how.resumed:
            accelerator.load_state(str(how.folder / "state"))
            first = DIES
        for step in range(first, STEPS):
            x, y = batch(step)
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.mse_loss(model(x), y))
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            how.grow(step + 1, accelerator.unwrap_model(model), optimizer)
            if step + 1 == DIES and not how.resumed:
                accelerator.save_state(str(how.folder / "state"))
                how.die()
        return Trained(accelerator.unwrap_model(model), optimizer)

    return run


def timm() -> Program:
    """timm: its optimizers, schedulers, EMA, CheckpointSaver, `resume_checkpoint`."""
    torchvision()
    from timm.models import load_checkpoint, resume_checkpoint  # noqa: PLC0415
    from timm.optim import create_optimizer_v2  # noqa: PLC0415
    from timm.scheduler import create_scheduler_v2  # noqa: PLC0415
    from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler  # noqa: PLC0415

    def run(how: How) -> Trained:
        model = network(int(how.resumed))
        options: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "fused": how.fused}
        optimizer: Any = splitgrow.by_name(create_optimizer_v2(model, "adamw", **options), model)
        scheduler, _ = create_scheduler_v2(optimizer, "cosine", num_epochs=STEPS, warmup_epochs=2)
        average = splitgrow.follow(ModelEmaV3(model, decay=0.5), model)
        scaler, folder = NativeScaler(device="cpu"), str(how.folder)
        first = 0
        if how.resumed:
            path = f"{folder}/last.pth.tar"
            first = resume_checkpoint(model, path, optimizer=optimizer, loss_scaler=scaler) or 0
            load_checkpoint(average.module, path, use_ema=True)
        scheduler.step(first)
        saver = CheckpointSaver(
            model,
            optimizer,
            model_ema=average,
            amp_scaler=scaler,
            checkpoint_dir=folder,
            recovery_dir=folder,
            max_history=1,
        )
        for epoch in range(first, STEPS):  # of one step
            torch.manual_seed(epoch)  # timm's checkpoints have no generators
            x, y = batch(epoch)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters())
            how.grow(epoch + 1, model, optimizer)
            average.update(model, step=epoch)
            scheduler.step(epoch + 1)
            if epoch + 1 == DIES and not how.resumed:
                saver.save_checkpoint(epoch, metric=0.0)
                how.die()
        return Trained(model, optimizer, average.module)

    return run


TOOLS = {
    "torch": plain,
    "lightning": lightning,
    "lightning-ema": lightning_ema,
    "lightning-swa": lightning_swa,
    "transformers": transformers,
    "accelerate": accelerate,
    "timm": timm,
}


def quiet() -> None:
    """Tools warn of much that is not ours."""
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", category=splitgrow.SplitGrowWarning)

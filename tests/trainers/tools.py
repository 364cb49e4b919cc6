"""The same training run as people write it in four tools."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import splitgrow
from benchmarks.vision import torchvision
from trainers.runs import DIES, GROWS, STEPS, How, Program, batch, network


def lightning_averaged() -> Program:
    """The same with EMAWeightAveraging, whose average follows; the run ends with the average."""
    return lightning(averaged=True)


def lightning(*, averaged: bool = False) -> Program:
    """Lightning: growth in a callback, ModelCheckpoint, `fit(ckpt_path=...)`."""
    torchvision()  # torchmetrics imports it
    import lightning.pytorch as pl  # noqa: PLC0415
    from lightning.pytorch.callbacks import (  # noqa: PLC0415
        Callback,
        EMAWeightAveraging,
        ModelCheckpoint,
    )

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
            optimizer = self.how.optimizer(adam, self)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.7)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    class Average(EMAWeightAveraging):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            splitgrow.follow(self._average_model, pl_module)

    class Grow(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            how = pl_module.how
            if trainer.global_step == GROWS and how.grows:
                how.grow(pl_module.net, trainer.optimizers[0])

    class Die(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == DIES:
                pl_module.how.die()

    def run(how: How) -> nn.Module:
        task = Task(how)
        saver = ModelCheckpoint(how.folder, save_last=True, every_n_train_steps=1)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=STEPS,
            gradient_clip_val=1.0,
            callbacks=[*([Average(decay=0.5)] if averaged else []), Grow(), saver, Die()],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=how.folder,
        )
        data = DataLoader(TensorDataset(torch.zeros(STEPS)))  # the step says which data it has
        trainer.fit(task, data, ckpt_path=how.folder / "last.ckpt" if how.resumed else None)
        return task.net

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
    """Hugging Face's Trainer: growth in a callback, `resume_from_checkpoint`."""
    torchvision()
    import transformers as hf  # noqa: PLC0415

    class ByName(hf.Trainer):
        def __init__(self, how: How, **options: Any) -> None:
            super().__init__(**options)
            self.how = how

        def create_optimizer(self, *args: Any) -> Any:
            return self.how.optimizer(super().create_optimizer(*args), self.model)

    class Grow(hf.TrainerCallback):
        def __init__(self, how: How) -> None:
            self.how = how

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == GROWS and self.how.grows:
                self.how.grow(kwargs["model"].net, kwargs["optimizer"])

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == DIES:
                self.how.die()

    def run(how: How) -> nn.Module:
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
        model = Loss(network(int(how.resumed)))
        trainer = ByName(
            how, model=model, args=arguments, train_dataset=Items(), callbacks=[Grow(how)]
        )
        trainer.train(resume_from_checkpoint=how.resumed)
        return model.net

    return run


def accelerate() -> Program:
    """accelerate: `prepare`, `save_state`, `load_state`."""
    torchvision()
    from accelerate import Accelerator  # noqa: PLC0415

    def run(how: How) -> nn.Module:
        accelerator = Accelerator(cpu=True)
        model = network(int(how.resumed))
        adam = torch.optim.AdamW(model.parameters(), 1e-2, fused=how.fused)
        optimizer: Any = how.optimizer(adam, model)
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
            if step + 1 == GROWS and how.grows:
                how.grow(accelerator.unwrap_model(model), optimizer)
            if step + 1 == DIES and not how.resumed:
                accelerator.save_state(str(how.folder / "state"))
                how.die()
        return accelerator.unwrap_model(model)

    return run


def timm() -> Program:
    """timm: layer decay, EMA, CheckpointSaver, `resume_checkpoint`."""
    torchvision()
    from timm.models import resume_checkpoint  # noqa: PLC0415
    from timm.optim import create_optimizer_v2  # noqa: PLC0415
    from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler  # noqa: PLC0415

    def run(how: How) -> nn.Module:
        model = network(int(how.resumed))
        scaler = NativeScaler(device="cpu")

        def made() -> Any:
            adam = create_optimizer_v2(
                model, "adamw", lr=1e-2, weight_decay=0.1, fused=how.fused, foreach=None
            )
            return how.optimizer(adam, model)

        first, average = 0, ModelEmaV3(model, decay=0.5)
        splitgrow.follow(average, model)
        optimizer = made()
        if how.resumed:
            path = str(how.folder / "last.pth.tar")
            first = resume_checkpoint(model, path, optimizer=optimizer, loss_scaler=scaler) or 0
            average.module.load_state_dict(torch.load(path, weights_only=False)["state_dict_ema"])
        saver = CheckpointSaver(
            model,
            optimizer,
            model_ema=average,
            amp_scaler=scaler,
            checkpoint_dir=str(how.folder),
            recovery_dir=str(how.folder),
            max_history=1,
        )
        for step in range(first, STEPS):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters())
            if step + 1 == GROWS and how.grows:
                how.grow(model, optimizer)
            average.update(model, step=step)
            if step + 1 == DIES and not how.resumed:
                saver.save_checkpoint(step, metric=0.0)
                how.die()
        for name, parameter in average.module.named_parameters():
            assert parameter.shape == dict(model.named_parameters())[name].shape
        return model

    return run


TOOLS = {"lightning": lightning, "transformers": transformers, "accelerate": accelerate}
TOOLS |= {"timm": timm, "lightning-averaged": lightning_averaged}


def quiet() -> None:
    """Tools warn of much that is not ours."""
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", category=splitgrow.SplitGrowWarning)

"""`splitgrow prune --data`: a classifier gets narrower by its images, and trains in between."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

import splitgrow
from splitgrow.cli import consoles
from splitgrow.cli.arguments import kept_nothing
from splitgrow.cli.prune import check_files, prune_by, seeded, start_model, write_files
from splitgrow.cli.prune_results import (
    ModelSize,
    PruneAccuracy,
    PruneResult,
    accuracies,
    show_pruned,
)
from splitgrow.cli.prune_settings import PruneFiles, PruneOptions
from splitgrow.cli.shapes import Shape
from splitgrow.cli.showing import Shown
from splitgrow.demos import tables
from splitgrow.demos.augmentation import Augmentation
from splitgrow.demos.bars import RecoveryBars
from splitgrow.demos.chosen_network import check_classifier
from splitgrow.demos.datasets import Dataset, load_dataset
from splitgrow.demos.presentation import reading_bar, threads_of
from splitgrow.demos.training import Classifier, evaluated, logits_of
from splitgrow.growth.edits import Edit

_EXAMPLES = 2  # images of the example inputs


def prune_classifier(  # noqa: PLR0913
    target: str,
    options: PruneOptions,
    files: PruneFiles,
    *,
    data: Path,
    limit: int | None,
    size: int | None,
    max_gb: float,
    threads: int | None,
    inputs: Sequence[Shape],
    plan: bool,
    shown: Shown,
) -> None:
    """Prunes the classifier of a target, trains it after each step, and tells its accuracy.

    Raises:
        click.ClickException: If the model, the options, the data or the files do not allow it, or
            the training diverges.
        SplitGrowError: Likewise.
        KeyboardInterrupt: If the user stops it; it names the file that is kept.
    """
    files = check_files(files, plan=plan)
    live = consoles.progress(quiet=shown.quiet)
    with kept_nothing(), seeded(options.seed):
        dataset = load_dataset(
            data,
            seed=options.seed,
            limit=limit,
            size=size,
            track=reading_bar(live),
            max_gb=max_gb,
        )
        live.print(tables.summary(dataset))
        torch.manual_seed(options.seed)
        shape = Shape((_EXAMPLES, dataset.channels, *dataset.size))
        model = start_model(target, files.checkpoint, inputs, usual=(shape,))
        check_classifier(model, dataset)
        with threads_of(dataset, threads):
            pruning = _Pruning(model, dataset, options, files, live, plan=plan)
            result = pruning.result(target)
    write_files(result, files)
    show_pruned(result, files, shown, plan=plan)


class _Recovery(Classifier[PruneOptions]):
    """The training after each step, whose progress the bars show."""

    def __init__(
        self, model: nn.Module, dataset: Dataset, options: PruneOptions, bars: RecoveryBars
    ) -> None:
        super().__init__(model, dataset, options, lambda _: None)
        self.augment = Augmentation.of(options.augment, dataset.size)
        self.bars = bars

    def stepped(self, epoch: int, loss: float, seen: float) -> None:
        """Shows the step with its loss and accuracy."""
        self.bars.show_step(epoch, loss, seen)


class _Pruning:
    """A classifier that is being pruned, with its accuracy so far."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        options: PruneOptions,
        files: PruneFiles,
        console: Console,
        *,
        plan: bool,
    ) -> None:
        self._model, self._dataset, self._options, self._files = model, dataset, options, files
        self._console, self._kept = console, "nothing is written"
        self._bars = RecoveryBars(console, options.steps, options.epochs)
        training = options.epochs and not plan
        self._recovery = _Recovery(model, dataset, options, self._bars) if training else None
        self._before = ModelSize.of(model)
        self._accuracy_before = self._accuracy()
        self._pruned: list[float] = []
        self._trained: list[float] = []

    def result(self, target: str) -> PruneResult:
        """Prunes, and trains in between.

        Raises:
            click.ClickException: If the model does not allow it, or the training diverges.
            SplitGrowError: Likewise.
            KeyboardInterrupt: If the user stops it; it names the file that is kept.
        """
        with self._bars.progress:
            try:
                edits = prune_by(
                    self._model,
                    self._options,
                    loss=_loss,
                    batches=self._batches(),
                    optimizer=self._recovery.optimizer if self._recovery else None,
                    recover=self._follow,
                )
            except FloatingPointError as error:
                raise click.ClickException(f"{error}; {self._kept}") from error
            except KeyboardInterrupt:
                raise KeyboardInterrupt(self._kept) from None
        after = ModelSize.of(self._model)
        told = self._told()
        return PruneResult(
            target, self._model, self._options, self._before, after, tuple(edits), told
        )

    def _batches(self) -> list[tuple[Tensor, Tensor]]:
        """Training images that are drawn, as a criterion looks at them."""
        own, data = self._options, self._dataset
        order = torch.randperm(len(data.x_train))[: own.batches * own.batch_size]
        return [
            (data.x_train[own_part], data.y_train[own_part])
            for own_part in torch.split(order, own.batch_size)
        ]

    def _follow(self, edit: Edit) -> None:
        """Trains after a step, and keeps the model."""
        self._pruned.append(self._accuracy())
        step = len(self._pruned)
        if self._recovery is not None:
            self._bars.begin(step, self._recovery.steps, self._pruned[-1])
            for _ in self._recovery.epochs():
                self._bars.show_test(self._accuracy())
            self._model.eval()
            self._trained.append(self._accuracy())
            if self._files.out is not None:
                splitgrow.save(self._model, self._files.out)
                self._kept = (
                    f"the model after step {step} of {self._options.steps} is in {self._files.out},"
                    f" and --checkpoint {self._files.out} goes on from it"
                )
        gone = sum(removal.parameters for removal in edit.removed)
        self._console.print(
            f"step {step}: {gone:,} parameters went, {accuracies(self._told(), step - 1)}"
        )

    def _told(self) -> PruneAccuracy:
        return PruneAccuracy(
            len(self._dataset.y_test),
            self._accuracy_before,
            tuple(self._pruned),
            tuple(self._trained),
        )

    def _accuracy(self) -> float:
        logits = evaluated(self._model, self._dataset.x_test)
        return (logits.argmax(1) == self._dataset.y_test).float().mean().item()


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(logits_of(model(batch[0])), batch[1])

"""`splitgrow prune`: a model made narrower, told as a table, and kept as a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

import splitgrow
from splitgrow.cli import consoles
from splitgrow.cli.arguments import kept_nothing
from splitgrow.cli.examples import examples_of, growable_on
from splitgrow.cli.hugging_face import is_directory, load_target, usual_inputs
from splitgrow.cli.new_files import check_new_file
from splitgrow.cli.prune_results import ModelSize, PruneResult, show_pruned
from splitgrow.cli.prune_settings import PruneFiles, PruneOptions
from splitgrow.cli.shapes import Shape
from splitgrow.cli.showing import Shown
from splitgrow.cli.weights import fill_plain_, is_own_checkpoint
from splitgrow.growth.edits import Edit
from splitgrow.growth.history_lookup import history_of
from splitgrow.pruning.choosing import prunable_groups
from splitgrow.utils.pictures import blank_figure


def prune(
    target: str,
    options: PruneOptions,
    files: PruneFiles,
    *,
    inputs: Sequence[Shape],
    plan: bool,
    shown: Shown,
) -> None:
    """Prunes the model of a target by its weights, prints the widths, and writes the files.

    Raises:
        click.UsageError: If no inputs are given, and nothing says what the model reads.
        click.ClickException: If the model, the options or the files do not allow it.
        SplitGrowError: Likewise.
    """
    files = check_files(files, plan=plan)
    status = consoles.progress(quiet=shown.quiet).status("choosing units")
    with kept_nothing(), seeded(options.seed), status:
        model = start_model(target, files.checkpoint, inputs)
        before = ModelSize.of(model)
        edits = prune_by(model, options)
    result = PruneResult(target, model, options, before, ModelSize.of(model), tuple(edits))
    write_files(result, files)
    show_pruned(result, files, shown, plan=plan)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws by a seed, and takes the prints of the user's code for no part of the result."""
    with torch.random.fork_rng(devices=[]), redirect_stdout(sys.stderr):
        torch.manual_seed(seed)
        yield


def check_files(files: PruneFiles, *, plan: bool) -> PruneFiles:
    """Makes sure, before the work, that files can be written; those that will be.

    Args:
        files: The files.
        plan: Whether only a plan is wanted, which writes none.

    Raises:
        click.ClickException: If one cannot be.
    """
    if plan:
        return PruneFiles(checkpoint=files.checkpoint)
    for path in (files.out, files.picture):
        if path is not None:
            check_new_file(path, force=files.force)
    if files.picture is not None:
        _check_picture(files.picture)
    return files


def _check_picture(path: Path) -> None:
    """Makes sure that matplotlib can write a picture.

    Raises:
        click.ClickException: If it cannot.
    """
    try:
        known = blank_figure(1, 1).canvas.get_supported_filetypes()
    except ModuleNotFoundError as error:
        raise click.ClickException(str(error)) from error
    if path.suffix.removeprefix(".").lower() not in known:
        raise click.ClickException(
            f"{path} ends in {path.suffix or 'nothing'}; pictures end in .png, .svg or .pdf"
        )


def start_model(
    target: str, checkpoint: Path | None, inputs: Sequence[Shape], usual: Sequence[Shape] = ()
) -> nn.Module:
    """The growable model of a target, with its weights, in evaluation mode.

    Args:
        target: MODULE:FACTORY, or a directory of transformers.
        checkpoint: The file with its weights; None for those that it comes with.
        inputs: The shapes of example inputs; none for those that the checkpoint has, or that are
            usual.
        usual: The usual ones; none for those that a model of transformers is known to read.

    Raises:
        click.UsageError: If there are no inputs.
        click.ClickException: If there is no such model, or a file does not fit it.
        CheckpointError: Likewise.
    """
    model = load_target(target, weights=checkpoint is None)
    if checkpoint is not None and is_own_checkpoint(checkpoint):
        placed, named = examples_of(inputs)
        splitgrow.load(
            model,
            checkpoint,
            example_inputs=placed if inputs else None,
            example_kwargs=named if inputs else None,
            training=False,
        )
        return model.eval()
    inputs = inputs or usual
    if not inputs and is_directory(target):
        inputs = usual_inputs(model)
    if not inputs:
        raise click.UsageError("give the shape of an example input, as --input 1,3,224,224")
    if checkpoint is not None:
        fill_plain_(model, checkpoint)
    return growable_on(model, inputs).eval()


def prune_by(
    model: nn.Module,
    options: PruneOptions,
    *,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    batches: Sequence[Any] = (),
    optimizer: torch.optim.Optimizer | None = None,
    recover: Callable[[Edit], None] | None = None,
) -> list[Edit]:
    """Prunes a growable model as the options say.

    Args:
        model: The model.
        options: The options.
        loss: Gives the loss of the model on a batch.
        batches: The batches that criteria look at.
        optimizer: The optimizer that trains the model.
        recover: Called with the edit after each step.

    Returns:
        The edits; none if the target is met already.

    Raises:
        click.ClickException: If the model does not allow it.
        SplitGrowError: Likewise.
    """
    edits: list[Edit] = []

    def follow(edit: Edit) -> None:
        edits.append(edit)
        if recover is not None:
            recover(edit)

    try:
        layers, ignore = _chosen_layers(model, options)
        splitgrow.handle(model).prune(
            options.amount,
            target=splitgrow.Target(**options.target) if options.target else None,
            criterion=options.criterion,
            scope=options.scope,  # type: ignore[arg-type]  # click allows no other text
            steps=options.steps,
            recover=follow,
            layers=layers,
            ignore=ignore,
            keep=options.keep,
            refit=options.refit,
            loss=loss,
            batches=batches,
            round_to=options.round_to,
            give_up=options.give_up,
            optimizer=optimizer,
        )
    except (TypeError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    return edits


def _chosen_layers(
    model: nn.Module, options: PruneOptions
) -> tuple[list[str] | None, frozenset[str]]:
    """The layers whose units may go, None for all but the outputs; and those that stay.

    A pattern stands for those of its layers that may lose units, and are no outputs.

    Raises:
        ValueError: If nothing fits a pattern, or a layer is named for both.
        FixedWidthError: If no layer may lose units.
    """
    where = splitgrow.All(options.only or None, except_=options.except_)
    chosen = where.selection(splitgrow.handle(model).layers)
    if chosen.names is None:
        return None, chosen.kept
    both = sorted(chosen.named & chosen.kept)
    if both:
        raise ValueError(f"`{both[0]}` is both among --only and among --except")
    graph = history_of(model).graph
    free = prunable_groups(graph, None, ())
    found = [
        node.name
        for node in graph.sized()
        if node.name in chosen.named
        or (
            node.name in chosen.names
            and graph.growing_groups(node.outs)
            and all(group in free for group in graph.growing_groups(node.outs))
        )
    ]
    if not found:
        raise ValueError(f"no layer of --only {' '.join(options.only)} may lose units")
    return found, chosen.kept


def write_files(result: PruneResult, files: PruneFiles) -> None:
    """Writes the smaller model, and the picture of its widths.

    Raises:
        click.ClickException: If the picture cannot be written.
        CheckpointError: If the model cannot be saved.
    """
    if files.out is not None:
        splitgrow.save(result.model, files.out)
    if files.picture is not None and result.edits:
        try:
            result.report.draw(files.picture)
        except OSError as error:
            raise click.ClickException(f"cannot write {files.picture}: {error}") from error

"""The commands `continual` and `compare`: their options, without torch."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from splitgrow.cli.arguments import (
    POSITIVE,
    SEED,
    SMALL,
    NameChoice,
    NamedCommands,
    NamedPath,
    PositiveFloat,
    augment_option,
    load_module,
    max_gb_option,
    setting_option,
    shown_options,
    size_option,
)
from splitgrow.cli.continual_settings import BACKBONE_NAMES, METHOD_NAMES, SPLITS, RunSettings

_CONTINUAL_HELP = """
Learn one task after the other with one network, and see how much it forgets.

Every task gets a head of its own, and the task of each image is known. Each learned task goes to
DIR at once; the same command with the same DIR resumes a stopped run. `splitgrow continual options
METHOD` lists the options of a method.

\b
METHOD is one of:
  cpg              pick from earlier tasks' weights, grow, and make compact
  pack-and-expand  the same without picking
  packnet          every task trains the free weights, and keeps the largest
  piggyback        tasks pick weights of one network
  progressive      a new column of units for every task
  den              retrain a part, grow, and split units that have drifted
  finetuning, ewc, lwf             the same weights for all: these forget
  separate, joint                  one network a task, or all tasks at once

\b
PATH is one of:
  data.npz         with x_train, y_train, x_test, y_test
  folder, .zip     with train/CLASS/*.jpg and test/CLASS/*.jpg (or val/)
  folder, .zip     a folder a task: TASK/train/CLASS/*.jpg and TASK/test/...;
                   or TASK/CLASS/*.jpg, of which a fifth is for tests
  folder           with train-images-idx3-ubyte.gz and the other three
  folder, .tar.gz  of CIFAR-10 or CIFAR-100, python or binary version

\b
Examples:
  splitgrow continual options cpg
  splitgrow continual --method cpg --out runs/cpg
  splitgrow continual --method packnet --data fashion-mnist --out runs/packnet
  splitgrow continual --method cpg --data cifar-100-python
      --split superclasses --backbone vgg16_bn --epochs 100
      --option largest=1.5 --augment flips,crops
  splitgrow continual --method cpg --data flowers-then-birds --size 32
      --backbone "timm:create_model('resnet18')" --checkpoint resnet18.pt
  splitgrow compare runs/cpg runs/packnet
"""

_OPTIONS_HELP = f"""
List the options of a method: what each takes, its default, and what it is.

METHOD is one of: {", ".join(METHOD_NAMES)}.

\b
Examples:
  splitgrow continual options cpg
  splitgrow continual options den --json
"""

_COMPARE_HELP = """
Compare runs of `splitgrow continual`: accuracy, forgetting, size and time.

\b
Examples:
  splitgrow compare runs/cpg runs/packnet runs/separate
  splitgrow compare runs/* --json
"""


def _option(
    _ctx: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]
) -> dict[str, Any]:
    """Options of a method as NAME=VALUE.

    Raises:
        click.BadParameter: If one has another form.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise click.BadParameter(f"{text!r} has no NAME=VALUE form, such as largest=1.5")
        if name in found:
            raise click.BadParameter(f"{name} is given twice")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


class _Continual(NamedCommands):
    """The group of `continual`: what looks like a method is answered with --method."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the arguments begin with."""
        if args and args[0] in METHOD_NAMES:
            ctx.fail(f"a method is given as --method {args[0]}")
        return super().resolve_command(ctx, args)


_setting = partial(setting_option, RunSettings)


def _default(name: str) -> Any:
    return getattr(RunSettings, name)


@click.group(
    cls=_Continual,
    help=_CONTINUAL_HELP,
    short_help="Learn task after task without forgetting.",
    invoke_without_command=True,
    subcommand_metavar="[options METHOD]",
)
@click.option(
    "--method", type=NameChoice(METHOD_NAMES), metavar="METHOD", help="How to learn.  [required]"
)
@click.option(
    "--data",
    type=NamedPath(),
    metavar="PATH",
    help="The images.  [default: the digits of scikit-learn]",
)
@click.option(
    "--split",
    type=NameChoice(SPLITS),
    help="How they become tasks.  [default: classes; superclasses where each task has a folder]",
)
@click.option(
    "--tasks",
    type=SMALL,
    metavar="N",
    help="How many tasks.  [default: 5; for superclasses as many as there are]",
)
@click.option("--shuffled", is_flag=True, help="Draw the order of the classes.")
@click.option("--limit", type=POSITIVE, metavar="N", help="Training images of a task, at most.")
@size_option
@max_gb_option
@_setting(
    "--backbone",
    metavar="NAME",
    help=f"{', '.join(BACKBONE_NAMES)}, or MODULE:FACTORY of your own.",
)
@click.option(
    "--checkpoint",
    type=NamedPath(dir_okay=False),
    metavar="FILE",
    help="The backbone's first weights: a state_dict by torch.save or safetensors, or a file by"
    " splitgrow.save.",
)
@_setting(
    "--width",
    type=PositiveFloat(64),
    metavar="X",
    help="A factor for the widths of a backbone that is given by name.",
)
@augment_option
@_setting(
    "--epochs",
    type=POSITIVE,
    metavar="N",
    help="Passes through the images of each task in its training, and in each one anew after a"
    " growth. For pruning and retraining a method has options of its own.",
)
@click.option(
    "--batch-size", type=POSITIVE, default=_default("batch_size"), show_default=True, metavar="N"
)
@_setting(
    "--learning-rate",
    type=PositiveFloat(10),
    metavar="X",
)
@_setting(
    "--momentum",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="X",
)
@_setting(
    "--weight-decay",
    type=click.FloatRange(0, 1),
    metavar="X",
)
@_setting(
    "--score-rate",
    type=PositiveFloat(10),
    metavar="X",
    help="Learning rate of the scores that pick weights.",
)
@_setting(
    "--decide-on",
    type=NameChoice(("validation", "test")),
    help="The data that growth, pruning and choices are decided on; some published code uses test,"
    " which flatters.",
)
@_setting(
    "--validation-share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="X",
    help="Training images set apart to decide on.",
)
@click.option(
    "--option",
    "-o",
    "options",
    callback=_option,
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the method, such as goal=0.9 or largest=1.5; once for each.",
)
@click.option("--seed", type=SEED, default=_default("seed"), show_default=True, metavar="N")
@_setting(
    "--threads",
    type=SMALL,
    metavar="N",
    help="CPU threads; results may differ in their last bits with another number.",
)
@click.option(
    "--out",
    type=NamedPath(file_okay=False),
    metavar="DIR",
    help="Where all goes.  [default: splitgrow-METHOD]",
)
@shown_options(whole=True)
@click.pass_context
def continual(
    ctx: click.Context,
    /,
    *,
    method: str | None,
    data: Path | None,
    **given: Any,
) -> None:
    """Loads the run, and starts it.

    Raises:
        click.UsageError: If no method is given.
    """
    if ctx.invoked_subcommand is not None:
        return
    if method is None:
        raise click.UsageError(f"give a --method: {', '.join(METHOD_NAMES)}")
    if given["width"] != RunSettings.width and given["backbone"] not in BACKBONE_NAMES:
        raise click.UsageError(f"--width is for {', '.join(BACKBONE_NAMES)}")
    given["out"] = given["out"] or Path(f"splitgrow-{method}")
    given["limit"] = given["limit"] or 0
    run = load_module("splitgrow.demos.continual.presentation").run_continual
    run(method=method, data=data, **given)


@continual.command(help=_OPTIONS_HELP, short_help="List the options of a method.")
@click.argument("method", type=NameChoice(METHOD_NAMES), metavar="METHOD")
@shown_options("Print only the names.", whole=True)
def options(method: str, shown: Any) -> None:
    """Loads the options, and lists them."""
    load_module("splitgrow.demos.continual.method_options").show_options(method, shown)


@click.command(help=_COMPARE_HELP, short_help="Compare runs of `splitgrow continual`.")
@click.argument("runs", type=NamedPath(), nargs=-1, required=True, metavar="DIR...")
@shown_options("Print only the methods, the most accurate first.")
def compare(runs: tuple[Path, ...], shown: Any) -> None:
    """Loads the comparison, and runs it."""
    load_module("splitgrow.demos.continual.comparison").compare_runs(runs, shown)

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
    PositiveFloat,
    load_module,
    max_gb_option,
    setting_option,
    size_option,
)
from splitgrow.cli.continual_settings import BACKBONE_NAMES, METHOD_NAMES, SPLITS, RunSettings

_CONTINUAL_HELP = """
Learn one task after the other with one network, and see how much it forgets.

Every task gets a head of its own, and the task of each image is known. Each learned task goes to
DIR at once; the same command with the same DIR resumes a stopped run.

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
  data.npz      with x_train, y_train, x_test, y_test
  folder, .zip  with train/CLASS/*.jpg and test/CLASS/*.jpg (or val/), or with
                TASK/train/CLASS/*.jpg for each task, which --split superclasses takes
  folder        with train-images-idx3-ubyte.gz and the other three
  folder, .tar.gz  CIFAR-10's or CIFAR-100's own files, python or binary version

\b
Examples:
  splitgrow continual --method cpg --out runs/cpg
  splitgrow continual --method packnet --data fashion-mnist --tasks 5 --out runs/packnet
  splitgrow continual --method cpg --data cifar-100-python --split superclasses
      --backbone vgg16_bn --epochs 100 --option largest=1.5 --out runs/cifar100
  splitgrow compare runs/cpg runs/packnet
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


_setting = partial(setting_option, RunSettings)


def _default(name: str) -> Any:
    return getattr(RunSettings, name)


@click.command(help=_CONTINUAL_HELP, short_help="Learn task after task without forgetting.")
@click.option("--method", type=click.Choice(METHOD_NAMES), required=True, help="How to learn.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The images.  [default: the digits of scikit-learn]",
)
@_setting(
    "--split",
    type=click.Choice(SPLITS),
    help="How they become tasks.",
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
@_setting(
    "--width",
    type=PositiveFloat(64),
    metavar="X",
    help="A factor for the backbone's widths.",
)
@click.option("--epochs", type=POSITIVE, default=_default("epochs"), show_default=True, metavar="N")
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
    type=click.Choice(("validation", "test")),
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
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where all goes.  [default: splitgrow-METHOD]",
)
@click.option("--quiet", "-q", is_flag=True, help="Print only the final results.")
def continual(
    *, method: str, data: Path | None, tasks: int | None, limit: int | None, **given: Any
) -> None:
    """Loads the run, and starts it."""
    split = given["split"]
    load_module("splitgrow.demos.continual.presentation").run_continual(
        method=method,
        data=data,
        tasks=tasks if tasks is not None else 0 if split == "superclasses" else _default("tasks"),
        limit=limit or 0,
        **{**given, "out": given["out"] or Path(f"splitgrow-{method}")},
    )


@click.command(help=_COMPARE_HELP, short_help="Compare runs of `splitgrow continual`.")
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="DIR...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def compare(runs: tuple[Path, ...], *, as_json: bool) -> None:
    """Loads the comparison, and runs it."""
    load_module("splitgrow.demos.continual.comparison").compare_runs(runs, as_json=as_json)

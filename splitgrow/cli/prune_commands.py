"""The command `prune`: its options, without torch."""

from __future__ import annotations

import math
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from splitgrow.cli.arguments import (
    POSITIVE,
    SEED,
    NameChoice,
    NamedPath,
    PositiveFloat,
    augment_option,
    check_target,
    input_option,
    limit_option,
    load_module,
    max_gb_option,
    setting_option,
    shown_options,
    size_option,
    threads_option,
)
from splitgrow.cli.prune_settings import (
    CRITERION_NAMES,
    DATA_CRITERIA,
    SCOPE_NAMES,
    TARGET_NAMES,
    PruneFiles,
    PruneOptions,
)

_PRUNE_HELP = f"""
Make a model narrower: the units that count least go, until it is as small as you say.

Units go from all layers on which they lie, and the model's outputs keep their widths. The table has
the width of each layer before and after. --out keeps the smaller model as a checkpoint, which
`splitgrow export` makes plain.

MODULE:FACTORY or DIRECTORY is as `splitgrow inspect` takes it. The weights are those that it comes
with, or those of --checkpoint.

\b
NAME=VALUE is one of:
  macs=0.5, params=0.5     the share of today's that stays
  macs=2e9, params=1e6     at most so many: multiply-adds for one sample
  latency=0.5              the share of a forward pass's seconds, measured

\b
CRITERION says which units count least:
  group, l1, l2, scale     by weights
  {", ".join(DATA_CRITERIA)}
                           by images: these need --data
  random                   the control for the others

With --data the model is an image classifier: its accuracy on the test images is told before and
after, and --epochs trains it after each step. PATH is as `splitgrow demo --data` takes it.

\b
Examples:
  splitgrow prune torchvision.models:resnet18 --input 1,3,224,224
      --target macs=0.5 --plan
  splitgrow prune mynet.py:make --checkpoint trained.pt --input 1,3,32,32
      --target params=1e6 --round-to 8 --out smaller.safetensors
  splitgrow prune mynet.py:make --checkpoint trained.pt --data cifar10.zip
      --target macs=0.3 --criterion taylor --steps 5 --epochs 3
      --out smaller.safetensors --picture widths.png
  splitgrow export mynet.py:make smaller.safetensors smaller.pt2
"""

_setting = partial(setting_option, PruneOptions)
_path = NamedPath(dir_okay=False)
_OF_DATA = (
    "batches",
    "epochs",
    "augment",
    "batch_size",
    "learning_rate",
    "limit",
    "size",
    "max_gb",
    "threads",
)
"""The parameters of options that are of no use without --data."""


def _target(
    _ctx: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]
) -> dict[str, float]:
    """Targets as NAME=VALUE: a share, or a count as an int.

    Raises:
        click.BadParameter: If one has another form.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or name not in TARGET_NAMES:
            raise click.BadParameter(
                f"{text!r} has no NAME=VALUE form, such as macs=0.5, with a NAME of"
                f" {', '.join(TARGET_NAMES)}"
            )
        if name in found:
            raise click.BadParameter(f"{name} is given twice")
        found[name] = _share_or_count(name, value)
    return found


def _share_or_count(name: str, text: str) -> float:
    """A share below 1 as a float, or a count as an int.

    Raises:
        click.BadParameter: If it is neither.
    """
    try:
        number = float(text)
    except ValueError:
        raise click.BadParameter(f"{name}={text} is no number") from None
    if not (math.isfinite(number) and number > 0):
        raise click.BadParameter(f"{name}={text} is no positive number")
    if number < 1:
        return number
    if name == "latency":
        raise click.BadParameter(f"latency is a share of today's below 1, such as 0.5, not {text}")
    if number == 1:
        raise click.BadParameter(f"{name}=1 is all of it: give a share below 1, or a count")
    if not number.is_integer():
        raise click.BadParameter(
            f"{name}={text} is neither a share below 1, such as 0.5, nor a whole number"
        )
    return int(text) if text.replace("_", "").isdecimal() else int(number)


class _Share(click.FloatRange):
    """A number from 0 up to 1; click's own range lets "nan" through."""

    def __init__(self, *, zero: bool) -> None:
        super().__init__(min=0, min_open=not zero, max=1, max_open=True)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number that a text stands for."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


@click.command(help=_PRUNE_HELP, short_help="Make a model narrower, by a criterion.")
@click.argument("model", metavar="MODULE:FACTORY|DIRECTORY")
@input_option
@click.option(
    "--target",
    callback=_target,
    multiple=True,
    metavar="NAME=VALUE",
    help="How small the model becomes; repeat it for more.",
)
@click.option(
    "--amount", type=_Share(zero=False), metavar="SHARE", help="The share of the units that goes."
)
@_setting("--criterion", type=NameChoice(CRITERION_NAMES), help="The scores of units.")
@_setting(
    "--scope",
    type=NameChoice(SCOPE_NAMES),
    help="Compare the units of all layers, or take the same share of each.",
)
@_setting(
    "--steps", type=POSITIVE, metavar="N", help="How many steps; units are scored anew in each."
)
@_setting(
    "--keep",
    type=_Share(zero=True),
    metavar="SHARE",
    help="The share of each layer's units that stays in any case.",
)
@_setting(
    "--round-to", type=POSITIVE, metavar="N", help="The number of which widths are multiples."
)
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Only layers of such names lose units; repeat it for more.  [default: all but the output]",
)
@click.option(
    "--except",
    "except_",
    multiple=True,
    metavar="PATTERN",
    help="Leave layers of such names as they are; repeat it for more.",
)
@click.option(
    "--refit/--no-refit",
    default=None,
    help="Fit the layers that read the units, so that they compute nearly the same without them;"
    " this needs --data.  [default: by the criterion; only reconstruction does]",
)
@click.option(
    "--give-up",
    is_flag=True,
    help="Closed generations of a checkpoint may lose units, and cannot be recovered then.",
)
@click.option(
    "--checkpoint",
    type=_path,
    metavar="FILE",
    help="The weights: a file by splitgrow.save, or a state_dict by torch.save or safetensors.",
)
@click.option(
    "--out", type=_path, metavar="FILE", help="Where the smaller model goes, by splitgrow.save."
)
@click.option(
    "--picture", type=_path, metavar="FILE", help="Where a picture of the widths goes, as .png."
)
@click.option("--force", "-f", is_flag=True, help="Replace files that are there.")
@click.option("--plan", is_flag=True, help="Print what would go, without training; write nothing.")
@_setting("--seed", type=SEED, metavar="N", help="For weights, order and images.")
@click.option(
    "--data",
    type=NamedPath(),
    metavar="PATH",
    help="Images with classes, as `splitgrow demo --data` takes them.",
)
@_setting(
    "--batches", type=POSITIVE, metavar="N", help="Batches of training images for the criterion."
)
@_setting(
    "--epochs",
    type=click.IntRange(min=0),
    metavar="N",
    help="Epochs of training after each step.",
)
@augment_option
@_setting("--batch-size", type=POSITIVE, metavar="N", help="Images in a batch.")
@_setting(
    "--learning-rate",
    type=PositiveFloat(10),
    metavar="X",
    help="Peak of the one-cycle schedule after each step.",
)
@limit_option
@size_option
@max_gb_option
@threads_option
@shown_options()
@click.pass_context
def prune(ctx: click.Context, /, *, model: str, data: Path | None, **given: Any) -> None:
    """Loads the pruning, and runs it.

    Raises:
        click.UsageError: If the options do not go together.
    """
    check_target(model)
    if bool(given["target"]) == bool(given["amount"]):
        raise click.UsageError("give either --target, such as macs=0.5, or --amount")
    if data is None:
        _refuse_data_options(ctx, given)
    options = PruneOptions(**{each.name: given.pop(each.name) for each in fields(PruneOptions)})
    files = PruneFiles(**{each.name: given.pop(each.name) for each in fields(PruneFiles)})
    if data is None:
        own = {name: value for name, value in given.items() if name not in _OF_DATA}
        load_module("splitgrow.cli.prune").prune(model, options, files, **own)
    else:
        work = load_module("splitgrow.demos.pruned_classifier").prune_classifier
        work(model, options, files, data=data, **given)


def _refuse_data_options(ctx: click.Context, given: dict[str, Any]) -> None:
    """Makes sure that nothing needs data.

    Raises:
        click.UsageError: If something does.
    """
    for name in _OF_DATA:
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"--{name.replace('_', '-')} is for --data PATH, the images of a classifier"
            )
    criterion = given["criterion"]
    if criterion in DATA_CRITERIA:
        others = [name for name in CRITERION_NAMES if name not in DATA_CRITERIA]
        raise click.UsageError(
            f"--criterion {criterion} looks at data: give an image classifier's by --data PATH, or"
            f" take one of {', '.join(others)}; for other models call model.prune in Python"
        )
    if given["refit"]:
        raise click.UsageError("--refit looks at data: give an image classifier's by --data PATH")

"""The command `grow`: its options, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from splitgrow.cli.arguments import (
    POSITIVE,
    SEED,
    NameChoice,
    NamedPath,
    PositiveFloat,
    augment_option,
    check_target,
    data_option,
    limit_option,
    load_module,
    max_gb_option,
    setting_option,
    shown_options,
    size_option,
    threads_option,
)
from splitgrow.cli.grow_settings import (
    INITIALIZER_NAMES,
    NETWORK_NAMES,
    SCORE_NAMES,
    GrowSettings,
    usual_shares,
)
from splitgrow.cli.ways import KEEPING, LEARNING

_COUNT = PositiveFloat(1e18)

_GROW_HELP = f"""
Train an image classifier that grows, against the large network from the start.

Three networks train for the same number of multiply-adds, on the same data by the same schedule:
one that grows, the large one with the widths that the growing one ends with, and the small one with
those that it begins with. All start from scratch: every layer is initialised by its
`reset_parameters`. The report says which one is ahead, whichever it is.

{LEARNING} This is what the command shows.

{KEEPING} --freeze shows how that does here, for which it is not meant.

\b
NETWORK is one of:
  {", ".join(NETWORK_NAMES)}    made for the data's images
  MODULE:FACTORY or DIRECTORY            as `splitgrow inspect` takes them

PATH is as `splitgrow demo --data` takes it.

\b
Examples:
  splitgrow grow resnet
  splitgrow grow cnn --width 0.25 --factor 4 --data fashion-mnist
  splitgrow grow mymodels.resnet:make --data cifar10.zip --params 11e6 --plan
  splitgrow grow mynet.py:make --steps 2 --every 500 --except "head.*"
  splitgrow grow mlp --plateau 3 --init net2net --score gain --share 0.5
"""


_setting = partial(setting_option, GrowSettings)


def _default(name: str) -> Any:
    return getattr(GrowSettings, name)


def _shares(
    _ctx: click.Context, _parameter: click.Parameter, text: str | None
) -> tuple[float, ...] | None:
    """The shares that a text such as 0.2,0.35,0.5 stands for.

    Raises:
        click.BadParameter: If they are no rising numbers between 0 and 1.
    """
    if text is None:
        return None
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of shares, such as 0.2,0.5") from None
    if not all(0 < share < 1 for share in shares) or list(shares) != sorted(set(shares)):
        raise click.BadParameter(f"shares rise, and lie between 0 and 1; {text} do not")
    return shares


def _above_one(
    _ctx: click.Context, _parameter: click.Parameter, factor: float | None
) -> float | None:
    """A factor.

    Raises:
        click.BadParameter: If it is not above 1.
    """
    if factor is not None and not (math.isfinite(factor) and factor > 1):
        raise click.BadParameter(f"a network grows by a factor above 1, not {factor:g}")
    return factor


@click.command(help=_GROW_HELP, short_help="Train a growing network against the large one.")
@click.argument("network", metavar="NETWORK")
@click.option(
    "--width",
    type=PositiveFloat(64),
    metavar="X",
    help="A factor for the widths of a network that is given by name.  [default: 1]",
)
@click.option(
    "--factor",
    type=float,
    callback=_above_one,
    metavar="F",
    help=f"Grow to so many times the widths.  [default: {_default('factor'):g}]",
)
@click.option("--params", type=_COUNT, metavar="N", help="Grow to at most so many parameters.")
@click.option(
    "--macs",
    type=_COUNT,
    metavar="N",
    help="Grow until a forward pass for one image has at most so many multiply-adds.",
)
@click.option(
    "--steps",
    type=POSITIVE,
    metavar="N",
    help=f"The number of growths.  [default: {_default('steps')}]",
)
@click.option("--every", type=POSITIVE, metavar="K", help="Grow every K training steps.")
@click.option(
    "--shares",
    callback=_shares,
    metavar="X,...",
    help="Grow at these shares of the arithmetic.  [default: from 0.2 to 0.5]",
)
@click.option(
    "--plateau",
    type=POSITIVE,
    metavar="PATIENCE",
    help="Grow when PATIENCE epochs brought no lower loss on a tenth of the training images, which"
    " all networks then do without.",
)
@_setting(
    "--init",
    metavar="NAME",
    help=f"The initializer of new units: {', '.join(INITIALIZER_NAMES)}; or one that your module"
    " registers.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Grow only layers of such names; repeat it for more.  [default: all but the output]",
)
@click.option(
    "--except",
    "except_",
    multiple=True,
    metavar="PATTERN",
    help="Leave layers of such names as they are; repeat it for more.",
)
@click.option(
    "--score",
    type=NameChoice(SCORE_NAMES),
    help="Grow the layers that this score puts first, chosen anew at each growth.",
)
@click.option(
    "--share",
    type=PositiveFloat(1),
    metavar="S",
    help=f"The share of the layers that --score chooses.  [default: {_default('share'):g}]",
)
@_setting(
    "--round-to",
    type=POSITIVE,
    metavar="N",
    help="The number of which widths are multiples.",
)
@click.option(
    "--freeze",
    is_flag=True,
    help="Freeze all that exists at the first growth: growing without forgetting, which is not for"
    " growing towards a size.",
)
@_setting(
    "--lr-scale",
    type=PositiveFloat(1000),
    metavar="X",
    help="The learning rate of new parameters, relative to the others'.",
)
@_setting(
    "--warmup",
    type=click.IntRange(min=0),
    metavar="N",
    help="Training steps over which new parameters' rate rises from 0.",
)
@click.option(
    "--epochs",
    type=POSITIVE,
    metavar="N",
    help="Epochs of the large network, which set the arithmetic for all.  [default: by the number"
    " of images; for digits 14]",
)
@augment_option
@_setting(
    "--batch-size",
    type=POSITIVE,
    metavar="N",
    help="Images in a training step.",
)
@_setting(
    "--learning-rate",
    type=PositiveFloat(10),
    metavar="X",
    help="Peak of the one-cycle schedule, for all networks.",
)
@_setting(
    "--seed",
    type=SEED,
    metavar="N",
    help="For data, weights and order.",
)
@data_option
@limit_option
@size_option
@max_gb_option
@threads_option
@click.option(
    "--out",
    type=NamedPath(file_okay=False),
    default=Path("splitgrow-grow"),
    show_default=True,
    metavar="DIR",
    help="Where the report, its picture and results.json go.",
)
@click.option("--plan", is_flag=True, help="Print the plan, and stop before the training.")
@shown_options(whole=True)
def grow(*, network: str, **options: Any) -> None:
    """Loads the training, and runs it.

    Raises:
        click.UsageError: If the options do not go together.
    """
    check_target(network, names=NETWORK_NAMES)
    if options["width"] and network not in NETWORK_NAMES:
        raise click.UsageError(f"--width is for {', '.join(NETWORK_NAMES)}")
    options |= _how_much(options) | _when(options)
    if options["share"] and not options["score"]:
        raise click.UsageError("--share is for --score: it is the share that the score chooses")
    for name in ("width", "share", "score"):
        options[name] = options[name] or _default(name)
    load_module("splitgrow.demos.presentation").run_grow(network=network, **options)


def _how_much(options: Mapping[str, Any]) -> dict[str, Any]:
    """How much a network grows: by a factor, or to a budget."""
    for budget in ("params", "macs"):
        _one_of(("factor", budget), options)
    if options["params"] or options["macs"]:
        return {"factor": None}
    return {"factor": options["factor"] or _default("factor")}


def _when(options: Mapping[str, Any]) -> dict[str, Any]:
    """The one option that says when it grows, and how often.

    Raises:
        click.UsageError: If --steps contradicts --shares.
    """
    chosen = _one_of(("every", "shares", "plateau"), options)
    steps, shares = options["steps"], options["shares"]
    if shares and steps and steps != len(shares):
        raise click.UsageError(f"--steps {steps} contradicts --shares, which are {len(shares)}")
    steps = steps or len(shares or ()) or _default("steps")
    if chosen in (None, "shares"):
        return {"steps": steps, "shares": shares or usual_shares(steps)}
    return {"steps": steps, "shares": ()}


def _one_of(names: tuple[str, ...], options: Mapping[str, Any]) -> str | None:
    """The name of the option that is given, of those that exclude each other; None if none is.

    Raises:
        click.UsageError: If several are.
    """
    given = [name for name in names if options[name]]
    if len(given) > 1:
        raise click.UsageError(f"--{given[0]} and --{given[1]} exclude each other: give one")
    return given[0] if given else None

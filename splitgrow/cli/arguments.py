"""Options of the commands: types, shared ones; and how a command loads its work."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from splitgrow.cli.settings import MOST_GB
from splitgrow.cli.shapes import Shape, parse_shape

# The packages of `splitgrow[demo]`, by the names that fail to import without it.
_DEMO_PACKAGES = frozenset(("PIL", "matplotlib", "numpy", "sklearn"))

_Function = TypeVar("_Function", bound=Callable[..., Any])
POSITIVE = click.IntRange(min=1)
SMALL = click.IntRange(1, 1024)
SEED = click.IntRange(0, 2**32 - 1)


class PositiveFloat(click.FloatRange):
    """A positive number up to a largest one; click's own range lets "nan" through."""

    def __init__(self, largest: float) -> None:
        super().__init__(min=0, min_open=True, max=largest)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number that a text stands for."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


def _shapes(
    _ctx: click.Context, _option: click.Parameter, texts: tuple[str, ...]
) -> tuple[Shape, ...]:
    """The shapes that the texts stand for.

    Raises:
        click.BadParameter: if one is not a shape, or two have the same keyword.
    """
    try:
        shapes = tuple(parse_shape(text) for text in texts)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    keywords = [shape.keyword for shape in shapes if shape.keyword]
    for keyword in set(keywords):
        if keywords.count(keyword) > 1:
            raise click.BadParameter(f"{keyword} is given more than once")
    return shapes


input_option = click.option(
    "--input",
    "inputs",
    callback=_shapes,
    multiple=True,
    metavar="SHAPE",
    help="Shape of an example input, with its dtype if it is not float32; once for each input. "
    "NAME=SHAPE gives it by keyword.",
)
data_option = click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="An .npz file, a folder or .zip of pictures, a folder of idx files, or CIFAR.  "
    "[default: the digits of scikit-learn]",
)
limit_option = click.option(
    "--limit", type=POSITIVE, metavar="N", help="Keep only so many training images, for a trial."
)
size_option = click.option(
    "--size", type=POSITIVE, metavar="N", help="Resize picture files to N x N pixels."
)
max_gb_option = click.option(
    "--max-gb",
    type=PositiveFloat(1_000_000),
    default=MOST_GB,
    show_default=True,
    metavar="X",
    help="Memory that the data may take as their files hold them.",
)
threads_option = click.option(
    "--threads",
    type=SMALL,
    metavar="N",
    help="CPU threads.  [default: 1 for small images, else all cores]",
)
quiet_option = click.option("--quiet", "-q", is_flag=True, help="Print only the final results.")


def check_target(target: str, *, names: tuple[str, ...] = ()) -> None:
    """Makes sure that a target is a known name, a directory of transformers, or MODULE:FACTORY.

    Raises:
        click.BadParameter: if it has another form.
    """
    module, colon, factory = target.rpartition(":")
    known = target in names or (Path(target) / "config.json").is_file()
    if known or (colon and module and factory):
        return
    form = "MODULE:FACTORY"
    if Path(target).is_dir():
        raise click.BadParameter(
            f"there is no config.json in {target}", param_hint=f"{form}|DIRECTORY"
        )
    instead = f", and is none of {', '.join(names)}" if names else ""
    raise click.BadParameter(
        f"{target!r} has no {form} form, such as mymodels.resnet:make{instead}", param_hint=form
    )


def load_module(name: str) -> Any:
    """The module that does a command's work, imported now that it is needed.

    Raises:
        click.ClickException: if it needs a package that only the extra `demo` installs.
        ModuleNotFoundError: if anything else is missing, which is a bug.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in _DEMO_PACKAGES:
            raise
        raise click.ClickException(
            f"this command needs {package}, which is not installed: "
            'pip install "splitgrow[demo]" installs it'
        ) from error


def setting_option(settings: type, flag: str, **options: Any) -> Callable[[_Function], _Function]:
    """An option for one of some settings, with the default that it has there."""
    default = getattr(settings, flag.removeprefix("--").replace("-", "_"))
    return click.option(flag, default=default, show_default=True, **options)

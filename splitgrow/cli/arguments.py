"""Options of the commands: types, shared ones; and how a command loads its work."""

from __future__ import annotations

import importlib
import math
from typing import Any

import click

from splitgrow.cli.settings import MOST_GB

# The packages of `splitgrow[demo]`, by the names that fail to import without it.
_DEMO_PACKAGES = frozenset(("PIL", "matplotlib", "numpy", "sklearn"))

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

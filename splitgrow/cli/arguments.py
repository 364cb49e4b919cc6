"""Options of the commands: types, shared ones; and how a command loads its work."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from splitgrow.cli.factories import parse_factory
from splitgrow.cli.settings import AUGMENTATIONS, MOST_GB
from splitgrow.cli.shapes import Shape, parse_shape
from splitgrow.utils.closest_names import did_you_mean

# The packages of `splitgrow[demo]`, by the names that fail to import without it.
_DEMO_PACKAGES = frozenset(("PIL", "matplotlib", "numpy", "sklearn"))

if TYPE_CHECKING:
    _Choice = click.Choice[str]
else:  # older clicks have no such index
    _Choice = click.Choice

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


class NameChoice(_Choice):
    """One of some names; a misspelt one is answered with those that are like it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name that a text is."""
        if value not in self.choices:
            names = ", ".join(self.choices)
            near = did_you_mean(str(value), self.choices, "choose one of them")
            self.fail(f"{value!r} is none of {names}; {near}", param, ctx)
        return super().convert(value, param, ctx)


class NamedPath(click.Path):
    """A path; an empty text is none, though it would stand for the current folder."""

    def __init__(self, **kinds: Any) -> None:
        super().__init__(path_type=Path, **kinds)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path that a text stands for."""
        if not str(value) or "\0" in str(value):
            self.fail(f"{str(value)!r} is no path", param, ctx)
        return super().convert(value, param, ctx)


class NamedCommands(click.Group):
    """A group that answers a misspelt command with those that are like it."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the arguments begin with.

        Raises:
            click.UsageError: If there is none.
        """
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            near = did_you_mean(args[0], known, f"there are {', '.join(known)}")
            ctx.fail(f"no such command {args[0]!r}: {near}")
        return super().resolve_command(ctx, args)


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
    type=NamedPath(),
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


def _kinds(_ctx: click.Context, _option: click.Parameter, text: str) -> str:
    """Kinds of augmentation in one order, as flips,crops; empty for none.

    Raises:
        click.BadParameter: if there is no such kind.
    """
    if text == "none":
        return ""
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if part not in AUGMENTATIONS:
            near = did_you_mean(part, AUGMENTATIONS, "choose one or both")
            raise click.BadParameter(f"{part!r} is none of {', '.join(AUGMENTATIONS)}; {near}")
    return ",".join(kind for kind in AUGMENTATIONS if kind in parts)


augment_option = click.option(
    "--augment",
    callback=_kinds,
    default="none",
    show_default=True,
    metavar="KIND,...",
    help="Change training images at random: flips mirrors them, crops moves them by up to an"
    " eighth of their side. Digits and letters lose by flips.",
)
threads_option = click.option(
    "--threads",
    type=SMALL,
    metavar="N",
    help="CPU threads.  [default: 1 for small images, else all cores]",
)
_SHOWN = (
    click.option(
        "--filter",
        "patterns",
        multiple=True,
        metavar="PATTERN",
        help="Show only rows of such names, as 'stages.*'; repeat it for more.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout, and no tables."),
)


def shown_options(
    quiet: str = "Print only errors, and the path of what was written.", *, whole: bool = False
) -> Callable[[_Function], _Function]:
    """The options --filter, --json and --quiet of a command, which receives them as `shown`.

    Args:
        quiet: What --quiet does.
        whole: Whether --json has everything, and so refuses --filter.
    """

    def decorated(command: _Function) -> _Function:
        @functools.wraps(command)
        def run(
            *args: Any, patterns: tuple[str, ...], as_json: bool, quiet: bool, **own: Any
        ) -> Any:
            if whole and as_json and patterns:
                raise click.UsageError("--filter is for the tables: --json has all")
            kind = load_module("splitgrow.cli.showing").Shown
            own["shown"] = kind(patterns=patterns, as_json=as_json, quiet=quiet)
            return command(*args, **own)

        found: Any = click.option("--quiet", "-q", is_flag=True, help=quiet)(run)
        for option in reversed(_SHOWN):
            found = option(found)
        return found  # type: ignore[no-any-return]

    return decorated


def check_target(target: str, *, names: tuple[str, ...] = ()) -> None:
    """Makes sure that a target is a known name, a directory of transformers, or MODULE:FACTORY.

    Raises:
        click.BadParameter: if it has another form.
    """
    form = "MODULE:FACTORY"
    if target in names or (Path(target) / "config.json").is_file():
        return
    try:
        if parse_factory(target) is not None:
            return
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=form) from error
    if Path(target).is_dir():
        raise click.BadParameter(
            f"there is no config.json in {target}", param_hint=f"{form}|DIRECTORY"
        )
    instead = f", and is none of {', '.join(names)}" if names else ""
    near = did_you_mean(target, names, "") if names else ""
    instead += f"; {near}" if near else ""
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


@contextmanager
def kept_nothing() -> Iterator[None]:
    """Work that leaves nothing if the user stops it.

    Raises:
        KeyboardInterrupt: If the user stops it; it says so.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(str(interrupt) or "nothing is written") from None


def setting_option(settings: type, flag: str, **options: Any) -> Callable[[_Function], _Function]:
    """An option for one of some settings, with the default that it has there."""
    default = getattr(settings, flag.removeprefix("--").replace("-", "_"))
    return click.option(flag, default=default, show_default=True, **options)

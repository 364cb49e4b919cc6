"""The options of each method of `splitgrow continual`: their types, defaults and a line of help."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding

from splitgrow import continual
from splitgrow.cli.showing import Shown
from splitgrow.demos.continual.outcome import OutcomeError
from splitgrow.utils.closest_names import did_you_mean

_BY_FLAG = frozenset(
    (
        "model",
        "example_inputs",
        "training",
        "decide_on",
        "validation_share",
        "seed",
        "callbacks",
        "directory",
    )
)
"""The arguments of every method that are no options, or have a flag of their own."""


@dataclass(frozen=True)
class MethodOption:
    """An option of a method.

    Attributes:
        name: Its name.
        type: What its value is, in words.
        default: The value that it has if it is not given.
        help: What it is, in a sentence.
    """

    name: str
    type: str
    default: Any
    help: str


def options_of(method: str) -> tuple[MethodOption, ...]:
    """The options of a method."""
    kind = continual.METHODS[method]
    lines = _argument_lines(kind)
    return tuple(
        MethodOption(name, _words(str(each.annotation)), each.default, lines.get(name, ""))
        for name, each in inspect.signature(kind).parameters.items()
        if name not in _BY_FLAG
    )


def show_options(method: str, shown: Shown) -> None:
    """Prints the options of a method."""
    options = options_of(method)
    if shown.as_json:
        found = [asdict(option) for option in options]
        document = {"version": 1, "method": method, "options": found}
        shown.echo_json(json.dumps(document, indent=1))
        return
    if shown.quiet:
        shown.echo_json("\n".join(option.name for option in options))
        return
    parts: list[RenderableType] = [f"{method}: options, as --option NAME=VALUE", ""]
    for option in options:
        parts.append(f"{option.name}={json.dumps(option.default)}  ({option.type})")
        parts.append(Padding(option.help, (0, 0, 0, 4)))
    shown.show(parts)


def checked_options(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name, made sure of.

    Raises:
        OutcomeError: If the method has no such option, or a value is of another type.
    """
    known = {option.name: option for option in options_of(method)}
    checked: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            there = f"`splitgrow continual options {method}` lists them"
            near = did_you_mean(name, known, there)
            raise OutcomeError(f"{method} has no option {name!r}: {near}")
        wanted = known[name].type
        if not any(_is(value, kind) for kind in wanted.split(" or ")):
            raise OutcomeError(f"--option {name}={json.dumps(value)}: give {wanted}")
        checked[name] = tuple(value) if isinstance(value, list) else value
    return checked


_WORDS = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true/false",
    "None": "null",
    "Mapping[str, float]": "numbers by task as {...}",
    "tuple[float, ...]": "numbers as [...]",
}


def _words(annotation: str) -> str:
    """A type in words."""
    parts = [_WORDS.get(part, "a text") for part in annotation.split(" | ")]
    return " or ".join(dict.fromkeys(parts))


def _is(value: Any, words: str) -> bool:
    """Whether a value of JSON is what the words say."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {
        "a number": number and math.isfinite(value),
        "a whole number": number and isinstance(value, int),
        "true/false": isinstance(value, bool),
        "null": value is None,
        "numbers by task as {...}": isinstance(value, dict)
        and all(_is(each, "a number") for each in value.values()),
        "numbers as [...]": isinstance(value, list)
        and all(_is(each, "a number") for each in value),
        "a text": isinstance(value, str),
    }[words]


def _argument_lines(kind: type) -> dict[str, str]:
    """The first sentence on each argument, from the documentation of a class and its bases."""
    found: dict[str, str] = {}
    for base in kind.__mro__:
        text = inspect.cleandoc(base.__doc__ or "")
        section = re.search(r"^Args:\n((?:[ ]{4}.*\n|\n)+)", f"{text}\n", re.MULTILINE)
        for name, words in re.findall(
            r"^    (\w+): (.+(?:\n {8}.+)*)", section.group(1) if section else "", re.MULTILINE
        ):
            told = " ".join(re.sub(r":math:`[^`]*` |`", "", words).split())
            found.setdefault(name, re.split(r"(?<=\.) (?=[A-Z])", told)[0])
    return found

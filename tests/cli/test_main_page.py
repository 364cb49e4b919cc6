"""The page on the command line, held against the commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

import splitgrow
from splitgrow.cli.main import main

PAGE = (Path(splitgrow.__file__).parents[1] / "docs" / "command_line.md").read_text()
LINES = [
    line
    for piece in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in piece.splitlines()
]


@pytest.mark.parametrize("line", LINES)
def test_the_commands_of_the_page_have_options_that_there_are(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, *words = shlex.split(line)
    assert program == "splitgrow"
    context = click.Context(main, **main.context_settings)
    command: click.Command = main
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        _, found, words = command.resolve_command(context, words)
        assert found is not None
        command = found
    monkeypatch.setattr(command, "callback", lambda *_, **__: None)
    command.make_context(command.name, [*words], parent=context)


def test_the_page_has_every_command_and_its_shared_options() -> None:
    for name, command in main.commands.items():
        assert f"`splitgrow {name}`" in PAGE
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--filter", "--json", "--quiet"} <= options, name


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("demo", "before the first growth, and after each"),
        ("grow", "of the large network"),
        ("prune", "after each step"),
        ("continual", "of each task"),
    ],
)
def test_help_says_what_epochs_count_as_the_page_does(command: str, words: str) -> None:
    own = next(each for each in main.commands[command].params if each.name == "epochs")
    assert isinstance(own, click.Option)
    assert words in str(own.help)
    assert "each task" in PAGE

"""Finds the model that `MODULE:FACTORY` names."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import click
from torch import nn

from splitgrow.cli.factories import parse_factory

_T = TypeVar("_T")


def load_model(text: str) -> nn.Module:
    """The model that `MODULE:FACTORY` is, or makes when it is called.

    Raises:
        click.ClickException: if there is no such module or name, or if it makes no model.
    """
    try:
        factory = parse_factory(text)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if factory is None:
        raise click.ClickException(f"{text!r} has no MODULE:FACTORY form")
    target: object = _module(factory.module)
    for part in factory.name.split("."):
        target = _attribute(target, part, factory.module)
    if isinstance(target, nn.Module) and not factory.called:
        return target
    where = f"{factory.module}:{factory.name}"
    if not callable(target) or isinstance(target, nn.Module):
        raise click.ClickException(f"{where} is {_a(target)}, neither a model nor a function")
    made = target
    model = attempt(
        f"{where} failed when it was called", lambda: made(*factory.args, **factory.kwargs)
    )
    if not isinstance(model, nn.Module):
        raise click.ClickException(f"{where} returned {_a(model)}, not a torch.nn.Module")
    return model


def attempt(failure: str, call: Callable[[], _T]) -> _T:
    """The result of `call`, which is the user's code.

    Raises:
        click.ClickException: if it raises; the message starts with `failure` and names the error.
    """
    try:
        return call()
    except (Exception, SystemExit) as error:  # a user's code can raise anything
        reason = str(error).strip().partition("\n")[0]  # torch's errors go on for pages
        raise click.ClickException(f"{failure}: {type(error).__name__}: {reason}") from error


def _module(name: str) -> ModuleType:
    """The module of that name, or the one in the .py file of that path.

    Raises:
        click.ClickException: if there is none, or it fails to load.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as for `python -m`, which an installed script does not do
    if not name.endswith(".py"):
        return attempt(f"cannot import {name}", lambda: importlib.import_module(name))
    path = Path(name)
    if not path.is_file():
        raise click.ClickException(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise click.ClickException(f"{path} is not a Python file")
    module, loader = importlib.util.module_from_spec(spec), spec.loader
    # A file's own neighbours are importable from it, and dataclasses look their module up by name.
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[path.stem] = module
    attempt(f"cannot import {path}", lambda: loader.exec_module(module))
    return module


def _attribute(owner: object, name: str, module_name: str) -> object:
    if name in dir(owner):
        return getattr(owner, name)
    public = [known for known in dir(owner) if not known.startswith("_")]
    near = difflib.get_close_matches(name, public)
    hint = f"; is it {' or '.join(near)}?" if near else ""
    raise click.ClickException(f"{module_name} has no {name!r}{hint}")


def _a(value: object) -> str:
    return f"a {type(value).__name__}"

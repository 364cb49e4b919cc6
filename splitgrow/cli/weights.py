"""Weights from files: checkpoints by splitgrow.save, and plain ones of torch or safetensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from splitgrow.checkpoints.saving import CONTENTS
from splitgrow.utils.closest_names import did_you_mean

_MOST = 300  # letters of an error by torch, which lists all names
_PROBLEMS = 4
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel's and torch.compile's


def is_own_checkpoint(path: Path) -> bool:
    """Whether a file is one by `splitgrow.save`, rather than plain weights."""
    try:
        with safe_open(path, "pt") as file:
            return CONTENTS in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def fill_plain_(model: nn.Module, path: Path) -> None:
    """Puts the weights of a file into a model as it was written.

    Args:
        model: The model.
        path: A state_dict by torch.save or safetensors, or a file by torch.save that has one.

    Raises:
        click.ClickException: If the file cannot be read, or its weights do not fit.
    """
    state = dict(_state_in(path))
    for prefix in _WRAPPERS:
        if state and all(name.startswith(prefix) for name in state):
            consume_prefix_in_state_dict_if_present(state, prefix)
    own = model.state_dict(keep_vars=True)
    given = {id(own[name]): state[name] for name in own if name in state}
    for name, tensor in own.items():  # files of safetensors have tied weights once
        if name not in state and id(tensor) in given:
            state[name] = given[id(tensor)]
    problems = _problems(own, state)
    if problems:
        raise click.ClickException(f"{path} does not fit the model: {'; '.join(problems)}")
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, ValueError) as error:  # of hooks, and of extra states
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= _MOST else f"{reason[:_MOST]} ..."
        raise click.ClickException(f"{path} does not fit the model: {reason}") from error


def _problems(own: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    """How tensors do not fit a model's own: by name, with the names that are like them."""
    missing = [name for name in own if name not in state]
    surplus = [name for name in state if name not in own]
    found = []
    if missing:
        found.append(f"it lacks {_named(missing)}")
    if surplus:
        near = did_you_mean(surplus[0], missing, "") if missing else ""
        found.append(f"the model has no {_named(surplus)}{f' ({near})' if near else ''}")
    for name, tensor in own.items():
        shapes = [getattr(each, "shape", None) for each in (state.get(name), tensor)]
        if name in state and None not in shapes and shapes[0] != shapes[1]:
            there, here = (" x ".join(map(str, shape or ())) or "one number" for shape in shapes)
            found.append(f"{name} is {there}, and {here} in the model")
    return [*found[:_PROBLEMS], *([f"and {len(found) - _PROBLEMS} more"] * bool(found[_PROBLEMS:]))]


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")


def _state_in(path: Path) -> Mapping[str, Tensor]:
    """The state_dict in a file.

    Raises:
        click.ClickException: If the file cannot be read, or has none or several.
    """
    try:
        return load_file(path)
    except OSError as error:
        raise click.ClickException(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError:
        pass  # perhaps one of torch.save
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for files that are none of its own
        raise click.ClickException(
            f"{path} is neither a state_dict by torch.save (whole models are not read) nor a file"
            " of safetensors"
        ) from error
    if _is_state(found):
        return found  # type: ignore[no-any-return]
    inside = [name for name in found if _is_state(found[name])] if isinstance(found, dict) else []
    if len(inside) != 1:
        named = f"the state_dicts {', '.join(map(str, inside))}" if inside else "no state_dict"
        raise click.ClickException(f"{path} has {named}: save the model's alone")
    return found[inside[0]]  # type: ignore[no-any-return]


def _is_state(value: Any) -> bool:
    """Whether a value is a state_dict: tensors by name, of which some are of more than a number."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) for name in value)
        and any(isinstance(each, Tensor) and each.dim() for each in value.values())
    )

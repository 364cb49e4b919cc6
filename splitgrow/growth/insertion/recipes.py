"""Recipes of insertions: plain data from which they can be made again, on the meta device.

A recipe names stock layers of torch.nn with their options, parts of the model that were copied, and
modules from the user, which only the user can pass again.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

import torch
from torch import nn

from splitgrow.errors import CheckpointError
from splitgrow.layers.plain_copy import plain_copy
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.utils.json_records import PLAIN

_FILES = """
    activation batchnorm conv dropout flatten instancenorm linear normalization padding pixelshuffle
    pooling upsampling
"""
_SOURCES = frozenset(f"torch.nn.modules.{name}" for name in _FILES.split())
"""The modules of torch whose layers a recipe may name: leaves, made from a few numbers each."""
_POSITIVE = frozenset(("dilation", "groups", "kernel_size", "stride"))
_NOT_LEAVES = frozenset(("MultiheadAttention", "NonDynamicallyQuantizableLinear"))


def recipe_of(
    module: nn.Module, copied: Mapping[int, str] | None = None, *, given: bool = False
) -> dict[str, Any]:
    """The recipe of a module.

    Args:
        module: The module.
        copied: The paths in the model of the modules that its parts are copies of, by the parts'
            ids.
        given: Whether the user passed the whole module, rather than a part of it.

    Returns:
        ``{"copy": path}``, ``{"parts": [...]}`` for an nn.Sequential, ``{"type": ..., "args":
        ...}`` for a stock layer, and ``{"given": type}`` for a module that no recipe can describe.
    """
    if type(module) is nn.Sequential:
        parts = tuple(recipe_of(part, copied, given=given) for part in module)
        numbered = list(module._modules) == [str(index) for index in range(len(module))]  # noqa: SLF001
        if numbered and not (given and any("given" in part for part in parts)):
            return {"parts": parts}
    known = _stock_recipe(module)
    if known is None and copied and id(module) in copied:
        return {"copy": copied[id(module)]}
    return known or {"given": type(module).__name__}


def _stock_recipe(module: nn.Module) -> dict[str, Any] | None:
    cls = type(module)
    if not _is_stock(cls):
        return None
    args = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if name in {"device", "dtype"} or parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            continue
        value = getattr(module, name, None)
        args[name] = value if name != "bias" else value is not None
    if not all(_is_plain(value) for value in args.values()):
        return None
    recipe = {"type": cls.__name__, "args": args}
    again = _stock(recipe)
    return recipe if _form(again) == _form(module) else None


def _is_stock(cls: type[nn.Module]) -> bool:
    known = getattr(nn, cls.__name__, None) is cls and cls.__module__ in _SOURCES
    lazy = issubclass(cls, nn.modules.lazy.LazyModuleMixin)
    return known and not lazy and cls.__name__ not in _NOT_LEAVES


def _items(value: object) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _is_plain(value: object) -> bool:
    return all(type(item) in PLAIN for item in _items(value))


def _types_in(hint: Any) -> set[Any]:
    """The plain types that a type hint allows; none if it is unclear."""
    if hint is float:
        return {float, int}
    if hint in PLAIN:
        return {hint}
    inside = (_types_in(one) for one in get_args(hint) if one is not Ellipsis)
    return {each for found in inside for each in found}


def _form(module: nn.Module) -> tuple[str, list[tuple[str, torch.Size]]]:
    """A stock layer's options and shapes, without its values."""
    return repr(module), [(name, tensor.shape) for name, tensor in module.state_dict().items()]


def _stock(recipe: Mapping[str, Any]) -> nn.Module:
    name, args = recipe.get("type"), recipe.get("args")
    cls = getattr(nn, name, None) if isinstance(name, str) else None
    if not (isinstance(cls, type) and issubclass(cls, nn.Module) and _is_stock(cls)):
        raise CheckpointError(f"a recipe names {name!r}, which is no layer of torch.nn")
    if not isinstance(args, Mapping) or not all(_is_plain(value) for value in args.values()):
        raise CheckpointError(f"the options of a {name} are no plain data")
    hints = get_type_hints(cls.__init__)
    for key, value in args.items():
        known = _types_in(hints.get(key))
        fits = not known or all(type(item) in known for item in _items(value))
        if key in _POSITIVE and any(type(item) is int and item < 1 for item in _items(value)):
            fits = False  # torch accepts it without values
        if not fits:
            raise CheckpointError(f"a {name} takes no {value!r:.60} as {key}")
    placed = {"device": "meta"} if "device" in inspect.signature(cls).parameters else {}
    made: nn.Module = cls(**args, **placed)
    return made


def parts_in(recipe: Mapping[str, Any], modules: Mapping[str, nn.Module]) -> int:
    """The number of modules that a recipe makes, as far as it is valid."""
    if isinstance(recipe.get("parts"), tuple):
        return 1 + sum(parts_in(part, modules) for part in recipe["parts"])
    copied = modules.get(str(recipe.get("copy"))) if "copy" in recipe else None
    return sum(1 for _ in copied.modules()) if copied is not None else 1


def made_of(
    recipe: Mapping[str, Any], modules: Mapping[str, nn.Module], given: nn.Module | None
) -> nn.Module:
    """The module of a recipe, on the meta device and without values, except the user's modules.

    Args:
        recipe: The recipe.
        modules: The model's modules by path.
        given: The modules that the user passes again.

    Raises:
        CheckpointError: If the recipe is not valid, or the user has to pass a module.
    """
    if "parts" in recipe and isinstance(recipe["parts"], tuple):
        return nn.Sequential(*(made_of(part, modules, given) for part in recipe["parts"]))
    if "copy" in recipe:
        return copied_without_values(_found(modules, recipe["copy"]))
    if "given" in recipe:
        if given is None:
            raise CheckpointError(f"it needs a {recipe['given']} of yours; give that as `modules`")
        return copy.deepcopy(given)
    return _stock(recipe)


def _found(modules: Mapping[str, nn.Module], path: object) -> nn.Module:
    if not isinstance(path, str) or path not in modules:
        raise CheckpointError(f"a recipe copies {path!r}, which is not in the model")
    return modules[path]


def copied_without_values(module: nn.Module) -> nn.Module:
    """A plain copy of a module on the meta device."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return plain_copy(module, None, memo, stock_of=_stock_without_values)


def _stock_without_values(split: SplitLayer, view: int | None) -> nn.Module:
    made = split.composition(view).room()
    return made.train(split.training)

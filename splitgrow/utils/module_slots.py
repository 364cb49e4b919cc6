"""The holders of a model's modules, and the replacement of a module in all of them.

A module holds others as its children and in its attributes: by themselves, in lists and dicts, and
in lists and dicts within these. All of these can be given another module. Any other holder (a
tuple, a closure, an object) keeps the old one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from splitgrow.utils.rollback import Undo

Holders = Mapping[int, Sequence[tuple[Any, Any]]]
"""For each module, by its id, the dicts and lists that hold it, with its keys there."""

_CONTAINERS = (dict, list, tuple, set, frozenset)
_OTHER_STORES = frozenset(("_parameters", "_buffers", "_non_persistent_buffers_set"))


def modules_of(model: nn.Module) -> list[nn.Module]:
    """All modules of a model, each once, in the order of torch's, which takes far longer."""
    found, seen, pending = list[nn.Module](), set[int](), [model]
    while pending:
        module = pending.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        found.append(module)
        children = module._modules  # noqa: SLF001
        if not children:
            continue
        inner = [child for child in children.values() if child is not None]
        if not any([child._modules for child in inner]):  # noqa: C419, SLF001 - as in a grown layer
            ids = set(map(id, inner))
            if len(ids) == len(inner) and seen.isdisjoint(ids):
                seen |= ids
                found += inner
                continue
        pending += reversed(inner)
    return found


def all_tensors(model: nn.Module, *more: nn.Module) -> list[Tensor]:
    """All parameters and buffers of models; a tensor that modules share is there several times."""
    modules = modules_of(model)
    for other in more:
        modules += modules_of(other) if other._modules else (other,)  # noqa: SLF001
    return [
        tensor
        for module in modules
        for store in (module._parameters, module._buffers)  # noqa: SLF001
        for tensor in (store.values() if store else ())
        if tensor is not None
    ]


def all_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All parameters of a model, each once, in the order of torch's, which takes far longer."""
    stores = [module._parameters for module in modules_of(model)]  # noqa: SLF001
    found = [own for store in stores if store for own in store.values() if own is not None]
    return list(dict(zip(map(id, found), found, strict=True)).values())


def holders_in(model: nn.Module) -> Holders:
    """The holders of the modules of a model."""
    holders: dict[int, list[tuple[Any, Any]]] = {}
    for module in modules_of(model):
        for _, container, key, held in held_by(module):
            if container is not None:
                holders.setdefault(id(held), []).append((container, key))
    return holders


def held_by(module: nn.Module) -> Iterator[tuple[str, Any, Any, nn.Module]]:
    """The modules that a module holds.

    Yields:
        The attribute; the dict or list in it that holds the other, None if the holder cannot be
        given another; the key there; and the module that is held.
    """
    own = vars(module)
    for attribute, value in own.items():
        if isinstance(value, _CONTAINERS):
            if value and attribute not in _OTHER_STORES:
                for found in _within(value):
                    yield attribute, *found
        elif isinstance(value, nn.Module):
            yield attribute, own, attribute, value


def _within(container: Any) -> Iterator[tuple[Any, Any, nn.Module]]:
    """The modules in a container and the containers in it."""
    pending, seen = [container], {id(container)}
    for each in pending:  # it grows on the way
        holder = each if isinstance(each, (dict, list)) else None
        for key, item in each.items() if isinstance(each, dict) else enumerate(each):
            if isinstance(item, nn.Module):
                yield holder, key, item
            elif isinstance(item, _CONTAINERS) and id(item) not in seen:
                seen.add(id(item))
                pending.append(item)


def put_in_place_(holders: Holders, old: nn.Module, new: nn.Module, undo: Undo) -> None:
    """Puts a module in the place of another in all holders of that one."""
    for container, key in holders[id(old)]:
        if isinstance(container, list):  # its user may make it shorter meanwhile
            undo.on_failure(partial(container.__setitem__, slice(None), list(container)))
        else:
            undo.on_failure(partial(container.__setitem__, key, old))
        container[key] = new

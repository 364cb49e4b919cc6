"""Modules that forward itself assigns, and whether one module may stand for another.

Forward may make an activation anew at each call. That is no change of the model, as long as it is
the same activation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from operator import is_
from typing import Any

from torch import Tensor, nn

Paths = Mapping[str, nn.Module]
"""Modules by path, every path of each."""

_STORES = frozenset(("_parameters", "_buffers", "_modules", "training"))


def paths_in(model: nn.Module) -> dict[str, nn.Module]:
    """All modules of a model by path, every path of each."""
    found: dict[str, nn.Module] = {}
    _find_paths(model, "", found)
    return found


def _find_paths(module: nn.Module, path: str, found: dict[str, nn.Module]) -> None:
    """As torch's `named_modules`, which takes far longer for many modules without children."""
    if type(module).named_modules is not nn.Module.named_modules:
        found.update(module.named_modules(prefix=path, remove_duplicate=False))
        return
    found[path] = module
    before = f"{path}." if path else ""
    for name, child in module._modules.items():  # noqa: SLF001
        if child is None:
            continue
        if child._modules or type(child).named_modules is not nn.Module.named_modules:  # noqa: SLF001
            _find_paths(child, before + name, found)
        else:
            found[before + name] = child


def assigned_since(before: Paths, model: nn.Module) -> tuple[tuple[str, str], ...]:
    """The paths at which a run of the model put another module, and the likeness of that module.

    The likeness of a removed module is "".
    """
    now = paths_in(model)
    return tuple((name, _likeness_at(now, name)) for name in _differing(before, now))


def changes_between(
    before: Paths, now: Paths, assigned: tuple[tuple[str, str], ...], relied_on: Collection[str]
) -> list[str]:
    """The paths whose modules changed in a way that counts.

    Two changes do not count: a module without tensors that is replaced by one of the same type
    and settings, and a module that forward itself assigns.

    Args:
        before: The modules as they were.
        now: The modules as they are.
        assigned: The assignments of a run of the model, as `assigned_since` returns them.
        relied_on: The paths of layers that must be the very same.
    """
    differing, own = _differing(before, now), dict(assigned)
    harmless: set[str] = set()
    for name in sorted(differing):  # parents come before their children
        by_forward = _parent(name) in harmless or _is_assigned(name, now, own)
        if name not in relied_on and (
            by_forward or _plainly_alike(before.get(name), now.get(name))
        ):
            harmless.add(name)
    return [name for name in differing if name not in harmless]


def likeness(module: nn.Module) -> str:
    """A module's type and settings, and those of its children; of tensors the shapes only."""
    own = vars(module)
    stores = ("_parameters", "_buffers")
    held = {**own, **{key: t for store in stores for key, t in own[store].items()}}
    settings = [f"{key}={_described(held[key])}" for key in sorted(held.keys() - _STORES)]
    children = [f"({name}): {_described(child)}" for name, child in own["_modules"].items()]
    kind = type(module)
    return f"{kind.__module__}.{kind.__qualname__}({', '.join((*settings, *children))})"


def _described(value: Any) -> str:
    if isinstance(value, nn.Module):
        return likeness(value)
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _differing(before: Paths, now: Paths) -> list[str]:
    if [*before] == [*now] and all(map(is_, before.values(), now.values())):
        return []
    return [name for name in {**before, **now} if now.get(name) is not before.get(name)]


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _likeness_at(modules: Paths, name: str) -> str:
    return likeness(modules[name]) if name in modules else ""


def _is_assigned(name: str, now: Paths, assigned: Mapping[str, str]) -> bool:
    """Whether forward assigns the module there: at that path, or under a new name at each call."""
    found = _likeness_at(now, name)
    if name in assigned:
        return found in ("", assigned[name])
    return any(
        like == found and _parent(name) == _parent(other) for other, like in assigned.items()
    )


def _plainly_alike(one: nn.Module | None, other: nn.Module | None) -> bool:
    """Whether two modules have no tensors and compute the same."""
    if one is None or other is None:
        return False
    tensors = (t for m in (one, other) for t in (*m.parameters(), *m.buffers()))
    return next(tensors, None) is None and likeness(one) == likeness(other)

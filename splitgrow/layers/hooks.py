"""The user's hooks on modules, and moving them to the module that takes another's place.

Where a layer grows, the new module gets the dictionaries themselves, so that a handle from
registration still removes its hook.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

from splitgrow.errors import UnsupportedModelError
from splitgrow.layers.freezing import hold_statistics
from splitgrow.utils.rollback import Undo

_BEFORE = ("_forward_pre_hooks", "_backward_pre_hooks")
"""Hooks that run before the module does: those of the outer modules come first."""
_BEHIND = ("_forward_hooks", "_backward_hooks")
_MARKS = (
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
"""The options of the hooks with the same keys."""
_OF_STATE = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_RUN = (*_BEFORE, *_BEHIND)
HOOKS = (*_RUN, *_OF_STATE)
"""The attributes of a module that hold its hooks."""


def _hooks_in(module: nn.Module, stores: tuple[str, ...]) -> dict[int, Any]:
    """The user's hooks on a module, by their keys, which no two hooks share."""
    found: dict[int, Any] = {}
    own = vars(module)
    for name in stores:
        hooks = own.get(name)
        if hooks:
            found.update((k, hook) for k, hook in hooks.items() if not _is_the_layers(name, hook))
    return found


def _is_the_layers(store: str, hook: Any) -> bool:
    """Whether a hook belongs to the layer itself, so that no other module could run it.

    So do torch's own that let a layer under weight norm load its older names.
    """
    return hook is hold_statistics or (store in _OF_STATE and _is_torchs(hook))


def has_run_hooks(module: nn.Module) -> bool:
    """Whether hooks of the user's run when the module is called, forward or backward."""
    return bool(_hooks_in(module, _RUN))


def has_hooks(module: nn.Module) -> bool:
    """Whether the user has put any hooks on a module."""
    return bool(_hooks_in(module, HOOKS))


def has_state_hooks(module: nn.Module) -> bool:
    """Whether hooks of the user's run when the module's state_dict is taken or loaded."""
    return bool(_hooks_in(module, _OF_STATE))


def only_computing_hooks(module: nn.Module) -> bool:
    """Whether all hooks on a module are those of weight norm, spectral norm or pruning."""
    return all(map(_is_torchs, _hooks_in(module, HOOKS).values()))


def refuse_own_hooks(blocks: Iterable[tuple[str, nn.Module]]) -> list[str]:
    """Makes sure that no block of a grown layer has hooks that a plain layer could not run.

    Args:
        blocks: The blocks with their paths.

    Returns:
        The paths of those with hooks that compute one of their tensors, which it then has.

    Raises:
        UnsupportedModelError: If one has others.
    """
    hooked = [(path, block) for path, block in blocks if has_hooks(block)]
    own = [path for path, block in hooked if not only_computing_hooks(block)]
    if own:
        raise UnsupportedModelError(
            f"{named_paths(own)} has hooks of its own, which see one block of a grown layer; a "
            f"plain layer cannot run them. Remove them, and register them on the layer itself"
        )
    return [path for path, _ in hooked]


def named_paths(paths: Sequence[str]) -> str:
    """The first few of some paths, in words."""
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return ", ".join(f"`{path}`" for path in paths[:5]) + more


def computing_hooks(module: nn.Module) -> Iterator[Any]:
    """The pre-hooks that compute one of the module's tensors before each call.

    Those of `torch.nn.utils.weight_norm`, `spectral_norm` and `prune`.
    """
    yield from filter(_is_torchs, _hooks_in(module, ("_forward_pre_hooks",)).values())


def _is_torchs(hook: Any) -> bool:
    hook = getattr(hook, "hook", hook)  # a hook that gets its module is wrapped
    made_in = getattr(hook, "__module__", None) or ""  # a function's, or that of an object's class
    return str(made_in).startswith("torch.nn.utils.")


def carry_hooks_(old: nn.Module, new: nn.Module, memo: dict[int, Any] | None = None) -> None:
    """Puts the hooks that run with one module onto another that takes its place.

    Hooks that are there already stay, inside of these.

    Args:
        old: The module with the hooks.
        new: The module that gets them as well.
        memo: As in `copy.deepcopy`, for copies of the hooks; None for the hooks themselves.
    """
    for name in (*_RUN, *_MARKS):
        hooks, there = vars(old).get(name) or {}, vars(new)[name]
        more = {
            key: hook
            for key, hook in hooks.items()
            if key not in there and not _is_the_layers(name, hook)
        }
        if not more:
            continue
        more = more if memo is None else copy.deepcopy(more, memo)
        both = {**more, **there} if name in _BEFORE else {**there, **more}
        there.clear()
        there.update(both)
    if vars(old).get("_backward_hooks") and vars(new)["_is_full_backward_hook"] is None:
        vars(new)["_is_full_backward_hook"] = vars(old)["_is_full_backward_hook"]


STORES = tuple(
    name for name, value in vars(nn.Module()).items() if "hook" in name and isinstance(value, dict)
)
"""The dictionaries in which a module keeps its hooks."""
_WAY = "_is_full_backward_hook"
_BOUND: Any = getattr(torch_module, "_WrappedHook", ())
"""Torch's wrapper for a hook that gets its module."""


def hand_over_(old: nn.Module, new: nn.Module, undo: Undo, *, state: bool = True) -> None:
    """Gives a module's hooks to the one that takes its place, but not `hold_statistics`.

    Args:
        old: The module.
        new: The module in its place; it has no hooks yet.
        undo: Takes it back.
        state: Whether also those on its state_dict.
    """
    theirs, mine = vars(old), vars(new)
    stores = [name for name in STORES if state or name not in _OF_STATE]
    undo.keep(theirs, mine, *(theirs[name] for name in stores))
    for name in stores:
        hooks = theirs[name]
        stay = OrderedDict((k, hook) for k, hook in hooks.items() if _is_the_layers(name, hook))
        for key in stay:
            del hooks[key]
        for key, hook in hooks.items():
            if isinstance(hook, _BOUND) and hook.with_module:
                hooks[key] = _BOUND(hook.hook, new)
        mine[name], theirs[name] = hooks, stay
    mine[_WAY], theirs[_WAY] = theirs[_WAY], None

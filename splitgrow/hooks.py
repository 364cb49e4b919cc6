"""Hooks of a layer that grows: the module that takes its place takes them over.

They see the layer's whole input and output then, as before. The dictionaries themselves change
hands, so that a handle that was obtained at registration still removes its hook.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

from splitgrow.generations import hold_statistics
from splitgrow.undo import Undo

STORES = tuple(
    name for name, value in vars(nn.Module()).items() if "hook" in name and isinstance(value, dict)
)
"""The dictionaries in which a module keeps its hooks."""
_WAY = "_is_full_backward_hook"
_BOUND: Any = getattr(torch_module, "_WrappedHook", ())
"""What torch makes of a hook that is to be told its module."""


def hand_over_(old: nn.Module, new: nn.Module, undo: Undo) -> None:
    """Gives a module's hooks to the one that takes its place; what holds its statistics stays.

    Args:
        old: The module.
        new: What takes its place; it has no hooks yet.
        undo: Takes it back.
    """
    theirs, mine = vars(old), vars(new)
    undo.keep(theirs, mine, *(theirs[name] for name in STORES))
    for name in STORES:
        hooks = theirs[name]
        stay = OrderedDict((key, hook) for key, hook in hooks.items() if hook is hold_statistics)
        for key in stay:
            del hooks[key]
        for key, hook in hooks.items():
            if isinstance(hook, _BOUND) and hook.with_module:
                hooks[key] = _BOUND(hook.hook, new)
        mine[name], theirs[name] = hooks, stay
    mine[_WAY], theirs[_WAY] = theirs[_WAY], None

"""A configuration of a model's own, where models share one that was passed to both.

Growth brings a model's configuration up to date. Another model that was made from the same object
has not grown.
"""

from __future__ import annotations

import copy
import gc
import sys
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from functools import partial
from typing import Any

from torch import nn

from splitgrow.layers.block_numbers import CONFIGS, configs_in
from splitgrow.utils.rollback import Undo


def own_configs_(model: nn.Module, undo: Undo) -> None:
    """Gives a model copies of the configurations that modules outside of it hold as well.

    Args:
        model: The model.
        undo: Takes it back.
    """
    modules = list(model.modules())
    ours = {id(module) for module in modules}
    configs = configs_in(modules)
    if not configs:
        return
    shared = [n for n, more in enumerate(_further_references(configs, modules)) if more]
    for config in (configs[n] for n in shared):
        if not _held_elsewhere(config, ours):
            continue
        own = copy.deepcopy(config)
        for module in modules:
            for name in CONFIGS:
                if vars(module).get(name) is config:
                    undo.on_failure(partial(vars(module).__setitem__, name, config))
                    vars(module)[name] = own


def _further_references(configs: Sequence[Any], modules: Iterable[nn.Module]) -> list[int]:
    """How often each configuration is referred to, other than by a list and these modules."""
    held = Counter(id(value) for module in modules for value in vars(module).values())
    counts = [sys.getrefcount(each) for each in (*configs, object())]
    alone = counts.pop()  # of an object to which the tuple alone refers: what counting adds
    return [
        count - alone - 1 - held[id(config)] for count, config in zip(counts, configs, strict=True)
    ]


def _held_elsewhere(config: Any, ours: Container[int]) -> bool:
    """Whether a module that is none of ours holds a configuration in an attribute."""
    holders = gc.get_referrers(config)
    attributes = [each for each in holders if type(each) is dict]
    holders += gc.get_referrers(*attributes)  # a call looks at all objects of the process
    return any(isinstance(each, nn.Module) and id(each) not in ours for each in holders)

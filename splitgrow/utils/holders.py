"""The living modules around a model that keep lists or flat copies of its parameters.

Such a wrapper for several processes takes the parameters when it is made, and leaves no mark on the
model. New parameters would be left out: their gradients would not be reduced, or no optimizer would
step them. So all living modules are looked through, when a change is asked for.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from splitgrow.utils.living import living

_DDP = "torch.nn.parallel.distributed.DistributedDataParallel"
_UNIT = "torch.distributed.fsdp.FSDPModule"
_KINDS = frozenset(
    (
        _DDP,
        _UNIT,
        "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel",
        "deepspeed.runtime.engine.DeepSpeedEngine",
        "fairscale.nn.data_parallel.fully_sharded_data_parallel.FullyShardedDataParallel",
        "fairscale.nn.data_parallel.sharded_ddp.ShardedDataParallel",
        "apex.parallel.distributed.DistributedDataParallel",
        "megatron.core.distributed.data_parallel_base._BaseDataParallel",
    )
)
"""Types that hold copies where only the type tells: in C++, or inside of further objects."""
_DEPTH = 4
"""How far into containers a list of parameters may lie: a list of groups, each a dict of lists."""
_REGISTERED = frozenset(("_parameters", "_buffers", "_modules"))


@dataclass(frozen=True)
class Holder:
    """A module around a model that would miss a change of it.

    Attributes:
        kind: Its type, in words.
        attribute: The attribute that lists the model's parameters; empty if its type tells.
        followed: Whether splitgrow.distributed can change the model through it.
    """

    kind: str
    attribute: str = ""
    followed: bool = False

    @property
    def holding(self) -> str:
        """What it does to the model, as a sentence begins."""
        if self.attribute:
            return f"{self.kind} around the model lists its parameters in `{self.attribute}`"
        return f"{self.kind} wraps the model"


_REPLICATE = Holder("torch.distributed's replicate()")


def holder_of(model: nn.Module, but: Collection[nn.Module] = ()) -> Holder | None:
    """A living module that would miss a change of a model; None if there is none.

    Args:
        model: The model.
        but: Modules that learn of the change.
    """
    found = _found(model, but)
    if found is None:
        return None
    gc.collect()  # a wrapper that was deleted lives on in cycles until then
    return _found(model, but)


def _found(model: nn.Module, but: Collection[nn.Module]) -> Holder | None:
    for module in model.modules():
        if _replicated(module):
            return _REPLICATE
    passed = {id(module) for module in but}
    known = {id(parameter) for parameter in model.parameters()}
    for module in _around(model):
        holder = None if id(module) in passed else _holding(module, known)
        if holder is not None:
            return holder
    return None


def _around(model: nn.Module) -> list[nn.Module]:
    """The living modules that hold a model, directly or further out; the inner ones first."""
    parents: dict[int, list[nn.Module]] = {}
    for item in living(lambda kind: issubclass(kind, nn.Module)):
        for child in _children(item):
            parents.setdefault(id(child), []).append(item)
    found, inner = {id(model): model}, [model]
    for module in inner:  # grows on the way
        for outer in parents.get(id(module), ()):
            if id(outer) not in found:
                found[id(outer)] = outer
                inner.append(outer)
    return inner[1:]


def _children(module: nn.Module) -> Iterator[nn.Module]:
    own = dict(vars(module))
    for child in (*own.values(), *own.get("_modules", {}).values()):
        if issubclass(type(child), nn.Module):
            yield child


def _holding(module: nn.Module, known: Collection[int]) -> Holder | None:
    """How a module holds parameters that it would miss further ones of; None if it does not."""
    names = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__]
    kind = next((name for name in names if name in _KINDS), "")
    if kind == _DDP:
        # One without a reducer is no longer used, or not yet made.
        used = "reducer" in vars(module)
        return Holder("DistributedDataParallel", followed=True) if used else None
    if _replicated(module):
        return _REPLICATE
    if kind == _UNIT:
        return Holder("fully_shard of a module around it", followed=True)
    if kind:
        return Holder(f"{kind.partition('.')[0]}'s {type(module).__name__}")
    for name, value in dict(vars(module)).items():
        if name not in _REGISTERED and _lists(value, known, _DEPTH):
            return Holder(type(module).__name__, name)
    return None


def _replicated(module: nn.Module) -> bool:
    """Whether torch's function `replicate` has noted itself on a module."""
    contract = sys.modules.get("torch.distributed._composable.contract")
    return "replicate" in vars(module).get(getattr(contract, "REGISTRY_KEY", ""), ())


def _lists(value: Any, known: Collection[int], depth: int) -> bool:
    """Whether a container has one of the parameters."""
    if depth == 0:
        return False
    if isinstance(value, Mapping):
        items: tuple[Any, ...] = (*value.keys(), *value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        items = tuple(value)
    else:
        return False
    return any(
        id(item) in known if isinstance(item, Tensor) else _lists(item, known, depth - 1)
        for item in items
    )

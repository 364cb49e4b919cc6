"""All state of a model and its optimizers that a refused call must not change."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from splitgrow.errors import StructureChangedError
from splitgrow.growth.history_lookup import HISTORY
from splitgrow.handle import handle
from splitgrow.layers.execution import execution_mode
from splitgrow.layers.split_layer import SplitLayer

_STORES = ("_parameters", "_buffers", "_modules")
_CACHES = ("_runner",)


class Same:
    """An object that equals nothing but itself, and that lives as long as the snapshot."""

    def __init__(self, item: object) -> None:
        self.item = item

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.item is other.item

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self.item).__name__} at {id(self.item):#x}"


def _bits(tensor: Tensor | None) -> object:
    """A tensor's values, bit for bit, and all else that could be changed in place."""
    if tensor is None or is_lazy(tensor) or tensor.is_quantized:
        return tensor if tensor is None else Same(tensor)
    own = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    plain = own.detach().clone(memory_format=torch.contiguous_format)
    data = plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    form = (tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device)
    return Same(tensor), form, tensor.requires_grad, data


def _value(value: object) -> object:
    """An attribute: containers by their items, numbers and text by value, all else by identity."""
    if isinstance(value, Tensor):
        return _bits(value)
    if isinstance(value, dict):
        return {key: _value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value), [_value(item) for item in value]
    if isinstance(value, (int, float, str, bytes, type(None))):
        return type(value), value
    return Same(value)


def _module(module: nn.Module) -> Iterator[tuple[str, object]]:
    own = vars(module)
    attributes = {k: v for k, v in own.items() if k not in (*_STORES, *_CACHES, HISTORY)}
    yield "class", Same(type(module))
    for name, value in attributes.items():
        yield f"attribute {name}", _value(value)
    yield "attributes", sorted(attributes)
    for store in _STORES:
        yield f"order of {store}", list(own[store])
    for name, child in own["_modules"].items():
        yield f"module {name}", Same(child)
    for name, tensor in (*own["_parameters"].items(), *own["_buffers"].items()):
        yield f"tensor {name}", _bits(tensor)
        if tensor is not None and not is_lazy(tensor):
            yield f"gradient of {name}", _bits(tensor.grad)
            hooks = tensor._backward_hooks
            yield f"hooks of {name}", None if hooks is None else [Same(h) for h in hooks.values()]
    if isinstance(module, SplitLayer):
        yield "split layer", (module.blocks, module.ins, module.outs, module.view)


def _history(model: nn.Module) -> Iterator[tuple[str, object]]:
    history = vars(model).get(HISTORY)
    yield "itself", Same(history)
    if history is None:
        return
    for name, value in vars(history).items():
        yield name, _value(value)
    groups = history.graph.groups
    for name, node in history.graph.nodes.items():
        yield f"channels of {name}", (groups.length(node.ins), groups.length(node.outs), node)
    yield "layers", handle(model).layers
    yield "generation", handle(model).generation
    yield "edits", handle(model).edits
    for generation in range(history.generation + 1):
        try:
            born = handle(model).generation_parameters(generation)
        except StructureChangedError:
            born = []
        yield f"parameters of generation {generation}", [Same(parameter) for parameter in born]


def _optimizer(optimizer: Optimizer) -> Iterator[tuple[str, object]]:
    yield "groups", [Same(group) for group in optimizer.param_groups]
    for index, group in enumerate(optimizer.param_groups):
        for name, value in group.items():
            yield f"group {index} {name}", _value(value)
        yield f"group {index} keys", list(group)
    yield "state of", [Same(parameter) for parameter in optimizer.state]
    for index, state in enumerate(optimizer.state.values()):
        yield f"state {index}", (Same(state), _value(state))
    yield "defaults", _value(optimizer.defaults)


def _globals() -> Iterator[tuple[str, object]]:
    """What belongs to no model: torch's modes in this thread, Python's, and the library's own."""
    yield "gradients", torch.is_grad_enabled()
    yield "inference mode", torch.is_inference_mode_enabled()
    yield "function modes", torch._C._len_torch_function_stack()
    yield "dispatch modes", torch._C._len_torch_dispatch_stack()
    yield "default dtype", torch.get_default_dtype()
    yield "tracing by torch.fx", torch.fx._symbolic_trace.is_fx_tracing()
    yield "warning filters", list(warnings.filters)
    yield "execution mode", execution_mode()
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] == "splitgrow" and isinstance(module, ModuleType):
            for key, value in vars(module).items():
                # Not what it knows of types, which fills as they are met.
                if isinstance(value, (int, float, str, type(None))) and key[:2] != "__":
                    yield f"{name}.{key}", value


def picture(model: object, *optimizers: Optimizer) -> dict[str, object]:
    """All that can be told of a model, its optimizers, and what belongs to none of them."""
    seen: dict[str, object] = {}
    if isinstance(model, nn.Module):
        paths = dict(model.named_modules(remove_duplicate=False))
        seen["paths"] = {path: Same(module) for path, module in paths.items()}
        for path, module in paths.items():
            seen.update((f"{path or 'model'}: {what}", value) for what, value in _module(module))
        seen.update((f"history: {what}", value) for what, value in _history(model))
    for index, optimizer in enumerate(optimizers):
        seen.update((f"optimizer {index}: {what}", value) for what, value in _optimizer(optimizer))
    seen["torch random state"] = torch.get_rng_state().tolist()
    seen["python random state"] = random.getstate()
    seen.update((f"global: {name}", value) for name, value in _globals())
    return seen


def differences(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """The names of what differs between two pictures."""
    missing = object()
    names = {**before, **after}
    return [n for n in names if not _equal(before.get(n, missing), after.get(n, missing))]


def _equal(one: object, other: object) -> bool:
    return bool(one == other)


ANALYSIS = ("history: ", "model: class")
"""What making a model growable, or analysing it again, may change."""


@contextmanager
def unchanged(model: object, *optimizers: Any, but: tuple[str, ...] = ()) -> Iterator[None]:
    """Fails if the block changes anything about the model, the optimizers or the randomness.

    Put it around `pytest.raises`, which swallows the error.

    Args:
        model: A model, growable or not.
        optimizers: Its optimizers.
        but: Beginnings of the names of what may change.
    """
    before = picture(model, *optimizers)
    yield
    changed = differences(before, picture(model, *optimizers))
    changed = [name for name in changed if not name.startswith(but)]
    assert not changed, f"changed: {', '.join(changed)}"

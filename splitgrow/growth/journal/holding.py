"""The modules' state when generations were closed, as data: only state that the model lacks."""

from __future__ import annotations

import base64
import binascii
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.errors import CheckpointError
from splitgrow.growth.history import History
from splitgrow.growth.journal.journal import Held, Journal, Packed
from splitgrow.layers.insertion_wrapper import InsertionWrapper
from splitgrow.layers.module_state import (
    BUFFERS,
    State,
    is_plain,
    may_hold,
    owners_of,
    same_data,
    take_state,
)
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.utils.json_trees import Writer, read_tree

# -- writing -------------------------------------------------------------------------------------


def held_states(model: nn.Module, history: History) -> dict[int, tuple[Held, ...]]:
    """The saved states by generation: each holds its differences from the one before.

    A module's first state holds the differences from its present one, since its buffers are saved
    with the model. Its attributes are not, so the first state holds all numbers in the user's own
    modules.
    """
    if not history.states:
        return {}
    paths = {
        id(module): path
        for path, module in model.named_modules()
        if not isinstance(module, InsertionWrapper)  # a wrapper has the path of its module
    }
    before: dict[int, Mapping[str, Mapping[str, Any]]] = {
        id(module): dict(owners_of(module)) for module in model.modules()
    }
    written, seen = {}, set[int]()
    for generation, states in sorted(history.states.items()):
        found: list[Held] = []
        later = _later_parts(model, history.last_edit(generation))
        for state in states:
            key = id(state.module)
            if key in paths and key not in later:
                found.extend(_held(paths[key], state, before[key], first=key not in seen))
                before[key] = {**before[key], **state.values}
                seen.add(key)
        written[generation] = tuple(found)
    return written


def _later_parts(model: nn.Module, edit: int) -> set[int]:
    """The ids of modules that were added after an edit."""
    found: set[int] = set()
    for wrapper in model.modules():
        parts: Iterable[tuple[int, nn.Module]] = ()
        if isinstance(wrapper, SplitLayer):
            edits = [block.edit for block in wrapper.blocks]
            parts = [*zip(edits, wrapper, strict=True)][1:]
        elif isinstance(wrapper, InsertionWrapper):
            parts = [(item.edit, wrapper.part(item.name)) for item in wrapper.inserted]
        if parts and all(born > edit for born, _ in parts):
            found.add(id(wrapper))
        for born, part in parts:
            if born > edit:
                found.update(map(id, part.modules()))
    return found


def _held(
    path: str, state: State, before: Mapping[str, Mapping[str, Any]], *, first: bool
) -> Iterator[Held]:
    writer, lost = Writer(collections=True), list[str]()
    values: dict[str, dict[str, Any]] = {}
    gone: dict[str, tuple[str, ...]] = {}
    users = not type(state.module).__module__.startswith("torch.")
    for owner, own in state.values.items():
        old = before.get(owner, {})
        for name, value in sorted(own.items()):
            always = first and users and owner != BUFFERS and _is_number(value)
            if always or name not in old or not same_data(value, old[name]):
                try:
                    values.setdefault(owner, {})[name] = writer.written(value, "value")
                except CheckpointError:
                    lost.append(f"{owner}.{name}".removeprefix("."))
        gone[owner] = tuple(
            name
            for name, value in sorted(old.items())
            if name not in own and may_hold(state.module, owner, name) and is_plain(value)
        )
    gone = {owner: names for owner, names in gone.items() if names}
    if values or gone or lost:
        tensors = {name: _packed(tensor) for name, tensor in writer.tensors.items()}
        yield Held(path, values, gone, tensors, tuple(lost))


def _is_number(value: Any) -> bool:
    """Whether it is a number, or holds only numbers and tensors."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_number, value))
    if isinstance(value, dict):
        return all(map(_is_number, value.values())) and not any(isinstance(k, str) for k in value)
    return value is None or isinstance(value, (int, float, complex, Tensor))


def _packed(tensor: Tensor) -> Packed:
    if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
        return Packed(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), "")
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    content = bytes(plain.view(torch.uint8).numpy())
    name = str(tensor.dtype).removeprefix("torch.")
    return Packed(name, tuple(tensor.shape), base64.b64encode(content).decode())


# -- reading -------------------------------------------------------------------------------------


def states_of(
    model: nn.Module, journal: Journal, tensors: Mapping[str, Any]
) -> dict[int, list[State]]:
    """The saved states, read from a journal.

    Args:
        model: The model.
        journal: The journal.
        tensors: The buffers that are about to be loaded, by name.

    Raises:
        CheckpointError: If the journal names an item that cannot be there.
    """
    modules = dict(model.named_modules())
    taken: dict[int, list[State]] = {}
    base: list[State] = []
    for generation, items in sorted(journal.states.items()):
        base = take_state(model) if not taken else _again(base)
        by_module = {id(state.module): state for state in base}
        if not taken:
            _take_over(modules, by_module, tensors)
        for item in items:
            module = modules.get(item.path)
            if module is None:
                raise CheckpointError(f"the model has no {item.path}")
            state = by_module.get(id(module)) or State(module, {})
            _bring_back(item, state, generation)
        taken[generation] = base
    return taken


def later_states(
    model: nn.Module, states: Mapping[int, list[State]], known: int, tensors: Mapping[str, Any]
) -> dict[int, list[State]]:
    """The saved states of the generations that were closed after a state_dict was made.

    Their frozen parameters become those of the state_dict, and so do their buffers.

    Args:
        model: The model.
        states: The saved states.
        known: The generation that was open when the state_dict was made.
        tensors: Its tensors, by name.
    """
    modules, made = dict(model.named_modules()), dict(states)
    for generation in states:
        if generation >= known:
            made[generation] = _again(states[generation])
            _take_over(modules, {id(state.module): state for state in made[generation]}, tensors)
    return made


def _again(states: list[State]) -> list[State]:
    """Shallow copies of states, which can be changed; their values stay shared."""
    return [
        State(state.module, {owner: dict(own) for owner, own in state.values.items()})
        for state in states
    ]


def _take_over(
    modules: Mapping[str, nn.Module], states: Mapping[int, State], tensors: Mapping[str, Any]
) -> None:
    for path, module in modules.items():
        buffers = states[id(module)].values.get(BUFFERS, {}) if id(module) in states else {}
        for name, value in buffers.items():
            loaded: Any = tensors.get(f"{path}.{name}".removeprefix("."))
            fits = isinstance(loaded, Tensor) and isinstance(value, Tensor) and not loaded.is_meta
            if fits and loaded.shape == value.shape:
                buffers[name] = loaded.detach().clone().to(value.device, value.dtype)


def _bring_back(item: Held, state: State, generation: int) -> None:
    owners = {owner for owner, _ in owners_of(state.module)}
    values = _read(item, _device_of(state.module))
    for owner in owners & values.keys():
        for name, value in values[owner].items():
            _check_name(item.path, state.module, owner, name)
            if owner == BUFFERS and not isinstance(value, (Tensor, type(None))):
                raise CheckpointError(f"the buffer `{item.path}.{name}` is no tensor")
        own = state.values.setdefault(owner, {})
        own.update({n: _as_before(own.get(n), value) for n, value in values[owner].items()})
    for owner, names in item.gone.items():
        for name in names:
            state.values.get(owner, {}).pop(name, None)
    if item.lost:
        where = f"{item.path}.{item.lost[0]}".removeprefix(".")
        warnings.warn(
            f"`{where}` was no plain data when generation {generation} was closed, and is not in "
            f"the checkpoint; `at({generation})` shows it as this model has it",
            stacklevel=2,
        )


def _as_before(here: Any, value: Any) -> Any:
    """A value in the floating dtype that the model's own has today."""
    both = isinstance(here, Tensor) and isinstance(value, Tensor)
    if both and here.is_floating_point() and value.is_floating_point():
        return value.to(here.dtype)
    return value


def _device_of(module: nn.Module) -> torch.device:
    tensors = (*module.buffers(), *module.parameters())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _read(item: Held, device: torch.device) -> dict[str, dict[str, Any]]:
    """The values of a module, by owner and name.

    Raises:
        CheckpointError: If they are not valid.
    """

    def tensor(name: str) -> Tensor:
        if name not in item.tensors:
            raise CheckpointError(f"the journal lacks a tensor of `{item.path}`")
        return _unpacked(item.tensors[name], item.path).to(device)

    found: dict[str, dict[str, Any]] = {}
    for owner, own in item.values.items() if isinstance(item.values, dict) else [("", None)]:
        if not isinstance(own, dict):
            raise CheckpointError(f"what `{item.path}` held is {own!r:.40}")
        found[owner] = {name: read_tree(tree, tensor) for name, tree in own.items()}
    return found


def _check_name(path: str, module: nn.Module, owner: str, name: str) -> None:
    """Makes sure that a value may have this name: no method, and nothing of torch's own.

    Raises:
        CheckpointError: If it may not.
    """
    holder = module if owner in {"", BUFFERS} else vars(module)[owner]
    method = callable(getattr(type(holder), name, None))
    plain = name.isidentifier() and not name.startswith("__")
    if method or not plain or not may_hold(module, owner, name):
        raise CheckpointError(f"`{path}` cannot hold anything as {name!r}")


def _unpacked(packed: Packed, path: str) -> Tensor:
    dtype = getattr(torch, packed.dtype, None)
    if not isinstance(dtype, torch.dtype) or any(size < 0 for size in packed.shape):
        raise CheckpointError(f"`{path}` held a tensor of {packed.dtype!r:.40}")
    try:
        content = bytearray(base64.b64decode(packed.content, validate=True))
    except (binascii.Error, ValueError) as error:
        raise CheckpointError(f"a tensor that `{path}` held cannot be read: {error}") from error
    if len(content) != math.prod(packed.shape) * dtype.itemsize:
        raise CheckpointError(f"{len(content)} bytes for the shape {packed.shape} in `{path}`")
    flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
    return flat.reshape(packed.shape)

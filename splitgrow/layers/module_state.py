"""The modules' state besides parameters, saved for a generation and shown again.

Closing a generation freezes parameters. Forward may move more than those: buffers, such as the
vectors of a spectral norm, averages and codebooks, and plain data in attributes, such as counters.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.layers.fade import FadeIn
from splitgrow.layers.insertion_wrapper import InsertionWrapper
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.utils.preserve import objects_of
from splitgrow.utils.rollback import Undo

BUFFERS = "_buffers"
"""The owner that has a module's buffers; ``""`` has its attributes, and an attribute's name those
of an object that it holds."""
StateValues = dict[str, dict[str, Any]]
"""By owner and name."""
Memo = dict[int, tuple[Any, Any]]
"""Copied objects with their copies, by id."""
Clone = Callable[[Tensor], Tensor]


@dataclass
class State:
    """A module's state besides parameters, at one time.

    Attributes:
        module: The module.
        values: Copies of its buffers, and of plain data in its attributes and in the attributes of
            objects that it holds.
    """

    module: nn.Module
    values: StateValues


class NotPlain(Exception):  # noqa: N818
    """A value is not plain data, so it cannot be copied safely."""


def take_state(model: nn.Module, before: Iterable[State] = ()) -> list[State]:
    """Saves the state of a model's modules.

    Args:
        model: The model.
        before: States saved earlier. Buffers that have not changed since are not copied.
    """
    old = {
        (id(state.module), name): value
        for state in before
        for name, value in state.values.get(BUFFERS, {}).items()
    }
    memo: Memo = {}
    states, objects = [], set[int]()
    for module in model.modules():
        for name, buffer in module._buffers.items():  # noqa: SLF001
            earlier = old.get((id(module), name))
            if buffer is not None and earlier is not None and same_data(buffer, earlier):
                memo[id(buffer)] = buffer, earlier
        values = {}
        for owner, own in owners_of(module):
            if id(own) not in objects:
                objects.add(id(own))
                values[owner] = _plain_in(own, owner, module, memo)
        states.append(State(module, values))
    return states


def owners_of(module: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """The dictionaries with the state that forward may change, by name."""
    if isinstance(module, FadeIn):  # a fade's alpha is saved separately
        return
    yield BUFFERS, module._buffers  # noqa: SLF001
    if type(module).__module__.startswith("splitgrow.") and not _is_wrapper(module):
        return
    yield "", vars(module)
    for name, value in objects_of(module).items():
        yield name, vars(value)


def owner_of(module: nn.Module, owner: str) -> dict[str, Any] | None:
    """One of these dictionaries; None if there is none today."""
    return dict(owners_of(module)).get(owner)


def _is_wrapper(module: nn.Module) -> bool:
    return isinstance(module, (SplitLayer, InsertionWrapper))


_TORCHS = frozenset(vars(nn.Module()))
_OURS = frozenset(
    ("view", "ins", "outs", "tensor_result", "answers", "blocks", "inserted", "_runner")
)


def may_hold(module: nn.Module, owner: str, name: str) -> bool:
    """Whether the item of this name is the module's own, rather than torch's or splitgrow's."""
    return name not in _names_of_others(module, owner)


def _names_of_others(module: nn.Module, owner: str) -> AbstractSet[str]:
    if owner:
        return frozenset()
    # torch.nn.utils.weight_norm and its like compute a weight from these before each call.
    computed = {
        name.removesuffix(suffix)
        for name in module._parameters  # noqa: SLF001
        for suffix in ("_g", "_orig")
        if name.endswith(suffix)
    }
    return _TORCHS | computed | (_OURS if _is_wrapper(module) else frozenset())


def _plain_in(own: Mapping[str, Any], owner: str, module: nn.Module, memo: Memo) -> dict[str, Any]:
    """Copies of the plain data in a dictionary."""
    found, others = {}, _names_of_others(module, owner)
    for name, value in own.items():
        if name not in others:
            try:
                found[name] = value if type(value) in _ATOMS else copied(value, memo)
            except NotPlain:
                continue
    return found


_ATOMS = frozenset(
    (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
)
_KEYS = frozenset((type(None), bool, int, float, str, bytes, tuple))
_LISTS = frozenset((list, set, deque))
_DICTS = frozenset((dict, OrderedDict, Counter, defaultdict))


def _cloned(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def copied(value: Any, memo: Memo, clone: Clone = _cloned) -> Any:
    """A copy of plain data, in which a shared object stays shared.

    Args:
        value: The data: numbers, texts, tensors other than parameters, and lists, tuples, sets and
            dictionaries of these.
        memo: Objects copied already, with their copies, by id.
        clone: Makes a copy of a tensor.

    Raises:
        NotPlain: If it is or holds anything else.
    """
    kind = type(value)
    if kind in _ATOMS or isinstance(value, Enum):
        return value
    if id(value) in memo:
        return memo[id(value)][1]
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        made = clone(value)
    elif kind in _LISTS or kind in _DICTS:
        return _copied_container(value, memo, clone)
    elif kind in {tuple, frozenset}:
        made = kind([i if type(i) in _ATOMS else copied(i, memo, clone) for i in value])
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        made = kind(*[copied(item, memo, clone) for item in value])
    elif kind.__module__ == "numpy" and _is_array(value):
        made = value.copy()
    else:
        raise NotPlain
    memo[id(value)] = value, made
    return made


def _is_array(value: Any) -> bool:
    """Whether a value is a numpy array or number, and not one of objects."""
    return getattr(getattr(value, "dtype", None), "hasobject", True) is False


def _copied_container(value: Any, memo: Memo, clone: Clone) -> Any:
    made: Any = value.copy()
    made.clear()
    memo[id(value)] = value, made  # before its items, since one may be the container itself
    if type(value) in _DICTS:
        if any(type(key) not in _KEYS for key in value):
            raise NotPlain
        made.update({key: copied(item, memo, clone) for key, item in value.items()})
    else:
        items = [copied(item, memo, clone) for item in value]
        made.update(items) if type(value) is set else made.extend(items)
    return made


def same_data(one: Any, other: Any) -> bool:
    """Whether two values are the same plain data, tensors to the bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return _same_tensor(one, other)
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(same_data(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple, deque)):
        return len(one) == len(other) and all(map(same_data, one, other))
    if type(one).__module__ == "numpy":
        return bool(one.dtype == other.dtype and one.tobytes() == other.tobytes())
    return one is other or bool(repr(one) == repr(other))  # repr tells -0.0 from 0.0; nan is nan


def _same_tensor(one: Tensor, other: Tensor) -> bool:
    alike = (one.shape, one.dtype, one.device, one.layout) == (
        (other.shape, other.dtype, other.device, other.layout)
    )
    if not alike or one.is_meta or one.layout is not torch.strided or one.is_quantized:
        return False
    pair = [tensor.detach().resolve_conj().resolve_neg().reshape(-1) for tensor in (one, other)]
    return torch.equal(*[tensor.contiguous().view(torch.uint8) for tensor in pair])


def moved(states: Mapping[int, list[State]], fn: Callable[[Tensor], Tensor]) -> None:
    """Moves or converts saved buffers, as the model's own are."""
    memo: dict[int, Tensor] = {}
    for state in (state for taken in states.values() for state in taken):
        buffers = state.values.get(BUFFERS, {})
        for name, value in buffers.items():
            if value is not None:
                if id(value) not in memo:
                    memo[id(value)] = fn(value)
                buffers[name] = memo[id(value)]


def show_(model: nn.Module, states: Iterable[State], undo: Undo) -> None:
    """Gives modules a saved state, until that is taken back.

    They get copies, so forward may change them. Taking it back restores the objects that were there
    before, and removes those that were added meanwhile.
    """
    memo: Memo = {}
    known = set()
    for state in states:
        known.add(state.module)
        owners = dict(owners_of(state.module))
        for owner, values in state.values.items():
            if owner in owners:
                _show_in(owners[owner], owner, state.module, copied(values, memo), undo)
    for module in model.modules():
        if _is_wrapper(module) and module not in known:  # it replaced a module without that state
            _show_in(vars(module), "", module, {}, undo)


def _show_in(
    own: dict[str, Any], owner: str, module: nn.Module, values: dict[str, Any], undo: Undo
) -> None:
    before = own.copy()
    passing = {*_plain_names(own, owner, module)}
    undo.on_failure(partial(_put_back, own, owner, module, before, passing | values.keys()))
    for name in passing - values.keys():
        del own[name]
    own.update(values)


def _plain_names(own: Mapping[str, Any], owner: str, module: nn.Module) -> Iterator[str]:
    others = _names_of_others(module, owner)
    for name, value in own.items():
        if name not in others and is_plain(value):
            yield name


def is_plain(value: Any) -> bool:
    """Whether a value is plain data, without copying its tensors."""
    try:
        copied(value, {}, Tensor.detach)
    except NotPlain:
        return False
    return True


def _put_back(
    own: dict[str, Any],
    owner: str,
    module: nn.Module,
    before: dict[str, Any],
    touched: set[str],
) -> None:
    new = {name for name in _plain_names(own, owner, module) if name not in before}
    whole = {
        name: value if name in touched else own.get(name, value) for name, value in before.items()
    }
    whole.update((name, value) for name, value in own.items() if name not in {*before, *new})
    if list(own) != list(whole):
        own.clear()
    own.update(whole)


def put_(states: Iterable[State], copies: Mapping[int, Any]) -> None:
    """Gives copies of modules the state that was saved of the modules.

    Args:
        states: The saved states.
        copies: The copies, by the modules' ids; others are passed over.
    """
    memo: Memo = {}
    undo = Undo()  # nothing is taken back
    for state in states:
        copy = copies.get(id(state.module))
        if type(copy) is not type(state.module):  # a grown layer that has become a stock one
            continue
        for owner, values in state.values.items():
            own = owner_of(copy, owner)
            if own is not None:
                _show_in(own, owner, state.module, copied(values, memo), undo)

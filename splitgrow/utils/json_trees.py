"""Any tree of plain data and tensors as JSON beside named tensors, and back, without pickle."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from splitgrow.errors import CheckpointError


class Writer:
    """Turns trees into JSON, and collects their tensors.

    Args:
        collections: Whether sets and deques are plain data as well.

    Attributes:
        tensors: The tensors so far, by their names in the JSON.
    """

    def __init__(self, *, collections: bool = False) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._collections = collections

    def written(self, tree: Any, where: str, *, keep_objects: bool = False) -> Any:
        """A tree in the form that JSON takes.

        Plain data are None, booleans, numbers, texts and bytes; tensors, dtypes and devices; and
        dicts, lists, tuples and Counters of these. Numbers of numpy become plain ones.

        Args:
            tree: The tree.
            where: Its name, in errors and in the names of its tensors.
            keep_objects: Whether other objects, such as functions, are passed over: the tree that
                the JSON is read into then keeps its own object at that place.

        Raises:
            CheckpointError: If it holds other data.
        """
        if tree is None or type(tree) in {bool, int, str}:
            return tree
        if isinstance(tree, float):
            number = float(tree)
            return number if math.isfinite(number) else {"float": repr(number)}
        if isinstance(tree, Tensor):
            return {"tensor": self._named(tree, where)}

        def inside(item: Any, key: Any) -> Any:
            return self.written(item, f"{where}.{key}", keep_objects=keep_objects)

        if type(tree) in _MAPPINGS.values():
            pairs = [[self._key(key, where), inside(item, key)] for key, item in tree.items()]
            return {type(tree).__name__: pairs}
        if type(tree) in {list, tuple, torch.Size}:
            items = [inside(item, index) for index, item in enumerate(tree)]
            return items if type(tree) is list else {"tuple": items}
        if self._collections and type(tree) in {set, frozenset, deque}:
            items = [inside(item, index) for index, item in enumerate(tree)]
            return {type(tree).__name__: [tree.maxlen, items] if type(tree) is deque else items}
        return self._other(tree, where, keep_objects=keep_objects)

    def _named(self, tensor: Tensor, where: str) -> str:
        name = where
        while name in self.tensors:  # a file's tensors are read once each
            name += "_"
        self.tensors[name] = tensor
        return name

    def _key(self, key: Any, where: str) -> Any:
        if type(key) in {int, str, bool, float}:
            return key
        raise CheckpointError(f"{where} has the key {key!r}, which is neither number nor text")

    def _other(self, value: Any, where: str, *, keep_objects: bool) -> Any:
        if isinstance(value, complex):
            return {"complex": [repr(value.real), repr(value.imag)]}
        if isinstance(value, (bytes, bytearray)):
            return {"bytes": value.hex()}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
            return self.written(value.item(), where)
        if keep_objects:
            return {"object": type(value).__name__}
        raise CheckpointError(
            f"{where} is a {type(value).__name__}, which is no plain data: a checkpoint holds "
            f"numbers, texts, tensors, and dicts, lists and tuples of these"
        )


_MAPPINGS: dict[str, type[Any]] = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}


def read_tree(data: Any, tensor: Callable[[str], Tensor], like: Any = None) -> Any:
    """The tree from the JSON that `Writer` made of it.

    Args:
        data: The JSON data.
        tensor: Gives the tensor of a name.
        like: A tree of the same form, which gives the objects that were passed over.

    Raises:
        CheckpointError: If `Writer` makes no such data.
    """
    try:
        return _read(data, tensor, like)
    except RecursionError as error:
        raise CheckpointError("the file has plain data that are nested too deep") from error


def _read(data: Any, tensor: Callable[[str], Tensor], like: Any) -> Any:
    if data is None or type(data) in {bool, int, float, str}:
        return data
    if isinstance(data, list):
        return [_read(item, tensor, _at(like, index)) for index, item in enumerate(data)]
    if not isinstance(data, Mapping) or len(data) != 1:
        raise CheckpointError("the file has something that is no plain data")
    ((kind, value),) = data.items()
    if kind in _MAPPINGS:
        return _mapping(kind, value, tensor, like)
    if kind == "tuple" and isinstance(value, list):
        return tuple(_read(value, tensor, like))
    if kind in _OTHERS:
        return _collection(kind, value, tensor)
    if kind == "object":
        if like is None:
            raise CheckpointError(f"the file has a {value} passed over that nothing stands for")
        return like
    if kind == "tensor" and isinstance(value, str):
        return tensor(value)
    return _scalar(kind, value)


_OTHERS = frozenset(("set", "frozenset", "deque"))


def _collection(kind: str, value: Any, tensor: Callable[[str], Tensor]) -> Any:
    try:
        most, items = value if kind == "deque" else (None, value)
        if not isinstance(items, list) or type(most) not in {int, type(None)}:
            raise TypeError
        found = [_read(item, tensor, None) for item in items]
        return (
            deque(found, most)
            if kind == "deque"
            else {"set": set, "frozenset": frozenset}[kind](found)
        )
    except (OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(f"the file has a {kind} that is none") from error


def _scalar(kind: str, value: Any) -> Any:
    try:
        if kind == "float" and value in {"inf", "-inf", "nan"}:
            return float(value)
        if kind == "complex":
            real, imaginary = value
            return complex(float(real), float(imaginary))
        if kind == "bytes":
            return bytes.fromhex(value)
        if kind == "dtype":
            return _DTYPES[value]
        if kind == "device":
            return torch.device(value)
    except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"the file has {value!r} as a {kind}") from error
    raise CheckpointError(f"the file has a {kind!r}, which is no plain data")


def _mapping(kind: str, pairs: Any, tensor: Callable[[str], Tensor], like: Any) -> Any:
    mapping = _MAPPINGS[kind]()
    if not isinstance(pairs, list):
        raise CheckpointError(f"the file has a {kind} without items")
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or type(pair[0]) not in _KEYS:
            raise CheckpointError(f"the file has a {kind} with an item that is none")
        mapping[pair[0]] = _read(pair[1], tensor, _at(like, pair[0]))
    return mapping


_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_KEYS = {bool, int, float, str}


def _at(like: Any, key: Any) -> Any:
    """An item of a tree, None if it has no such item."""
    try:
        return like[key]
    except (KeyError, IndexError, TypeError):
        return None

"""An example call of a model: its positional and its keyword arguments."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from splitgrow.utils.output_tensors import attributes_of


@dataclass(frozen=True, eq=False)
class ExampleCall:
    """The arguments of an example call, as torch.export takes them.

    For torch's pytree the tensors are leaves, wherever they are: also those in objects that pytree
    does not look into. So `tree_map` gives a call with other tensors and with containers and
    objects of its own, which forward may write into.

    Attributes:
        args: The positional arguments.
        kwargs: The keyword arguments.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def run(self, module: Callable[..., Any]) -> Any:
        """Calls a module with the arguments."""
        return module(*self.args, **self.kwargs)

    def map(self, change: Callable[[Tensor], Any]) -> ExampleCall:
        """The call with other tensors, in containers of its own."""
        changed: ExampleCall = pytree.tree_map_only(Tensor, change, self)
        return changed

    def bound(self, model: nn.Module) -> inspect.BoundArguments:
        """The arguments, by the names that forward gives them.

        Raises:
            ValueError: If they do not fit forward's signature.
        """
        signature = inspect.signature(model.forward)
        try:
            return signature.bind(*self.args, **self.kwargs)
        except TypeError as error:
            names = ", ".join(signature.parameters) or "none"
            raise ValueError(
                f"example_inputs do not fit {type(model).__name__}.forward{signature}: {error}; "
                f"its arguments are: {names}"
            ) from None

    def arguments(self, model: nn.Module) -> dict[str, Any]:
        """The arguments by name.

        Those of ``*args`` are ``args[0]`` and so on. Those of ``**kwargs`` have their own names.

        Raises:
            ValueError: If they do not fit forward's signature.
        """
        bound, found = self.bound(model), dict[str, Any]()
        kinds = {name: one.kind for name, one in bound.signature.parameters.items()}
        for name, value in bound.arguments.items():
            if kinds[name] is inspect.Parameter.VAR_POSITIONAL:
                found.update((f"{name}[{index}]", item) for index, item in enumerate(value))
            elif kinds[name] is inspect.Parameter.VAR_KEYWORD:
                # A positional-only argument may have the same name.
                found.update((f"{name}[{k!r}]" if k in found else k, v) for k, v in value.items())
            else:
                found[name] = value
        return found

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """The tensors by name: an argument's, or the path in it, as in ``batch['images'][0]``.

        Raises:
            ValueError: If the arguments do not fit forward's signature.
        """
        return {
            path: tensor
            for name, value in self.arguments(model).items()
            for path, tensor in _held_by(name, value, ())
            if isinstance(tensor, Tensor)
        }

    def __str__(self) -> str:
        """The arguments as they are written in Python, after ``map`` to shapes for one."""
        if not self.kwargs:
            return str(self.args)
        given = [*map(str, self.args), *(f"{name}={value}" for name, value in self.kwargs.items())]
        return f"({', '.join(given)})"


ExampleInputs = Tensor | tuple[Any, ...] | Mapping[str, Any] | ExampleCall
"""The forms of `example_inputs`."""


def example_call(example_inputs: object, example_kwargs: object = None) -> ExampleCall:
    """The example call that users describe by the two arguments of these names.

    Tensors lose autograd's history, since results of autograd cannot be copied, and the rest of the
    tensor that they are a part of.

    Args:
        example_inputs: A tensor, which is one positional argument; a tuple of positional arguments;
            or a mapping of keyword arguments.
        example_kwargs: A mapping of keyword arguments, beside a tensor or a tuple.

    Raises:
        TypeError: If the arguments are of other types, a keyword is no text, keywords are given
            twice, or a tensor is nested or quantized.
    """
    if isinstance(example_inputs, ExampleCall):
        return example_inputs
    named = isinstance(example_inputs, Mapping)
    if named and example_kwargs is not None:
        raise TypeError(
            "example_inputs is a mapping, so the keyword arguments, and example_kwargs is given as "
            "well; give one of them, or positional arguments as a tuple: a dict is ({...},)"
        )
    args = () if named else example_inputs
    args = (args,) if isinstance(args, Tensor) else args
    if not isinstance(args, tuple):
        raise TypeError(
            f"example_inputs must be a tensor, a tuple of positional arguments or a mapping of "
            f"keyword arguments, got {type(args).__name__}; one argument of another type is (x,)"
        )
    kwargs = example_inputs if named else {} if example_kwargs is None else example_kwargs
    if not isinstance(kwargs, Mapping):
        raise TypeError(
            f"example_kwargs must be a mapping of keyword arguments, got {type(kwargs).__name__}"
        )
    for name in kwargs:
        if not isinstance(name, str):
            raise TypeError(
                f"{'example_inputs' if named else 'example_kwargs'} has the key {name!r}, and "
                f"keywords are texts; a dict as the one positional argument is ({{...}},)"
            )
    call = ExampleCall(tuple(args), dict(kwargs))
    for tensor in pytree.tree_leaves(call):
        if isinstance(tensor, Tensor) and (tensor.is_nested or tensor.is_quantized):
            kind = "nested" if tensor.is_nested else "quantized"
            way = "a padded one" if tensor.is_nested else "its `dequantize()`"
            raise TypeError(f"example_inputs hold a {kind} tensor; give {way} as an example")
    return call.map(_by_itself)


def _by_itself(tensor: Tensor) -> Tensor:
    """A tensor without autograd's history, and without the rest of the one that it is a part of.

    A model's history keeps it, and copies of the model would copy all of its storage.
    """
    tensor = tensor.detach()
    plain = type(tensor) is Tensor and tensor.layout is torch.strided and not tensor.is_meta
    part = plain and tensor.untyped_storage().nbytes() > tensor.nbytes
    return tensor.clone() if part else tensor


# -- the tensors of a call -------------------------------------------------------------------------

_WHOLE = (
    Tensor,
    nn.Module,
    type,
    Enum,
    ModuleType,
    FunctionType,
    MethodType,
    BuiltinFunctionType,
    Iterator,
    str,
    bytes,
    int,
    float,
    complex,
    type(None),
)
"""Types of arguments that are not looked into, and never copied."""


def _parts_of(value: Any) -> Iterable[tuple[str, Any]]:
    """The parts of an argument, each with the way to it as Python writes it."""
    if isinstance(value, _WHOLE):
        return ()
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", item) for key, item in value.items()]
    if isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", None)  # of a named tuple
        ways = [f".{name}" for name in names] if names else [f"[{i}]" for i in range(len(value))]
        return zip(ways, value, strict=True)
    if isinstance(value, Set):
        return [(f"{{{index}}}", item) for index, item in enumerate(value)]
    return [(f".{name}", item) for name, item in attributes_of(value).items()]


def _held_by(
    path: str, value: Any, around: tuple[int, ...]
) -> Iterator[tuple[str, Tensor | nn.Module]]:
    """The tensors and modules in an argument, by path; `around` are the objects that it is in."""
    if isinstance(value, (Tensor, nn.Module)):
        yield path, value
    elif id(value) not in around:
        for way, part in _parts_of(value):
            yield from _held_by(path + way, part, (*around, id(value)))


@dataclass(frozen=True)
class _Object:
    """An argument, or a part of one, that pytree does not look into.

    Attributes:
        value: The object.
        tensors: The tensors in it.
        modules: The modules in it, which copies share.
    """

    value: Any
    tensors: tuple[Tensor, ...]
    modules: tuple[nn.Module, ...]

    @classmethod
    def of(cls, value: Any) -> _Object:
        """An object with all in it."""
        held = [part for _, part in _held_by("", value, ())]
        tensors = tuple(part for part in held if isinstance(part, Tensor))
        return cls(value, tensors, tuple(part for part in held if isinstance(part, nn.Module)))

    def copied(self, tensors: Iterable[Any]) -> Any:
        """A copy of the object with other tensors in their places.

        Raises:
            TypeError: If it holds tensors and cannot be copied.
        """
        memo: dict[int, Any] = {id(module): module for module in self.modules}
        memo.update((id(old), new) for old, new in zip(self.tensors, tensors, strict=True))
        try:
            return copy.deepcopy(self.value, memo)
        except Exception as error:
            if not self.tensors:
                return self.value
            raise TypeError(
                f"an argument of example_inputs is a {type(self.value).__name__}, which holds "
                f"tensors and cannot be copied ({type(error).__name__}: {error})"
            ) from error


_Structure = tuple[pytree.TreeSpec, tuple[_Object | None, ...]]
"""Where the leaves of pytree go, and which of them are objects."""


def _flattened(call: ExampleCall) -> tuple[list[Any], _Structure]:
    leaves, spec = pytree.tree_flatten((call.args, call.kwargs))
    inside, objects = list[Any](), list[_Object | None]()
    for leaf in leaves:
        if isinstance(leaf, _WHOLE) or not _can_hold(leaf):
            objects.append(None)
            inside.append(leaf)
        else:
            found = _Object.of(leaf)
            objects.append(found)
            inside.extend(found.tensors)
    return inside, (spec, tuple(objects))


def _can_hold(leaf: Any) -> bool:
    """Whether an object has room for tensors, so that a run may also put some into it."""
    return isinstance(leaf, (Mapping, Set)) or hasattr(leaf, "__dict__") or any(_parts_of(leaf))


def _unflattened(values: Iterable[Any], structure: _Structure) -> ExampleCall:
    spec, objects = structure
    rest = iter(values)
    leaves = [
        next(rest) if one is None else one.copied([next(rest) for _ in one.tensors])
        for one in objects
    ]
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return ExampleCall(args, kwargs)


pytree.register_pytree_node(ExampleCall, _flattened, _unflattened)

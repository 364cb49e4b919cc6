"""A parameter or buffer that has grown, where its module had the plain one.

The module answers for the tensor's name with the tensor of today. It does so by a class of its own,
a subclass of the user's with the same name and a property for each such tensor, as torch's
parametrizations do. The blocks lie among its children: those of `gamma` in `gamma_blocks`. Under
the tensor's own name no code would find them that goes to a parameter by the attributes on its
path, as torch.func.functional_call does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn

from splitgrow.errors import UnsupportedLayerError
from splitgrow.layers.attribute_access import tensor_of
from splitgrow.layers.live_tensor import LiveTensor
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.layers.types.tensor_layers import TensorBlock, TensorUse
from splitgrow.utils.model_lock import HOLDER_BASE, ORIGINAL_CLASS, open_class_of, set_class_
from splitgrow.utils.rollback import Undo

_BLOCKS = "_blocks"
_NAMES = "_splitgrow_tensors"
_STORES = ("_parameters", "_buffers")


class SplitTensor(SplitLayer):
    """A grown tensor of a module: the original block first, then the blocks of every edit."""

    def forward(self) -> Tensor:  # type: ignore[override]
        """The tensor at its present size, or at that of the edit in `view`."""
        whole = self._shown().assembled("value")
        assert whole is not None
        return whole

    def live(self, whole: Tensor) -> Tensor:
        """The tensor as code outside of a layer gets it: what is written to it goes to the blocks.

        Args:
            whole: Its values, from a call.
        """
        live: Tensor = tensor_of(self._shown(), "value", whole)
        return live

    def stands_for(self, value: object) -> bool:
        """Whether a value is this tensor, which writes into its blocks."""
        return isinstance(value, LiveTensor) and value._source.stands_for(self._shown(), "value")  # noqa: SLF001


def blocks_path(name: str) -> str:
    """The path of the module that has a tensor's blocks once it has grown."""
    return name + _BLOCKS


def tensor_path(path: str) -> str:
    """The name of the tensor whose blocks a module of this path has."""
    return path.removesuffix(_BLOCKS)


def plain_name(split: SplitLayer, path: str, key: str) -> str:
    """The name in a state_dict that a layer's tensor had before the layer grew.

    Args:
        split: The layer.
        path: Its path.
        key: The tensor's name in the original block.
    """
    if isinstance(split, SplitTensor):
        return tensor_path(path)
    return f"{path}.{key}".removeprefix(".")


def split_of(layer: nn.Module) -> SplitLayer:
    """The split layer that a layer is, or becomes when it first grows."""
    if isinstance(layer, SplitLayer):
        return layer
    return SplitTensor(layer) if isinstance(layer, TensorBlock) else SplitLayer(layer)


def layer_at(modules: Mapping[str, nn.Module], name: str, use: TensorUse | None) -> nn.Module:
    """The layer of a path: a module, or a tensor of one as a layer of its own.

    Args:
        modules: The model's modules by path.
        name: The path of the module or tensor.
        use: How the tensor lies along channels; None for a module.

    Raises:
        KeyError: If there is none.
    """
    if use is None:
        return modules[name]
    grown = modules.get(blocks_path(name))
    if isinstance(grown, SplitTensor):
        return grown
    holder, store, key = _held(modules, name)
    persistent = key not in holder._non_persistent_buffers_set  # noqa: SLF001
    return TensorBlock(store[key], use, persistent=persistent)


def _held(modules: Mapping[str, nn.Module], name: str) -> tuple[nn.Module, dict[str, Any], str]:
    """The module that has a tensor itself, its dictionary for it, and the tensor's name there.

    Raises:
        KeyError: If there is none.
    """
    parent, _, key = name.rpartition(".")
    holder = modules[parent]
    if not isinstance(holder, (SplitLayer, TensorBlock)):
        for store in (vars(holder)[each] for each in _STORES):
            if isinstance(store.get(key), Tensor):
                return holder, store, key
    raise KeyError(name)


def put_tensor_(
    modules: Mapping[str, nn.Module], name: str, split: SplitLayer, undo: Undo
) -> nn.Module:
    """Puts a split tensor in the place of a module's own; returns that module.

    The plain tensor's name stays in its dictionary, without a value, so that it keeps its place in
    the order when the model is made plain.
    """
    holder, store, key = _held(modules, name)
    undo.keep(store, holder._modules)  # noqa: SLF001
    set_class_(holder, holder_class(open_class_of(holder), key), undo)
    store[key] = None
    holder._modules[blocks_path(key)] = split  # noqa: SLF001
    return holder


def give_plain_(holder: nn.Module, key: str, tensor: Tensor, undo: Undo) -> None:
    """Gives a module a plain tensor in the place of its grown one: takes `put_tensor_` back."""
    own = vars(holder)
    store = own["_parameters" if isinstance(tensor, nn.Parameter) else "_buffers"]
    undo.keep(store, own["_modules"])
    del own["_modules"][blocks_path(key)]
    store[key] = tensor
    cls = open_class_of(holder)
    if HOLDER_BASE in vars(cls):  # otherwise its properties answer with the plain tensor
        left, base = getattr(cls, _NAMES) - {key}, vars(cls)[HOLDER_BASE]
        set_class_(holder, holder_class(base, *left) if left else base, undo)


def replace_tensor_(modules: Mapping[str, nn.Module], name: str, tensor: Tensor) -> None:
    """Gives a module another plain tensor in the place of its own."""
    _, store, key = _held(modules, name)
    store[key] = tensor


def make_plain_(root: nn.Module) -> None:
    """Gives modules their plain tensors again, where a tensor block is in the place of a split one.

    Args:
        root: A module that nobody else holds.
    """
    for module in [*root.modules()]:
        cls = made_here(type(module))
        if cls is None:
            continue
        own, left = vars(module), False
        for key in getattr(cls, _NAMES):
            block = own["_modules"].get(blocks_path(key))
            if isinstance(block, TensorBlock):
                del own["_modules"][blocks_path(key)]
                parameter = isinstance(block.value, nn.Parameter)
                own["_parameters" if parameter else "_buffers"][key] = block.value
            left = left or isinstance(block, SplitTensor)
        if not left:
            module.__class__ = vars(cls)[HOLDER_BASE]


# -- the class of a module that holds such tensors ------------------------------------------------


def made_here(cls: type) -> type | None:
    """The class that was made for a module with grown tensors; None if there is none."""
    return next((part for part in cls.__mro__ if HOLDER_BASE in vars(part)), None)


_Made = dict[frozenset[str], ref[type[nn.Module]]]
_CLASSES: WeakKeyDictionary[type[nn.Module], _Made] = WeakKeyDictionary()
"""The classes made for each class, for as long as they have modules."""


def holder_class(cls: type[nn.Module], *keys: str) -> type[nn.Module]:
    """The class for a module of some class that holds grown tensors of these names, too."""
    if HOLDER_BASE in vars(cls):
        keys = (*getattr(cls, _NAMES), *keys)
        cls = vars(cls)[HOLDER_BASE]
    names = frozenset(keys)
    made = _CLASSES.setdefault(cls, {})
    known = made.get(names)
    found = known() if known is not None else None
    if found is None:
        found = _made_class(cls, names)
        made[names] = ref(found)
    return found


def _made_class(cls: type[nn.Module], names: frozenset[str]) -> type[nn.Module]:
    return type(
        cls.__name__,
        (cls,),
        {
            **{name: _property(name) for name in sorted(names)},
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
            "__setattr__": _set,
            "__delattr__": _delete,
            **{name: _registering(name) for name in ("register_parameter", "register_buffer")},
            "__reduce_ex__": _reduce,
            HOLDER_BASE: cls,
            _NAMES: names,
        },
    )


def _property(name: str) -> property:
    """The grown tensor; in a module made anew by this class, an attribute like any other."""

    def tensor(self: nn.Module) -> Any:
        split = split_in(self, name)
        if split is not None:
            return split.live(split())
        own = vars(self)
        return own[name] if name in own else nn.Module.__getattr__(self, name)

    def put(self: nn.Module, value: Any) -> None:
        vars(self)[name] = value

    return property(tensor, put)


def _own_class(module: nn.Module) -> Any:
    return made_here(type(module))


def split_in(module: nn.Module, name: str) -> SplitTensor | None:
    """The blocks of a module's tensor of this name, if it has grown."""
    split = vars(module).get("_modules", {}).get(blocks_path(name))
    return split if isinstance(split, SplitTensor) else None


def _refuse(module: nn.Module, name: str, what: str) -> None:
    """Makes sure that a name is not that of a grown tensor.

    Raises:
        UnsupportedLayerError: If it is.
    """
    if split_in(module, name) is not None:
        raise UnsupportedLayerError(
            f"`{name}` of a {type(module).__name__} cannot be {what}: splitgrow has grown it, so "
            f"that it is put together from blocks. Change its values in place, under "
            f"torch.no_grad(); for anything else make the model plain with splitgrow.merge"
        )


def _set(self: nn.Module, name: str, value: Any) -> None:
    split = split_in(self, name)
    if split is not None and split.stands_for(value):  # module.tensor += x has changed the blocks
        return
    _refuse(self, name, "replaced")
    super(_own_class(self), self).__setattr__(name, value)


def _delete(self: nn.Module, name: str) -> None:
    _refuse(self, name, "deleted")
    super(_own_class(self), self).__delattr__(name)


def _registering(method: str) -> Any:
    """The method of this name, which refuses the names of grown tensors."""

    def register(self: nn.Module, name: str, *args: Any, **kwargs: Any) -> None:
        _refuse(self, name, "registered")
        getattr(super(_own_class(self), self), method)(name, *args, **kwargs)

    register.__name__ = method
    return register


def _reduce(self: nn.Module, protocol: Any) -> Any:
    """Pickles the module by the user's class, which can be imported, not by the one made here.

    Raises:
        TypeError: If the class pickles in its own way, which would lose the blocks.
    """
    cls = _own_class(self)
    rebuild, args, *rest = super(cls, self).__reduce_ex__(protocol)
    if args and args[0] is type(self):
        args = (vars(cls)[HOLDER_BASE], *args[1:])
    elif not hasattr(cls, ORIGINAL_CLASS):  # a growable model's class has its own, correct way
        raise TypeError(
            f"{cls.__name__} is pickled in a way of its own (__reduce__), which would lose the "
            f"blocks of its grown tensors; save the model's state_dict instead"
        )
    return (_new_holder, (getattr(cls, _NAMES), rebuild, args), *rest)


def _new_holder(names: frozenset[str], rebuild: Any, args: tuple[Any, ...]) -> Any:
    made = rebuild(*args)
    made.__class__ = holder_class(type(made), *names)
    return made

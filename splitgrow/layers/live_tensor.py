"""One tensor of a grown layer as the plain layer would have it: writing to it reaches the blocks.

It is assembled when it is read. Torch's version counter shows every change in place to it, or to a
view of it, by any function; the change is then written into the blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from splitgrow.errors import UnsupportedLayerError
from splitgrow.layers.tensor_sources import TensorSource


def _on(name: str, what: str = "__get__") -> Any:
    """The function that torch calls when an attribute of a tensor is read or set."""
    return getattr(getattr(Tensor, name), what)


class LiveTensor(Tensor):
    """A tensor assembled from several, or a view of one.

    A whole one stands for a parameter: it is a leaf, has the blocks' gradients, and trains if one
    of the blocks does. Results of ops on it are plain tensors, unless they share its memory.
    """

    _source: TensorSource
    _whole: bool
    _silent: bool

    @classmethod
    def of(
        cls, tensor: Tensor, source: TensorSource, *, whole: bool = False, silent: bool = False
    ) -> Any:
        """A tensor as one of these.

        Args:
            tensor: The tensor, or a view of it.
            source: Where its values come from.
            whole: Whether the tensor is the whole, rather than a view.
            silent: Whether writing does not count as a change, as through `Tensor.data`.
        """
        live = tensor.as_subclass(cls)
        state: dict[str, Any] = {"_source": source, "_whole": whole, "_silent": silent}
        live.__dict__.update(state)
        return live

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Calls the function, and writes changes in place into the blocks."""
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001
                return func(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001
            first = args[0] if args else None
            special = _SPECIAL.get(func)
            if special is not None and isinstance(first, LiveTensor) and first._whole:  # noqa: SLF001
                return special(first, *args[1:], **kwargs)
            if func in _METADATA:
                return func(*args, **kwargs)
            given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, LiveTensor)]
            for tensor in given:
                tensor._source.refresh()  # noqa: SLF001
            before = [_version(tensor) for tensor in given]
            result = func(*args, **kwargs)
            for tensor, version in zip(given, before, strict=True):
                _hand_on(tensor, version)
            silent = func is _on("data", "__get__")
            return pytree.tree_map_only(Tensor, lambda t: _linked(t, given, silent=silent), result)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute of a parameter, such as a mark, on those of all blocks."""
        if hasattr(Tensor, name) or not self._whole:
            super().__setattr__(name, value)
            return
        for owner in self._source.owners():
            setattr(owner, name, value)

    def __getattr__(self, name: str) -> Any:
        """Answers for a mark that a block's parameter has.

        Raises:
            AttributeError: If no block's parameter has it.
        """
        own = self.__dict__
        if not name.startswith("__") and own.get("_whole"):
            return getattr(next(own["_source"].owners()), name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def set_(self, *_: Any, **__: Any) -> Any:
        """Refuses other memory; torch does not pass this call to `__torch_function__`."""
        return _refused("`set_`")(self)

    def __deepcopy__(self, memo: Any) -> Tensor:
        """A tensor of its own, and a Parameter if this is one."""
        copied = self._apart()
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As a tensor of its own."""
        return self._apart().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def _apart(self) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001
            self._source.refresh()
            plain = self.detach().clone().as_subclass(Tensor)
        owner = next(self._source.owners()) if self._whole else None
        trains = self._source.trains
        return nn.Parameter(plain, trains) if isinstance(owner, nn.Parameter) else plain


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version  # noqa: SLF001


def _hand_on(tensor: LiveTensor, version: int | None) -> None:
    """Writes a tensor into the blocks if it has changed in place.

    Raises:
        RuntimeError: If autograd has recorded the change, which it allows on no leaf.
    """
    source = tensor._source  # noqa: SLF001
    if version is not None and tensor._version == version:  # noqa: SLF001
        return
    if version is None and not source.differs():
        return
    if source.recorded:
        source.refresh(always=True)
        raise RuntimeError(
            f"a leaf Variable that requires grad is being used in an in-place operation: "
            f"{source.label}; write to it under torch.no_grad()"
        )
    source.write(silent=tensor._silent)  # noqa: SLF001


def _linked(result: Tensor, given: list[LiveTensor], *, silent: bool) -> Any:
    """A result that writes through to the blocks if it shares its memory with such a tensor."""
    if type(result) is not Tensor or result.layout is not torch.strided:
        return result
    memory = result.untyped_storage()._cdata  # noqa: SLF001
    for tensor in given:
        if tensor.untyped_storage()._cdata == memory:  # noqa: SLF001
            source, quiet = tensor._source, silent or tensor._silent  # noqa: SLF001
            return LiveTensor.of(result, source, silent=quiet)
    return result


# -- the attributes of a whole one, as of the parameter that it stands for ------------------------


def _requires_grad_(live: LiveTensor, requires_grad: bool = True) -> LiveTensor:  # noqa: FBT001, FBT002
    for owner in live._source.owners():  # noqa: SLF001
        owner.requires_grad_(requires_grad)
    return live


def _set_data(live: LiveTensor, value: Tensor) -> None:
    source = live._source  # noqa: SLF001
    if value.shape != live.shape or value.dtype != live.dtype or value.device != live.device:
        raise UnsupportedLayerError(
            f"the data of {source.label} can only be replaced by a tensor of the same shape, dtype "
            f"and device; convert the model, or merge it with splitgrow.merge first"
        )
    source.refresh()
    live.detach().copy_(value)
    source.write(silent=True)


def _gradient(live: LiveTensor) -> Any:
    source = live._source.of_gradients()  # noqa: SLF001
    return None if source is None else LiveTensor.of(source.start(), source, whole=False)


def _set_gradient(live: LiveTensor, value: Tensor | None) -> None:
    source = live._source  # noqa: SLF001
    if value is None:
        for owner in source.owners():
            owner.grad = None
        return
    if value.shape != live.shape:
        raise RuntimeError(
            f"assigned grad has data of a different size: {tuple(value.shape)} for {source.label} "
            f"of {tuple(live.shape)}"
        )
    gradients = source.of_gradients(make=True)
    gradients.start().copy_(value)
    gradients.write(silent=True)


def _refused(what: str) -> Callable[..., Any]:
    def refuse(live: LiveTensor, *_: Any, **__: Any) -> Any:
        raise UnsupportedLayerError(
            f"{what} cannot work on {live._source.label}, which is put together from its blocks' "  # noqa: SLF001
            f"whenever it is asked for; use the blocks' own tensors (layer[0], layer[1], ...), or "
            f"make the model plain with splitgrow.merge"
        )

    return refuse


_SPECIAL: dict[Any, Callable[..., Any]] = {
    _on("requires_grad", "__get__"): lambda live: live._source.trains,  # noqa: SLF001
    _on("requires_grad", "__set__"): _requires_grad_,
    Tensor.requires_grad_: _requires_grad_,
    _on("is_leaf", "__get__"): lambda _: True,
    _on("grad_fn", "__get__"): lambda _: None,
    _on("grad", "__get__"): _gradient,
    _on("grad", "__set__"): _set_gradient,
    _on("grad", "__delete__"): lambda live: _set_gradient(live, None),
    _on("data", "__set__"): _set_data,
    Tensor.retain_grad: lambda _: None,
    **{
        getattr(Tensor, name): _refused(f"`{name}`")
        for name in (
            "register_hook",
            "register_post_accumulate_grad_hook",
            "resize_",
            "resize_as_",
            "share_memory_",
        )
    },
}

_METADATA = {
    *(
        _on(name)
        for name in ("shape", "dtype", "device", "layout", "ndim", "is_cuda", "is_meta", "_version")
    ),
    _on("requires_grad", "__get__"),
    _on("is_leaf", "__get__"),
    *(getattr(Tensor, name) for name in ("size", "dim", "numel", "stride", "is_floating_point")),
    Tensor.__len__,
    Tensor.is_contiguous,
    Tensor.element_size,
}
"""The attributes of a tensor that do not read its values."""

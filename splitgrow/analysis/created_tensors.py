"""The tensors that were made while a model ran."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import TensorWeakRef


class CreatedTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the tensors that are made while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made: dict[int, TensorWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._made[id(leaf)] = TensorWeakRef(leaf)
        return result

    def __contains__(self, tensor: Tensor) -> bool:
        made = self._made.get(id(tensor))
        return made is not None and made() is tensor

"""Plain copies of modules: stock layers in place of grown ones, nothing else of splitgrow."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from splitgrow.errors import UnsupportedModelError
from splitgrow.layers.fade import FadeIn
from splitgrow.layers.hooks import HOOKS, STORES, carry_hooks_, computing_hooks
from splitgrow.layers.insertion_wrapper import InsertionWrapper
from splitgrow.layers.module_state import may_hold
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.layers.tensor_holder import make_plain_
from splitgrow.layers.ties import retie_
from splitgrow.layers.unwrap import unwrap_
from splitgrow.utils.rollback import Undo, temporarily


def plain_copy(
    module: nn.Module,
    view: int | None,
    memo: dict[int, Any],
    finish: Callable[[SplitLayer, nn.Module], None] | None = None,
    stock_of: Callable[[SplitLayer, int | None], nn.Module] = SplitLayer.plain,
    shares: Mapping[FadeIn, float] | None = None,
    *,
    last: Callable[[nn.Module], None] = make_plain_,
) -> nn.Module:
    """A copy of a module in which every grown layer is plain.

    It keeps the user's hooks: those of a grown layer lie on the stock layer in its place.

    Args:
        module: Any module.
        view: The edit after which it is copied; None for today.
        memo: As in `copy.deepcopy`; in the end it has the copy of every part by the part's id.
        finish: A further step for the stock layer of each grown one.
        stock_of: Makes the stock layer of a grown one.
        shares: The fades' alpha, where it is not the present one. Of inserted fades that are then
            over or have not begun, only the path that counts is left; None to leave all fades as
            they are.
        last: The last step for the copy before its wrappers go: by default modules whose tensors
            have grown become what they were.

    Raises:
        UnsupportedModelError: If an object in the module cannot be copied.
        MemoryError: If there is too little memory.
    """
    theirs: list[tuple[nn.Module, _Stores]] = []
    grown: list[tuple[nn.Module, nn.Module]] = []
    for part in module.modules():
        if isinstance(part, SplitLayer):
            memo[id(part)] = layer = _stock_of_computed(part, view, stock_of)
            # A handle that the model keeps removes the hook from the stock layer.
            memo.update((id(vars(part)[name]), vars(layer)[name]) for name in STORES)
            grown.append((part.original, layer))
            theirs.append((layer, _users_own(part, layer)))
            if finish is not None:
                finish(part, memo[id(part)])
        else:
            memo.update((id(made), made.detach().clone()) for made in _made_by_forward(part))
    retie_(grown)
    # A module beside a grown layer that holds its tensor holds that of the plain layer then.
    memo.update(
        (id(own), layer._parameters[name])  # noqa: SLF001
        for original, layer in grown
        for name, own in original._parameters.items()  # noqa: SLF001
        if own is not None and layer._parameters.get(name) is not None  # noqa: SLF001
    )
    copied = _copied(module, memo, [own for _, own in theirs])
    for layer, own in theirs:
        for name, values in own.items():
            store = vars(layer)[name] if name else vars(layer)
            store.update(copy.deepcopy(values, memo))  # the memo has copies of the values
    for part, twin in _twins(module, copied):
        memo[id(part)] = twin
        carry_hooks_(part, twin, memo)
    for fade, alpha in (shares or {}).items():
        if id(fade) in memo:
            memo[id(fade)].alpha = alpha
    last(copied)
    return unwrap_(copied, view, end_fades=shares is not None)


@temporarily
def _stock_of_computed(
    undo: Undo,
    split: SplitLayer,
    view: int | None,
    stock_of: Callable[[SplitLayer, int | None], nn.Module],
) -> nn.Module:
    """The stock layer of a grown one, with the weights that its next call would compute."""
    for block in split:
        _compute_anew_(block, undo)
    return stock_of(split, view)


_Stores = dict[str, dict[str, Any]]
"""The items of some of a module's dictionaries; its attributes have no name."""


def _users_own(split: SplitLayer, layer: nn.Module) -> _Stores:
    """The user's own items on a grown layer, put there before or after it grew."""
    attributes = {
        name: value
        for owner in (split.original, split)
        for name, value in vars(owner).items()
        if name not in vars(layer) and may_hold(owner, "", name)
    }
    tensors = {
        store: {k: v for k, v in vars(split)[store].items() if k not in vars(layer)[store]}
        for store in ("_parameters", "_buffers")
    }
    return {"": attributes, **tensors}


def _copied(module: nn.Module, memo: dict[int, Any], more: Iterable[_Stores]) -> nn.Module:
    """A deep copy.

    Args:
        module: Any module.
        memo: As in `copy.deepcopy`; in the end it has copies of all that the module holds.
        more: Further items to copy.

    Raises:
        UnsupportedModelError: If it cannot be copied.
        MemoryError: If there is too little memory.
    """
    try:
        copied: nn.Module = copy.deepcopy(module, memo)
        grown = (part for part in module.modules() if isinstance(part, SplitLayer))
        for part in grown:  # not part of the module's copy
            copy.deepcopy([dict(vars(part)[name]) for name in HOOKS], memo)
        copy.deepcopy(list(more), memo)
    except MemoryError:  # not the model's fault
        raise
    except Exception as error:  # the user's objects can raise anything
        raise UnsupportedModelError(
            f"{type(module).__name__} holds something, or has a hook, that copy.deepcopy cannot "
            f"copy: {type(error).__name__}: {error}"
        ) from error
    return copied


def _twins(module: nn.Module, copied: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Each part of a module with its copy.

    Raises:
        UnsupportedModelError: If a class has its own way of copying, and that does not copy a grown
            layer.
    """
    copies = {
        (path, isinstance(twin, InsertionWrapper)): twin  # a wrapper has the path of its module
        for path, twin in copied.named_modules(remove_duplicate=False)
    }
    for path, part in module.named_modules(remove_duplicate=False):
        twin = copies.get((path, isinstance(part, InsertionWrapper)))
        grown = isinstance(part, (SplitLayer, InsertionWrapper))
        if twin is not None and grown and (twin is part or isinstance(twin, SplitLayer)):
            raise UnsupportedModelError(
                f"something that holds `{path}` is copied by a __deepcopy__ of its own, which does "
                f"not copy that, or not with `copy.deepcopy(part, memo)`"
            )
        if twin is not None and twin is not part:
            yield part, twin


def _made_by_forward(module: nn.Module) -> Iterator[Tensor]:
    """The tensors in a module's attributes that autograd made, which torch refuses to copy.

    Weight norm and the like leave one in a parameter's place, and forward often keeps one.
    """
    for name, value in vars(module).items():
        if name in _STORES or not isinstance(value, (Tensor, list, tuple, dict)):
            continue
        if isinstance(value, Tensor) or (value and not _NUMBERS.issuperset(map(type, value))):
            leaves = pytree.tree_leaves(value)
            yield from (x for x in leaves if isinstance(x, Tensor) and not x.is_leaf)


_STORES = ("_parameters", "_modules")
_NUMBERS = frozenset((int, float, bool, type(None)))
"""Types of items in kernel sizes, paddings and the like, which hold no tensors."""


@torch.no_grad()
def _compute_anew_(block: nn.Module, undo: Undo) -> None:
    """Computes a block's weights now, as weight norm and the like would at its next call."""
    hooks = list(computing_hooks(block))
    if hooks:
        undo.keep(vars(block))
        block.training = False  # a spectral norm changes its vectors in training
        for hook in hooks:
            hook(block, None)

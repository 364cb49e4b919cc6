"""Carrying out one change of a model in all the processes that hold it, or in none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from splitgrow.distributed.agreement import Agreement
from splitgrow.distributed.replicas import Replica
from splitgrow.distributed.shards import Shards
from splitgrow.distributed.sharing import mean_over, measured_alike, share_
from splitgrow.distributed.units import is_unit
from splitgrow.errors import SplitGrowError, UnsupportedModelError
from splitgrow.growth.averages import begin_averages_
from splitgrow.growth.edits import Edit
from splitgrow.growth.history_lookup import HISTORY, history_of
from splitgrow.growth.optimizers import listed
from splitgrow.growth.probe import averaged
from splitgrow.handle import Handle, handle
from splitgrow.utils.rollback import Undo, all_or_nothing
from splitgrow.utils.wrappers import is_sharded, refuse_other_holders, wrapper_told

TIMEOUT = 300.0
"""Seconds that the processes wait for each other at each step."""
_Made = TypeVar("_Made")


class Wrapped:
    """A model as one of several processes holds it.

    Attributes:
        model: The growable model.
        whole: The model with all that is around it, but not DistributedDataParallel.
        shared: Whether all processes have agreed on a change, so that wrappers may be made anew.

    Args:
        wrapped: DistributedDataParallel around a growable model or around one that holds it; a
            model sharded by fully_shard; or a plain model, of which every process has its own.
        optimizers: The optimizers that train it.

    Raises:
        TypeError: If it is no module.
        UnsupportedModelError: If it is wrapped in a way that growth cannot follow.
        SplitGrowError: If it holds no growable model, or several.
    """

    def __init__(self, wrapped: nn.Module, optimizers: list[Optimizer]) -> None:
        self.replica: Replica | None = None
        self.shards: Shards | None = None
        self.shared = False
        self._opened = False
        self.whole = plain_of(wrapped)
        if isinstance(wrapped, DistributedDataParallel):
            self.replica = Replica(wrapped)
        if is_sharded(self.whole):
            if self.replica is not None:
                raise UnsupportedModelError(
                    "the model is in DistributedDataParallel and sharded by FSDP as well; use "
                    "fully_shard with a mesh of two dimensions instead"
                )
            self.shards = Shards(self.whole, optimizers)
        self.model = growable_in(self.whole)

    @property
    def wraps(self) -> bool:
        """Whether the processes hold the same values."""
        return self.replica is not None or self.shards is not None

    def refuse_more(self, done: str) -> None:
        """Makes sure that nothing but the growable model is wrapped.

        Args:
            done: The operation that the rest would miss.

        Raises:
            UnsupportedModelError: If something is.
        """
        if self.whole is not self.model:
            raise UnsupportedModelError(
                f"more is wrapped than the growable model, and would not be {done} with it; make "
                f"the whole growable"
            )

    def refuse_untold(self) -> None:
        """Makes sure that nothing else holds copies of the parameters, which would miss a change.

        Raises:
            UnsupportedModelError: If something does.
        """
        units = [module for module in self.whole.modules() if is_unit(module)]
        told = units if self.replica is None else [self.replica.wrapper]
        refuse_other_holders(self.model, told)

    def restore(self) -> None:
        """Makes the wrapper as it was, once the model is as it was."""
        if self.shards is not None:
            self.shards.restore()
        if self.replica is not None:
            self.replica.take_back(anew=self.shared)

    def open(self, *, values: bool) -> None:
        """Makes a sharded model plain, with or without its values, if it is not yet."""
        if self.shards is not None and not self._opened:
            self._opened = True
            self.shards.open(values=values)

    def settle(self, rewritten: Sequence[Tensor] = ()) -> None:
        """Makes the wrapper know the model as it is now.

        Args:
            rewritten: The tensors that existed and have other values.
        """
        if self.shards is not None:
            self.shards.settle(rewritten)
        if self.replica is not None:
            self.replica.renew()


def plain_of(wrapped: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, or the module.

    Raises:
        TypeError: If it is no module.
        UnsupportedModelError: If it is in a wrapper of another kind.
    """
    if not isinstance(wrapped, nn.Module):
        raise TypeError(f"the model must be a torch.nn.Module, got {type(wrapped).__name__}")
    if "_orig_mod" in wrapped._modules:  # noqa: SLF001
        raise UnsupportedModelError(
            "the model is compiled; pass the model itself, and compile it again afterwards"
        )
    if isinstance(wrapped, nn.DataParallel):
        raise UnsupportedModelError(
            "DataParallel is one process; grow the model inside it by its own methods"
        )
    return wrapped.module if isinstance(wrapped, DistributedDataParallel) else wrapped


def growable_in(whole: nn.Module) -> nn.Module:
    """The growable model in a module: itself, or the one that it holds.

    Raises:
        SplitGrowError: If there is none, or there are several.
    """
    found: dict[str, nn.Module] = {}
    for path, module in whole.named_modules():
        inside = any(not outer or path.startswith(f"{outer}.") for outer in found)
        if HISTORY in vars(module) and not inside:
            found[path] = module
    if not found:
        raise SplitGrowError(
            f"{type(whole).__name__} holds no growable model; call splitgrow.growable(model, "
            f"example_inputs) before you wrap it, in every process"
        )
    if len(found) > 1:
        raise SplitGrowError(
            f"{type(whole).__name__} holds several growable models ({', '.join(found)}), of which "
            f"one would have to be meant; make the whole growable instead"
        )
    return next(iter(found.values()))


def group_of(wrapped: nn.Module) -> Any:
    """The processes that hold a model; None for all that there are.

    Raises:
        UnsupportedModelError: If it is sharded over a part of them in two dimensions.
    """
    if isinstance(wrapped, DistributedDataParallel):
        return wrapped.process_group
    if not is_sharded(wrapped):
        return None
    mesh = Shards(wrapped, []).mesh
    if mesh.ndim == 1:
        return mesh.get_group()
    if mesh.size() != dist.get_world_size():
        raise UnsupportedModelError(
            "the model is sharded over a mesh of two dimensions that leaves out some processes"
        )
    return None


@dataclass(frozen=True)
class ByChoice(Generic[_Made]):
    """A change that depends on a choice, which the first process makes for all.

    Attributes:
        choose: Makes the choice, of plain data, and changes nothing.
        change: Does the change to a model, given the choice; all or nothing.
    """

    choose: Callable[[Handle], Any]
    change: Callable[[Handle, Any], _Made]


def carry_out(
    wrapped: nn.Module,
    request: str,
    change: Callable[[Handle], _Made] | ByChoice[_Made],
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    timeout: float = TIMEOUT,
    values: bool | Callable[[nn.Module], bool] = False,
    shared: bool = True,
) -> _Made:
    """Carries out a change in all processes, or in none.

    Each does it for itself. Then they compare their results, the first one's values of new tensors
    go to the others, and the wrappers take them over. At each step all of them stop and take the
    change back if one of them does not follow.

    Args:
        wrapped: The model, in its wrapper.
        request: The request, in words.
        change: Does it, all or nothing.
        optimizer: One or several optimizers of the model.
        timeout: Seconds to wait for the others at each step.
        values: Whether the change runs the model or reads its values, or how the model shows that.
        shared: Whether the first process's values of new and of changed tensors are to count.

    Returns:
        The result of the change.

    Raises:
        DistributedError: In every process, if one of them failed, differs, or did not come.
        Exception: The change's error, if it raised the same in all of them.
    """
    plain_of(wrapped)
    optimizers = listed(optimizer)
    what = request.partition("(")[0]
    agreement = Agreement(group_of(wrapped), what, timeout)

    def begin() -> tuple[Wrapped, Mapping[str, str]]:
        held = Wrapped(wrapped, optimizers)
        held.refuse_untold()
        return held, {"request": request, **picture_of(held, optimizers)}

    held = agreement.attempt("asking for the same", begin)
    needed = values if callable(values) else lambda _: values
    share = _Share(held, agreement, optimizers, needed)

    @all_or_nothing
    def carry_out(undo: Undo) -> _Made:
        undo.on_failure(held.restore)
        does = share.chosen(change) if isinstance(change, ByChoice) else change
        made = agreement.attempt("planning and growing", lambda: share.grow(does, undo))
        held.shared = True
        agreement.attempt("sharing what is new", lambda: share.settle(shared=shared))
        edits = {edit.index: edit for edit in history_of(held.model).edits[share.since :]}
        if isinstance(made, Edit):
            return edits.get(made.index, made)  # type: ignore[return-value]
        return made

    return carry_out()


class _Share:
    """The share of one process in a change.

    Attributes:
        since: The number of the last edit before it.

    Args:
        held: The model, as this process holds it.
        agreement: The processes.
        optimizers: The optimizers of the model.
        values: Whether its values are needed.
    """

    def __init__(
        self,
        held: Wrapped,
        agreement: Agreement,
        optimizers: list[Optimizer],
        values: Callable[[nn.Module], bool],
    ) -> None:
        self._held, self._agreement, self._optimizers = held, agreement, optimizers
        self._values = values
        self._known: set[int] = set()
        self.since = len(history_of(held.model).edits)

    @contextmanager
    def _open(self) -> Iterator[Handle]:
        """The model, plain, inside a ``with`` block in which it may change."""
        held = self._held
        held.open(values=self._values(held.model))
        with wrapper_told(), averaged(partial(mean_over, self._agreement)):
            yield handle(held.model)

    def chosen(self, change: ByChoice[_Made]) -> Callable[[Handle], _Made]:
        """A change that depends on a choice, with the first process's."""

        def choose() -> str:
            with self._open() as model:
                return json.dumps(change.choose(model))

        choice = json.loads(self._agreement.first_word("choosing", choose))
        return lambda model: change.change(model, choice)

    def grow(
        self, change: Callable[[Handle], _Made], undo: Undo
    ) -> tuple[_Made, Mapping[str, str]]:
        """Changes the model."""
        with self._open() as model, undo.gathers():
            self._known.update(map(id, _tensors(self._held.whole)))
            made = change(model)
        return made, picture_of(self._held, self._optimizers)

    def settle(self, *, shared: bool) -> tuple[None, Mapping[str, str]]:
        """Gives all processes the first one's values, and has the wrapper know the change."""
        held, agreement, since = self._held, self._agreement, self.since
        history, rewritten = history_of(held.model), self._rewritten()
        edits = history.edits[since:]
        if shared:
            new = [tensor for tensor in _tensors(held.whole) if id(tensor) not in self._known]
            share_([*new, *rewritten], agreement)
            joined = any(edit.joined for edit in edits)  # of averages
            for copied, _ in () if joined else history.kin.following():
                begin_averages_(copied, held.model, since)
        elif held.wraps:  # or every process has values of its own
            share_(rewritten, agreement)
        history.edits = [*history.edits[:since], *measured_alike(edits, agreement)]
        held.settle(rewritten)
        return None, picture_of(held, self._optimizers)

    def _rewritten(self) -> list[Tensor]:
        """The tensors that existed and have other values."""
        own = self._held.model
        named = {**dict(own.named_parameters()), **dict(own.named_buffers())}
        edits = history_of(own).edits[self.since :]
        return [named[name] for edit in edits for name in edit.rewritten]


@contextmanager
def opened(
    wrapped: nn.Module, request: str, timeout: float, *, values: bool = True
) -> Iterator[nn.Module]:
    """The growable model, plain, with all of its values or none, inside a ``with`` block."""
    if isinstance(wrapped, nn.Module) and not is_sharded(plain_of(wrapped)):
        with nullcontext(growable_in(plain_of(wrapped))) as model:
            yield model
        return
    agreement = Agreement(group_of(wrapped), request.partition("(")[0], timeout)

    def begin() -> tuple[Wrapped, Mapping[str, str]]:
        held = Wrapped(wrapped, [])
        return held, {"request": request, **picture_of(held, [])}

    held = agreement.attempt("asking for the same", begin)
    try:
        held.open(values=values)
        yield held.model
    finally:
        held.restore()


def _tensors(module: nn.Module) -> list[Tensor]:
    """All parameters and buffers, each once, in an order that is the same in every process."""
    return [*module.parameters(), *module.buffers()]


def picture_of(held: Wrapped, optimizers: list[Optimizer]) -> dict[str, str]:
    """The values that must be the same in every process: the model, its edits, the optimizers."""
    edits = handle(held.model).edits
    lines = [
        f"{name} {tuple(p.shape)} {p.dtype} {'trains' if p.requires_grad else 'frozen'}"
        for name, p in held.whole.named_parameters()
    ]
    lines += [f"{name} {tuple(b.shape)} {b.dtype}" for name, b in held.whole.named_buffers()]
    made = "; ".join(str(edit).splitlines()[0] for edit in edits[-1:]) or "no edits"
    past = f"generation {handle(held.model).generation}, {made}"
    names = {id(p): name for name, p in held.whole.named_parameters()}
    layout = [
        [type(optimizer).__name__]
        + [[names.get(id(p), "?") for p in group["params"]] for group in optimizer.param_groups]
        for optimizer in optimizers
    ]
    return {
        "history": "\n".join(
            (past, *(replace(edit, moved=None, loss=None).to_json() for edit in edits))
        ),
        "model": "\n".join((f"{len(lines)} tensors", *lines)),
        "optimizer": f"{len(optimizers)} optimizers {json.dumps(layout)}",
    }

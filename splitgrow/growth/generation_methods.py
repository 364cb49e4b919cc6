"""The methods of a growable model for its generations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, NoReturn

from torch import nn

from splitgrow.growth.apply import (
    added_by,
    next_generation_,
    param_groups_of,
    parameters_of,
    unfreeze_all_,
)
from splitgrow.growth.edits import Edit
from splitgrow.growth.history import view_
from splitgrow.growth.history_lookup import HandleBase
from splitgrow.utils.model_lock import lock_
from splitgrow.utils.rollback import Undo


class _Showing(AbstractContextManager[nn.Module]):
    """A generation that is shown inside of a ``with`` block, and nowhere else."""

    def __init__(self, block: AbstractContextManager[nn.Module]) -> None:
        self._block = block

    def __enter__(self) -> nn.Module:
        return self._block.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return self._block.__exit__(kind, error, trace)

    def __call__(self, *_args: object, **_kwargs: object) -> NoReturn:
        """Says how to call the model.

        Raises:
            TypeError: Always.
        """
        raise TypeError(_BLOCK)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"no {name!r} here: {_BLOCK}")


_BLOCK = "a generation is shown inside of a block: `with model.at(0): outputs = model(inputs)`"


class GenerationMethods(HandleBase):
    """Closing generations, showing them, and training them separately."""

    @property
    def generation(self) -> int:
        """The number of the open generation, which trains; 0 before the first growth.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
            >>> net = splitgrow.growable(net, torch.ones(1, 2))
            >>> edit = net.expand_layer("0", 2)  # closes generation 0
            >>> net.generation
            1
        """
        return self._history.generation

    def next_generation(self) -> int:
        """Closes the open generation: freezes its parameters and running statistics.

        It also saves, for `at`, all other state that forward may change: a copy of every buffer
        (one that has not changed since the last generation was closed is not copied again), and of
        plain data in the modules' attributes: numbers, flags, texts, tensors, and lists, tuples,
        sets and dicts of these. This state still changes as the model trains. The copies cost the
        memory of the model's buffers once, and then that of the changed ones, for each generation;
        in files likewise.

        Returns:
            The number of the new open generation.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
            >>> net = splitgrow.growable(net, torch.ones(1, 2))
            >>> net.next_generation()
            1
            >>> any(p.requires_grad for p in net.parameters())
            False
        """
        return self._operation("close a generation", next_generation_)

    def generation_parameters(self, generation: int | None = None) -> list[nn.Parameter]:
        """The parameters that were born in a generation.

        Args:
            generation: Its number; default: the open one.

        Raises:
            TypeError: If `generation` is not an int.
            ValueError: If there is no such generation.
            StructureChangedError: If the model was changed by hand since it was analysed.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
            >>> net = splitgrow.growable(net, torch.ones(1, 2))
            >>> edit = net.expand_layer("0", 2)
            >>> [tuple(p.shape) for p in net.generation_parameters()]
            [(2, 2), (2,), (1, 2)]
        """
        chosen = self._history.generation if generation is None else generation
        if isinstance(chosen, bool) or not isinstance(chosen, int):
            raise TypeError(f"generation must be an int, got {chosen!r}")
        if not 0 <= chosen <= self._history.generation:
            raise ValueError(f"no generation {chosen}: the open one is {self._history.generation}")
        return parameters_of(self._model, self._history, chosen)

    def parameters_of(self, edit: Edit | int) -> list[nn.Parameter]:
        """The parameters that an edit added, whatever is frozen, such as for a group of their own.

        Args:
            edit: The edit, or its number, from 1. `consolidate` and `absorb` have those that they
                made, and edits before them no longer have the parts of these.

        Raises:
            TypeError: If it is neither.
            ValueError: If the model has no such edit, or `absorb` has made all that it added parts
                of plain layers.
            StructureChangedError: If the model was changed by hand since it was analysed.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
            >>> net = splitgrow.growable(net, torch.ones(1, 2))
            >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            >>> edit = net.expand_layer("0", 2, freeze=False)
            >>> optimizer.add_param_group({"params": net.parameters_of(edit), "lr": 0.2})
            >>> [tuple(p.shape) for p in net.parameters_of(edit)]
            [(2, 2), (2,), (1, 2)]
        """
        return added_by(self._model, self._history, edit)

    def param_groups(
        self, options: Mapping[int, Mapping[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        """Param groups for an optimizer, one for each generation, such as to set learning rates.

        A growth with that optimizer adds the new parameters to the group of their generation, if
        there is one; so name the coming generations in `options`, which makes empty groups for
        them.

        Args:
            options: The options of generations' groups, by generation.

        Raises:
            TypeError: If `options` is no mapping of generations to mappings.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
            >>> net = splitgrow.growable(net, torch.ones(1, 2))
            >>> groups = splitgrow.handle(net).param_groups({0: {"lr": 1e-3}, 1: {"lr": 1e-2}})
            >>> optimizer = torch.optim.SGD(groups)
            >>> edit = net.expand_layer("0", 2, optimizer=optimizer)
            >>> [(group["name"], len(group["params"])) for group in optimizer.param_groups]
            [('generation 0', 4), ('generation 1', 3)]
        """
        return param_groups_of(self._model, self._history, {} if options is None else options)

    def unfreeze(self) -> None:
        """Lets all parameters train again. Closed generations are no longer exact from here on.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
            >>> net = splitgrow.growable(net, torch.ones(1, 2))
            >>> edit = net.expand_layer("0", 2)
            >>> net.unfreeze()
            >>> all(p.requires_grad for p in net.parameters())
            True
        """
        self._operation("unfreeze", unfreeze_all_)

    def at(self, generation: int) -> AbstractContextManager[nn.Module]:
        """The network exactly as it was when a generation was closed, inside a ``with`` block.

        In evaluation mode its outputs equal those before it was closed, bit for bit. Autograd
        records nothing inside. Only the calling thread sees the model in this state; other threads
        that run or change it meanwhile get an error.

        Buffers and plain data in attributes are those that `next_generation` saved; forward may
        change them, and afterwards modules have their earlier state again: attributes that are set
        or added inside are gone. State that cannot be saved is shown as it is today: state in
        objects that hold other objects (a queue in a cache in an attribute), in containers that
        also hold modules or parameters, in generators of random numbers, in closures and in
        globals. The model cannot be moved or converted inside.

        Args:
            generation: The number of a closed generation; 0 is the network before any growth.

        Raises:
            TypeError: If `generation` is not an int.
            ValueError: If there is no such generation.
            GenerationError: If it is no longer exact because of `unfreeze` or `absorb`.
            StructureChangedError: If the model was changed by hand since it was closed.
            SplitGrowError: If another thread shows a generation, or keeps running the model.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
            >>> x = torch.randn(4, 2)
            >>> before = net(x)
            >>> net = splitgrow.growable(net, x)
            >>> edit = net.expand_layer("0", 2)
            >>> with net.at(0) as past:
            ...     torch.equal(past(x), before)
            True
        """
        return _Showing(self._shown(generation))

    @contextmanager
    def _shown(self, generation: int) -> Iterator[nn.Module]:
        what, model_lock = "show a generation", self._history.model_lock
        model_lock.refuse_if_shown(what)
        with model_lock.rlock, Undo() as undo, undo:
            undo.keep(vars(model_lock))
            model_lock.shown = generation
            lock_(self._model, model_lock, what, undo)
            view_(self._model, self._history, generation, undo)
            yield self._model

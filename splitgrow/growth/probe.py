"""A model with the blocks of an edit in place for a moment, and the runs of a loss on it.

The initializers that need data, and the scores, look at a model in this way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from splitgrow.growth.placing import widen_
from splitgrow.growth.prepared import PreparedEdit
from splitgrow.growth.unit_tensors import UnitWeights, unit_weights
from splitgrow.layers.execution import keep_nothing_
from splitgrow.layers.freezing import freeze_
from splitgrow.utils.assigned_modules import paths_in
from splitgrow.utils.preserve import (
    copy_buffers_,
    keep_random_states_,
    keep_surroundings_,
    run_eagerly_,
    states_of_generators,
)
from splitgrow.utils.rollback import Undo, temporarily

DRAWS = 4
"""The runs over which a loss is measured that depends on random numbers, as with dropout."""
_MEAN: ContextVar[Callable[[Tensor], Tensor] | None] = ContextVar("mean", default=None)


@contextmanager
def averaged(mean: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Has all that is measured inside a ``with`` block averaged over several processes.

    Args:
        mean: Gives the mean of a tensor over the processes, the same in all of them.
    """
    before = _MEAN.set(mean)
    try:
        yield
    finally:
        _MEAN.reset(before)


def mean_of(tensor: Tensor) -> Tensor:
    """The mean of a tensor over the processes that grow the model together."""
    mean = _MEAN.get()
    return tensor if mean is None else mean(tensor)


@dataclass(frozen=True)
class BlockCall:
    """One call of a module in a run of the loss.

    Attributes:
        inputs: Its first input, detached.
        others: Its other positional arguments.
        output: Its output, of which the loss is made.
    """

    inputs: Tensor
    others: tuple[object, ...]
    output: Tensor


class Probe:
    """A model with an edit's blocks in place, and a loss on it.

    Attributes:
        prepared: The edit.
        new: The weights of new units that may have any values.
        helpers: The weights with which old units read these.
        forwards: The runs of the loss so far.
        backwards: The runs with gradients.
        last: The loss of the last run, over all processes.
        settled: The mean and variance that `settle_` gave to norms of new units.

    Args:
        prepared: The edit, whose `loss` is given.
    """

    def __init__(self, prepared: PreparedEdit) -> None:
        self.prepared = prepared
        self.forwards = self.backwards = 0
        self.last = math.nan
        self.settled: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._norms = list(_new_norms(prepared))
        self._further: int | None = None
        self._behind: list[Callable[[], object]] = []
        self.new = unit_weights(prepared, "new")
        self.helpers = unit_weights(prepared, "helper")
        for each in self.new:  # each process has drawn its own
            each.set_(mean_of(each.tensor.detach()))

    def loss(self) -> Tensor:
        """One run of the loss, with the same random numbers each time.

        Raises:
            TypeError: If it returns no number.
            ValueError: If it is not finite, in any process.
        """
        return self._runs(1)[0]

    def value(self) -> float:
        """The loss as a number, over all processes; infinite where it is not finite."""
        try:
            return float(mean_of(self.loss().detach()))
        except ValueError:
            return math.inf

    def expected(self) -> float:
        """The loss as a number that does not depend on one run's random numbers, as of dropout.

        It is the mean over some that `loss` does not see, the same each time. A step that fits
        those of one run alone does not lower it.
        """
        try:
            if self._further is None:
                first = float(mean_of(self.loss().detach()))
                self._further = 1 if self._over_further(1) == first else DRAWS
            return self._over_further(self._further)
        except ValueError:
            return math.inf

    def _over_further(self, count: int) -> float:
        with torch.no_grad():
            losses = torch.stack([each.detach() for each in self._runs(count, self._behind)])
        return float(mean_of(losses.mean()))

    def _runs(self, count: int, start: Iterable[Callable[[], object]] = ()) -> list[Tensor]:
        """Runs of the loss, each with the random numbers that come after those of the one before.

        Args:
            count: Their number.
            start: The steps that set the random number generators for the first.
        """
        modules = [*self.prepared.model.modules()]

        @temporarily
        def run(undo: Undo) -> list[Tensor]:
            keep_random_states_(modules, undo)
            for step in start:
                step()
            found = [self._run() for _ in range(count)]
            self._behind = self._behind or states_of_generators(modules)
            return found

        return run()

    def _run(self) -> Tensor:
        self.forwards += 1
        assert self.prepared.loss is not None
        found: object = self.prepared.loss()
        if not isinstance(found, Tensor) or found.numel() != 1:
            raise TypeError(f"loss must return a tensor of one number, got {found!r:.80}")
        mean = mean_of(found.detach().reshape(()))
        if not bool(torch.isfinite(mean)):
            raise ValueError(f"loss must be finite, got {mean.item()}")
        self.last = float(mean)
        return found.reshape(())

    def settle_(self, *, held: bool = False) -> None:
        """Gives batch norms of new units the statistics that they see in a run of the loss.

        So evaluation counts on the units that training gives them, from the first step.

        Args:
            held: Whether only those matter that use their statistics, rather than the batch's.
        """
        norms = [norm for norm in self._norms if not (held and norm.training)]
        if not norms:
            return
        with torch.no_grad(), self.watching(norms) as calls:
            self.loss()
        for norm in norms:
            seen = [call.inputs.movedim(1, 0).flatten(1) for call in calls[norm]]
            if not seen:
                continue
            rows = torch.cat(seen, 1).to(next(norm.buffers()).dtype)  # another one under autocast
            mean = mean_of(rows.mean(1))
            variance = mean_of((rows - mean[:, None]).square().mean(1))
            self.settled[norm] = mean, variance
            _put_statistics_(norm, mean, variance)

    @contextmanager
    def watching(self, modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, list[BlockCall]]]:
        """Collects the calls of modules inside a ``with`` block, in their order."""
        calls: dict[nn.Module, list[BlockCall]] = {module: [] for module in modules}

        def see(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            calls[module].append(BlockCall(args[0].detach(), args[1:], output))

        with Undo() as undo, undo:
            for module in calls:
                undo.on_failure(module.register_forward_hook(see).remove)
            yield calls

    def gradients(
        self, of: Iterable[UnitWeights], more: Callable[[], Tensor | None] = lambda: None
    ) -> list[Tensor]:
        """The gradients of the loss by some weights, in their shapes.

        Args:
            of: The weights.
            more: Gives a term that is added to the loss once it has run.

        Raises:
            ValueError: If the loss does not depend on them, or cannot be differentiated.
        """
        weights = [each.tensor for each in of]
        with torch.enable_grad():
            loss = self.loss()
            term = more()
            found = self.differentiated(loss if term is None else loss + term, weights)
        return [mean_of(gradient) for gradient in found]

    def differentiated(self, loss: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The gradients of a loss by tensors; zeros by those on which it does not depend.

        Raises:
            ValueError: If it depends on none of them.
        """
        if not loss.requires_grad:
            raise ValueError(
                "loss has no gradient: it must run the model itself, not a copy, and not within "
                "torch.no_grad()"
            )
        self.backwards += 1
        try:
            found = torch.autograd.grad(loss, tensors, allow_unused=True)
        except RuntimeError as error:
            raise ValueError(
                f"loss cannot be differentiated ({error}); it must return the loss without calling "
                f"backward"
            ) from error
        if all(gradient is None for gradient in found):
            raise ValueError(
                "loss does not depend on the layers that grow: it must run the model itself, not a "
                "copy"
            )
        pairs = zip(found, tensors, strict=True)
        return [torch.zeros_like(t) if gradient is None else gradient for gradient, t in pairs]


@contextmanager
def probing(prepared: PreparedEdit) -> Iterator[Probe]:
    """Has an edit's blocks in place inside a ``with`` block.

    The blocks keep the values that they get there. All else is as before: the model's modules,
    buffers and gradients, and the random number generators.
    """
    model = prepared.model
    with Undo() as undo, undo:
        keep_surroundings_(model, undo)
        _see_calls_(model, undo)
        keep_nothing_(undo)
        for parameter in model.parameters():
            undo.on_failure(partial(setattr, parameter, "grad", parameter.grad))
            parameter.grad = None
        if prepared.edit.closes is not None:
            _close_(model, undo)
        widen_(prepared, paths_in(model), undo)
        copy_buffers_(model.modules(), undo)
        probe = Probe(prepared)
        yield probe
    for norm, statistics in probe.settled.items():
        _put_statistics_(norm, *statistics)


def _see_calls_(model: nn.Module, undo: Undo) -> None:
    """Runs compiled modules eagerly: compiled code would not call the hooks that watch blocks."""
    compiled = [m for m in model.modules() if vars(m).get("_compiled_call_impl") is not None]
    undo.keep(*map(vars, compiled))
    run_eagerly_(compiled, undo)


def _close_(model: nn.Module, undo: Undo) -> None:
    """Freezes all that there is, as the edit will: norms then run on their statistics."""
    for module in model.modules():
        undo.on_failure(partial(setattr, module, "training", module.training))
    freeze_(model, undo)


def _new_norms(prepared: PreparedEdit) -> Iterator[nn.Module]:
    """The blocks of batch norms for new units that keep running statistics."""
    for layer in prepared.layers.values():
        block = layer.added.get("new")
        if isinstance(block, _BatchNorm) and block.running_mean is not None:
            yield block


@torch.no_grad()
def _put_statistics_(norm: Any, mean: Tensor, variance: Tensor) -> None:
    """Sets running statistics; units that have one value on the batch may have others later."""
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(torch.where(variance > 0, variance, 1.0))

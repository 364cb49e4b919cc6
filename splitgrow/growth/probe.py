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

import torch
from torch import Tensor, nn

from splitgrow.growth.placing import widen_
from splitgrow.growth.prepared import PreparedEdit, PreparedLayer
from splitgrow.layers.execution import keep_nothing_
from splitgrow.layers.types import Start
from splitgrow.utils.assigned_modules import paths_in
from splitgrow.utils.preserve import copy_buffers_, keep_random_states_, keep_surroundings_
from splitgrow.utils.rollback import Undo, temporarily
from splitgrow.utils.spans import take

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


@dataclass(frozen=True, eq=False)
class UnitWeights:
    """The weights of a block for the channels that it reads, as a matrix with a row for each unit.

    Attributes:
        layer: The layer, prepared.
        block: The block.
        key: The name of the tensor that has them.
        tensor: The tensor.
        dim: Its dimension along the units.
        size: The mean norm of the rows of the layer as it was.
    """

    layer: PreparedLayer
    block: nn.Module
    key: str
    tensor: Tensor
    dim: int
    size: float

    @property
    def rows(self) -> Tensor:
        """Their values: units x all that each reads."""
        return self.as_rows(self.tensor.detach())

    def as_rows(self, tensor: Tensor) -> Tensor:
        """A tensor of the weights' shape as a matrix with a row for each unit."""
        return tensor.movedim(self.dim, 0).flatten(1)

    def as_tensor(self, rows: Tensor) -> Tensor:
        """A matrix with a row for each unit as a tensor of the weights' shape."""
        moved = self.tensor.movedim(self.dim, 0)
        return rows.reshape(moved.shape).movedim(0, self.dim)

    def set_(self, tensor: Tensor) -> None:
        """Sets their values."""
        with torch.no_grad():
            self.tensor.copy_(tensor)


def unit_weights(prepared: PreparedEdit, role: str) -> list[UnitWeights]:
    """The weights of an edit's new blocks, or of its helpers, that may have any values.

    Those of units that must be zeros, means or copies of others are left out, and so are helpers
    that read such units.

    Args:
        prepared: The edit.
        role: "new" or "helper".
    """
    found = []
    for layer in prepared.layers.values():
        block = layer.added.get(role)
        if block is None or {*layer.starts(role)} != {Start.FREE} or layer.layer_type.looks_up:
            continue
        for key, axes in layer.tensors.items():
            tensor = getattr(block, key, None)
            dims = [dim for dim, along in axes.items() if not along.reads]
            if layer.reading_dim(key) is None or not dims or not isinstance(tensor, Tensor):
                continue
            if role == "helper" and key in layer.led:
                continue
            found.append(UnitWeights(layer, block, key, tensor, dims[0], _size(layer, key)))
    return found


def homes_of_inputs(prepared: PreparedEdit, helper: UnitWeights) -> list[int | str]:
    """The groups of the units that a helper reads, for each position of its reading dimension."""
    layer = helper.layer
    dim = layer.reading_dim(helper.key)
    assert dim is not None
    roles = list(layer.added)
    index = len(layer.existing) + roles.index("helper")
    units = prepared.places(layer.name)[helper.key][dim]
    spans = layer.composition.places(index, helper.key)[dim]
    return [units[n][0].home for start, count in spans for n in range(start, start + count)]


def part_from_new_inputs_(weights: UnitWeights) -> None:
    """Sets to zero all weights of new units for inputs that are new as well."""
    layer = weights.layer
    dim = layer.reading_dim(weights.key)
    if dim is None or "new" not in layer.added:
        return
    edit = layer.composition.blocks[-1].edit
    along = layer.tensors[weights.key][dim]
    with torch.no_grad():
        for start, count in layer.composition.layout(along).spans(edit.__eq__):
            weights.tensor.narrow(dim, start, count).zero_()


def _size(layer: PreparedLayer, key: str) -> float:
    """The mean norm of the rows of a tensor as it was before the edit."""
    composition = layer.composition
    old = composition.value(key)
    assert old is not None
    before = composition.blocks[-1].edit.__gt__
    for dim, along in layer.tensors[key].items():
        old = take(old, dim, composition.layout(along).spans(before))
    dim = next(dim for dim, along in layer.tensors[key].items() if not along.reads)
    rows = old.movedim(dim, 0).flatten(1)
    return float(rows.double().norm(dim=1).mean()) if rows.numel() else 0.0


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

    Args:
        prepared: The edit, whose `loss` is given.
    """

    def __init__(self, prepared: PreparedEdit) -> None:
        self.prepared = prepared
        self.forwards = self.backwards = 0
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
        self.forwards += 1
        found = self._run()
        if not isinstance(found, Tensor) or found.numel() != 1:
            raise TypeError(f"loss must return a tensor of one number, got {found!r:.80}")
        mean = mean_of(found.detach().reshape(()))
        if not bool(torch.isfinite(mean)):
            raise ValueError(f"loss must be finite, got {mean.item()}")
        return found.reshape(())

    def value(self) -> float:
        """The loss as a number, over all processes; infinite where it is not finite."""
        try:
            return float(mean_of(self.loss().detach()))
        except ValueError:
            return math.inf

    def _run(self) -> object:
        @temporarily
        def run(undo: Undo) -> object:
            keep_random_states_(self.prepared.model.modules(), undo)
            assert self.prepared.loss is not None
            return self.prepared.loss()

        return run()

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
        keep_nothing_(undo)
        for parameter in model.parameters():
            undo.on_failure(partial(setattr, parameter, "grad", parameter.grad))
            parameter.grad = None
        widen_(prepared, paths_in(model), undo)
        copy_buffers_(model.modules(), undo)
        yield Probe(prepared)

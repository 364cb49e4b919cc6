"""Deep copies of a growable model: which there are, and whether one of them averages the model.

An average of a model (EMA, SWA) is a deep copy whose parameters are paired with the model's by
position. Growth that leaves such a copy behind makes it another network, mostly without an error.
Copies that nobody changes are as good as before: snapshots, teachers.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any
from weakref import WeakSet, ref

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from splitgrow.growth.optimizers import in_optimizers
from splitgrow.utils.living import living

_SAMPLES = 8
"""The number of parameters whose values tell whether a copy has changed."""

Sample = tuple[tuple[str, float], ...]
"""Some parameters' names, with one value of each."""


class Kin:
    """A growable model among its deep copies; `copy.deepcopy` adds one.

    Attributes:
        model: The model.
        copies: Those of its copies.
        sample: Values that the model had when it was copied or loaded.
        followers: The copies that grow with the model, each with the average that holds it.
        leader: The model that this one follows.
    """

    def __init__(self) -> None:
        self.model: ref[nn.Module] | None = None
        self.copies: WeakSet[Kin] = WeakSet()
        self.sample: Sample = ()
        self.followers: list[tuple[ref[nn.Module], ref[Any]]] = []
        self.leader: ref[nn.Module] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Kin:
        made = Kin()
        model = self.model() if self.model is not None else None
        copied = memo.get(id(model))
        if model is not None and isinstance(copied, nn.Module):
            made.model, made.sample = ref(copied), sampled(model)
            self.copies.add(made)
        return made

    def __reduce__(self) -> tuple[type[Kin], tuple[()]]:
        return Kin, ()

    def sample_again(self, model: nn.Module) -> None:
        """Takes a copy's present values for those that it was copied with, after it was loaded."""
        if self.sample:
            self.sample = sampled(model)

    def following(self) -> list[tuple[nn.Module, Any]]:
        """The living copies that grow with the model, each with the average that holds it."""
        alive = ((copied(), average()) for copied, average in self.followers)
        return [(c, a) for c, a in alive if c is not None and a is not None]

    def changed_copies(self) -> Iterator[nn.Module]:
        """The copies that seem to average the model, and do not grow with it."""
        known = {id(copied) for copied, _ in self.following()}
        found = [(kin, kin.model()) for kin in self.copies if kin.model is not None]
        others = [(k, model) for k, model in found if model is not None and id(model) not in known]
        averaged = _inside_averages() if others else set()
        for kin, model in others:
            if id(model) in averaged or (_has_changed(kin, model) and not _trains(model)):
                yield model


def sampled(model: nn.Module) -> Sample:
    """Values of a few parameters, of those that train if there are any."""
    named = list(model.named_parameters())
    chosen = [item for item in named if item[1].requires_grad] or named
    step = -(-len(chosen) // _SAMPLES) or 1
    found = ((name, _value(parameter)) for name, parameter in islice(chosen, 0, None, step))
    return tuple((name, value) for name, value in found if value is not None)


@torch.no_grad()
def _value(tensor: Tensor) -> float | None:
    """The value in a tensor's middle; None if it has none that can be read."""
    if type(tensor) not in {Tensor, nn.Parameter} or tensor.is_meta or not tensor.numel():
        return None
    if tensor.layout is not torch.strided or not tensor.is_floating_point():
        return None
    return float(tensor.detach().reshape(-1)[tensor.numel() // 2])


def _has_changed(kin: Kin, model: nn.Module) -> bool:
    named = dict(model.named_parameters())
    values = ((named.get(name), value) for name, value in kin.sample)
    return any(tensor is not None and _value(tensor) != value for tensor, value in values)


def _trains(model: nn.Module) -> bool:
    """Whether a copy is trained, and so a network of its own; averages have no gradients."""
    training = [p for p in model.parameters() if p.requires_grad]
    return any(p.grad is not None for p in training) or bool(in_optimizers(training))


def _inside_averages() -> set[int]:
    """The modules inside of what averages models, by their ids.

    Nothing lists averages. So they are looked for among all objects, by their classes.
    """
    return {id(module) for average in living(_averages) for _, module in modules_in(average)}


def _averages(cls: type) -> bool:
    """Whether a class averages the model that it holds.

    Torch's, and those that others build like it, have a method ``update_parameters``; those of
    further libraries have "EMA" in their names.
    """
    named = "EMA" in cls.__name__ or "Ema" in cls.__name__
    return named or issubclass(cls, AveragedModel) or hasattr(cls, "update_parameters")


def modules_in(average: object) -> Iterator[tuple[str, nn.Module]]:
    """The modules of an average, with their paths: its own, or those in its attributes."""
    if isinstance(average, nn.Module):
        yield from average.named_modules()
        return
    for name, module in getattr(average, "__dict__", {}).items():
        if isinstance(module, nn.Module):
            yield from module.named_modules(prefix=name)

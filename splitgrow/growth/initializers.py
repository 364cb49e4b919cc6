"""The first values of new units: one class for each method; each gets a whole prepared edit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from splitgrow.growth.prepared import PreparedEdit, PreparedLayer
from splitgrow.growth.starting import set_start_values_
from splitgrow.layers.types import Start, TensorBlock
from splitgrow.utils.rollback import Undo


class Initializer(ABC):
    """An object that gives new units their first values.

    It works on blocks that have torch's own random values and are not yet in place: an error leaves
    the model as it was. Values are set in place, without gradients.

    Attributes:
        name: Its name, by which `register_initializer` registers it and edits record it.
        exact: Whether the model computes the same as before, up to rounding. The check of an edit
            tests it. For an inexact one it tests that only the values change anything: with helpers
            at zero the model must compute the same as before.
        needs_data: Whether it needs `PreparedEdit.loss`.
        needs_unfrozen: Whether it changes existing values. It is refused where these are frozen,
            and they are restored if the edit fails.
        divides: The number of new units that belong together: each group must gain a multiple of
            it.
        way: The way in which groups grow that a norm over all channels reads: "zero", "average" or
            "duplicate"; None for each group's preferred one.
    """

    name: str
    exact: bool = True
    needs_data: bool = False
    needs_unfrozen: bool = False
    divides: int = 1
    way: str | None = None

    @abstractmethod
    def apply(self, prepared: PreparedEdit) -> None:
        """Gives the blocks that an edit adds their values."""

    def __repr__(self) -> str:
        return repr(self.name)


class Zero(Initializer):
    """Helpers zero, new units as torch initialises a layer of their shape.

    The old outputs are unchanged, since helpers add nothing yet. Helpers learn from the first step
    and new units from the second; if both were zero, neither would ever learn. Where a norm over
    all channels reads new units, they are zeros, means or copies of the old units, as the edit
    says. A helper that reads zeros keeps torch's values.
    """

    name = "zero"

    def apply(self, prepared: PreparedEdit) -> None:
        """Sets the helpers to zero, and units that must have certain values."""
        for layer in prepared.layers.values():
            set_start_values_(layer)


class Average(Initializer):
    """Helpers zero, and each new unit the mean of the old ones.

    On a stream that LayerNorms read it is the way that is exact for any width, if each layer that
    makes the stream can make means (Wang et al. 2023, https://arxiv.org/abs/2310.07999).
    """

    name = "average"
    way = "average"

    def apply(self, prepared: PreparedEdit) -> None:
        """Sets the helpers to zero, and new units to the mean of the old ones."""
        for layer in prepared.layers.values():
            set_start_values_(layer, Start.MEAN)


class Duplicate(Initializer):
    """Helpers zero, and new units copies of the old ones in turn.

    On a stream that norms over all channels read it is exact if the width becomes a multiple: every
    statistic stays the same (Samragh et al. 2024, https://arxiv.org/abs/2409.12903).
    """

    name = "duplicate"
    way = "duplicate"

    def apply(self, prepared: PreparedEdit) -> None:
        """Sets the helpers to zero, and new units to copies of the old ones."""
        for layer in prepared.layers.values():
            set_start_values_(layer, Start.COPY)


class Stirred(Zero):
    """Helpers zero, and new units with random values also in biases and norms, for trials.

    Where units must have certain values at birth they are as `Zero` has them.
    """

    name = "stirred"

    def apply(self, prepared: PreparedEdit) -> None:
        """Sets the helpers to zero, and gives norms of new units values that show in a trial."""
        super().apply(prepared)
        for layer in prepared.layers.values():
            block = layer.added.get("new")
            tensor_block = isinstance(block, TensorBlock)  # of any range: a variance, a decay
            if block is None or tensor_block or {*layer.starts("new")} != {Start.FREE}:
                continue
            for name, tensor in (*block.named_parameters(), *block.named_buffers()):
                if not tensor.is_floating_point():
                    continue
                if name == "running_var" or (name == "weight" and tensor.dim() == 1):
                    tensor.uniform_(0.5, 1.5)
                elif tensor.dim() == 1:
                    tensor.normal_(std=0.3)


_INITIALIZERS: dict[str, Initializer] = {
    each.name: each for each in (Zero(), Average(), Duplicate())
}


def register_initializer(initializer: Initializer) -> None:
    """Adds an initializer, which growth then accepts by its name.

    Args:
        initializer: An instance of a subclass of `splitgrow.Initializer`.

    Raises:
        TypeError: If it is no initializer, or one of its attributes is of another type.
        ValueError: If there is one of that name already.

    Example:
        >>> import torch, splitgrow
        >>> class Orthogonal(splitgrow.Initializer):
        ...     name = "orthogonal"
        ...     def apply(self, prepared):
        ...         for layer in prepared.layers.values():
        ...             for purpose, block in layer.added.items():
        ...                 if purpose == "helper":
        ...                     torch.nn.init.zeros_(block.weight)
        ...                 elif block.weight.dim() > 1:
        ...                     torch.nn.init.orthogonal_(block.weight)
        >>> splitgrow.register_initializer(Orthogonal())
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))
        >>> net.expand_layer("0", 2, initializer="orthogonal").initializer
        'orthogonal'
    """
    _check(initializer)
    if initializer.name in _INITIALIZERS:
        raise ValueError(f"there is an initializer {initializer.name!r} already")
    _INITIALIZERS[initializer.name] = initializer


def chosen_initializer(given: object) -> Initializer:
    """The requested initializer, given by its name or as an object.

    Raises:
        TypeError: If it is neither a text nor an initializer.
        ValueError: If there is none of that name.
    """
    if not isinstance(given, str):
        _check(given)
        assert isinstance(given, Initializer)
        return given
    if given not in _INITIALIZERS:
        raise ValueError(f"no initializer {given!r}; there are {_known()}")
    return _INITIALIZERS[given]


def _known() -> str:
    return ", ".join(sorted(_INITIALIZERS))


def _check(given: object) -> None:
    """Makes sure that an object is an initializer.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(given, Initializer):
        raise TypeError(
            f"an initializer is an instance of splitgrow.Initializer or the name of one "
            f"({_known()}), got {given!r}"
        )
    name, divides = getattr(given, "name", None), given.divides
    if not isinstance(name, str) or not name:
        raise TypeError(f"{type(given).__name__}.name must be a text, got {name!r}")
    if isinstance(divides, bool) or not isinstance(divides, int) or divides < 1:
        raise TypeError(f"{name}.divides must be an int of at least 1, got {divides!r}")


def initialise_(initializer: Initializer, prepared: PreparedEdit, undo: Undo) -> None:
    """Gives the blocks that an edit adds their values.

    Args:
        initializer: The initializer.
        prepared: The edit, with its blocks made.
        undo: Restores existing values.

    Raises:
        ValueError: If the initializer cannot do this edit, or has written to existing values
            without `needs_unfrozen`.
    """
    _refuse(initializer, prepared)
    layers = prepared.layers
    versions: dict[str, int] = {}
    if initializer.needs_unfrozen:
        for _, tensor in _existing(prepared):
            undo.on_failure(partial(_put_back, tensor, tensor.detach().clone()))
        layers = {name: replace(layer, writable=True) for name, layer in layers.items()}
    else:
        versions = _versions(prepared)
    with torch.inference_mode(mode=False), torch.no_grad():
        initializer.apply(replace(prepared, layers=layers))
    now = _versions(prepared) if versions else {}
    written = [name for name, version in versions.items() if now[name] != version]
    if written:
        raise ValueError(
            f"initializer {initializer.name!r} has written into {', '.join(written[:5])}, which "
            f"existed and cannot be put back: it must say that it needs_unfrozen"
        )


def _refuse(initializer: Initializer, prepared: PreparedEdit) -> None:
    """Makes sure that an initializer can do an edit.

    Raises:
        ValueError: If it cannot.
    """
    if initializer.needs_data and prepared.loss is None:
        raise ValueError(f"initializer {initializer.name!r} needs data, and is given no loss")
    frozen = sorted(prepared.frozen) if initializer.needs_unfrozen else []
    if frozen:
        raise ValueError(
            f"initializer {initializer.name!r} changes values that exist, and those of "
            f"{', '.join(map(repr, frozen[:5]))} are frozen or would be: grow with freeze=False, "
            f"after model.unfreeze() where generations are closed"
        )
    for group, units in prepared.edit.growth.items():
        if units % initializer.divides:
            nodes = prepared.graph.sized()
            names = [n.name for n in nodes if prepared.graph.multiplicity(n.outs, group)]
            raise ValueError(
                f"initializer {initializer.name!r} adds units by multiples of "
                f"{initializer.divides}, and {' and '.join(map(repr, names[:5])) or 'the input'} "
                f"would gain {units}"
            )


def _existing(prepared: PreparedEdit) -> Iterator[tuple[str, Tensor]]:
    """The tensors that the layers of an edit have without it, by unique names."""
    for path, layer in prepared.layers.items():
        for index, block in enumerate(layer.existing):
            for name, tensor in chain(block.named_parameters(), block.named_buffers()):
                yield f"{path}.{index}.{name}", tensor


def _versions(prepared: PreparedEdit) -> dict[str, int]:
    """The version counters of existing tensors; tensors of inference mode have none."""
    return {
        name: 0 if tensor.is_inference() else tensor._version  # noqa: SLF001
        for name, tensor in _existing(prepared)
    }


@torch.no_grad()
def _put_back(tensor: Tensor, value: Tensor) -> None:
    tensor.copy_(value)


def quiet_added_(layers: Mapping[str, PreparedLayer], undo: Undo) -> None:
    """Makes added blocks change nothing: gives them the same values as `Zero`."""
    for layer in layers.values():
        for block in layer.added.values():
            for parameter in block.parameters():
                undo.on_failure(partial(_put_back, parameter, parameter.detach().clone()))
        set_start_values_(layer)

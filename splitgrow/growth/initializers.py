"""The first values of new units: one class for each method; each gets a whole prepared edit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from splitgrow.growth.prepared import PreparedEdit, PreparedLayer
from splitgrow.layers.types import Along, layer_type_of_class
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
    """

    name: str
    exact: bool = True
    needs_data: bool = False
    needs_unfrozen: bool = False
    divides: int = 1

    @abstractmethod
    def apply(self, prepared: PreparedEdit) -> None:
        """Gives the blocks that an edit adds their values."""

    def __repr__(self) -> str:
        return repr(self.name)


class Zero(Initializer):
    """Helpers zero, new units as torch initialises a layer of their shape.

    The old outputs are unchanged, since helpers add nothing yet. Helpers learn from the first step
    and new units from the second; if both were zero, neither would ever learn. Where units must be
    silent at birth, they are zero, and helpers that read them are not.
    """

    name = "zero"

    def apply(self, prepared: PreparedEdit) -> None:
        """Sets the helpers to zero, and units that must be silent."""
        for layer in prepared.layers.values():
            for purpose, block in layer.added.items():
                quiet_(block, purpose, layer)


class Stirred(Zero):
    """Helpers zero, and new units with random values also in biases and norms, for trials.

    Where units must be silent at birth they are as `Zero` has them.
    """

    name = "stirred"

    def apply(self, prepared: PreparedEdit) -> None:
        """Sets the helpers to zero, and gives norms of new units values that show in a trial."""
        super().apply(prepared)
        for layer in prepared.layers.values():
            block = layer.added.get("new")
            if block is None or any(layer.silent("new")):
                continue
            for name, tensor in (*block.named_parameters(), *block.named_buffers()):
                if not tensor.is_floating_point():
                    continue
                if name == "running_var" or (name == "weight" and tensor.dim() == 1):
                    tensor.uniform_(0.5, 1.5)
                elif tensor.dim() == 1:
                    tensor.normal_(std=0.3)


def quiet_(block: nn.Module, purpose: str, prepared: PreparedLayer) -> None:
    """Sets to zero the values that would change the outputs: helpers', and silent units'.

    Args:
        block: The block.
        purpose: The block's role: "new" or "helper".
        prepared: The layer that it is added to.
    """
    layer = layer_type_of_class(type(block))
    assert layer is not None, type(block)
    helper = purpose == "helper"
    chosen = {s: [flag != helper for flag in prepared.silent_on(s)] for s in ("in", "out")}
    with torch.no_grad():
        for name, axes in layer.tensors(block).items():
            tensor = getattr(block, name)
            if not isinstance(tensor, nn.Parameter):
                continue
            if not helper and layer.diagonal(block) and name != "bias":
                continue  # it maps zeros to zeros with any weight
            added = {dim: along for dim, along in axes.items() if along.reads == helper}
            # A helper may have the form of a depthwise convolution, whose weight has no such one.
            sides = {along.side for along in added.values()} or {"in" if helper else "out"}
            if all(all(chosen[side]) for side in sides):
                tensor.zero_()
                continue
            for dim, along in added.items():
                _zero_channels(tensor, dim, along, chosen[along.side])


def _zero_channels(tensor: nn.Parameter, dim: int, along: Along, chosen: Sequence[bool]) -> None:
    """Sets the slices of the chosen channels to zero in a tensor."""
    if any(chosen):
        mask = torch.tensor(chosen, device=tensor.device)
        # The tensor has one of several equal sections, for all of them.
        section = mask.reshape(along.sections, -1).any(0).repeat(along.copies)
        tensor.index_fill_(dim, section.nonzero().flatten(), 0)


_INITIALIZERS: dict[str, Initializer] = {each.name: each for each in (Zero(),)}


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
    """Makes added blocks change nothing: sets to zero the same values as `Zero`."""
    for layer in layers.values():
        for purpose, block in layer.added.items():
            for parameter in block.parameters():
                undo.on_failure(partial(_put_back, parameter, parameter.detach().clone()))
            quiet_(block, purpose, layer)

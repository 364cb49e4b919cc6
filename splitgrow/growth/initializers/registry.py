"""Initializers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from splitgrow.growth.initializers.drawn_units import CopyStatistics, Kaiming, Orthogonal
from splitgrow.growth.initializers.gradient import Gradient, GradMax
from splitgrow.growth.initializers.initializer import BLOCKS, DIFFER_FROM, Initializer
from splitgrow.growth.initializers.natural import Fisher, Tiny
from splitgrow.growth.initializers.net2net import Net2Net
from splitgrow.growth.initializers.pairs import Pair
from splitgrow.growth.initializers.silent_helpers import Average, Duplicate, Zero
from splitgrow.growth.initializers.variance_transfer import VarianceTransfer
from splitgrow.layers.types import WAYS
from splitgrow.utils.closest_names import did_you_mean

_INITIALIZERS: dict[str, Initializer] = {
    each.name: each
    for each in (
        Zero(),
        Kaiming(),
        Orthogonal(),
        CopyStatistics(),
        Pair(),
        Net2Net(),
        Average(),
        Duplicate(),
        VarianceTransfer(),
        Gradient(),
        GradMax(),
        Tiny(),
        Fisher(),
    )
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
        >>> class Sparse(splitgrow.Initializer):
        ...     name = "sparse"
        ...     def apply(self, prepared):
        ...         for layer in prepared.layers.values():
        ...             for purpose, block in layer.added.items():
        ...                 if purpose == "helper":
        ...                     torch.nn.init.zeros_(block.weight)
        ...                 elif block.weight.dim() == 2:
        ...                     torch.nn.init.sparse_(block.weight, sparsity=0.5)
        >>> splitgrow.register_initializer(Sparse())
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))
        >>> net.expand_layer("0", 2, initializer="sparse").initializer
        'sparse'
    """
    _check(initializer)
    if initializer.name in _INITIALIZERS:
        raise ValueError(f"there is an initializer {initializer.name!r} already")
    _INITIALIZERS[initializer.name] = initializer


def initializers() -> Mapping[str, Initializer]:
    """The initializers that growth accepts by name, each with its contract.

    Returns:
        A mapping of names to initializers, that cannot be written to.

    Example:
        >>> import splitgrow
        >>> [name for name, each in splitgrow.initializers().items() if each.needs_unfrozen]
        ['net2net', 'variance_transfer']
        >>> splitgrow.initializers()["pair"].contract["units"]
        'multiples of 2'
    """
    return MappingProxyType(_INITIALIZERS)


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
        hint = did_you_mean(given, _INITIALIZERS, "choose one of the names below")
        raise ValueError(f"no initializer is called {given!r}: {hint} The names are {_known()}")
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
    name = getattr(given, "name", None)
    if not isinstance(name, str) or not name:
        raise TypeError(f"{type(given).__name__}.name must be a text, got {name!r}")
    for attribute, (wanted, fits) in _CLAIMS.items():
        value = getattr(given, attribute)
        if not fits(value):
            raise TypeError(f"{name}.{attribute} must be {wanted}, got {value!r}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_blocks(value: object) -> bool:
    return isinstance(value, frozenset) and value <= BLOCKS


_BOOL: tuple[str, Callable[[object], bool]] = "a bool", lambda value: isinstance(value, bool)
_CLAIMS: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "exact": _BOOL,
    "needs_data": _BOOL,
    "needs_unfrozen": _BOOL,
    "keeps_variance": _BOOL,
    "held_out": ("a function or None", lambda value: value is None or callable(value)),
    "divides": ("an int of at least 1", _is_whole),
    "way": (f"{', '.join(map(repr, WAYS))} or None", lambda value: value is None or value in WAYS),
    "first_gradients": ("a frozenset of 'new' and 'helper'", _are_blocks),
    "differ_from": (
        f"one of {', '.join(map(repr, DIFFER_FROM))}",
        lambda value: value in DIFFER_FROM,
    ),
}
"""For each claim the values that it may have, in words and as a test."""

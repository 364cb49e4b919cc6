"""Initializers by name."""

from __future__ import annotations

from splitgrow.growth.initializers.initializer import Initializer
from splitgrow.growth.initializers.silent_helpers import Average, Duplicate, Zero

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

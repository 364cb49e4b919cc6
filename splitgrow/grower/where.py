"""Where a model grows: the layers that a policy may grow, and those that it chooses each time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, cast

from torch import nn

from splitgrow.grower.candidates import Selection, closest_names, layer_named
from splitgrow.growth.layer_list import Layer

LayerChoice = str | int | Callable[[Layer], object]
"""A layer's name or index, a pattern of names as for files, or a predicate of layers."""


class Where:
    """Where a model grows. Subclass it for a rule of your own.

    Attributes:
        chooses: Whether it chooses among the layers at each growth; the widths of the plan are
            then the largest that there can be.
    """

    chooses: bool = False

    def selection(self, layers: Sequence[Layer]) -> Selection:
        """The layers that may grow at all; asked once, before training.

        Args:
            layers: The model's layers.
        """
        del layers
        return Selection()

    def choose(self, model: nn.Module, names: Sequence[str]) -> Iterable[str]:
        """The layers that grow this time.

        Args:
            model: The growable model as it is now.
            names: The layers that may grow, one for each group of layers tied to each other.

        Returns:
            Names of layers; others tied to these grow along.
        """
        del model
        return names


class All(Where):
    """All layers that can grow, but not the model's outputs unless they are named.

    Args:
        only: The layers that may grow: names, indices, patterns such as ``"layers.*.mlp.*"``, or
            predicates of a `splitgrow.Layer`. By default all. Layers tied to them grow along.
        except_: The layers that keep their widths, and with them those that are tied to them.

    Raises:
        TypeError: If a layer is given in another form. With the model: `ValueError` if nothing has
            a name or fits a pattern.

    Example:
        >>> import torch, splitgrow
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))
        >>> splitgrow.Factor(2.0).request(net)
        {'0': 4}
        >>> splitgrow.Factor(2.0).request(net, where=splitgrow.All(only=["0", "2"]))
        {'0': 4, '2': 1}
    """

    def __init__(
        self,
        only: LayerChoice | Iterable[LayerChoice] | None = None,
        *,
        except_: LayerChoice | Iterable[LayerChoice] = (),
    ) -> None:
        self.only = None if only is None else _choices("only", only)
        self.except_ = _choices("except_", except_)

    def selection(self, layers: Sequence[Layer]) -> Selection:
        """The layers that may grow at all.

        Raises:
            ValueError: If no layer has a name, or fits a pattern or a predicate.
        """
        kept = frozenset[str]().union(*(_matching(each, layers) for each in self.except_))
        if self.only is None:
            return Selection(kept=kept)
        names = frozenset[str]().union(*(_matching(each, layers) for each in self.only))
        own = [each for each in self.only if not callable(each) and not _is_pattern(each, layers)]
        return Selection(names, frozenset().union(*(_matching(e, layers) for e in own)), kept)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._words())})"

    def _words(self) -> list[str]:
        only = [] if self.only is None else [f"only={_in_words(self.only)}"]
        return only + ([f"except_={_in_words(self.except_)}"] if self.except_ else [])


class Score(All):
    """The share of the layers that a score puts first, chosen anew at each growth.

    A layer that is chosen gets the width that the plan has for this growth. One that never is keeps
    its own. So the sizes of the plan are upper bounds.

    Args:
        score: The name of a score of `splitgrow.scores`, or a function of the growable model that
            returns a number for each layer by name: the higher, the sooner it grows. Layers tied to
            each other count by the highest.
        loss: For a named score: called as ``loss(model, batch)``, gives the loss as a tensor of one
            number.
        batches: For a named score: the batches that it looks at.
        share: The share of the layers that grow each time, at least one.
        only: As in `splitgrow.All`.
        except_: As in `splitgrow.All`.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If `share` is not between 0 and 1, or a named score has no loss or batches.

    Example:
        >>> import torch, splitgrow
        >>> net = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
        >>> net = splitgrow.growable(net, torch.ones(1, 4))
        >>> where = splitgrow.Score(lambda model: {"0": 0.5, "1": 2.0}, share=0.5)
        >>> grower = splitgrow.Grower(
        ...     net, None, when=splitgrow.Every(1), where=where, steps=1, absorb=False
        ... )
        >>> grower.step().request
        mappingproxy({'1': 4})
    """

    chooses = True

    def __init__(
        self,
        score: str | Callable[[nn.Module], Mapping[str, float]] = "gain",
        *,
        loss: Callable[..., Any] | None = None,
        batches: Iterable[Any] | None = None,
        share: float = 0.5,
        only: LayerChoice | Iterable[LayerChoice] | None = None,
        except_: LayerChoice | Iterable[LayerChoice] = (),
    ) -> None:
        super().__init__(only, except_=except_)
        if not isinstance(score, str) and not callable(score):
            raise TypeError(f"score is a name or a function of the model, got {score!r}")
        if isinstance(share, bool) or not isinstance(share, (int, float)):
            raise TypeError(f"share must be a number, got {share!r}")
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share!r}")
        if isinstance(score, str) and (loss is None or batches is None):
            raise ValueError(f"score={score!r} needs `loss` and `batches`")
        self.score, self.loss, self.share = score, loss, float(share)
        self.batches = tuple(batches) if isinstance(batches, Iterator) else batches

    def choose(self, model: nn.Module, names: Sequence[str]) -> Iterable[str]:
        """The layers with the highest scores.

        Raises:
            ValueError: If a score is not a number, or none of the layers has one.
        """
        scores = self._scores(model)
        layers = {layer.name: layer for layer in cast("Any", model).layers}
        unknown = [name for name in scores if name not in layers]
        if unknown:
            hint = closest_names(unknown[0], list(layers.values()))
            raise ValueError(
                f"the score has a number for {unknown[0]!r}, which is no layer; {hint}"
            )
        odd = [name for name, value in scores.items() if math.isnan(value)]
        if odd:
            raise ValueError(f"the score of {odd[0]!r} is not a number")
        best = {
            name: max((scores[n] for n in (name, *layers[name].group) if n in scores), default=None)
            for name in names
        }
        scored = [name for name, value in best.items() if value is not None]
        if not scored:
            raise ValueError(f"the score has no number for any of {', '.join(names[:5])}")
        scored.sort(key=lambda name: -cast("float", best[name]))  # equal ones keep their order
        return scored[: max(1, round(self.share * len(names)))]

    def _scores(self, model: nn.Module) -> dict[str, float]:
        if callable(self.score):
            return {str(name): float(value) for name, value in self.score(model).items()}
        from splitgrow.scores import rank  # noqa: PLC0415 - loaded only if it is wanted

        assert self.loss is not None
        assert self.batches is not None
        ranking = rank(model, self.loss, self.batches, score=self.score)
        # Of some scores the lowest is the best; the order of the ranking holds for all.
        return {row.layer: -float(place) for place, row in enumerate(ranking)}

    def _words(self) -> list[str]:
        name = self.score if isinstance(self.score, str) else _name_of(self.score)
        return [f"score={name!r}", f"share={self.share:g}", *super()._words()]


def _choices(argument: str, given: LayerChoice | Iterable[LayerChoice]) -> tuple[LayerChoice, ...]:
    """Choices of layers, as a tuple.

    Raises:
        TypeError: If one is of another type.
    """
    single = isinstance(given, (str, int)) or callable(given)
    found = (given,) if single else tuple(given) if isinstance(given, Iterable) else (given,)
    for each in found:
        if isinstance(each, bool) or not (isinstance(each, (str, int)) or callable(each)):
            raise TypeError(
                f"{argument} holds names, indices or predicates of layers, got {each!r}"
            )
    return cast("tuple[LayerChoice, ...]", found)


def _is_pattern(choice: LayerChoice, layers: Sequence[Layer]) -> bool:
    return (
        isinstance(choice, str)
        and any(sign in choice for sign in "*?[")
        and all(layer.name != choice for layer in layers)
    )


def _matching(choice: LayerChoice, layers: Sequence[Layer]) -> frozenset[str]:
    """The names of the layers that a choice means.

    Raises:
        ValueError: If it means none.
    """
    test: Callable[[Layer], object]
    if callable(choice):
        test, told = choice, f"no layer fits the predicate {_name_of(choice)}"
    elif isinstance(choice, str) and _is_pattern(choice, layers):
        test = partial(_fits_pattern, choice)
        told = f"no layer fits {choice!r}; {closest_names(choice.strip('*?.'), layers)}"
    else:
        return frozenset({layer_named(choice, layers).name})
    found = frozenset(layer.name for layer in layers if test(layer))
    if not found:
        raise ValueError(told)
    return found


def _fits_pattern(pattern: str, layer: Layer) -> bool:
    return fnmatchcase(layer.name, pattern)


def _in_words(choices: Iterable[LayerChoice]) -> str:
    words = [_name_of(each) if callable(each) else repr(each) for each in choices]
    return f"[{', '.join(words)}]"


def _name_of(function: Callable[..., object]) -> str:
    return getattr(function, "__qualname__", type(function).__name__)

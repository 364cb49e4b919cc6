"""The two libraries behind one face: make a network, and grow it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import splitgrow
from benchmarks.learning.rivals.gromo_growth import WAYS, Way, grow, moved
from benchmarks.learning.rivals.gromo_networks import copy_, made, of_gromo
from benchmarks.learning.rivals.grounds import GROUNDS, Ground
from benchmarks.learning.tasks import Batch, loss_of

MEASURED = {"gradient", "gradmax", "tiny", "fisher"}
"""splitgrow's initializers that need data."""


class Splitgrow:
    """splitgrow grows the plain network.

    Args:
        ground: The network.
        way: The initializer.
        hidden: The hidden widths at the start.
        state: Whether the optimizer's state is "kept", or the optimizer is "fresh".
    """

    def __init__(self, ground: Ground, way: str, hidden: Sequence[int], state: str) -> None:
        self.way, self.state, self.measured = way, state, way in MEASURED
        plain = ground.make(hidden)
        self.names = _growing(plain, ground.make([width + 2 for width in hidden]))
        example = torch.randn(2, *picture(ground), generator=torch.Generator().manual_seed(0))
        self.model: Any = splitgrow.growable(plain, example)

    def grow(
        self, hidden: Sequence[int], optimizer: torch.optim.AdamW, samples: Sequence[Batch]
    ) -> torch.optim.AdamW:
        """Grows to given hidden widths, and gives the optimizer to go on with."""
        now = {layer.name: layer.width for layer in self.model.layers}
        batch = torch.cat([x for x, _ in samples]), torch.cat([y for _, y in samples])
        self.model.expand(
            {name: b - now[name] for name, b in zip(self.names, hidden, strict=True)},
            freeze=False,
            optimizer=optimizer,
            initializer=self.way,
            loss=(lambda: loss_of(self.model, batch)) if self.measured else None,
            check=False,
        )
        self.model.absorb(optimizer=optimizer, check=False)
        return optimizer if self.state == "kept" else _new(optimizer, self.model)


class Gromo:
    """gromo grows the same network of its containers.

    Args:
        ground: The network.
        way: The name of the way.
        hidden: The hidden widths at the start.
        state: Whether the optimizer's state is "moved" by hand, or the optimizer is "fresh".
    """

    def __init__(self, ground: Ground, way: str, hidden: Sequence[int], state: str) -> None:
        self.ground, self.way, self.state = ground, WAYS[way], state
        self.measured = self.way.measured
        plain = ground.make(hidden)
        self.model = self._made(hidden)
        copy_(plain, self.model)

    def _made(self, hidden: Sequence[int]) -> Any:
        way: Way = self.way
        relu = of_gromo("utils.utils").ReLUDerivativeOneAtZero() if way.slope else nn.ReLU()
        drawn = torch.get_rng_state()
        model = made(self.ground.name, hidden, convolution=way.convolution, relu=relu)
        torch.set_rng_state(drawn)
        return model

    def grow(
        self, hidden: Sequence[int], optimizer: torch.optim.AdamW, samples: Sequence[Batch]
    ) -> torch.optim.AdamW:
        """Grows to given hidden widths, and gives the optimizer to go on with."""
        before = dict(self.model.named_parameters())
        grow(self.model, hidden, self.way, samples)
        if self.measured and self.ground.name == "vgg":
            # A second growth of gromo's VGG by statistics fails: it expects other shapes for
            # convolutions with a bias that have grown. A container made anew has the right ones.
            grown, self.model = self.model, self._made(hidden)
            copy_(grown, self.model)
        if self.state == "moved":
            return moved(optimizer, before, self.model)
        return _new(optimizer, self.model)


def contender(library: str, ground: Ground, way: str, hidden: Sequence[int], state: str) -> Any:
    """The network of a library, with weights that are the same for both."""
    if library == "gromo":
        return Gromo(ground, way, hidden, state)
    return Splitgrow(ground, way, hidden, state)


def _new(optimizer: torch.optim.AdamW, model: nn.Module) -> torch.optim.AdamW:
    rate = optimizer.param_groups[0]["lr"]
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)


def _growing(one: nn.Module, other: nn.Module) -> list[str]:
    """The layers whose widths differ, in order."""
    kinds = (nn.Linear, nn.Conv2d)
    pairs = zip(one.named_modules(), other.modules(), strict=True)
    return [n for (n, a), b in pairs if isinstance(a, kinds) and len(a.weight) != len(b.weight)]  # type: ignore[arg-type]


def picture(ground: Ground) -> tuple[int, int, int]:
    """The shape of a picture."""
    return (1, 32, 32) if ground.name == "mlp" else (3, 16, 16)


@cache
def statistics_cost(library: str, name: str, way: str, number: int, samples: int) -> float:
    """The multiply-adds of a growth, in billions, counted by torch on a network made for it.

    Args:
        library: The library.
        name: The ground's name.
        way: How new units start.
        number: The number of the growth, from 0 to 2.
        samples: The number of samples for statistics.
    """
    ground = GROUNDS[name]
    widths = [ground.start, *ground.stages(3)]
    drawn = torch.get_rng_state()
    own = contender(library, ground, way, widths[number], "fresh")
    batches = [
        (torch.randn(len(part), *picture(ground)), torch.zeros(len(part), dtype=torch.long))
        for part in torch.zeros(samples).split(128)  # type: ignore[no-untyped-call]
    ]
    found = 0.0
    if own.measured:
        with FlopCounterMode(display=False) as counter:
            own.grow(widths[number + 1], torch.optim.AdamW(own.model.parameters()), batches)
        found = counter.get_total_flops() / 2e9
    torch.set_rng_state(drawn)
    return found

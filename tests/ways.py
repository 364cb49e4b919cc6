"""Two ways of the literature to give new units values, written as a user would write them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from splitgrow.analysis.units import Unit, values_like
from splitgrow.growth.initializers import Initializer
from splitgrow.growth.prepared import PreparedEdit
from splitgrow.utils.spans import laid_along


class Net2Net(Initializer):
    """New units are copies of old ones, and what reads a unit is shared out among its copies.

    Chen et al. 2016, https://arxiv.org/abs/1511.05641. The shares differ, so that copies part.
    """

    name = "net2net"
    needs_unfrozen = True

    def apply(self, prepared: PreparedEdit) -> None:
        likes, shares = self.chosen(prepared)
        for name, layer in prepared.layers.items():
            for key, places in prepared.places(name).items():
                whole, dim = layer.value(key), layer.reading_dim(key)
                if whole is None:
                    continue
                whole = values_like(whole, places, lambda unit: likes.get(unit, unit))
                if dim is not None:
                    share = torch.tensor([shares.get(u, 1.0) for u, _ in places[dim]]).double()
                    whole = whole * laid_along(share, dim, whole.dim())
                layer.fill_(key, whole)

    @staticmethod
    def chosen(prepared: PreparedEdit) -> tuple[dict[Unit, Unit], dict[Unit, float]]:
        """Of each new unit the old one that it copies; unequal shares of a unit and its copies."""
        likes = {}
        for group, new in prepared.units.items():
            for unit in new:
                old = torch.randint(new[0].nth, (), generator=prepared.generator)
                likes[unit] = Unit(group, int(old))
        shares = {}
        for old in {*likes.values()}:
            copies = [old, *(unit for unit, like in likes.items() if like == old)]
            # Powers of two, so that they add up to one without rounding.
            parts = [2.0 ** -(n + 1) for n in range(len(copies) - 1)]
            shares.update(zip(copies, (*parts, 1 - sum(parts)), strict=True))
        return likes, shares


def pair() -> Initializer:
    """The one that the page on growing shows."""
    page = (Path(__file__).parent.parent / "docs" / "growing.md").read_text()
    (example,) = re.findall(r"```python\n([^`]*?class Pair.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    made: Initializer = names["Pair"]()
    return made


PAIR = pair()

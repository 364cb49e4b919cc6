"""Ranking the layers of a model by a score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn

from splitgrow.errors import UnsupportedModelError
from splitgrow.growth.history import History, check_structure
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.planning import find_node, make_plan
from splitgrow.growth.prepared import prepare
from splitgrow.scores.activations import covariances, dead_share, rank_share
from splitgrow.scores.measures import MEASURES, Measured
from splitgrow.scores.picture import draw_bars
from splitgrow.utils.model_lock import change_alone
from splitgrow.utils.preserve import copy_buffers_
from splitgrow.utils.rollback import Undo
from splitgrow.utils.text_tables import Rows, Tabular
from splitgrow.utils.wrappers import is_sharded

_Batch = TypeVar("_Batch")


@dataclass(frozen=True)
class LayerScore:
    """The score of a layer, and of those that are tied to it.

    Attributes:
        layer: Its name.
        group: The other layers whose width grows with it.
        width: Its number of units.
        score: The score.
    """

    layer: str
    group: tuple[str, ...]
    width: int
    score: float


@dataclass(frozen=True, repr=False)
class Ranking(Tabular, Sequence[LayerScore]):
    """The layers of a model by a score, those first that want most to grow.

    Attributes:
        name: The name of the score.
        rows: The layers with their scores.
        skipped: The layers that could grow and have no score, with the reasons.
        passes: The forward and the backward passes that it took for each batch.
    """

    name: str
    rows: tuple[LayerScore, ...]
    skipped: Mapping[str, str] = field(default_factory=dict, hash=False)
    passes: tuple[int, int] = (0, 0)

    @overload
    def __getitem__(self, index: int) -> LayerScore: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[LayerScore, ...]: ...
    def __getitem__(self, index: int | slice) -> LayerScore | tuple[LayerScore, ...]:
        """The layers at these ranks."""
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[LayerScore]:
        return iter(self.rows)

    def of(self, layer: str) -> float:
        """The score of a layer.

        Raises:
            KeyError: If it has none; the message says why.
        """
        for row in self.rows:
            if layer == row.layer or layer in row.group:
                return row.score
        raise KeyError(f"{layer!r} has no score: {self.skipped.get(layer, 'no such layer')}")

    def _head(self) -> str:
        forwards, backwards = self.passes
        head = f"{self.name}: {MEASURES[self.name].says}"
        return f"{head}\n{forwards} forward and {backwards} backward passes for each batch"

    def _rows(self) -> Rows:
        table: list[tuple[str, ...]] = [("layer", "units", "score", "grows with")]
        for row in self.rows:
            others = ", ".join(row.group[:3]) + (", ..." if len(row.group) > 3 else "")
            table.append((row.layer, f"{row.width}", f"{row.score:.3g}", others))
        return table

    def _notes(self) -> list[str]:
        return [f"{name} has no score: {why}" for name, why in self.skipped.items()]

    def draw(self, path: str | Path) -> Path:
        """Draws the scores as bars, the layers from the top in the order of the rank.

        Args:
            path: The file to write; its suffix chooses the format.

        Returns:
            The path.

        Raises:
            ModuleNotFoundError: If matplotlib is missing; the message says how to get it.
        """
        title = f"{self.name}: {MEASURES[self.name].says}"
        return draw_bars([(row.layer, row.score) for row in self.rows], title, path)


def rank(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    *,
    score: str = "gain",
    units: int | None = None,
    layers: Iterable[int | str] | None = None,
) -> Ranking:
    """Ranks the layers of a growable model by how much they want to grow.

    The model stays as it is: weights, buffers, gradients, optimizer, random numbers. For "gain",
    "natural" and "gradient" all layers get new units for a moment, with helpers at zero, so that no
    output changes; the cost does not depend on the number of layers. Whether a score predicts the
    gain that training then brings has not been shown: ``benchmarks.learning.where`` measures it.

    Args:
        model: A growable model. Its mode, training or evaluation, stays.
        loss: Called as ``loss(model, batch)``, gives the loss as a tensor of one number.
        batches: Some batches, a few hundred samples together. They are held at the same time, with
            the graph of all of them; give few.
        score: "gain": the decrease of the loss that the best new units promise to first order
            (TINY, Verbockhaven et al. 2024, https://arxiv.org/abs/2405.19816). "natural": the same
            in the metric of the Fisher information (SENN, Mitchell et al. 2023,
            https://arxiv.org/abs/2307.04526). "gradient": the squared gradient norm of the weights
            by which random new units would be read (GradMax). "rank": the effective rank of the
            units' values as a share of the width. "dead": the share of units that are the same for
            all inputs; those layers come last that have most.
        units: The number of new units of each group; None for a tenth of its width. Scores of
            "gain", "natural" and "gradient" are sums over them.
        layers: Only these layers, by index or name.

    Returns:
        The ranking: a sequence of rows with `layer` and `score`, which prints as a table.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If there is no such score or layer, or no batch, or the loss is not finite or
            does not depend on the model.
        UnsupportedModelError: If FSDP has sharded the model, and the score needs all of it.
        SplitGrowError: If the model is not growable, or has changed since it was analysed.

    Example:
        >>> import torch, splitgrow
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        ... )
        >>> net = splitgrow.growable(net, torch.ones(1, 4))
        >>> batch = torch.randn(32, 4), torch.randint(3, (32,))
        >>> def loss(model, batch):
        ...     return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> ranking = splitgrow.scores.rank(net, loss, [batch])
        >>> [row.layer for row in ranking]
        ['0']
    """
    history = history_of(model)
    if score not in MEASURES:
        raise ValueError(f"no score {score!r}; there are {', '.join(MEASURES)}")
    if units is not None and (isinstance(units, bool) or not isinstance(units, int)):
        raise TypeError(f"units must be an int, got {units!r}")
    if units is not None and units < 1:
        raise ValueError(f"units must be at least 1, got {units}")
    if MEASURES[score].of is not None and is_sharded(model):
        raise UnsupportedModelError(
            f"FSDP has sharded the model, of which no process has all; measure {score!r} inside "
            f"`with splitgrow.distributed.gathered(model) as whole`, as `splitgrow.Score` does"
        )
    if not callable(loss):
        raise TypeError(f"loss must be a function of the model and a batch, got {loss!r}")
    given = list(batches)
    if not given:
        raise ValueError("batches is empty: a score needs at least one batch")
    nodes = None if layers is None else {find_node(history.graph, each).name for each in layers}
    asked = _Asked(model, history, loss, given, units, nodes)

    return change_alone(model, history.model_lock, "score layers", asked.ranked, score)


@dataclass(frozen=True)
class _Asked:
    """The arguments of a ranking."""

    model: nn.Module
    history: History
    loss: Callable[[nn.Module, Any], Tensor]
    batches: list[Any]
    units: int | None
    only: set[str] | None

    def total(self) -> Tensor:
        """The mean loss over the batches.

        Raises:
            TypeError: If one is no tensor of one number.
        """
        losses = [self.loss(self.model, batch) for batch in self.batches]
        for found in losses:
            if not isinstance(found, Tensor) or found.numel() != 1:
                raise TypeError(f"loss must return a tensor of one number, got {found!r:.80}")
        return torch.stack([found.reshape(()) for found in losses]).mean()

    def groups(self) -> dict[int, list[str]]:
        """The groups that can grow, each with the layers that make its units."""
        graph, found = self.history.graph, dict[int, list[str]]()
        for node in graph.sized():
            if self.only is None or node.name in self.only:
                for group in graph.growing_groups(node.outs):
                    found.setdefault(group, []).append(node.name)
        return found

    def ranked(self, undo: Undo, score: str) -> Ranking:
        """The ranking by a score; all that it changes is taken back by the caller."""
        check_structure(self.model, self.history)
        measure, groups = MEASURES[score], self.groups()
        reasons: dict[int, str] = {}
        if measure.of is None:
            found = self._read(dead_share if score == "dead" else rank_share, groups, undo)
        else:
            growth = self._growth(groups, reasons)
            found = self._grown(measure.of, growth) if growth else Measured({}, 0, 0)
        reasons.update(found.reasons)
        undo.take_back()
        rows: dict[str, LayerScore] = {}
        skipped: dict[str, str] = {}
        for group, makers in groups.items():
            if group in found.by_group:
                self._add(rows, makers, found.by_group[group])
            else:
                why = reasons.get(group, "no layer with weights reads its units")
                skipped.update(dict.fromkeys(makers, why))
        ordered = sorted(rows.values(), key=lambda row: row.score, reverse=measure.most_first)
        left = {name: why for name, why in skipped.items() if name not in rows}
        passes = found.forwards, found.backwards
        return Ranking(score, tuple(ordered), left, passes)

    def _add(self, rows: dict[str, LayerScore], makers: Sequence[str], score: float) -> None:
        """Adds a group's score to the row of its first layer."""
        graph, first = self.history.graph, makers[0]
        node = graph.nodes[first]
        known = rows[first].score if first in rows else 0.0
        width = graph.groups.length(node.outs)
        rows[first] = LayerScore(first, tuple(graph.tied(node)), width, known + score)

    def _growth(self, groups: Iterable[int], reasons: dict[int, str]) -> dict[int, int]:
        """The new units of each group that may have any values."""
        graph, growth = self.history.graph, dict[int, int]()
        returned = graph.output_groups()
        for group in groups:
            if group in returned:
                reasons[group] = "the model returns its units"
            elif group in graph.ways:
                reasons[group] = "a norm over all its channels fixes the values of new units"
            else:
                step = graph.unit_step(group)
                wanted = self.units or math.ceil(graph.groups.width(group) / 10)
                growth[group] = math.ceil(wanted / step) * step
        return growth

    def _grown(self, measure: Callable[..., Measured], growth: Mapping[int, int]) -> Measured:
        history = self.history
        opened = history.next_edit(freeze=False)
        edit = make_plan(history.graph, history.modules, growth, history.edits, opened)
        torch.manual_seed(0)  # the caller restores the generators
        prepared = prepare(self.model, history.modules, edit, history.graph)
        with torch.inference_mode(mode=False), torch.no_grad():
            return measure(replace(prepared, loss=self.total))

    def _read(
        self, share: Callable[[Tensor], float], groups: Iterable[int], undo: Undo
    ) -> Measured:
        copy_buffers_(self.model.modules(), undo)
        with torch.no_grad():
            seen = covariances(undo, self.history, groups, self.total)
        numbers = {
            group: sum(map(share, found)) / len(found) for group, found in seen.items() if found
        }
        return Measured(numbers, 1, 0)

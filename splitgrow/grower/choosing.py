"""The next change of a policy: the units that layers gain, or the channels that go."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from splitgrow.grower.budget import Cycles
from splitgrow.grower.held_model import HeldModel
from splitgrow.grower.planned_growth import PlannedGrowth
from splitgrow.grower.scope import plan_growths
from splitgrow.grower.settings import GrowerSettings
from splitgrow.grower.to import To
from splitgrow.grower.trimming import units_beyond
from splitgrow.grower.where import Where
from splitgrow.growth.history_lookup import history_of
from splitgrow.pruning.shrinking.weakest import strengths, weakest_channels


@dataclass(frozen=True)
class Chooser:
    """Says how a model comes to the widths of a plan.

    Attributes:
        held: The model.
        to: How much it changes.
        where: Where it does.
        settings: The settings of the policy.
    """

    held: HeldModel
    to: To
    where: Where
    settings: GrowerSettings

    def widths(self) -> dict[str, int]:
        """The widths of the layers as they are."""
        return {layer.name: layer.width for layer in self.held.handle.layers}

    def gains(self, stage: PlannedGrowth) -> dict[str, int]:
        """The units that layers gain, by name: what the plan's widths lack.

        In cycles after the first, layers grow from the widths to which they were pruned.
        """
        now = self.widths()
        lacking = {name: width - now[name] for name, width in stage.targets.items()}
        if isinstance(self.to, Cycles) and stage.index > 1:
            fit = self.settings.fit
            (rung,) = plan_growths(self.held.model, self.to.growth, self.where, 1, fit).rungs
            lacking = dict(rung.request)
        if self.where.chooses:
            graph, names = self.held.history.graph, list(lacking)
            chosen = self.held.decided(lambda model: [*self.where.choose(model, names)])
            groups = {g for n in chosen for g in graph.growing_groups(graph.nodes[n].outs)}
            lacking = {
                name: units
                for name, units in lacking.items()
                if groups & {*graph.growing_groups(graph.nodes[name].outs)}
            }
        return {name: units for name, units in lacking.items() if units > 0}

    def surplus(self, stage: PlannedGrowth) -> dict[str, list[int]]:
        """The channels that go, by layer: the weakest of those that are beyond the plan's widths.

        In cycles they are the weakest of all layers together that are beyond the budget.
        """
        return self.held.decided(lambda model: self._surplus_of(model, stage))

    def _surplus_of(self, model: nn.Module, stage: PlannedGrowth) -> dict[str, list[int]]:
        history = history_of(model)
        graph = history.graph
        if isinstance(self.to, Cycles):
            fit = self.settings.fit
            candidates = plan_growths(model, self.to.growth, self.where, 1, fit).candidates
            groups = [group for own in candidates.groups.values() for group in own]
            scores = strengths(graph, history.modules, groups)
            return units_beyond(model, candidates, self.to.budget, scores, self.settings.round_to)
        now = self.widths()
        gone = {name: now[name] - width for name, width in stage.targets.items()}
        nodes = {name: graph.nodes[name] for name, units in gone.items() if units > 0}
        groups = [g for node in nodes.values() for g in graph.growing_groups(node.outs)]
        scores = strengths(graph, history.modules, groups)
        return {
            name: weakest_channels(graph, history.modules, node, gone[name], scores=scores)
            for name, node in nodes.items()
        }

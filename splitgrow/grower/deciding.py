"""The next change of a policy: the units that layers gain, or the channels that go."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import nn

from splitgrow.grower.budget import Cycles
from splitgrow.grower.held_model import HeldModel
from splitgrow.grower.planned_growth import PlannedGrowth
from splitgrow.grower.scope import plan_growths
from splitgrow.grower.settings import GrowerSettings
from splitgrow.grower.to import To
from splitgrow.grower.where import Where
from splitgrow.growth.history_lookup import history_of
from splitgrow.pruning.criteria.criterion import UnitsInView
from splitgrow.pruning.criteria.unit_parameters import ParametersOfUnits
from splitgrow.pruning.prune import PruneSettings, chosen_request, make_prune_plan, scores_in
from splitgrow.pruning.shrinking.weakest import weakest_channels
from splitgrow.pruning.target import Sizes
from splitgrow.utils.rollback import Undo


@dataclass(frozen=True)
class Decider:
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
        choose = self._beyond_budget if isinstance(self.to, Cycles) else self._beyond_widths
        return self.held.decided(partial(choose, stage))

    def _beyond_budget(self, _stage: PlannedGrowth, model: nn.Module) -> dict[str, list[int]]:
        assert isinstance(self.to, Cycles)
        own, history = self.settings, history_of(model)
        found = plan_growths(model, self.to.growth, self.where, 1, own.fit)
        settings = PruneSettings(
            own.units_to_go,
            layers=tuple(found.candidates.groups),
            loss=own.loss_on,
            batches=own.batches,
            round_to=own.round_to,
        )
        target = self.to.budget.target
        plan = make_prune_plan(Undo(), model, history, settings, None, target, 1)
        request = chosen_request(model, history, plan, 1, Sizes(model))
        return {str(n): list(own) for n, own in request.items() if not isinstance(own, int)}

    def _beyond_widths(self, stage: PlannedGrowth, model: nn.Module) -> dict[str, list[int]]:
        history, own, now = history_of(model), self.settings, self.widths()
        graph, modules = history.graph, history.modules
        gone = {name: now[name] - width for name, width in stage.targets.items()}
        nodes = {name: graph.nodes[name] for name, units in gone.items() if units > 0}
        units = ParametersOfUnits(
            graph, modules, {g: 0 for n in nodes.values() for g in graph.growing_groups(n.outs)}
        )
        view = UnitsInView(model, history, units, own.loss_on, own.batches)
        scores = scores_in(view, own.units_to_go)
        return {
            name: weakest_channels(graph, node, gone[name], scores) for name, node in nodes.items()
        }

"""Policies: where, when and how much a model grows and shrinks while it trains."""

from splitgrow.grower.budget import Budget, Cycles
from splitgrow.grower.grower import Grower
from splitgrow.grower.planned_growth import PlannedGrowth
from splitgrow.grower.schedule import Schedule
from splitgrow.grower.scope import Scope
from splitgrow.grower.to import Factor, To, ToWidths
from splitgrow.grower.when import ComputeShares, Every, Gap, Moment, Plateau, Progress, When
from splitgrow.grower.where import All, Score, Where

__all__ = [
    "All",
    "Budget",
    "ComputeShares",
    "Cycles",
    "Every",
    "Factor",
    "Gap",
    "Grower",
    "Moment",
    "PlannedGrowth",
    "Plateau",
    "Progress",
    "Schedule",
    "Scope",
    "Score",
    "To",
    "ToWidths",
    "When",
    "Where",
]

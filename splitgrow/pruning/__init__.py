"""Units taken out: asked for, chosen by a criterion, or dead."""

from splitgrow.pruning.criteria.activations import Activation, Reconstruction
from splitgrow.pruning.criteria.criterion import Criterion, UnitsInView
from splitgrow.pruning.criteria.gradients import FisherInformation, Taylor
from splitgrow.pruning.criteria.magnitudes import GroupNorm, Magnitude, Random, Scale
from splitgrow.pruning.criteria.registry import CRITERIA
from splitgrow.pruning.report import PruningReport, WidthChange, report

__all__ = [
    "CRITERIA",
    "Activation",
    "Criterion",
    "FisherInformation",
    "GroupNorm",
    "Magnitude",
    "PruningReport",
    "Random",
    "Reconstruction",
    "Scale",
    "Taylor",
    "UnitsInView",
    "WidthChange",
    "report",
]

"""Continual learning: one task after the other, on one network that grows, without forgetting."""

from splitgrow.continual.cpg import CPG
from splitgrow.continual.den import DEN
from splitgrow.continual.events import (
    Callback,
    EpochDone,
    Event,
    Grown,
    Judged,
    TaskLearned,
    TensorBoard,
)
from splitgrow.continual.ewc import EWC
from splitgrow.continual.finetuning import Finetuning
from splitgrow.continual.joint import Joint
from splitgrow.continual.learner import Learner
from splitgrow.continual.lwf import LwF
from splitgrow.continual.masked import MaskedLearner
from splitgrow.continual.masks import Picks
from splitgrow.continual.packandexpand import PackAndExpand
from splitgrow.continual.packnet import PackNet
from splitgrow.continual.piggyback import Piggyback
from splitgrow.continual.progressive import ProgressiveNetworks
from splitgrow.continual.pruning import GradualPruning
from splitgrow.continual.records import TaskRecord
from splitgrow.continual.reports import Report, TaskReport
from splitgrow.continual.separate import Separate
from splitgrow.continual.studies import Study
from splitgrow.continual.tasks import Data, Protocol, Task
from splitgrow.continual.training import Training

METHODS: dict[str, type[Learner]] = {
    learner.method: learner
    for learner in (
        CPG,
        PackAndExpand,
        PackNet,
        Piggyback,
        ProgressiveNetworks,
        DEN,
        Finetuning,
        EWC,
        LwF,
        Separate,
        Joint,
    )
}
"""The methods by name."""

__all__ = [
    "CPG",
    "DEN",
    "EWC",
    "METHODS",
    "Callback",
    "Data",
    "EpochDone",
    "Event",
    "Finetuning",
    "GradualPruning",
    "Grown",
    "Joint",
    "Judged",
    "Learner",
    "LwF",
    "MaskedLearner",
    "PackAndExpand",
    "PackNet",
    "Picks",
    "Piggyback",
    "ProgressiveNetworks",
    "Protocol",
    "Report",
    "Separate",
    "Study",
    "Task",
    "TaskLearned",
    "TaskRecord",
    "TaskReport",
    "TensorBoard",
    "Training",
]

"""The types that signatures name, for annotations of one's own."""

from __future__ import annotations

from splitgrow.analysis.ops.op import Op
from splitgrow.analysis.ops.registry import Rule
from splitgrow.continual.body import Body
from splitgrow.continual.studies import TaskView
from splitgrow.grower.candidates import Candidates
from splitgrow.grower.ladder import WidthRule
from splitgrow.grower.to import To
from splitgrow.grower.when import MetricMode, When
from splitgrow.grower.where import LayerChoice, Where
from splitgrow.growth.edit_parts import Insertions, JoinedBlocks, Removal
from splitgrow.growth.experts.mixtures import Mixture
from splitgrow.growth.history import History
from splitgrow.growth.insertion.request import After, AnyAfter
from splitgrow.growth.multiply_adds import MacsCounter
from splitgrow.growth.prepared import PreparedEdit
from splitgrow.growth.removing.record import LayerRemoval
from splitgrow.layers.execution import Mode
from splitgrow.layers.fade import FadeShape
from splitgrow.layers.types.layer_type import LayerType
from splitgrow.layers.types.tensor_layers import TensorUse
from splitgrow.progressive.ways import Maker, Stage
from splitgrow.pruning.choosing import PruneScope
from splitgrow.pruning.criteria.activations import Statistic
from splitgrow.pruning.criteria.criterion import Criterion
from splitgrow.pruning.criteria.unit_parameters import ParametersOfUnits
from splitgrow.utils.example_call import ExampleInputs
from splitgrow.utils.schedulers import SavedSchedulers, Scheduler, Schedulers, Stateful

__all__ = [
    "After",
    "AnyAfter",
    "Body",
    "Candidates",
    "Criterion",
    "ExampleInputs",
    "FadeShape",
    "History",
    "Insertions",
    "JoinedBlocks",
    "LayerChoice",
    "LayerRemoval",
    "LayerType",
    "MacsCounter",
    "Maker",
    "MetricMode",
    "Mixture",
    "Mode",
    "Op",
    "ParametersOfUnits",
    "PreparedEdit",
    "PruneScope",
    "Removal",
    "Rule",
    "SavedSchedulers",
    "Scheduler",
    "Schedulers",
    "Stage",
    "Stateful",
    "Statistic",
    "TaskView",
    "TensorUse",
    "To",
    "When",
    "Where",
    "WidthRule",
]

"""The channel graph knows which tensors a model returns, in each mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import splitgrow
from splitgrow.growth.history_lookup import history_of


class _Aside(nn.Module):
    """Returns its hidden units beside the answer, in one mode only."""

    def __init__(self, *, training: bool) -> None:
        super().__init__()
        self.stem, self.aside, self.head = nn.Linear(3, 8), nn.Linear(8, 4), nn.Linear(8, 2)
        self.when = training

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.stem(x).relu()
        both = self.head(h), self.aside(h)
        return both if self.training is self.when else both[:1]


@pytest.mark.parametrize("training", [False, True])
def test_the_outputs_are_those_of_evaluation_and_groups_those_of_both_modes(
    training: bool,
) -> None:
    model = splitgrow.growable(_Aside(training=training).double(), torch.randn(2, 3).double())
    graph = history_of(model).graph
    returned = model.eval()(torch.randn(2, 3).double())
    assert graph.output_shapes({}) == [tuple(tensor.shape) for tensor in returned]
    outputs = {name for group in graph.output_groups() for name in graph.makers(group)}
    assert outputs == {"aside", "head"}

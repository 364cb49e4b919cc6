"""Analyses of one run of a model in evaluation mode, for a single question."""

from __future__ import annotations

from torch import nn

from splitgrow.analysis.analyzer import Analysis
from splitgrow.analysis.channel_graph import ChannelGraph
from splitgrow.analysis.channels.channel_axes import Axis
from splitgrow.analysis.tracer import trace_model
from splitgrow.analysis.trial_runs import Trial
from splitgrow.utils.example_call import ExampleCall


def analyse_with_free_input(
    model: nn.Module, inputs: ExampleCall, name: str
) -> tuple[ChannelGraph, tuple[Axis, ...]]:
    """The channel graph of a model in which one of its inputs may become wider, too.

    Args:
        model: Any module. It is not changed.
        inputs: The example call.
        name: The name of one of forward's arguments, a tensor.

    Returns:
        The graph, and the axes of that input.
    """
    analysis = Analysis(model, free_input=name)
    analysis.run([trace_model(model, inputs, training=False)])
    return analysis.graph, analysis.free_axes


def run_in_evaluation(model: nn.Module, inputs: ExampleCall, known: ChannelGraph) -> Trial | None:
    """The run in evaluation mode of a model whose graph is known, with the results of the rules.

    None if forward asks for values, so that other inputs may lead to other ops.

    Raises:
        TraceError: If the model's forward cannot be followed.
        ValueError: If the model does not run on the inputs.
    """
    run = trace_model(model, inputs, training=False)
    if not run.fake:
        return None
    return Analysis(model, preferred=known.chosen).run([run]).tried([run])[0]

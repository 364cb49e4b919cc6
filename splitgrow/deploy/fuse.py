"""Fusing a grown model for deployment: plain layers, norms folded, checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from splitgrow.analysis.output_comparison import fitting, has_values
from splitgrow.deploy.deploy_check import held_against
from splitgrow.deploy.fx_edits import writes
from splitgrow.deploy.fx_tracer import MADE, trace_plain
from splitgrow.deploy.merge import merged
from splitgrow.deploy.own_class import fused_in_its_class
from splitgrow.deploy.passes import PASSES
from splitgrow.errors import FusionError, TraceError, UnsupportedModelError
from splitgrow.growth.history import History
from splitgrow.growth.history_lookup import history_of
from splitgrow.layers.hooks import carry_hooks_
from splitgrow.utils.example_call import ExampleCall
from splitgrow.utils.preserve import keep_modes_
from splitgrow.utils.rollback import Undo, temporarily


def fuse(model: nn.Module, *, generation: int | None = None, check: bool = True) -> Any:
    """The network for deployment, in evaluation mode: a torch.fx.GraphModule of stock layers.

    Grown layers are single layers again, and batch norms are folded into the layers before them.
    Dropouts are gone, and so are ops that return their input: gates that give one, residuals that
    add zero, layers that are identities. A `FadeIn` that is over keeps its new path only. Folding
    is done in float64. The model itself is untouched.

    A module with hooks stays whole, so that they run: nothing is folded into it or out of it. The
    same holds for a module whose tensors forward itself reads. The hooks of state_dicts are gone.

    It takes the arguments of forward that the example call gives, by place or by name. Forward may
    decide by None, flags, texts, and the lengths and keys of containers. So a call that has others
    than the example call is refused.

    If torch.fx cannot trace the model, because its forward decides by values or shapes, the result
    is `splitgrow.merge(model)` in evaluation mode, of the model's own class, with a warning that
    gives the reason. Batch norms are folded there too, and an nn.Identity takes their place, where
    both the run on the example inputs and the source of forward show that the norm alone reads the
    layer's output, at every call. Such a model is pickled whole: a new one of its class has norms,
    and refuses its state_dict, also with ``strict=False`` and by ``from_pretrained``.

    The result tells how it was made: ``fused.meta["way"]`` is "graph" or "own class". In the second
    case ``fused.meta["folded"]`` has the layer of each norm that was folded, by the norm's path,
    ``fused.meta["kept"]`` the reasons of the others, and ``fused.meta["reason"]`` why there is no
    graph. A model that has a ``meta`` of its own keeps that.

    Args:
        model: A growable model, grown or not.
        generation: The generation to recover; default: the network of today.
        check: Whether to run both on the example inputs and compare, where `splitgrow.merge` would.
            The largest difference, relative to the largest output, is then in
            ``fused.meta["largest_difference"]``.

    Raises:
        FusionError: If the outputs differ by more than rounding.
        MergeError: If it is merged instead, and the outputs differ by more than rounding.
        TypeError: If an argument is of another type.
        ValueError: If there is no such generation.
        GenerationError: If the generation is no longer exact because of `unfreeze`.
        UnsupportedModelError: As `splitgrow.merge` says, or if tensors lie on the meta device.
        SplitGrowError: If the model was never made growable.

    Example:
        >>> import torch, splitgrow
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
        >>> net = splitgrow.growable(net, torch.randn(1, 3, 8, 8))
        >>> edit = net.expand_layer("0", 4)
        >>> [type(layer).__name__ for layer in splitgrow.fuse(net).children()]
        ['Conv2d', 'Conv2d']
    """
    history = history_of(model)
    history.model_lock.refuse_if_shown("fuse")
    with history.model_lock.rlock:
        return _fused(model, history, generation, check=check)


@temporarily
def _fused(
    undo: Undo, model: nn.Module, history: History, generation: int | None, *, check: bool
) -> Any:
    keep_modes_(undo)
    plain = merged(model, history, generation, check=False, spread=False).eval()
    if not has_values(plain, ExampleCall()):
        raise UnsupportedModelError(
            "tensors on the meta device have no values that could be folded; splitgrow.merge makes "
            "such a model plain"
        )
    inputs = fitting(model, history.inputs_at(history.view_of(generation)))
    try:
        with torch.inference_mode(mode=False):  # so that folded weights can still be trained
            fused = _simplified(plain, inputs)
    except TraceError as error:
        return fused_in_its_class(model, history, generation, str(error), check=check)
    fused.meta["way"] = "graph"
    if check:
        verdict = held_against(model, history, generation, fused, "fuse")
        if verdict.fault:
            reason = _fault_of_trace(model, history, generation, verdict.fault)
            return fused_in_its_class(model, history, generation, reason, check=True)
        if verdict.compared:
            fused.meta["largest_difference"] = verdict.difference
    return fused


def _fault_of_trace(model: nn.Module, history: History, generation: int | None, fault: str) -> str:
    """The reason why no graph can be made, if torch.fx's trace itself computes something else.

    Python's own code may take a proxy for a number while torch.fx traces, and nothing raises.

    Raises:
        FusionError: If the trace is right, and the network made of it is not.
    """
    plain = merged(model, history, generation, check=False, spread=False).eval()
    inputs = fitting(model, history.inputs_at(history.view_of(generation)))
    traced = _traced(plain, inputs)
    if not held_against(model, history, generation, traced, "fuse").fault:
        raise FusionError(f"the fused network {fault}; please report this")
    return f"what torch.fx makes of its forward {fault}"


def _simplified(plain: nn.Module, inputs: ExampleCall) -> fx.GraphModule:
    """A plain model as a graph, after all passes."""
    fused = _traced(plain, inputs)
    carry_hooks_(plain, fused)
    _keep_out_of_state(plain, fused)
    for simplify in PASSES:
        simplify(fused)
    for node in fused.graph.nodes:
        node.meta.pop("example", None)
    fused.graph.lint()
    fused.delete_all_unused_submodules()
    fused.recompile()
    fused.eval()
    return fused


def _traced(plain: nn.Module, inputs: ExampleCall) -> fx.GraphModule:
    """A plain model as a graph, op by op.

    A tensor that forward makes at each call is a constant of the graph. If an op of the graph may
    write into its operand, each call gets a copy.
    """
    network = fx.GraphModule(plain, trace_plain(plain, inputs), class_name=type(plain).__name__)
    made: dict[str, list[fx.Node]] = {}
    for node in network.graph.find_nodes(op="get_attr"):
        if node.meta.get(MADE):
            made.setdefault(str(node.target), []).append(node)
    if made and any(writes(network, node) for node in network.graph.nodes):
        for first, *others in made.values():
            with network.graph.inserting_after(first):
                copy = network.graph.call_method("clone", (first,))
            copy.meta = {**first.meta, MADE: False}
            for node in (first, *others):
                node.replace_all_uses_with(copy)
            copy.args = (first,)  # which was replaced as well
        network.graph.eliminate_dead_code(lambda node: node.op != "get_attr")
        network.recompile()
    return network


def _keep_out_of_state(plain: nn.Module, fused: fx.GraphModule) -> None:
    """Leaves buffers that were not persistent out of the state_dict; torch.fx forgets which."""
    for node in fused.graph.find_nodes(op="get_attr"):
        owner, _, name = str(node.target).rpartition(".")
        if name in plain.get_submodule(owner)._non_persistent_buffers_set:  # noqa: SLF001
            fused.get_submodule(owner)._non_persistent_buffers_set.add(name)  # noqa: SLF001

"""Fusing a grown model for deployment: plain layers, norms folded, checked."""

from __future__ import annotations

import warnings
from typing import Any

from torch import fx, nn

from splitgrow.deployed import held_against
from splitgrow.errors import FusionError, TraceError
from splitgrow.handled import history_of
from splitgrow.history import History
from splitgrow.hooks import carry_hooks_
from splitgrow.merging import merged
from splitgrow.output_comparison import fitting
from splitgrow.passes import PASSES
from splitgrow.tracing import follow
from splitgrow.undisturbed import keep_modes_
from splitgrow.undo import Meanwhile


def fuse(model: nn.Module, *, generation: int | None = None, check: bool = True) -> Any:
    """The network for deployment: a torch.fx.GraphModule of stock layers, in evaluation mode.

    Grown layers are single layers again, batch norms are folded into the layers before them, and
    dropouts are gone, as is what computes its own input: gates that give one, residuals that add
    zero, layers that are identities. Of a `FadeIn` that is over, the new path is left. Folding is
    done in float64. The model itself is untouched.

    Where torch.fx cannot trace the model, because its forward decides by values or shapes, the
    answer is `splitgrow.merge(model)` in evaluation mode, with a warning that says what is in the
    way: grown layers are single layers there too, but norms are not folded.

    Args:
        model: A growable model, grown or not.
        generation: The generation to recover; default: the network of today.
        check: Whether to run both on the example inputs and compare. The largest difference,
            relative to the largest output, is then in ``fused.meta["largest_difference"]``.

    Raises:
        FusionError: If the outputs differ by more than rounding.
        TypeError: If an argument is of another type.
        ValueError: If there is no such generation.
        GenerationError: If the generation is no longer exact because of `unfreeze`.
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
    history.gate.refuse_if_shown("fuse")
    with history.gate.lock, Meanwhile() as meanwhile, meanwhile:
        keep_modes_(meanwhile)
        return _fused(model, history, generation, check=check)


def _fused(model: nn.Module, history: History, generation: int | None, *, check: bool) -> Any:
    plain = merged(model, history, generation, check=False).eval()
    inputs = fitting(model, history.inputs_at(history.view_of(generation)))
    try:
        graph = follow(plain, inputs)
    except TraceError as error:
        warnings.warn(f"the model is merged, not fused: {error}", stacklevel=3)
        return merged(model, history, generation, check=check).eval()
    fused = fx.GraphModule(plain, graph, class_name=type(model).__name__)
    carry_hooks_(plain, fused)
    for simplify in PASSES:
        simplify(fused)
    for node in fused.graph.nodes:
        node.meta.pop("example", None)
    fused.graph.lint()
    fused.delete_all_unused_submodules()
    fused.recompile()
    fused.eval()
    if check:
        verdict = held_against(model, history, generation, fused, "fuse")
        if verdict.fault:
            raise FusionError(f"the fused network {verdict.fault}; please report this")
        if verdict.compared:
            fused.meta["largest_difference"] = verdict.difference
    return fused

"""Fusing a grown model for deployment: plain layers, norms folded, checked."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from splitgrow.errors import FusionError, TraceError
from splitgrow.gate import close_
from splitgrow.handled import history_of
from splitgrow.history import History, view_
from splitgrow.merging import merge
from splitgrow.passes import PASSES
from splitgrow.tracing import follow
from splitgrow.undisturbed import keep_modes_, keep_surroundings_
from splitgrow.undo import Meanwhile, Undo

_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}
_COARSE = 5e-2  # half precision
"""Above these a fusion is wrong; below, it is the rounding of its dtype through a deep network."""


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
    plain = merge(model, generation).eval()
    inputs = _fitting(model, history.inputs_at(history.view_of(generation)))
    try:
        graph = follow(plain, inputs)
    except TraceError as error:
        warnings.warn(f"the model is merged, not fused: {error}", stacklevel=3)
        return plain
    fused = fx.GraphModule(plain, graph, class_name=type(model).__name__)
    for simplify in PASSES:
        simplify(fused)
    for node in fused.graph.nodes:
        node.meta.pop("example", None)
    fused.graph.lint()
    fused.delete_all_unused_submodules()
    fused.recompile()
    fused.eval()
    if check:
        checked = _checked(model, history, fused, inputs, generation)
        fused.meta["largest_difference"] = checked
    return fused


def _fitting(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The example inputs on the device, and in the floating dtype, that the model has today."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is None:
        return inputs

    def fit(tensor: Tensor) -> Tensor:
        dtype = parameter.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(parameter.device, dtype)

    return pytree.tree_map_only(Tensor, fit, inputs)  # type: ignore[no-any-return]


def _checked(
    model: nn.Module,
    history: History,
    fused: nn.Module,
    inputs: tuple[Any, ...],
    generation: int | None,
) -> float:
    with Meanwhile() as meanwhile, meanwhile:
        keep_surroundings_(model, meanwhile)
        close_(model, history.gate, "fuse", meanwhile)
        evaluate_(model, meanwhile)
        if generation is not None:
            view_(model, history, generation, meanwhile)
        torch.set_grad_enabled(False)
        expected = [t for t in pytree.tree_leaves(model(*inputs)) if isinstance(t, Tensor)]
        actual = [t for t in pytree.tree_leaves(fused(*inputs)) if isinstance(t, Tensor)]
    worst = 0.0
    for ours, theirs in zip(actual, expected, strict=True):
        if ours.shape != theirs.shape:
            raise FusionError(f"outputs have shapes {ours.shape} and {theirs.shape}")
        if not ours.numel():
            continue
        largest = max(theirs.abs().max().item(), torch.finfo(torch.float32).tiny)
        difference = (ours.double() - theirs.double()).abs().max().item() / largest
        tolerance = _TOLERANCES.get(theirs.dtype, _COARSE)
        if not difference <= tolerance:
            raise FusionError(
                f"the fused network differs from the model by {difference:.1e} of its largest "
                f"output, which is more than rounding ({tolerance:.0e}); please report this"
            )
        worst = max(worst, difference)
    return worst


def evaluate_(model: nn.Module, undo: Undo) -> None:
    """Puts a model in evaluation mode, until that is taken back: each module's own flag is kept."""
    for module in model.modules():
        undo.on_failure(partial(setattr, module, "training", module.training))
        module.training = False

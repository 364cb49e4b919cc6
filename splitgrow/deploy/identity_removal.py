"""Passes that remove identities: fades that are over, gates of one, residuals of zero.

They compare values exactly: a layer that differs from an identity by the last bit stays. A removed
node returns its input for every finite input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from splitgrow.analysis.ops.facts import EVERYTHING
from splitgrow.deploy.fx_edits import (
    drop_unread,
    facts_of_node,
    is_written,
    replace_by,
    writes,
)
from splitgrow.deploy.fx_readers import free_path, is_free, tensor_at, tensors_of
from splitgrow.layers.fade import blend
from splitgrow.layers.types import computes_as

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_SCALED = (*_BATCH_NORMS, *_INSTANCE_NORMS, nn.GroupNorm, nn.LayerNorm)


def end_fades(network: fx.GraphModule) -> None:
    """Keeps only the path that counts of each fade that is over, or has not begun.

    A fade that is under way becomes a plain ``torch.lerp``.
    """
    for node in list(network.graph.nodes):
        if node.op != "call_function" or node.target is not blend:
            continue
        old, new, share = node.args
        value = tensor_at(network, share)
        if value is None or value.numel() != 1 or is_written(network, value):
            continue
        counts = {0.0: old, 1.0: new}.get(value.item())
        dtypes = {path.meta["example"].dtype for path in (old, new)}
        if counts is not None and counts.meta["example"].dtype == node.meta["example"].dtype:
            # The blend made a tensor of its own, and its readers may write into that.
            if not replace_by(network, node, counts):
                _copy_of(network, node, counts)
        elif len(dtypes) == 1:
            node.args = (old, new, _converted(network, share, value.to(dtypes.pop())))
            node.target = torch.lerp
            node.meta.pop("is_wrapped", None)  # torch.fx's mark, which names the function


def _converted(network: fx.GraphModule, node: fx.Node, tensor: Tensor) -> fx.Node:
    """A node that gets a tensor in another dtype: at its own path, if only this node reads it."""
    path = str(node.target)
    looked_up = sum(other.target == path for other in network.graph.find_nodes(op="get_attr"))
    alone = looked_up == 1 and len(node.users) == 1
    path = path if alone else free_path(network, path)
    owner, _, name = path.rpartition(".")
    network.get_submodule(owner).register_buffer(name, tensor)
    if alone:
        return node
    with network.graph.inserting_after(node):
        made = network.graph.get_attr(path)
    made.meta.update(node.meta)
    return made


def _copy_of(network: fx.GraphModule, node: fx.Node, value: fx.Node) -> None:
    """Puts a copy of another node's value in a node's place."""
    others = node.all_input_nodes
    with network.graph.inserting_before(node):
        clone = network.graph.call_method("clone", (value,))
    clone.meta.update(node.meta)
    node.replace_all_uses_with(clone)
    network.graph.erase_node(node)
    for other in others:
        drop_unread(network, other)


def remove_identities(network: fx.GraphModule) -> None:
    """Removes nodes that return their input.

    * a Linear with the unit matrix, a convolution with a Dirac kernel, both without bias or with a
      bias of zero; a batch norm whose weight is the standard deviation and whose bias the mean
    * ``x * layer(y)`` where the layer's weight is zero and its bias one
    * ``x + layer(y)`` where the layer's, or norm's, weight and bias are zero
    * a ReLU after a ReLU, and any clip after a clip to the same or a narrower range
    """
    for node in list(network.graph.nodes):
        if node.op not in ("call_module", "call_function", "call_method"):
            continue
        value = _equal_operand(network, node)
        if value is not None and _alike(node, value):
            replace_by(network, node, value)


def _equal_operand(network: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The operand that equals a node's result, if there is one."""
    clip = _clip_of(network, node)
    if clip is not None:
        before = node.args[0] if node.args else None
        within = _clip_of(network, before) if isinstance(before, fx.Node) else None
        narrower = within is not None and clip[0] <= within[0] and within[1] <= clip[1]
        return before if narrower else None  # type: ignore[return-value]
    if node.op == "call_module":
        plain = len(node.args) == 1 and not node.kwargs and isinstance(node.args[0], fx.Node)
        module = network.get_submodule(str(node.target))
        gone = plain and is_free(module) and is_identity(module) and not _changes(network, module)
        return node.args[0] if gone else None  # type: ignore[return-value]
    arithmetic = facts_of_node(network, node).arithmetic
    neutral = arithmetic.neutral if arithmetic is not None else None
    if neutral is None or node.kwargs or len(node.args) != 2:
        return None
    one, other = node.args
    if not isinstance(one, fx.Node) or not isinstance(other, fx.Node):
        return None
    if _always(network, other, neutral):
        return one
    written = writes(network, node) and len(one.users) > 1
    return other if _always(network, one, neutral) and not written else None


def _alike(node: fx.Node, value: fx.Node) -> bool:
    """Whether two results have the same shape and dtype."""
    one, other = node.meta.get("example"), value.meta.get("example")
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    return one.shape == other.shape and one.dtype == other.dtype


def _clip_of(network: fx.GraphModule, node: fx.Node) -> tuple[float, float] | None:
    """The range of a node that clips its input; None if it does not clip."""
    facts = facts_of_node(network, node)
    if not facts.clip:
        return None
    module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
    if module is not None and not is_free(module):
        return None
    bounds = facts.bounds_of(node.args, node.kwargs, module)
    return bounds if bounds != EVERYTHING else None


def _always(network: fx.GraphModule, node: fx.Node, value: int) -> bool:
    """Whether a node calls a layer that gives 0, or 1, for every finite input."""
    if node.op != "call_module":
        return False
    layer: Any = network.get_submodule(str(node.target))
    if not (_is_layer(layer) or type(layer) in _SCALED):
        return False
    # A weight that weight norm or pruning computes before each call may differ at the next one.
    if not isinstance(layer.weight, nn.Parameter):
        return False
    bias_fits = value == 0 if layer.bias is None else bool((layer.bias == value).all())
    if not bias_fits or torch.count_nonzero(layer.weight):
        return False
    return is_free(layer) and not _changes(network, layer)


def _changes(network: fx.GraphModule, module: nn.Module) -> bool:
    """Whether forward itself writes into a module's tensors, so that their values may change."""
    return any(is_written(network, tensor) for tensor in tensors_of(module))


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is torch's own Linear or convolution, or computes the same as one."""
    return computes_as(module, (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED))


def is_identity(module: Any) -> bool:
    """Whether a layer, with its present values, returns its input in evaluation mode.

    A batch norm does if its weight is ``sqrt(running_var + eps)``, computed in its dtype, and
    its bias the running mean: in real numbers it would return its input exactly, and no other
    weight of that dtype is nearer.

    Example:
        >>> conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        >>> conv.weight = nn.Parameter(nn.init.dirac_(torch.empty(3, 3, 3, 3)))
        >>> is_identity(conv)
        True
        >>> is_identity(nn.Conv2d(3, 3, 3, padding=1))
        False
    """
    if type(module) in _BATCH_NORMS:
        return _is_identity_norm(module)
    if not _is_layer(module) or isinstance(module, _TRANSPOSED):
        return False
    if not isinstance(module.weight, nn.Parameter):
        return False
    if module.bias is not None and torch.count_nonzero(module.bias):
        return False
    weight: Tensor = module.weight
    centre = () if isinstance(module, nn.Linear) else _centre(module)
    if centre is None or weight.shape[0] != weight.shape[1] * getattr(module, "groups", 1):
        return False
    outputs = torch.arange(weight.shape[0], device=weight.device)
    at: Any = (outputs, outputs % weight.shape[1], *centre)
    # In this order, and without a kernel to compare with, which would need as much memory again.
    return bool((weight[at] == 1).all()) and int(torch.count_nonzero(weight)) == weight.shape[0]


def _is_identity_norm(norm: Any) -> bool:
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        return False
    deviation = (var + norm.eps).sqrt()
    weight = torch.ones_like(deviation) if norm.weight is None else norm.weight
    bias = torch.zeros_like(mean) if norm.bias is None else norm.bias
    return torch.equal(weight, deviation) and torch.equal(bias, mean)


def _centre(conv: Any) -> tuple[int, ...] | None:
    """The tap of a convolution's kernel that reads the position it writes; None if none does."""
    if set(conv.stride) != {1}:
        return None
    before = conv._reversed_padding_repeated_twice[::2][::-1]  # noqa: SLF001
    taps = []
    for padded, dilation, size in zip(before, conv.dilation, conv.kernel_size, strict=True):
        tap, rest = divmod(padded, dilation)
        if rest or tap >= size:
            return None
        taps.append(tap)
    return tuple(taps)

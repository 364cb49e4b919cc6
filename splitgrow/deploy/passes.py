"""Passes that make a traced plain network smaller; its outputs in evaluation mode stay the same.

Each takes a graph module and changes it in place. `PASSES` lists them in the order they run.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from splitgrow.analysis.ops import Values
from splitgrow.deploy.fx_edits import facts_of_node
from splitgrow.deploy.fx_readers import Readers, free_path, is_free, path_for
from splitgrow.deploy.identity_removal import end_fades, remove_identities
from splitgrow.deploy.layer_folding import can_take_a_norm, fold_norm_, has_statistics
from splitgrow.layers.shared_kernel import SHARED_KERNELS
from splitgrow.layers.types import layer_type_of


def make_stock(network: fx.GraphModule) -> None:
    """Replaces layers of other libraries by stock layers that compute the same."""
    for node in list(network.graph.nodes):
        if node.op != "call_module":
            continue
        path = str(node.target)
        layer = network.get_submodule(path)
        if type(layer) is nn.SyncBatchNorm and is_free(layer):  # deployment is one process
            network.add_submodule(path, _as_batch_norm(layer, node.meta["example"].dim()))
            continue
        entry = layer_type_of(layer)
        parts = entry.stock_parts(layer) if entry is not None and is_free(layer) else []
        if parts:
            _chain(network, node, parts)


def _as_batch_norm(layer: nn.SyncBatchNorm, dims: int) -> nn.Module:
    """The batch norm of one process, with the same tensors."""
    make = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(dims, nn.BatchNorm1d)
    norm = make(
        layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
    )
    norm._parameters.update(layer._parameters)  # noqa: SLF001
    norm._buffers.update(layer._buffers)  # noqa: SLF001
    return norm.train(layer.training)


def _chain(network: fx.GraphModule, node: fx.Node, parts: list[nn.Module]) -> None:
    """Replaces one module by several that run one after the other."""
    path = path_for(network, str(node.target))
    if len(parts) == 1:
        network.add_submodule(path, parts[0])
        node.target = path
        return
    network.add_submodule(path, nn.Sequential(*parts))
    value: Any = node.args[0]
    with network.graph.inserting_before(node):
        for index in range(len(parts)):
            value = network.graph.call_module(f"{path}.{index}", (value,))
            value.meta.update(node.meta)
    node.replace_all_uses_with(value)
    network.graph.erase_node(node)


def spread_shared_kernels(network: fx.GraphModule) -> None:
    """Puts a depthwise convolution in place of each call of a shared kernel.

    A layer that is called several times becomes several layers, each for the channels of its call.
    A layer with hooks stays, so that they run.
    """
    calls = network.graph.find_nodes(op="call_module")
    layers: list[tuple[fx.Node, Any]] = [
        (node, network.get_submodule(str(node.target))) for node in calls
    ]
    taken = set()
    for node, layer in layers:
        if type(layer) not in SHARED_KERNELS or not is_free(layer):
            continue
        given: Any = node.args[0] if node.args else node.kwargs["x"]
        channels = int(given.meta["example"].shape[-1 - layer.dims])
        path = path_for(network, str(node.target))
        if path in taken:
            path = free_path(network, path)
        taken.add(path)
        network.add_submodule(path, layer.depthwise(channels))
        node.target, node.args, node.kwargs = path, (given,), {}


def drop_identities(network: fx.GraphModule) -> None:
    """Removes ops that return their input in evaluation mode: identities and dropouts."""
    for node in list(network.graph.nodes):
        if _passes_on(network, node):
            node.replace_all_uses_with(node.args[0])
            network.graph.erase_node(node)


def _passes_on(network: fx.GraphModule, node: fx.Node) -> bool:
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    facts = facts_of_node(network, node)
    if node.op == "call_module":
        return facts.values is Values.KEPT and is_free(network.get_submodule(str(node.target)))
    if node.op != "call_function":
        return False
    if facts.drawn and facts.values is Values.KEPT:
        training = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)
        return training is False
    if getattr(node.target, "__name__", "") == "stochastic_depth":
        training = node.kwargs.get("training", node.args[3] if len(node.args) > 3 else True)
        return training is False
    return False


def fold_norms(network: fx.GraphModule) -> None:
    """Folds each batch norm into the convolution or Linear before it, where that is exact.

    It is exact if the layer runs once, only the norm reads its output, and neither has hooks or
    tensors that forward reads itself. A layer that is called twice keeps its norms: folding one of
    them would change the other call.
    """
    readers = Readers(network)
    for node in list(network.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        norm: Any = network.get_submodule(str(node.target))
        layer: Any = network.get_submodule(str(before.target))
        if not has_statistics(norm):
            continue
        if not all(_is_apart(module, readers) for module in (norm, layer)):
            continue
        if can_take_a_norm(layer, before.meta["example"].dim(), norm):
            fold_norm_(layer, norm, shared=readers.is_shared(layer.weight))
            node.replace_all_uses_with(before)
            network.graph.erase_node(node)


def _is_apart(module: nn.Module, readers: Readers) -> bool:
    """Whether a module has one call only, and nothing else reads its tensors."""
    return readers.runs_once(module) and is_free(module) and not readers.reads_directly(module)


PASSES = (
    make_stock,
    spread_shared_kernels,
    drop_identities,
    end_fades,
    remove_identities,
    fold_norms,
    remove_identities,
)
"""The order matters: the values show that a norm is an identity only before it is folded, and that
a layer with its norm is one only after."""

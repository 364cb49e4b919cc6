"""Taking nodes out of a torch.fx graph where that changes nothing: in-place writes, dead ends."""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from splitgrow.deploy.fx_readers import Readers, memory_of, tensor_at
from splitgrow.layers.types import layer_type_of

_FRESH_OPS = """
    add sub mul div truediv multiply subtract divide true_divide neg pow sqrt rsqrt square exp log
    abs maximum minimum clamp lerp where blend matmul bmm linear cat concat stack mean sum softmax
    relu relu6 hardtanh sigmoid tanh gelu silu elu selu celu leaky_relu mish hardswish hardsigmoid
    softplus prelu conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
    batch_norm layer_norm group_norm instance_norm max_pool1d max_pool2d max_pool3d avg_pool1d
    avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_max_pool2d interpolate scaled_dot_product_attention clone
"""
_FRESH = frozenset(_FRESH_OPS.split())
"""Functions and methods whose result lies in memory of its own."""

_FRESH_LAYERS = """
    ReLU ReLU6 Hardtanh Sigmoid Tanh GELU SiLU ELU SELU CELU LeakyReLU Mish Hardswish Hardsigmoid
    Softplus Softmax LayerNorm MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d Upsample
    AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool2d
"""
_FRESH_MODULES = frozenset(_FRESH_LAYERS.split())
_IN_PLACE = {
    getattr(operator, f"i{name}"): getattr(operator, plain)
    for name, plain in (
        *((name, name) for name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod")),
        *(("and", "and_"), ("or", "or_"), ("xor", "xor"), ("matmul", "matmul")),
        *(("lshift", "lshift"), ("rshift", "rshift")),
    )
}
"""The operators that write into their first operand, with those that do not."""


def replace_by(network: fx.GraphModule, node: fx.Node, value: fx.Node) -> bool:
    """Lets all that reads a node read another one instead, and takes it out.

    The two must be equal. In memory of its own or not, both must be safe from being written into
    later on: an in-place op that alone reads the node becomes one that is not in place, and where
    anything else writes, all stays as it is.

    Returns:
        Whether it was done.
    """
    reader = _only_writer(network, node)
    position = {other: index for index, other in enumerate(network.graph.nodes)}
    for other in _relatives((node, value), network, without=reader):
        later = (user for user in other.users if position[user] > position[node])
        if any(user is not reader and writes(network, user) for user in later):
            return False
    if reader is not None:
        _make_apart(network, reader)
    others = list(node.all_input_nodes)
    node.replace_all_uses_with(value)
    network.graph.erase_node(node)
    for other in others:
        drop_unread(network, other)
    return True


def drop_unread(network: fx.GraphModule, node: fx.Node) -> None:
    """Takes out a node that nothing reads, and all that only it read; tensors it read go too."""
    pending = [node]
    while pending:
        last = pending.pop()
        removable = not last.users and last.op not in ("placeholder", "output")
        if not removable or getattr(last, "_erased", False):
            continue
        if writes(network, last) and not _writes_into_its_own(network, last):
            continue
        inputs = last.all_input_nodes
        network.graph.erase_node(last)
        if last.op == "get_attr":
            _drop_tensor(network, str(last.target))
        pending.extend(inputs)


def _drop_tensor(network: fx.GraphModule, path: str) -> None:
    """Takes a tensor off the network that nothing in it uses any more."""
    owner_path, _, name = path.rpartition(".")
    owner = network.get_submodule(owner_path)
    for node in network.graph.find_nodes(op="get_attr"):
        other, _, other_name = str(node.target).rpartition(".")
        if other_name == name and network.get_submodule(other) is owner:
            return
    if not Readers(network).runs(owner):
        delattr(owner, name)


def is_written(network: fx.GraphModule, tensor: Tensor) -> bool:
    """Whether an op may write into the memory of a tensor that belongs to the network."""
    for node in network.graph.find_nodes(op="get_attr"):
        found = tensor_at(network, node)
        if found is not None and memory_of(found) == memory_of(tensor):
            users = (u for one in _relatives((node,), network, without=None) for u in one.users)
            if any(writes(network, user) for user in users):
                return True
    return False


def writes(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an op writes into one of its operands, or might as far as can be told."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        known = type(module).__module__.startswith("torch.") or layer_type_of(module) is not None
        return bool(getattr(module, "inplace", False)) or not known
    if node.op == "call_method":
        return is_in_place_name(str(node.target))
    if node.op != "call_function":
        return False
    target: Any = node.target
    origin = str(getattr(target, "__module__", None) or "torch")  # builtin functions have none
    known = origin.partition(".")[0] in ("torch", "_operator", "builtins", "math", "splitgrow")
    if target in _IN_PLACE or target is operator.setitem or not known:
        return True
    if is_in_place_name(getattr(target, "__name__", "")) or "out" in node.kwargs:
        return True
    given = node.args[1:] if origin == "torch.nn.functional" else ()
    return bool(node.kwargs.get("inplace")) or any(value is True for value in given)


def is_in_place_name(name: str) -> bool:
    """Whether a function or method of this name writes into its first operand."""
    if re.fullmatch(r"__i[a-z]+__", name) and name not in ("__index__", "__int__", "__invert__"):
        return True
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _writes_into_its_own(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether what an op writes into was made for it alone, so that nobody sees it."""
    while writes(network, node):
        before = node.all_input_nodes[:1]
        if not before or before[0] is not node.args[0] or len(before[0].users) > 1:
            return False
        node = before[0]
    return node.op not in ("placeholder", "get_attr") and _is_fresh(network, node)


def _is_fresh(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an op's result lies in memory of its own."""
    if writes(network, node):
        return False
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return layer_type_of(module) is not None or type(module).__name__ in _FRESH_MODULES
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return node.op != "get_attr" and str(name).strip("_") in _FRESH


def _relatives(
    nodes: Iterable[fx.Node], network: fx.GraphModule, *, without: fx.Node | None
) -> set[fx.Node]:
    """All nodes that may lie in the same memory as one of these."""
    found: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node in found or node is without or node.op == "output":
            continue
        found.add(node)
        if not _is_fresh(network, node):
            pending.extend(node.all_input_nodes)
        pending.extend(user for user in node.users if not _is_fresh(network, user))
    return found


def _only_writer(network: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The in-place op that alone reads a node, if it can do without writing."""
    users: Iterator[fx.Node] = iter(node.users)
    user = next(users, None)
    if user is None or next(users, None) is not None or not writes(network, user):
        return None
    if not user.args or user.args[0] is not node or user.all_input_nodes.count(node) != 1:
        return None
    if list(user.args[1:]).count(node):
        return None
    target: Any = user.target
    if user.op == "call_module":
        module = network.get_submodule(str(target))
        possible = hasattr(module, "inplace") and type(module).__module__.startswith("torch.")
    elif user.op == "call_method":
        possible = hasattr(torch.Tensor, str(target).removesuffix("_"))
        possible = possible and not str(target).startswith("__")
    else:
        possible = target in _IN_PLACE or user.kwargs.get("inplace") is True
    return user if possible else None


def _make_apart(network: fx.GraphModule, node: fx.Node) -> None:
    """Makes an in-place op one that leaves its operand alone."""
    target: Any = node.target
    if node.op == "call_method":
        node.target = str(target).removesuffix("_")
    elif target in _IN_PLACE:
        node.target = _IN_PLACE[target]
    elif node.op == "call_function":
        node.kwargs = {**node.kwargs, "inplace": False}
    else:
        # Other calls of the same module may rely on what it writes.
        module: Any = copy.copy(network.get_submodule(str(target)))
        module.inplace = False
        path, number = f"{target}_apart", 0
        while _has(network, path):
            number += 1
            path = f"{target}_apart{number}"
        network.add_submodule(path, module)
        node.target = path


def _has(network: nn.Module, path: str) -> bool:
    parent, _, name = path.rpartition(".")
    return hasattr(network.get_submodule(parent), name)

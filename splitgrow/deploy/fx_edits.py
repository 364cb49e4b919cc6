"""Removing nodes from a torch.fx graph where that changes no result, in-place writes included."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from splitgrow.analysis.ops import Facts, facts_of, is_in_place_name, method_of_operator
from splitgrow.analysis.ops.forms import IN_PLACE_OPERATORS
from splitgrow.deploy.fx_readers import Readers, memory_of, tensor_at
from splitgrow.layers.fade import blend
from splitgrow.layers.types import layer_type_of


def replace_by(network: fx.GraphModule, node: fx.Node, value: fx.Node) -> bool:
    """Replaces a node by another one in all of its users, and erases it.

    The two must be equal, and no later op may write into either's memory. An in-place op that alone
    reads the node becomes one that is not in place; if any other op writes, the graph stays as it
    is.

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
    """Erases a node that nothing reads, the nodes that only it read, and the tensors they read."""
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
    """Takes a tensor off the network once nothing there uses it."""
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
    """Whether an op writes into one of its operands; true if that is not known."""
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
    if target in IN_PLACE_OPERATORS or target is operator.setitem or not known:
        return True
    if is_in_place_name(getattr(target, "__name__", "")) or "out" in node.kwargs:
        return True
    given = node.args[1:] if origin == "torch.nn.functional" else ()
    return bool(node.kwargs.get("inplace")) or any(value is True for value in given)


def facts_of_node(network: fx.GraphModule, node: fx.Node) -> Facts:
    """The facts of the op that a node runs; empty if it runs none, or a function of the user's."""
    if node.op == "call_module":
        return facts_of(type(network.get_submodule(str(node.target))))
    return facts_of(method_of_operator(node.target)) if node.op in _CALLS else facts_of(None)


_CALLS = ("call_function", "call_method")


def _writes_into_its_own(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an op writes only into a tensor made for it alone, so that nobody sees the write."""
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
    layer = node.op == "call_module" and layer_type_of(network.get_submodule(str(node.target)))
    return bool(layer) or node.target is blend or facts_of_node(network, node).fresh


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
        possible = target in IN_PLACE_OPERATORS or user.kwargs.get("inplace") is True
    return user if possible else None


def _make_apart(network: fx.GraphModule, node: fx.Node) -> None:
    """Makes an in-place op one that leaves its operand alone."""
    target: Any = node.target
    if node.op == "call_method":
        node.target = str(target).removesuffix("_")
    elif target in IN_PLACE_OPERATORS:
        node.target = IN_PLACE_OPERATORS[target]
    elif node.op == "call_function":
        node.kwargs = {**node.kwargs, "inplace": False}
    else:
        # Other calls of the same module may rely on its writing.
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

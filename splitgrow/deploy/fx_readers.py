"""Who reads the tensors and runs the modules of a traced network, by identity rather than by path.

One tensor may lie in several modules, be a part of another, and be read by forward itself; one
module may have several paths, and be run as a part of another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import count

from torch import Tensor, fx, nn

from splitgrow.layers.hooks import has_run_hooks


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """The tensors that a module holds itself, plain attributes included."""
    own = vars(module)
    for store in (own["_parameters"], own["_buffers"], own):
        yield from (tensor for tensor in store.values() if isinstance(tensor, Tensor))


def memory_of(tensor: Tensor) -> int:
    """The same number for two tensors of which one is a part of the other."""
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001


def tensor_at(network: fx.GraphModule, node: object) -> Tensor | None:
    """The tensor that a node looks up in the network; None if it looks up none."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    owner, _, name = str(node.target).rpartition(".")
    found = getattr(network.get_submodule(owner), name)
    return found if isinstance(found, Tensor) else None


class Readers:
    """The readers and calls of a network's tensors and modules, at the time this is made.

    Args:
        network: The network.
    """

    def __init__(self, network: fx.GraphModule) -> None:
        calls = network.graph.find_nodes(op="call_module")
        called = [network.get_submodule(str(node.target)) for node in calls]
        self._runs = Counter(id(part) for module in called for part in module.modules())
        direct = (tensor_at(network, node) for node in network.graph.find_nodes(op="get_attr"))
        self._direct = {memory_of(tensor) for tensor in direct if tensor is not None}
        self._owners = Counter(
            memory_of(tensor) for module in network.modules() for tensor in tensors_of(module)
        )

    def runs_once(self, module: nn.Module) -> bool:
        """Whether a module is run by one call only, and not as a part of another module."""
        return self._runs[id(module)] == 1

    def runs(self, module: nn.Module) -> bool:
        """Whether any call runs a module."""
        return id(module) in self._runs

    def reads_directly(self, module: nn.Module) -> bool:
        """Whether forward itself reads, or writes, memory that a module's tensors lie in."""
        return any(memory_of(tensor) in self._direct for tensor in tensors_of(module))

    def is_shared(self, tensor: Tensor) -> bool:
        """Whether another tensor, or another module, has a part of the same memory."""
        return self._owners[memory_of(tensor)] > 1


def is_free(module: nn.Module) -> bool:
    """Whether a module has no hooks: a pass would lose them, or change the tensors they see."""
    if has_run_hooks(module):
        return False
    return not (module._modules and any(map(has_run_hooks, module.modules())))  # noqa: SLF001


def free_path(network: fx.GraphModule, path: str) -> str:
    """A path beside this one at which there is nothing."""
    parent, _, name = path.rpartition(".")
    owner = network.get_submodule(parent)
    free = next(f"{name}_{i}" for i in count(2) if not hasattr(owner, f"{name}_{i}"))
    return f"{parent}.{free}".removeprefix(".")


def path_for(network: fx.GraphModule, path: str) -> str:
    """A path for a module's replacement: its own path, unless forward reads something there."""
    read = (str(node.target) for node in network.graph.find_nodes(op="get_attr"))
    taken = any(target.startswith(f"{path}.") for target in read)
    return free_path(network, path) if taken else path

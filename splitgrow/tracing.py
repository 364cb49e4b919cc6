"""Following a model's forward: the ops that it runs, with example results and their places.

Pure: the model's flags, attributes, buffers, hooks and the random number generators are afterwards
as they were.
"""

from __future__ import annotations

import inspect
import os
import random
import sys
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from splitgrow.errors import TraceError
from splitgrow.kinds import sized_layers
from splitgrow.split import SplitLayer

_NOT_THE_USERS = tuple(
    str(Path(module.__file__).parent) + os.sep
    for module in (torch, sys.modules["splitgrow.errors"])
    if module.__file__
)


class GrowthTracer(fx.Tracer):
    """Traces down to stock layers and split layers, and remembers each op's place in the source."""

    def __init__(self) -> None:
        super().__init__()
        # A buffer that forward updates in place must not be updated by tracing it.
        self.proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Stock modules, split layers, and subclasses of layers with weights stay whole."""
        if isinstance(m, (SplitLayer, *sized_layers())):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Follows a submodule, also one that forward makes on the spot, as in ``nn.ReLU()(x)``."""
        if all(m is not known for known in self.root.modules()) and not list(m.parameters()):
            return forward(*args, **kwargs)  # there is no path to name it by
        return super().call_module(m, forward, args, kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Makes a node that knows the user's line it came from."""
        node = super().create_node(*args, **kwargs)
        node.meta["place"] = _place_of_caller()
        return node


def _place_of_caller() -> str:
    frame = sys._getframe(1)  # noqa: SLF001
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame = frame.f_back
    return _place(frame.f_code.co_filename, frame.f_lineno)


def _place(filename: str, line: int) -> str:
    here = str(Path.cwd()) + os.sep
    return f"{filename.removeprefix(here)}:{line}"


def _place_of_error(trace: TracebackType | None) -> str:
    """The innermost line of the user's that an error passed through."""
    places = [
        _place(frame.filename, frame.lineno or 0)
        for frame in traceback.extract_tb(trace)
        if not frame.filename.startswith(_NOT_THE_USERS)
    ]
    return places[-1] if places else "an unknown place"


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Puts every attribute of every module back: forward may set some, and sets them to proxies."""
    stores = ("_parameters", "_buffers", "_modules")
    kept = [
        (module, dict(module.__dict__), {name: dict(module.__dict__[name]) for name in stores})
        for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, attributes, contents in kept:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for name in stores:
                module.__dict__[name].clear()
                module.__dict__[name].update(contents[name])


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Puts the model and the random number generators back as they were."""
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    python_state = random.getstate()
    with torch.random.fork_rng(devices=sorted(devices)), _attributes_kept(model):
        try:
            yield
        finally:
            random.setstate(python_state)


def bind_inputs(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of a call ``model(*inputs)`` by name, and the defaults of the others.

    Raises:
        ValueError: If the inputs do not fit forward's signature.
    """
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*inputs)
    except TypeError as error:
        raise ValueError(
            f"example_inputs do not fit {type(model).__name__}.forward{signature}: {error}"
        ) from None
    given = dict(bound.arguments)
    defaults = {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if name not in given and parameter.default is not inspect.Parameter.empty
    }
    return given, defaults


def trace(model: nn.Module, inputs: tuple[Any, ...]) -> list[fx.Graph]:
    """The ops of the model's forward in evaluation and, where they differ, in training.

    Args:
        model: Any module. It is not changed.
        inputs: The positional arguments of an example call.

    Returns:
        One or two graphs. Each node has ``meta["example"]``, its result as fake tensors and
        numbers, and ``meta["place"]``, the line of the user's source that it came from.

    Raises:
        TraceError: If forward cannot be followed.
        ValueError: If the inputs do not fit.
    """
    graphs: list[fx.Graph] = []
    for training in (False, True):
        with _undisturbed(model):
            for module in model.modules():
                module.training = training
            graph = follow(model, inputs, unlike=graphs)
            if graph is not None:
                graphs.append(graph)
    return graphs


@overload
def follow(model: nn.Module, inputs: tuple[Any, ...]) -> fx.Graph: ...


@overload
def follow(
    model: nn.Module, inputs: tuple[Any, ...], unlike: Sequence[fx.Graph]
) -> fx.Graph | None: ...


def follow(
    model: nn.Module, inputs: tuple[Any, ...], unlike: Sequence[fx.Graph] = ()
) -> fx.Graph | None:
    """The ops of the model's forward in the mode that it is in; None if as in an earlier graph.

    A tensor that forward makes becomes an attribute of the model, as torch.fx has it.
    """
    given, defaults = bind_inputs(model, inputs)
    with _attributes_kept(model):
        _silence_hooks(model)
        graph, made = _traced(model, defaults)
        if any(_outline(graph) == _outline(earlier) for earlier in unlike):
            return None
        vars(model).update(made)
        _evaluate(model, graph, given)
    vars(model).update(made)
    return graph


def _silence_hooks(model: nn.Module) -> None:
    """Takes the user's hooks off, until the attributes are put back."""
    for module in model.modules():
        for name in ("_forward_hooks", "_forward_pre_hooks"):
            module.__dict__[name] = OrderedDict()


def _traced(model: nn.Module, defaults: dict[str, Any]) -> tuple[fx.Graph, dict[str, Any]]:
    """The graph, and the attributes that torch.fx made for it.

    Raises:
        TraceError: If the model's forward cannot be followed.
    """
    try:
        with _attributes_kept(model):
            graph = GrowthTracer().trace(model, concrete_args=defaults or None)
            made = {name: value for name, value in vars(model).items() if _made_by_tracing(name)}
        return graph, made
    except Exception as error:  # whatever the user's forward raises
        place = _place_of_error(error.__traceback__)
        mode = "training" if model.training else "evaluation"
        raise TraceError(
            f"{type(model).__name__}.forward cannot be followed in {mode} mode: {place}: "
            f"{type(error).__name__}: {error}. Control flow that depends on the values or shapes "
            f"of tensors stops torch.fx; move it out of forward, or wrap the function that "
            f"holds it with torch.fx.wrap."
        ) from error


def _made_by_tracing(attribute: str) -> bool:
    """Whether torch.fx made an attribute, to hold a tensor that forward makes."""
    return attribute.startswith("_tensor_constant")


def _outline(graph: fx.Graph) -> list[str]:
    return [node.format_node() or str(node.args) for node in graph.nodes]


class _Evaluator(fx.Interpreter):
    """Runs a graph on fake tensors and keeps every result."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["example"] = result
        return result


def _evaluate(model: nn.Module, graph: fx.Graph, given: dict[str, Any]) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    values: list[Any] = []
    for node in graph.find_nodes(op="placeholder"):
        name = str(node.target)
        if name.startswith("*") and not name.startswith("**"):
            values.extend(given.get(name[1:], ()))
        else:
            values.append(given.get(name, node.args[0] if node.args else None))
    fakes = pytree.tree_map_only(Tensor, mode.from_tensor, values)
    evaluator = _Evaluator(model, graph=graph)
    evaluator.extra_traceback = False
    try:
        with mode, torch.no_grad(), warnings.catch_warnings():
            # Torch's own, about a tensor that pruning or weight norm left in a parameter's place.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not")
            evaluator.run(*fakes, enable_io_processing=False)
    except Exception as error:
        done = [node for node in graph.nodes if "example" in node.meta]
        failed = next((node for node in graph.nodes if "example" not in node.meta), done[-1])
        shapes = pytree.tree_map_only(Tensor, lambda t: tuple(t.shape), values)
        message = str(error).replace("FakeTensor", "Tensor")
        raise ValueError(
            f"{type(model).__name__} does not run on example_inputs of shapes {shapes}: "
            f"`{failed.target}` at {failed.meta['place']}: {message}"
        ) from error

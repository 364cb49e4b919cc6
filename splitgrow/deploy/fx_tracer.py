"""Tracing a plain network into a torch.fx graph, from which the deployed network is made."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from splitgrow.analysis.created_tensors import CreatedTensors
from splitgrow.analysis.output_comparison import compared, outputs_of
from splitgrow.analysis.shape_shortcuts import result_of_leaf
from splitgrow.deploy.fx_arguments import GraphArgument, graph_arguments, with_placeholders
from splitgrow.errors import TraceError
from splitgrow.layers.hooks import has_run_hooks
from splitgrow.layers.module_state import State, same_data, take_state
from splitgrow.layers.shared_kernel import SHARED_KERNELS
from splitgrow.layers.types import layer_type_of
from splitgrow.utils.example_call import ExampleCall
from splitgrow.utils.op_numbers import Scalars
from splitgrow.utils.preserve import ignore_warnings_, preserve_
from splitgrow.utils.rollback import Undo, temporarily
from splitgrow.utils.source_lines import place_of_caller, place_of_error

MADE = "made by forward"
"""In the meta of a node that stands for a tensor: whether forward makes a new one at each call."""


class _Tracer(fx.Tracer):
    """Traces down to stock layers and layers of a known type; notes each op's source line."""

    def __init__(
        self,
        hooked: Collection[nn.Module] = (),
        arguments: list[GraphArgument] | None = None,
    ) -> None:
        super().__init__()
        self._hooked, self._arguments = hooked, arguments
        # A buffer that forward updates in place must not be updated by tracing it.
        self.proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays whole: stock, of a known type, a shared kernel, or with hooks."""
        known = layer_type_of(m) is not None or type(m) in SHARED_KERNELS
        # Hooks run where their module is called, so the call must stay.
        return known or m in self._hooked or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Follows a submodule, also one that forward makes on the spot, as in ``nn.ReLU()(x)``."""
        known = self.submodule_paths or {}
        if m not in known and not list(m.parameters()):
            return forward(*args, **kwargs)  # there is no path to name it by
        return super().call_module(m, forward, args, kwargs)

    def create_args_for_root(
        self,
        root_fn: Any,
        is_module: bool,  # noqa: FBT001 - as torch.fx has it
        concrete_args: Any = None,
    ) -> tuple[Any, list[Any]]:
        """Gives forward the arguments of the example call, and the graph their names."""
        if self._arguments is None:  # a graph is unpickled, by its own forward
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        return with_placeholders(self, root_fn, self._arguments)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Makes a node that knows the user's line it came from."""
        node = super().create_node(*args, **kwargs)
        node.meta["place"] = place_of_caller()
        return node


def trace_plain(model: nn.Module, inputs: ExampleCall) -> fx.Graph:
    """The ops of a model's forward, each node with an example result in ``meta["example"]``.

    A tensor that forward makes becomes an attribute of the model, as torch.fx has it; otherwise
    the model is as before.

    Raises:
        TraceError: If torch.fx cannot trace the forward.
        MemoryError: If there is too little memory.
    """
    arguments = graph_arguments(model, inputs)
    hooked = {module for module in model.modules() if has_run_hooks(module)}
    try:
        (graph, made), (again, others), moved = _traced_twice(model, hooked, arguments, inputs)
    except (MemoryError, TraceError):
        raise
    except Exception as error:  # the user's forward may raise anything
        raise TraceError(
            f"torch.fx cannot trace {type(model).__name__}.forward: "
            f"{place_of_error(error.__traceback__)}: {type(error).__name__}: {error}"
        ) from error
    other = again is not graph and (str(graph) != str(again) or not same_data(made, others))
    if other and _decides(model, inputs):
        raise TraceError(
            f"torch.fx cannot trace {type(model).__name__}.forward: the `{moved}` that it moves "
            f"decides what it does at its next call, and a graph would always do the same"
        )
    vars(model).update(made)
    return graph


_Traced = tuple[fx.Graph, dict[str, Any]]
"""A graph, and the tensors that torch.fx made attributes for it."""


def _traced(
    model: nn.Module, hooked: Collection[nn.Module], arguments: list[GraphArgument]
) -> _Traced:
    created = CreatedTensors()
    with created:
        graph = _Tracer(hooked, arguments).trace(model)
    own = vars(model)
    made = {key: own.pop(key) for key in [*own] if key.startswith("_tensor_constant")}
    for node in graph.find_nodes(op="get_attr"):
        node.meta[MADE] = node.target in made and made[node.target] in created
    return graph, made


@temporarily
def _traced_twice(
    undo: Undo,
    model: nn.Module,
    hooked: Collection[nn.Module],
    arguments: list[GraphArgument],
    inputs: ExampleCall,
) -> tuple[_Traced, _Traced, str]:
    """A model's graph, the graph of its next call, and the state that the first call moved.

    The nodes of the first graph have examples of their results.
    """
    preserve_(model, undo)
    before = _held(model)
    states = take_state(model)
    traced = _traced(model, hooked, arguments)
    _refuse_assignments(model, before)
    moved = _moved(states, take_state(model, states))
    again = _traced(model, hooked, arguments) if moved else traced
    graph, made = traced
    vars(model).update(made)
    _evaluate(model, graph, inputs)
    return traced, again, moved


def _moved(before: Iterable[State], after: Iterable[State]) -> str:
    """The first plain data, or buffer, that tracing has changed; empty if none."""
    earlier = {id(state.module): state.values for state in before}
    for state in after:
        theirs = earlier.get(id(state.module), {})
        for owner, values in state.values.items():
            old = theirs.get(owner, {})
            for name in {**old, **values}:
                if not (name in values and name in old and same_data(values[name], old[name])):
                    return name
    return ""


class _Twice(nn.Module):
    """A model that is called twice; the second call's output is returned."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = ExampleCall(args, kwargs)
        call.map(torch.clone).run(self.model)
        return call.run(self.model)


def _decides(model: nn.Module, inputs: ExampleCall) -> bool:
    """Whether a second call gives other outputs than the first, or gives ops other numbers."""
    first, second = Scalars(), Scalars()
    expected = outputs_of(model, inputs, watch=first)
    run = partial(outputs_of, _Twice(model), inputs)
    actual = run(watch=second)
    found = compared(actual, expected, lambda: run(noisy=True))
    if not found.same:
        return True
    return bool(second.unlike(first, found.tolerance, lambda seen: run(noisy=True, watch=seen)))


def _held(model: nn.Module) -> dict[tuple[str, str], Any]:
    """The modules' attributes and buffers, by path and name."""
    return {
        (path, name): value
        for path, module in model.named_modules()
        for store in (vars(module), module._buffers)  # noqa: SLF001
        for name, value in store.items()
    }


def _refuse_assignments(model: nn.Module, before: dict[tuple[str, str], Any]) -> None:
    """Makes sure that forward stores no computed value: a graph cannot.

    Raises:
        TraceError: If it assigns something to an attribute.
    """
    for (path, name), value in _held(model).items():
        if isinstance(value, fx.Proxy) and before.get((path, name)) is not value:
            raise TraceError(
                f"torch.fx cannot trace {type(model).__name__}.forward: it assigns "
                f"`{path}.{name}`".replace("`.", "`")
                + ", which a graph would leave out; write into the buffer instead (`.copy_()`)"
            )


class _Evaluator(fx.Interpreter):
    """Runs a graph on fake tensors and keeps every result."""

    def __init__(
        self, model: nn.Module, graph: fx.Graph, inputs: ExampleCall, mode: FakeTensorMode
    ) -> None:
        super().__init__(model, graph=graph)
        self.extra_traceback = False
        given = graph_arguments(model, inputs.map(mode.from_tensor))
        self._given = {argument.name: argument.value for argument in given}
        self._mode = mode

    def placeholder(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The argument of the example call."""
        del args, kwargs
        return self._given[target]

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["example"] = result
        return result

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A tensor of the model's without its values, since ops may write into it."""
        value = super().get_attr(target, args, kwargs)
        return self._mode.from_tensor(value) if isinstance(value, Tensor) else value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Skips a layer whose output shape is known, since to run it takes far longer."""
        known = None if kwargs else result_of_leaf(self.fetch_attr(target), args)
        return super().call_module(target, args, kwargs) if known is None else known


def _evaluate(model: nn.Module, graph: fx.Graph, inputs: ExampleCall) -> None:
    """Gives every node an example of its result, in a model that its caller restores.

    Raises:
        TraceError: If the graph does not run, so that it cannot compute the same as the model.
        MemoryError: If there is too little memory.
    """
    # Torch's own, about a tensor that pruning or weight norm left in a parameter's place.
    ignore_warnings_("The .grad attribute of a Tensor that is not")
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    evaluator = _Evaluator(model, graph, inputs, mode)
    try:
        with mode, torch.no_grad():
            evaluator.run()
    except MemoryError:
        raise
    except Exception as error:
        done = [node for node in graph.nodes if "example" in node.meta]
        failed = next((node for node in graph.nodes if "example" not in node.meta), done[-1])
        raise TraceError(
            f"what torch.fx makes of {type(model).__name__} does not run: "
            f"`{failed.target}` at {failed.meta['place']}: {type(error).__name__}: {error}"
        ) from error

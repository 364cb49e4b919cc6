"""Finding the mixtures of experts in a model, by what a run of it shows.

Some op chooses the largest of as many scores as there are experts. The experts then lie in a module
that is called with the indices and weights of the chosen ones, or in a list of modules. Names and
classes do not count.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from splitgrow.analysis.output_comparison import fitting, outputs_of
from splitgrow.growth.history import structure
from splitgrow.layers.expert_sets import Argument
from splitgrow.layers.insertion_wrapper import InsertionWrapper
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.utils.example_call import ExampleCall

_CHOOSERS = frozenset(("topk", "argmax", "max", "sort", "argsort"))
_LISTS = (nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Mixture:
    """A mixture of experts.

    Attributes:
        path: The path of the module that has it: scores, choice and experts.
        router: The path of the module in which the choice is made.
        scorers: The paths of modules that return a score for each expert.
        experts: The path of the experts: the module that is called with the chosen ones, or a list.
        count: The number of experts.
        chosen: The number that is chosen for each token.
        index: The argument of the experts' call that has the indices; None for a list.
        weights: The argument that has their weights.
    """

    path: str
    router: str
    scorers: tuple[str, ...]
    experts: str
    count: int
    chosen: int
    index: Argument | None = None
    weights: Argument | None = None


@dataclass(frozen=True)
class ModuleCall:
    """The arguments of a call of a module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class _Choice:
    """A choice of the largest of some scores, and the modules that ran, outermost first."""

    modules: tuple[str, ...]
    scores: int
    chosen: int


@dataclass(frozen=True)
class _Routed:
    """A call of a module with indices and weights of the same shape."""

    path: str
    index: Argument
    weights: Argument


class _Watch(TorchFunctionMode):
    """Notes choices among scores and calls of modules, while a model runs."""

    def __init__(self, model: nn.Module, captured: Sequence[str] = ()) -> None:
        super().__init__()
        self._model, self._running = model, list[str]()
        self.choices: list[_Choice] = []
        self.routed: list[_Routed] = []
        self.scorers: dict[str, int] = {}
        """The last dimension of what each module returns."""
        self.calls: dict[str, ModuleCall] = {}
        self._captured = frozenset(captured)

    def __enter__(self) -> _Watch:
        for path, module in self._model.named_modules():
            vars(module)["forward"] = self._noted(path, module, module.forward)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        for module in self._model.modules():
            vars(module).pop("forward", None)

    def _noted(self, path: str, module: nn.Module, forward: Callable[..., Any]) -> Any:
        names = argument_names(module)

        def run(*args: Any, **kwargs: Any) -> Any:
            routed = _routed(path, names, args, kwargs)
            if routed is not None:
                self.routed.append(routed)
            given = _cloned((args, kwargs)) if path in self._captured else None
            self._running.append(path)
            try:
                result = forward(*args, **kwargs)
            finally:
                self._running.pop()
            if isinstance(result, Tensor) and result.dim():
                self.scorers[path] = result.shape[-1]
            if given is not None and path not in self.calls:
                self.calls[path] = ModuleCall(given[0], given[1])
            return result

        return run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _CHOOSERS:
            self._note_choice(func.__name__, args, kwargs)
        return func(*args, **kwargs)

    def _note_choice(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        scores = args[0] if args else kwargs.get("input")
        if not isinstance(scores, Tensor) or not scores.is_floating_point() or not scores.dim():
            return
        place = 2 if name == "topk" else 1
        dim = kwargs.get("dim", args[place] if len(args) > place else None)
        if dim is None and name == "topk":
            dim = -1
        chosen = kwargs.get("k", args[1] if len(args) > 1 else 1) if name == "topk" else 1
        if type(dim) is int and isinstance(chosen, int):
            self.choices.append(_Choice((*self._running,), scores.shape[dim], int(chosen)))


def argument_names(module: nn.Module) -> list[str]:
    """The names of the arguments of a module's forward."""
    while isinstance(module, InsertionWrapper):
        module = module.wrapped
    try:
        return list(inspect.signature(type(module).forward).parameters)[1:]
    except (TypeError, ValueError):
        return []


def _routed(
    path: str, names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> _Routed | None:
    """A call with indices and weights of one shape, if a call is one."""
    found: list[tuple[Argument, Tensor]] = []
    named = [(n, names[n] if n < len(names) else "", value) for n, value in enumerate(args)]
    named += [(names.index(k) if k in names else -1, k, value) for k, value in kwargs.items()]
    for place, name, value in named:
        if isinstance(value, Tensor) and value.dim() > 1 and place >= 0:
            found.append(((place, name), value))
    for index, indices in found:
        if indices.is_floating_point() or indices.is_complex() or indices.dtype is torch.bool:
            continue
        for weights, value in found:
            if value.is_floating_point() and value.shape == indices.shape:
                return _Routed(path, index, weights)
    return None


def _cloned(value: Any) -> Any:
    return pytree.tree_map_only(Tensor, torch.clone, value)


def find_mixtures(model: nn.Module, inputs: ExampleCall) -> list[Mixture]:
    """The mixtures of experts in a model, in order of execution.

    Args:
        model: The model. It is not changed.
        inputs: Its example inputs.

    Raises:
        NotRunnableError: If the model does not run on them.
    """
    watch = _Watch(model)
    outputs_of(model, fitting(model, inputs), watch=watch)
    modules = structure(model)
    further = _further_parts(modules)
    holders = {
        path: _in_place(model, module)
        for path, module in modules.items()
        if not any(is_inside(path, part) for part in further)
    }
    found = [each for choice in watch.choices for each in _around(choice, watch, holders)]
    # A router chooses among groups of experts, too, of which there may be as many as of something
    # else further out.
    found.sort(key=lambda mixture: -len(mixture.path))
    routers: dict[str, str] = {}
    own: dict[str, Mixture] = {}
    for each in found:
        if routers.setdefault(each.router, each.path) == each.path:
            own.setdefault(each.experts, each)
    order = [path for choice in watch.choices for path in choice.modules]
    return sorted(own.values(), key=lambda mixture: order.index(mixture.path))


def _further_parts(modules: Mapping[str, nn.Module]) -> list[str]:
    """The paths of experts that were added, which are found with those that were there first."""
    return [
        f"{parent}.{name}.{item.name}".removeprefix(".")
        for parent, module in modules.items()
        for name, child in module.named_children()
        for item in (child.inserted if isinstance(child, InsertionWrapper) else ())
        if item.experts is not None
    ]


def _in_place(model: nn.Module, module: nn.Module) -> nn.Module:
    """The wrapper around a module to which experts were added, or the module."""
    for each in model.modules():
        if isinstance(each, InsertionWrapper) and each.wrapped is module and each.sets(None):
            return each
    return module


def experts_of(module: nn.Module) -> nn.Module:
    """The module with the experts that were there first."""
    return module.wrapped if isinstance(module, InsertionWrapper) else module


def _around(choice: _Choice, watch: _Watch, holders: Mapping[str, nn.Module]) -> Iterator[Mixture]:
    """The mixtures for which a choice may have been made: the smallest around it."""
    routed = {each.path: each for each in watch.routed}
    for path in dict.fromkeys(choice.modules[::-1]):
        inside = [each for each in holders if is_inside(each, path) and each != path]
        experts = [
            each
            for each in inside
            if each not in choice.modules
            and _counts(holders[each], choice.scores, called=each in routed)
        ]
        for each in experts:
            call = routed.get(each)
            router = choice.modules[-1]
            yield Mixture(
                path,
                router,
                tuple(
                    one
                    for one in inside
                    if watch.scorers.get(one) == choice.scores and not is_inside(one, each)
                ),
                each,
                choice.scores,
                choice.chosen,
                call.index if call is not None else None,
                call.weights if call is not None else None,
            )
        if experts:
            return


def is_inside(path: str, outer: str) -> bool:
    """Whether a path is that of a module, or of one in it."""
    return not outer or path == outer or path.startswith(f"{outer}.")


def _counts(module: nn.Module, count: int, *, called: bool) -> bool:
    """Whether a module holds so many experts.

    Args:
        module: The module.
        count: The number.
        called: Whether it is called with the indices and weights of the chosen ones.
    """
    sets = module.sets(None) if isinstance(module, InsertionWrapper) else []
    first = count - sum(one.count for one, _ in sets)
    own = experts_of(module)
    if called:
        return any(t.dim() > 1 and t.shape[0] == first for t in own.parameters())
    if not isinstance(own, _LISTS) or isinstance(own, SplitLayer):
        return False
    if len(own) != first or count < 2:
        return False
    kinds = {type(each) for each in own.children()}
    return len(kinds) == 1 and any(True for _ in own.parameters())


def capture(model: nn.Module, inputs: ExampleCall, paths: Sequence[str]) -> dict[str, ModuleCall]:
    """The first calls of some modules, by their paths, when a model runs on its example inputs."""
    watch = _Watch(model, paths)
    outputs_of(model, fitting(model, inputs), watch=watch)
    return watch.calls

"""A wrapper around a module with insertions; the rest of the model need not know of it.

The module keeps its path and its keys in the state_dict, as if the wrapper were not there; the
insertions lie below it as ``inserted1``, ``inserted2``, by the number of the edit.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.fx import _symbolic_trace

from splitgrow.errors import UnsupportedLayerError
from splitgrow.layers.expert_sets import ExpertSet, all_listed, run_set
from splitgrow.utils.rollback import Undo

_fx_traces = getattr(_symbolic_trace, "is_fx_symbolic_tracing", _symbolic_trace.is_fx_tracing)
_questions: set[int] | None = None
"""The wrappers that answered for an attribute of their module, while that is watched."""


def note_questions_(undo: Undo) -> set[int]:
    """The ids of wrappers that answer for an attribute of their module, until taken back."""
    global _questions  # noqa: PLW0603
    undo.on_failure(partial(globals().update, _questions=_questions))
    _questions = set()
    return _questions


_runs: set[int] | None = None
"""The wrappers that ran, while that is watched."""


def note_runs_(undo: Undo) -> set[int]:
    """The ids of wrappers that run, until taken back."""
    global _runs  # noqa: PLW0603
    undo.on_failure(partial(globals().update, _runs=_runs))
    _runs = set()
    return _runs


Form = Literal["chain", "residual", "gate", "block", "beside", "experts"]
_OF_DICTS = frozenset(("keys", "values", "items"))
ORIGINAL = "original"
"""The name of the wrapped module below the wrapper."""


@dataclass(frozen=True, slots=True)
class Inserted:
    """One insertion.

    Attributes:
        edit: The number of the edit that inserted it.
        before: Whether it works on the module's input, rather than on its output.
        form: Its function of a tensor x, with its own module f: "chain" f(x); "residual" x + f(x);
            "gate" x * f(x); "block" f(x) with the module's other arguments as well; "beside" f(x,
            arguments), with all arguments of the module; "experts" further experts, see
            `splitgrow.layers.expert_sets`.
        experts: The experts that it has.
    """

    edit: int
    before: bool
    form: Form
    experts: ExpertSet | None = None

    @property
    def name(self) -> str:
        """The name of its module below the wrapper."""
        return f"inserted{self.edit}"


class InsertionWrapper(nn.Module):
    """A module with the insertions right before and behind it.

    It answers for the module's attributes, items and parameters under the module's own names.

    Attributes:
        inserted: The insertions, the newest first: nearest to the module.
        view: The number of the last edit that is seen by `forward`; None for all.
        tensor_result: Whether the module was seen to return one tensor, rather than several.
        answers: Whether forward was seen to read attributes of the module, such as a weight's
            dtype; a module in its place must have them.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.add_module(ORIGINAL, original)
        self.inserted: tuple[Inserted, ...] = ()
        self.view: int | None = None
        self.tensor_result = True
        self.answers = False

    @property
    def wrapped(self) -> nn.Module:
        """The module inside the wrapper."""
        return self.part(ORIGINAL)

    def part(self, name: str) -> nn.Module:
        """The inserted module of that name."""
        module = self._modules[name]
        assert module is not None
        return module

    def set_inserted(
        self, modules: Mapping[str, nn.Module], inserted: tuple[Inserted, ...]
    ) -> None:
        """Replaces the insertions.

        Args:
            modules: The module of each insertion, by its name.
            inserted: The insertions.
        """
        own: dict[str, nn.Module | None] = {ORIGINAL: self.wrapped, **modules}
        self._modules, self.inserted = own, inserted

    def seen(self, *, before: bool, view: int | None) -> list[Inserted]:
        """The insertions seen on one side after an edit, in the order in which they work."""
        chosen = [
            item
            for item in self.inserted
            if item.before == before
            and item.experts is None
            and (view is None or item.edit <= view)
        ]
        return chosen[::-1] if before else chosen

    def sets(self, view: int | None) -> list[tuple[ExpertSet, nn.Module]]:
        """The further experts seen after an edit, each set with its module, in order."""
        return [
            (item.experts, self.part(item.name))
            for item in self.inserted[::-1]
            if item.experts is not None and (view is None or item.edit <= view)
        ]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's result, with the insertions before and behind it."""
        if _runs is not None:
            _runs.add(id(self))
        for item in self.seen(before=True, view=self.view):
            x = first_argument(self.wrapped, args, kwargs)
            result = self._made_by(item, x, args, kwargs)
            args, kwargs = with_first_argument(self.wrapped, args, kwargs, first_of(result))
        result = self._core(args, kwargs)
        for item in self.seen(before=False, view=self.view):
            made = self._made_by(item, first_of(result), args, kwargs)
            result = made if item.form == "block" else with_first(result, made)
        return result

    def _core(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of the module, and of further experts."""
        sets = self.sets(self.view)
        if not sets:
            return self.wrapped(*args, **kwargs)
        first = sets[0][0]
        result = run_set(self.wrapped, (0, first.first), first, args, kwargs)
        for one, module in sets:
            result = result + run_set(module, (one.first, one.count), one, args, kwargs)
        return result

    def _made_by(self, item: Inserted, x: Tensor, args: Any, kwargs: Any) -> Any:
        module = self.part(item.name)
        if item.form == "block":
            args, kwargs = with_first_argument(self.wrapped, args, kwargs, x)
            return module(*args, **kwargs)
        made = module(x, *args, **kwargs) if item.form == "beside" else module(x)
        if item.form == "residual":
            return x + made
        return x * made if item.form == "gate" else made

    # -- as if the wrapper were not there --------------------------------------------------------

    def named_modules(
        self,
        memo: set[nn.Module] | None = None,
        prefix: str = "",
        remove_duplicate: bool = True,  # noqa: FBT001, FBT002
    ) -> Iterator[tuple[str, nn.Module]]:
        """All modules by path: the wrapped one under the wrapper's own.

        torch.fx calls modules by these paths, so it gets the real path of the wrapped one.
        """
        if _fx_traces():
            yield from super().named_modules(memo, prefix, remove_duplicate)
            return
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name in self._modules:
            path = self._path(prefix, name)
            yield from self.part(name).named_modules(memo, path, remove_duplicate)

    @staticmethod
    def _path(prefix: str, name: str) -> str:
        return prefix if name == ORIGINAL else f"{prefix}.{name}" if prefix else name

    def state_dict(
        self, *, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> Any:
        """The tensors, those of the wrapped module under its own keys."""
        destination = OrderedDict() if destination is None else destination
        for name in self._modules:
            own = prefix if name == ORIGINAL else f"{prefix}{name}."
            self.part(name).state_dict(destination=destination, prefix=own, keep_vars=keep_vars)
        return destination

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Renames the keys so that the wrapped module finds them."""
        inserted = tuple(f"{prefix}{item.name}." for item in self.inserted)
        for key in [key for key in state_dict if key.startswith(prefix)]:
            if not key.startswith(inserted):
                state_dict[f"{prefix}{ORIGINAL}.{key[len(prefix) :]}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getattr__(self, name: str) -> Any:
        """Answers for the wrapped module.

        Raises:
            AttributeError: If it has no such attribute.
        """
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or ORIGINAL not in self.__dict__.get("_modules", {}):
                raise
        sets = [one for one, _ in self.sets(self.view)]
        if name in _OF_DICTS and (listed := self._listed()) is not None:
            return getattr(listed, name)
        answer = getattr(self._asked(), name)
        counts = sets and name in sets[0].numbers
        return answer + sum(one.count for one in sets) if counts else answer

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; a parameter or buffer of the wrapped module there.

        torch.func.functional_call and torch.export set these by their paths.
        """
        wrapped = vars(self).get("_modules", {}).get(ORIGINAL)
        for store in ("_parameters", "_buffers") if isinstance(value, Tensor) else ():
            theirs = vars(wrapped or self)[store].keys()  # `in` the store raises for a grown layer
            if name not in vars(self)[store] and name in theirs:
                vars(wrapped)[store][name] = value
                return
        super().__setattr__(name, value)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:  # noqa: FBT001, FBT002
        """Adds a buffer of its own, even if all parts have one of that name.

        Code that counts gives every module a buffer, the inner ones first, and torch would refuse
        a name for which the wrapped module answers.

        Raises:
            KeyError: If the wrapped module alone has it.
        """
        parts = [vars(part)["_buffers"].keys() for part in self._modules.values()]
        if name in self._buffers or not all(name in part for part in parts):
            super().register_buffer(name, tensor, persistent)
            return
        self._buffers[name] = None
        try:
            super().register_buffer(name, tensor, persistent)
        except BaseException:
            self._buffers.pop(name, None)
            raise

    def _asked(self) -> Any:
        """The wrapped module, for a caller that needs more than its result."""
        if _questions is not None:
            _questions.add(id(self))
        return self.wrapped

    def _listed(self) -> dict[str, nn.Module] | None:
        """All experts by name, if the module is a list of experts to which some were added."""
        sets = self.sets(self.view)
        if not sets or not sets[0][0].listed:
            return None
        return all_listed([self._asked(), *(module for _, module in sets)])

    def __getitem__(self, index: Any) -> Any:
        """An item of the wrapped module, if that has items."""
        listed = self._listed()
        if listed is None:
            return self._asked()[index]
        if isinstance(index, str):
            return listed[index]
        found = [*listed.values()][index]
        return nn.ModuleList(found) if isinstance(found, list) else found

    def __len__(self) -> int:
        """The number of items of the wrapped module, if that has items."""
        listed = self._listed()
        return len(self._asked()) if listed is None else len(listed)

    def __iter__(self) -> Iterator[Any]:
        """The items of the wrapped module, if that has items."""
        listed = self._listed()
        if listed is None:
            return iter(self._asked())
        return iter(listed if isinstance(self.wrapped, nn.ModuleDict) else listed.values())

    def __bool__(self) -> bool:
        """As the wrapped module, which may be an empty container."""
        return bool(self.wrapped)

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuses to be scripted, since it takes the arguments of any module.

        Raises:
            UnsupportedLayerError: Always.
        """
        raise UnsupportedLayerError(
            f"a {type(self.wrapped).__name__} that splitgrow has inserted layers at cannot be "
            f"scripted; make the model plain first, with splitgrow.merge"
        )

    def __getstate__(self) -> dict[str, Any]:
        """The state of a copy, without the view, which belongs to a ``with`` block."""
        return {**self.__dict__, "view": None}


def first_of(result: Any) -> Any:
    """The tensor that a module passes on: its result, or the first item of a tuple or list."""
    return result[0] if isinstance(result, (tuple, list)) else result


def with_first(result: Any, tensor: Tensor) -> Any:
    """The result with another tensor to pass on."""
    if not isinstance(result, (tuple, list)):
        return tensor
    fields = getattr(result, "_fields", None)
    if fields is not None:  # a named tuple
        return result._replace(**{fields[0]: tensor})  # type: ignore[union-attr]
    return type(result)((tensor, *result[1:]))


def first_name(module: nn.Module, kwargs: Mapping[str, Any]) -> str:
    """The name of a module's first argument in a call with keyword arguments only."""
    # The class's own forward: while a model is traced, modules have one that takes anything.
    arguments = list(inspect.signature(type(module).forward).parameters)[1:]
    return next((name for name in arguments if name in kwargs), next(iter(kwargs)))


def first_argument(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first argument of a call to a module."""
    return args[0] if args else kwargs[first_name(module, kwargs)]


def with_first_argument(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with the first one replaced."""
    if args:
        return (value, *args[1:]), kwargs
    return args, {**kwargs, first_name(module, kwargs): value}

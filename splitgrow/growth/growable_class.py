"""The class of a growable model: a subclass of the user's, with splitgrow's methods.

It stands for the user's class in pickles, copies and state_dicts.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import nn

from splitgrow.errors import ExportError, SplitGrowError
from splitgrow.growth.follow_casts import all_follow
from splitgrow.growth.growing import tell_
from splitgrow.growth.history import History, structure
from splitgrow.growth.history_lookup import HISTORY, HandleBase, history_of
from splitgrow.growth.journal.guards import each_once, put_guards_
from splitgrow.growth.journal.state_dict import check_fit, follow_, put_journal, take_journal
from splitgrow.growth.rate_groups import follow_rates_
from splitgrow.layers.module_state import moved
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.layers.weight_views import make_dense_
from splitgrow.utils.model_lock import ORIGINAL_CLASS, change_alone
from splitgrow.utils.rollback import Undo, temporarily
from splitgrow.utils.source_lines import levels_to_caller

_TAKEN = "_splitgrow_taken"
_HANDLE = "_splitgrow_handle"


def _members_of(handle: type[HandleBase]) -> dict[str, Any]:
    """The members that a model gains: the public methods and properties of its handle."""
    return {
        name: member
        for cls in handle.__mro__[::-1]
        for name, member in vars(cls).items()
        if not name.startswith("_") and name != "edits"
    }


class _Property:
    """A property that yields to an attribute of its name that the model sets later."""

    def __init__(self, handle: type[HandleBase], name: str, doc: str | None) -> None:
        self.handle, self.name, self.__doc__ = handle, name, doc

    def __get__(self, model: nn.Module | None, cls: type[nn.Module]) -> Any:
        return self if model is None else getattr(self.handle(model), self.name)


def _delegate(handle: type[HandleBase], name: str, member: Any) -> Any:
    if isinstance(member, property):
        return _Property(handle, name, member.__doc__)

    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return getattr(handle(self), name)(*args, **kwargs)

    method.__name__ = name
    method.__qualname__ = f"Handle.{name}"
    method.__doc__ = member.__doc__
    method.__wrapped__ = member  # type: ignore[attr-defined]
    return method


def _reduce(self: nn.Module, protocol: Any) -> Any:
    """Pickles the instance by the user's class, which can be imported, not by the one made here.

    Raises:
        TypeError: If the class pickles in its own way, which would lose the history.
    """
    cls = _made_here(self)
    history: History | None = vars(self).get(HISTORY)
    if history is not None:
        history.refuse_while_viewing("copy or pickle the model")
        history.kin.model = ref(self)
    reduced: Any = super(cls, self).__reduce_ex__(protocol)
    rebuild, args, *rest = reduced
    if not args or args[0] is not type(self):
        raise TypeError(
            f"{cls.__name__} is pickled in a way of its own (__reduce__), which would lose what "
            f"splitgrow knows of it; save its state_dict instead"
        )
    parts = getattr(cls, ORIGINAL_CLASS), getattr(cls, _HANDLE), getattr(cls, _TAKEN)
    return (_new_growable, (*parts, rebuild, args[1:]), *rest)


def _new_growable(
    original: type[nn.Module],
    handle: type[HandleBase],
    taken: frozenset[str],
    rebuild: Any,
    args: tuple[Any, ...],
) -> Any:
    follow_rates_()
    return rebuild(_growable_class(original, handle, taken), *args)


def _deepcopy(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copies in the class's own way, and adds the history if that left it out."""
    cls: Any = _made_here(self)
    copied: nn.Module = super(cls, self).__deepcopy__(memo)
    memo[id(self)] = copied
    vars(self)[HISTORY].kin.model = ref(self)
    history = copy.deepcopy(vars(self)[HISTORY], memo)
    if history is not None and HISTORY not in vars(copied):
        history.modules = structure(copied)
        vars(copied)[HISTORY] = history
        made = getattr(cls, _HANDLE), getattr(cls, _TAKEN)
        copied.__class__ = class_for(copied, type(copied), *made)
    return copied


def _made_here(model: nn.Module) -> type[nn.Module]:
    """The class with splitgrow's methods, not one that FSDP, for example, derived from it since."""
    return next(cls for cls in type(model).__mro__ if ORIGINAL_CLASS in vars(cls))


def _state_dict(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The tensors, and the journal if it has grown or closed a generation, as its extra state.

    Parameters that lie inside of a larger tensor get storage of their own first, until the next
    run: safetensors, among others, takes no tensor that is a part of another. Loaders of
    transformers would pass over what they do not know; entries for them make them refuse.
    """
    cls: Any = _made_here(self)
    for module in self.modules():
        for block in module if isinstance(module, SplitLayer) else ():
            make_dense_(block)
    state = super(cls, self).state_dict(*args, **kwargs)
    prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
    put_journal(self, state, prefix)
    of_library = hasattr(cls, "from_pretrained") and not kwargs.get("keep_vars")
    if of_library and history_of(self).edits:
        put_guards_(self, state, prefix)
    return state


def _load_state_dict(
    self: nn.Module,
    state_dict: Mapping[str, Any],
    strict: bool = True,  # noqa: FBT001, FBT002 - as torch has it
    **kwargs: Any,
) -> Any:
    """Loads a state_dict of this model from any time; its journal is replayed first.

    One from before the model grew is loaded into the original blocks; later blocks stay, and a
    warning says so, with the ways to the network that was saved.

    Raises:
        CheckpointError: If it is of another model or another history. Nothing changes then.
        RuntimeError: As nn.Module's.
    """
    cls: Any = _made_here(self)
    state = OrderedDict(state_dict)
    setattr(state, "_metadata", getattr(state_dict, "_metadata", None))  # noqa: B010 - torch reads it

    def load(undo: Undo) -> Any:
        journal = take_journal(self, state, "")
        since, before = len(history_of(self).edits), list(self.parameters())
        follow_(self, journal, state, "", undo)
        tell_(self, "load_state_dict", since, (), undo, before=before, loaded=True)
        if journal is not None and journal.edits and strict:
            check_fit(self, state)
        load_tensors = super(cls, self).load_state_dict
        with all_follow(self, history_of(self)):  # assign=True gives parameters another dtype
            loaded = _loading(history_of(self), partial(load_tensors, state, strict, **kwargs))
        history_of(self).kin.sample_again(self)
        return loaded

    return change_alone(self, history_of(self).model_lock, "load a state_dict", load)


@temporarily
def _loading(undo: Undo, history: History, load: Callable[[], Any]) -> Any:
    """Loads tensors; their journal was replayed already."""
    undo.on_failure(partial(setattr, history, "loading", history.loading))
    history.loading = True
    return load()


_NOT_GIVEN = object()


def _save_pretrained(
    self: nn.Module, save_directory: Any, *args: Any, state_dict: Any = _NOT_GIVEN, **kwargs: Any
) -> Any:
    """Saves as the model's class does, and refuses where others would read another network.

    Trainers name a state_dict for a checkpoint, or None for the model's own. That has the history,
    so a fresh growable model becomes this one by it. Its entries are made such that
    ``from_pretrained`` does not take it.

    Raises:
        ExportError: If the model has grown, and no state_dict is named.
    """
    cls: Any = _made_here(self)
    save = super(cls, self).save_pretrained
    if state_dict is _NOT_GIVEN:
        _refuse_grown(self, "save_pretrained")
        return save(save_directory, *args, **kwargs)
    if history_of(self).edits:
        state_dict = dict(self.state_dict() if state_dict is None else state_dict)
        put_guards_(self, state_dict, "")
        state_dict = each_once(state_dict)
        if "save_original_format" in inspect.signature(save).parameters:
            kwargs["save_original_format"] = False  # it would split experts by their names
    return save(save_directory, *args, state_dict=state_dict, **kwargs)


def _push_to_hub(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Pushes as the model's class does, and refuses where others would read another network.

    Raises:
        ExportError: If the model has grown.
    """
    _refuse_grown(self, "push_to_hub")
    cls: Any = _made_here(self)
    return super(cls, self).push_to_hub(*args, **kwargs)


def _refuse_grown(model: nn.Module, method: str) -> None:
    """Makes sure that a model has not grown.

    Raises:
        ExportError: If it has.
    """
    if history_of(model).edits:
        raise ExportError(
            f"from_pretrained would make another network of what a grown {type(model).__name__} "
            f"saves by its own {method}. Use splitgrow.save_pretrained(model, directory), which "
            f"brings the config up to date, or splitgrow.save for a checkpoint to go on from"
        )


_SAVING = {"save_pretrained": _save_pretrained, "push_to_hub": _push_to_hub}
"""Methods of models of transformers, of which only splitgrow's own know growth."""


def _apply(self: nn.Module, fn: Any, *args: Any, **kwargs: Any) -> nn.Module:
    """Moves or converts the tensors, including those of closed generations and example inputs.

    Raises:
        SplitGrowError: If an earlier generation is being shown.
    """
    cls: Any = _made_here(self)
    history: History | None = vars(self).get(HISTORY)
    apply: Callable[..., nn.Module] = partial(super(cls, self)._apply, fn, *args, **kwargs)
    if history is None:
        return apply()
    history.refuse_while_viewing("move or convert the model")
    with all_follow(self, history):
        applied = apply()
        moved(history.states, fn)
    return applied


def _load_from_state_dict(self: nn.Module, state_dict: Any, prefix: str, *args: Any) -> None:
    """As `_load_state_dict` does, where the model is part of one that is loaded."""

    def follow(undo: Undo) -> None:
        if not history_of(self).loading:
            since, before = len(history_of(self).edits), list(self.parameters())
            follow_(self, take_journal(self, state_dict, prefix), state_dict, prefix, undo)
            tell_(self, "load_state_dict", since, (), undo, before=before, loaded=True)
            history_of(self).kin.sample = ()  # the parts are still to be loaded

    cls: Any = _made_here(self)
    try:
        change_alone(self, history_of(self).model_lock, "load a state_dict", follow)
    except SplitGrowError as error:
        args[-1].append(str(error))  # torch raises all errors in this list
    super(cls, self)._load_from_state_dict(state_dict, prefix, *args)


_Made = dict[tuple[type[HandleBase], frozenset[str]], ref[type[nn.Module]]]
_CLASSES: WeakKeyDictionary[type[nn.Module], _Made] = WeakKeyDictionary()
"""The classes made for each class, for as long as they have models."""


def class_for(
    model: nn.Module,
    cls: type[nn.Module],
    handle: type[HandleBase],
    taken: frozenset[str] | None = None,
) -> type[nn.Module]:
    """The growable class for a model.

    Args:
        model: The model.
        cls: Its class, which may be a growable one already.
        handle: The class of the methods that the model gains.
        taken: The names that the model uses itself; None to look them up.
    """
    if hasattr(cls, ORIGINAL_CLASS):
        return cls
    return _growable_class(cls, handle, _taken_names(model, handle) if taken is None else taken)


def _taken_names(model: nn.Module, handle: type[HandleBase]) -> frozenset[str]:
    """The names of methods that the model uses itself."""
    taken = frozenset(name for name in _members_of(handle) if _has(model, name))
    if taken:
        warnings.warn(
            f"{type(model).__name__} has its own {', '.join(sorted(taken))}; use "
            f"splitgrow.handle(model) for splitgrow's",
            stacklevel=levels_to_caller(),
        )
    return taken


def _has(model: nn.Module, name: str) -> bool:
    try:
        return hasattr(model, name)
    except Exception:  # noqa: BLE001 - a property that raises, or a `__getattr__` without an end
        return hasattr(type(model), name)


def _growable_class(
    original: type[nn.Module], handle: type[HandleBase], taken: frozenset[str]
) -> type[nn.Module]:
    """A subclass of the model's class, of the same name, with the methods whose names are free."""
    made = _CLASSES.setdefault(original, {})
    known = made.get((handle, taken))
    cls = known() if known is not None else None
    if cls is None:
        cls = _made_class(original, handle, taken)
        made[handle, taken] = ref(cls)
    return cls


def _made_class(
    original: type[nn.Module], handle: type[HandleBase], taken: frozenset[str]
) -> type[nn.Module]:
    members = {
        name: _delegate(handle, name, member)
        for name, member in _members_of(handle).items()
        if name not in taken
    }
    if hasattr(original, "__deepcopy__"):
        members["__deepcopy__"] = _deepcopy
    for name, own in _SAVING.items():
        if hasattr(original, name):
            members[name] = own
    return type(
        original.__name__,
        (original,),
        {
            **members,
            "__module__": original.__module__,
            "__qualname__": original.__qualname__,
            "__doc__": original.__doc__,
            "__reduce_ex__": _reduce,
            "_apply": _apply,
            "state_dict": _state_dict,
            "load_state_dict": _load_state_dict,
            "_load_from_state_dict": _load_from_state_dict,
            ORIGINAL_CLASS: original,
            _HANDLE: handle,
            _TAKEN: taken,
        },
    )


def class_like(model: nn.Module, other: nn.Module) -> type[nn.Module]:
    """The growable class for another model of the class of a growable one."""
    made = _made_here(model)
    return class_for(other, type(other), getattr(made, _HANDLE), getattr(made, _TAKEN))


def original_class(model: nn.Module) -> type[nn.Module]:
    """The user's class of a growable model."""
    return getattr(type(model), ORIGINAL_CLASS, type(model))

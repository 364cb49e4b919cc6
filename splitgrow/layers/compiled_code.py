"""Compiled code that growth makes useless: dropped before torch's compiler gives up on a function.

The compiler keeps all code that it has made of a function, and runs the function eagerly once
there are too many versions of it. Growth cannot tell which of these are of the network as it was.
So it drops all of a function in which a grown layer ran when half of that number is reached.

The code holds for certain grown layers alone. So it is marked as that of the module whose method
the function is: the compiler counts the versions of each such module by themselves. Otherwise a
dozen blocks of one class, each compiled by itself, would reach the limit without any growth.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from types import CodeType
from typing import Any
from weakref import WeakValueDictionary, ref

import torch
from torch import nn
from torch.torch_version import TorchVersion

COMPILES = TorchVersion(torch.__version__) >= "2.13"
"""Whether torch's compiler follows grown layers: they then depend on the identity of objects, which
the compiler of torch 2.6 does not allow. With an older torch they run as eager code."""

_FUNCTIONS: WeakValueDictionary[int, CodeType] = WeakValueDictionary()
_TIMES: dict[int, int] = {}
"""How often the compiler has been at work on each since it last forgot it, which it limits, too."""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def note_function() -> bool:
    """Notes the function that the compiler is at work on."""
    convert: Any = sys.modules["torch._dynamo.symbolic_convert"]
    guards: Any = sys.modules["torch._dynamo.guards"]
    source: Any = sys.modules["torch._dynamo.source"]
    output = convert.InstructionTranslator.current_tx().output
    function = output.root_tx
    _FUNCTIONS[id(function.f_code)] = function.f_code
    at_work = torch._guards.CompileContext.current_compile_id()  # noqa: SLF001
    _TIMES[id(function.f_code)] = (at_work and at_work.frame_compile_id) or 0
    for name, value in function.f_locals.items():
        if isinstance(value, nn.Module):
            held = source.LocalSource(name, is_input=True)
            guards.install_guard(held.make_guard(guards.GuardBuilder.ID_MATCH))
    return True


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def derives_once() -> bool:
    """Whether the code at work refuses second derivatives by itself, as AOT autograd's does.

    Other backends run an autograd function's backward pass without recording it: a second
    derivative would silently miss what it depends on. So where this is not known, torch's own ops
    have to do.
    """
    convert: Any = sys.modules["torch._dynamo.symbolic_convert"]
    backend = convert.InstructionTranslator.current_tx().output.compiler_fn
    while hasattr(backend, "_torchdynamo_orig_backend"):
        backend = backend._torchdynamo_orig_backend  # noqa: SLF001
    if isinstance(backend, torch._TorchCompileInductorWrapper):  # noqa: SLF001
        return True
    made = getattr(backend, "compiler_fn", backend)
    common: Any = sys.modules.get("torch._dynamo.backends.common")
    if common is not None and isinstance(made, common.AotAutograd):
        return True
    module, name = made.__module__, getattr(made, "__name__", type(made).__name__)
    return module.startswith(_OF_TORCH) and name.lower().startswith(_BY_AOT)


_OF_TORCH = ("torch._dynamo.backends.", "torch._inductor.")
_BY_AOT = ("aot_", "inductor", "cudagraphs", "compile_fx")


def drop_old_code_() -> None:
    """Drops compiled code before it becomes too much; called whenever a layer has changed."""
    if not _FUNCTIONS:
        return
    try:
        _drop_where_much()
    except (AttributeError, TypeError):  # torch promises nothing of what this is made of
        torch.compiler.reset()
        _TIMES.clear()


def _drop_where_much() -> None:
    eval_frame: Any = sys.modules["torch._dynamo.eval_frame"]
    config: Any = sys.modules["torch._dynamo.config"]
    for key, code in list(_FUNCTIONS.items()):
        if 2 * _TIMES.get(key, 0) >= config.accumulated_recompile_limit:
            eval_frame.reset_code(code)
            _TIMES[key] = 0
            continue
        versions = eval_frame._debug_get_cache_entry_list(code)  # noqa: SLF001
        for some in _to_drop(versions, config.recompile_limit):
            _drop_(some)
    for key in _TIMES.keys() - _FUNCTIONS.keys():
        del _TIMES[key]


def _to_drop(versions: Iterable[Any], limit: int) -> Iterator[list[Any]]:
    """The versions of a function to drop: of gone layers, and of modules that have many."""
    guards: Any = sys.modules["torch._dynamo.guards"]
    found: dict[Any, list[Any]] = {}
    for each in versions:
        manager = each.guard_manager
        if isinstance(manager, guards.DeletedGuardManagerWrapper):
            if _NOBODY not in manager.id_matched_objs:
                yield [each]
            continue
        held = tuple(sorted((name, id(of())) for name, of in manager.id_matched_objs.items()))
        found.setdefault(held, []).append(each)
    yield from (some for some in found.values() if 2 * len(some) >= limit)


class _Nobody:
    """What a version holds for that is to be used no longer."""


_NOBODY, _SOMEONE = "_nobody", _Nobody()


def _drop_(versions: Iterable[Any]) -> None:
    """Has versions fail their guards and count for no module: one alone cannot be deleted."""
    guards: Any = sys.modules["torch._dynamo.guards"]
    for entry in versions:
        gone = entry.guard_manager
        if not isinstance(gone, guards.DeletedGuardManagerWrapper):
            state, gone = gone.extra_state, guards.DeletedGuardManagerWrapper("a layer has grown")
            state.invalidate(entry, gone)
        gone.id_matched_objs = {_NOBODY: ref(_SOMEONE)}

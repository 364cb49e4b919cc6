"""Compiled code that growth makes useless: dropped before torch's compiler gives up on a function.

The compiler keeps all code that it has made of a function, and runs the function eagerly once
there are too many versions of it. Growth cannot tell which of these are of the network as it was.
So it drops all of a function in which a grown layer ran when half of that number is reached.
"""

from __future__ import annotations

import sys
from types import CodeType
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch.torch_version import TorchVersion

COMPILES = TorchVersion(torch.__version__) >= "2.13"
"""Whether torch's compiler follows grown layers: they then depend on the identity of objects, which
the compiler of torch 2.6 does not allow. With an older torch they run as eager code."""

_OFTEN = 64
"""Changes of a layer after which code is dropped in any case: the compiler also counts how often it
has compiled a function, and code that holds for layers which are gone drops out by itself."""

_FUNCTIONS: WeakValueDictionary[int, CodeType] = WeakValueDictionary()
_CHANGES: dict[int, int] = {}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def note_function() -> bool:
    """Notes the function that the compiler is at work on."""
    convert: Any = sys.modules["torch._dynamo.symbolic_convert"]
    code = convert.InstructionTranslator.current_tx().output.root_tx.f_code
    _FUNCTIONS[id(code)] = code
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
    eval_frame: Any = sys.modules["torch._dynamo.eval_frame"]
    limit = sys.modules["torch._dynamo.config"].recompile_limit
    for key, code in list(_FUNCTIONS.items()):
        changes = _CHANGES.get(key, 0) + 1
        made = len(eval_frame._debug_get_cache_entry_list(code))  # noqa: SLF001
        if 2 * made >= limit or changes >= _OFTEN:
            eval_frame.reset_code(code)
            changes = 0
        _CHANGES[key] = changes
    for key in _CHANGES.keys() - _FUNCTIONS.keys():
        del _CHANGES[key]

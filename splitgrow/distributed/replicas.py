"""DistributedDataParallel around a model that changes: the same wrapper object, made anew.

DDP hands the parameters that train to a reducer when it is made, which hooks itself onto them and
lets go of them when it is deleted. So the old reducer goes first, and the constructor then runs
once more on the same object, with the options that it had.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from splitgrow.errors import UnsupportedModelError

_MIB = 1024 * 1024
_SAME_NAME = (
    "device_ids",
    "output_device",
    "dim",
    "find_unused_parameters",
    "gradient_as_bucket_view",
    "static_graph",
    "skip_all_reduce_unused_params",
    "batched_grad_copy",
)
"""Options of the constructor that the wrapper keeps under their own names."""
_KEPT = ("training", *(name for name in vars(nn.Module()) if "hook" in name))
"""Attributes that the user may have set on the wrapper, and its constructor resets."""
_IDLE = "_splitgrow_idle"
"""Where a wrapper with nothing to reduce keeps whether it reduced gradients before."""


def refusal(wrapper: DistributedDataParallel) -> str:
    """Why a wrapper cannot be made anew; empty if it can."""
    own = vars(wrapper)
    if type(wrapper) is not DistributedDataParallel:
        return (
            f"{type(wrapper).__name__} is a subclass of DistributedDataParallel, of which it is "
            f"not known how to make it anew; delete it, grow the model inside on every rank, "
            f"and wrap it again"
        )
    if own.get("mixed_precision") is not None:
        return (
            "DistributedDataParallel(mixed_precision=...) leaves hooks on every module that "
            "cannot be taken off; use torch.autocast instead"
        )
    if own.get("_delay_all_reduce_params"):
        return (
            "delay_all_reduce_named_params leaves hooks on parameters that cannot be taken off; "
            "wrap the model without it"
        )
    if own.get("_use_python_reducer"):
        return (
            "the wrapper reduces gradients in compiled code (optimize_ddp='python_reducer'); "
            "use the default of torch._dynamo.config.optimize_ddp"
        )
    if own.get("_buffer_hook") is not None or hasattr(wrapper, "buffer_hook"):
        return "it has a hook for buffers; register it again on a wrapper made after growth"
    stateful = [hook for hook, state in own.get("_comm_hooks", ()) if state is not None]
    if stateful:
        names = ", ".join(getattr(hook, "__name__", repr(hook)) for hook in stateful)
        return (
            f"the communication hook {names} keeps state by bucket, which growth makes others of; "
            f"delete the wrapper, grow the model inside on every rank, wrap it again and register "
            f"the hook with a new state"
        )
    if any(hasattr(p, "_in_backward_optimizers") for p in wrapper.module.parameters()):
        return "its optimizers run inside the backward pass, and would not learn of new parameters"
    return ""


class Replica:
    """One process's DistributedDataParallel, to be made anew around the changed model.

    Args:
        wrapper: The wrapper.

    Raises:
        UnsupportedModelError: If it cannot be made anew.
    """

    def __init__(self, wrapper: DistributedDataParallel) -> None:
        problem = refusal(wrapper)
        if problem:
            raise UnsupportedModelError(problem)
        self.wrapper = wrapper
        self._options = _options_of(wrapper)
        own = vars(wrapper)
        self._hooks = [hook for hook, _ in own.get("_comm_hooks", ())]
        self._kept = {name: own[name] for name in _KEPT if name in own}
        self._synced: bool = wrapper.require_backward_grad_sync
        self._idle: bool | None = own.get(_IDLE)

    def renew(self) -> None:
        """Makes the wrapper anew for the parameters that train now; calls no collectives."""
        wrapper, own = self.wrapper, vars(self.wrapper)
        synced = self._synced if self._idle is None else self._idle
        if not any(p.requires_grad for p in wrapper.module.parameters()):
            # There is nothing to reduce, for which DDP cannot be made: the old reducer stays, and
            # is not asked until something trains again.
            own[_IDLE] = synced
            wrapper.require_backward_grad_sync = False
            return
        module = wrapper.module
        # The reducer must be gone before the next one hooks itself onto the same parameters.
        for name in ("reducer", "logger", _IDLE):
            own.pop(name, None)
        DistributedDataParallel.__init__(wrapper, module, **self._options)
        for hook in self._hooks:
            wrapper.register_comm_hook(None, hook)
        own.update(self._kept)
        wrapper.require_backward_grad_sync = synced

    def take_back(self, *, anew: bool) -> None:
        """Makes the wrapper as it was, once the model is as it was.

        Args:
            anew: Whether some process may have made its wrapper anew. Then all of them do: a
                reducer that has run has sorted its buckets, and would not match a new one.
        """
        if anew:
            self.renew()
        self.wrapper.require_backward_grad_sync = self._synced
        if self._idle is None:
            vars(self.wrapper).pop(_IDLE, None)


def _options_of(wrapper: DistributedDataParallel) -> dict[str, Any]:
    """The options with which a wrapper was made, as far as this torch knows them."""
    own = vars(wrapper)
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    options = {name: own[name] for name in _SAME_NAME if name in own and name in known}
    buffers = "forward_sync_buffers"
    options[buffers if buffers in known else "broadcast_buffers"] = wrapper.broadcast_buffers
    mesh = own.get("device_mesh")
    options |= {"process_group": wrapper.process_group} if mesh is None else {"device_mesh": mesh}
    # Growth sees to it that all ranks hold the same, tensor by tensor.
    options["init_sync"] = False
    options |= _bucket_options(own)
    return {name: value for name, value in options.items() if name in known}


def _bucket_options(own: dict[str, Any]) -> dict[str, Any]:
    if own.get("bucket_bytes_cap_list"):
        return {"bucket_cap_mb_list": [size / _MIB for size in own["bucket_bytes_cap_list"]]}
    if own.get("bucket_bytes_cap_default"):
        return {"bucket_cap_mb": None}
    return {"bucket_cap_mb": own["bucket_bytes_cap"] / _MIB}

"""The calls of a model's layers in one run of forward, each with the function that made it."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, replace
from types import CodeType, FrameType
from typing import Any

from torch import nn

from splitgrow.analysis.trace import Ref
from splitgrow.analysis.trace_recorder import TraceRecorder
from splitgrow.deploy.call_order import looped_container
from splitgrow.utils.example_call import ExampleCall
from splitgrow.utils.source_lines import is_the_users

_SEQUENTIAL = nn.Sequential.forward.__code__
_ROOT = ExampleCall.run.__code__
"""The code that calls the model."""


@dataclass(frozen=True)
class CallSite:
    """One call of a layer.

    Attributes:
        code: The code of the function that called it; None if none of the user's did.
        owner: The module whose method that is.
        chain: The layer, and the containers around it that only hand values through, from the
            inside out. The function called the last of them.
        looped: Whether the last of them is one that the function goes through itself.
    """

    code: CodeType | None
    owner: nn.Module | None
    chain: tuple[nn.Module, ...]
    looped: bool = False

    def with_loop(self) -> CallSite:
        """The call with the container that the function goes through, if there is one.

        During the run, stand-ins take the layers' places in it.
        """
        if self.code is None or self.owner is None:
            return self
        container = looped_container(self.code, self.owner, self.top)
        return (
            self
            if container is None
            else replace(self, chain=(*self.chain, container), looped=True)
        )

    @property
    def top(self) -> nn.Module:
        """The module that the function called."""
        return self.chain[-1]


class CallRecorder(TraceRecorder):
    """Traces a run, and notes the function that called each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._sites: dict[str, CallSite] = {}
        self._modules: dict[str, nn.Module] = {}

    def prepare(self, modules: Any, copied: Any) -> None:
        """Also learns the modules by path."""
        self._modules = dict(modules)
        super().prepare(modules, copied)

    def _record(
        self, name: str, target: Any, args: Any, kwargs: Any, result: Any, module: str | None = None
    ) -> Any:
        if module is not None:
            self.counts[module] += 1
            self._sites[module] = _site_of(self._modules[module])
        return super()._record(name, target, args, kwargs, result, module)

    def site_of(self, path: str) -> CallSite:
        """The last call of a layer."""
        return self._sites[path].with_loop()

    def steps_by_path(self) -> dict[str, int]:
        """The step of each layer that is called once."""
        numbered = enumerate(self.steps)
        return {
            step.module: index
            for index, step in numbered
            if step.module is not None and self.counts[step.module] == 1
        }

    def given_to(self, index: int) -> Ref | None:
        """What the step of a layer reads, if that is a single tensor."""
        step = self.steps[index]
        given = step.args[0] if len(step.args) == 1 and not step.kwargs else None
        return given if isinstance(given, Ref) else None


def _site_of(layer: nn.Module) -> CallSite:
    """The call of a layer that is under way."""
    chain, frame = [layer], sys._getframe(2)  # noqa: SLF001
    while frame is not None:
        code = frame.f_code
        if code is _SEQUENTIAL:
            container = frame.f_locals["self"]
            if type(container).__iter__ is not nn.Sequential.__iter__:
                break
            chain.append(container)
        elif code is _ROOT:
            break
        elif is_the_users(code.co_filename):
            return _called_by(frame, chain)
        frame = frame.f_back  # type: ignore[assignment]
    return CallSite(None, None, tuple(chain))


def _called_by(frame: FrameType, chain: list[nn.Module]) -> CallSite:
    code = frame.f_code
    owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    if not isinstance(owner, nn.Module):
        return CallSite(None, None, tuple(chain))
    return CallSite(code, owner, tuple(chain))

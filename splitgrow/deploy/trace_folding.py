"""Folding batch norms in a plain model of the user's class, which keeps its own forward.

For models that torch.fx cannot trace. The trace of a run shows which layer feeds which norm and who
else reads the value. Forward's source shows whether that is so at every call. An nn.Identity, or
the activation of a norm that has one, takes the place of a norm that is folded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import CodeType
from typing import Any

import torch
from torch import nn

from splitgrow.analysis.trace import Source, refs_of
from splitgrow.analysis.tracer import trace_model
from splitgrow.deploy.call_order import Caller, other_callers, refusal_of_order
from splitgrow.deploy.call_sites import CallRecorder, CallSite
from splitgrow.deploy.fx_readers import is_free, memory_of, tensors_of
from splitgrow.deploy.layer_folding import NORMS, can_take_a_norm, fold_norm_, has_statistics
from splitgrow.errors import TraceError
from splitgrow.layers.hooks import has_run_hooks
from splitgrow.layers.types import layer_type_of
from splitgrow.utils.example_call import ExampleCall
from splitgrow.utils.module_slots import holders_in, put_in_place_
from splitgrow.utils.rollback import Undo, temporarily


@dataclass(frozen=True)
class FoldPlan:
    """The norms of a model that can be folded.

    Attributes:
        folds: For each of them the layer before it, by their paths.
        kept: Why the others stay, by their paths.
    """

    folds: dict[str, str]
    kept: dict[str, str]


def norm_parts(module: nn.Module) -> list[nn.Module]:
    """A module as a batch norm with statistics and all that follows it; empty if it is none."""
    if has_statistics(module):
        return [module]
    entry = layer_type_of(module)
    parts = entry.stock_parts(module) if entry is not None and entry.norm(module) else []
    if parts and has_statistics(parts[0]):
        return parts
    frozen = frozen_norm(module)
    return [] if frozen is None else [frozen]


_FROZEN = ("weight", "bias", "running_mean", "running_var")


def frozen_norm(module: Any) -> nn.Module | None:
    """The batch norm that computes the same as one whose tensors are all buffers.

    None if the module is no such norm. Detection models have classes of their own for these, so
    they are told by their tensors, and by the values that they compute.
    """
    own = module._buffers  # noqa: SLF001
    if module._parameters or module._modules or not own.keys() >= {*_FROZEN}:  # noqa: SLF001
        return None
    tensors = [own[name] for name in _FROZEN]
    if any(tensor is None or tensor.dim() != 1 for tensor in tensors):
        return None
    weight, bias, mean, var = tensors
    norm = nn.BatchNorm2d(len(weight), eps=float(getattr(module, "eps", 1e-5)), device="meta")
    norm.weight, norm.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
    norm.running_mean, norm.running_var = mean, var
    norm.eval()
    probe = torch.linspace(-3, 3, 4 * len(weight), dtype=weight.dtype, device=weight.device)
    probe = probe.reshape(1, 4, -1).transpose(1, 2)[..., None].contiguous()
    try:
        with torch.no_grad():
            same = torch.allclose(module(probe), norm(probe), rtol=1e-4, atol=1e-5)
    except Exception:  # noqa: BLE001 - it is something else, which may raise anything
        return None
    return norm if same else None


@temporarily
def fold_plan(undo: Undo, model: nn.Module, inputs: ExampleCall) -> FoldPlan:
    """The norms of a plain model that can be folded into the layers before them.

    Args:
        undo: Takes back the changes that the trace needs.
        model: The model.
        inputs: The example call.
    """
    holders = holders_in(model)
    for module in list(model.modules()):
        frozen = frozen_norm(module) if layer_type_of(module) is None else None
        if frozen is not None and is_free(module):  # so that it is traced as one op
            put_in_place_(holders, module, frozen, undo)
    norms = {name: parts[0] for name, m in model.named_modules() if (parts := norm_parts(m))}
    others = {
        name: "it has no running statistics, or is of a class of its own"
        for name, module in model.named_modules()
        if isinstance(module, NORMS) and name not in norms
    }
    if not norms:
        return FoldPlan({}, others)
    try:
        trace = trace_model(model, inputs, training=False, make=CallRecorder)
    except (ValueError, TraceError) as error:
        return FoldPlan({}, others | dict.fromkeys(norms, str(error)))
    assert isinstance(trace.recorder, CallRecorder)
    plan = _Planner(model, trace.recorder, norms).plan()
    return FoldPlan(plan.folds, others | plan.kept)


def fold_planned_(model: nn.Module, folds: Mapping[str, str]) -> None:
    """Folds norms into layers, and puts what follows them into their places.

    Args:
        model: A plain model.
        folds: The layers by the norms, by their paths.
    """
    owners = Counter(memory_of(tensor) for part in model.modules() for tensor in tensors_of(part))
    holders = holders_in(model)
    for name, layer_name in folds.items():
        layer: Any = model.get_submodule(layer_name)
        module = model.get_submodule(name)
        norm, *behind = norm_parts(module)
        fold_norm_(layer, norm, shared=owners[memory_of(layer.weight)] > 1)
        behind = [part for part in behind if not isinstance(part, nn.Identity)]
        rest = nn.Sequential(*behind) if behind else nn.Identity()
        # A loader that passes over unknown keys, such as that of transformers, would make a network
        # with a fresh norm of this model's tensors. None takes a tensor of another shape.
        rest.register_buffer("running_mean", torch.zeros(1, 1, 1))
        put_in_place_(holders, module, rest.train(module.training), Undo())


class _Planner:
    """Finds the norms that can be folded in one run of a model.

    Args:
        model: The model.
        run: The run.
        norms: The model's norms, by the paths of the modules that are norms or begin with one.
    """

    def __init__(self, model: nn.Module, run: CallRecorder, norms: Mapping[str, nn.Module]) -> None:
        self._run, self._norms = run, norms
        self._modules = dict(model.named_modules())
        self._steps = run.steps_by_path()
        self._readers = Counter(ref.step for step in run.steps for ref in refs_of(step))
        self._touched = {
            str(step.args[0]).rpartition(".")[0]
            for step in run.steps
            if step.target in (Source.TENSOR, Source.NUMBER)
        }

    def plan(self) -> FoldPlan:
        """The norms that can be folded, and the reasons of the others."""
        found = {name: self._layer_before(name) for name in self._norms}
        pairs = {name: layer for name, (layer, reason) in found.items() if not reason}
        kept = {name: reason for name, (_, reason) in found.items() if reason}
        others = self._other_callers({*pairs, *pairs.values()})
        for name, layer in list(pairs.items()):
            first, second = self._run.site_of(layer), self._run.site_of(name)
            callers = [c for m in (*first.chain, *second.chain) for c in others.get(m, ())]
            wrong = [
                code.co_name for code, owner in callers if _disagrees(code, owner, first, second)
            ]
            if wrong:
                kept[name] = f"`{wrong[0]}` may call it, or its layer, too"
                del pairs[name]
        return FoldPlan(pairs, kept)

    def _other_callers(self, names: Iterable[str]) -> dict[nn.Module, list[Caller]]:
        """The methods that may call layers, or the containers around them, in another run."""
        callers: dict[nn.Module, Caller | None] = {}
        sites = [self._run.site_of(name) for name in names]
        for site in sites:
            callers.update(dict.fromkeys(site.chain[:-1]))
        for site in sites:
            if site.code is not None and site.owner is not None:
                callers[site.top] = site.code, site.owner
        return other_callers(self._modules.values(), callers)

    def _layer_before(self, name: str) -> tuple[str, str]:
        """The layer into which a norm can be folded, and the reason if it cannot."""
        index = self._steps.get(name)
        if index is None:
            return "", "it is not called exactly once, as a layer of its own"
        given = self._run.given_to(index)
        before = None if given is None or given.path else self._run.steps[given.step]
        layer = before.module if before is not None and before.module else ""
        if before is None or not layer or layer_type_of(self._modules[layer]) is None:
            return "", "it reads something else than a layer's output"
        if layer not in self._steps:
            return layer, f"its layer `{layer}` is called several times"
        if self._readers[self._steps[layer]] != 1:
            return layer, f"the output of `{layer}` has other readers, too"
        dims = before.example.dim()
        if not can_take_a_norm(self._modules[layer], dims, self._norms[name]):
            return layer, f"`{layer}` cannot take it"
        return layer, self._refusal(name, layer)

    def _refusal(self, name: str, layer: str) -> str:
        first, second = self._run.site_of(layer), self._run.site_of(name)
        if {name, layer} & self._touched:
            return "forward itself reads its tensors, or its layer's"
        for each in (self._modules[name], self._modules[layer]):
            if not is_free(each) or "forward" in vars(each):
                return "it, or its layer, has hooks, or a forward of its own"
        return _refusal_of_calls(first, second)


def _disagrees(code: CodeType, owner: nn.Module, first: CallSite, second: CallSite) -> bool:
    """Whether another method calls a layer and its norm otherwise than in a row."""
    whole = not (first.looped or second.looped) and first.top is not second.top
    return not whole or bool(refusal_of_order(code, owner, first.top, second.top))


def _refusal_of_calls(first: CallSite, second: CallSite) -> str:
    """Why the second call might read anything else than all that the first makes."""
    common = next((c for c in first.chain[1:] if any(c is other for other in second.chain)), None)
    ends = [_below(site.chain, common) for site in (first, second)]
    for chain, place in zip(ends, (-1, 0), strict=True):
        for part, container in pairwise(chain):
            if _children(container)[place] is not part:
                return "there are other layers between it and its layer"
            if has_run_hooks(container):
                return "a container around it, or around its layer, has hooks"
    if common is not None:
        return _refusal_of_neighbours(_children(common), ends[0][-1], ends[1][-1])
    if first.code is None or first.owner is None or second.code is None:
        return "something calls it, or its layer, that is no method of a module"
    if first.code is not second.code or first.owner is not second.owner:
        return "other functions call it than its layer"
    if first.looped or second.looped:
        return "a loop calls it, or its layer"
    return refusal_of_order(first.code, first.owner, first.top, second.top)


def _below(chain: tuple[nn.Module, ...], common: nn.Module | None) -> list[nn.Module]:
    """The modules of a chain inside of a container; all of them if there is none."""
    return [*_until(chain, common)]


def _until(chain: Iterable[nn.Module], end: nn.Module | None) -> Iterator[nn.Module]:
    for module in chain:
        if module is end:
            return
        yield module


def _children(container: nn.Module) -> list[nn.Module | None]:
    return list(container._modules.values())  # noqa: SLF001


def _refusal_of_neighbours(
    children: list[nn.Module | None], first: nn.Module, second: nn.Module
) -> str:
    pairs = pairwise(children)
    neighbours = any(one is first and other is second for one, other in pairs)
    once = all(sum(child is each for child in children) == 1 for each in (first, second))
    return "" if neighbours and once else "there are other layers between it and its layer"

"""Trying out a larger mixture of experts on a plain copy, to find all that has to grow.

The copy has each expert several times, and the scores as often. Some of the numbers that its
modules hold have to grow as well: of the experts, of those that are chosen, of groups. Which ones
is tried in values, on the mixture's own inputs and on random ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from splitgrow.errors import UnsupportedLayerError
from splitgrow.growth.experts.mixtures import Mixture, ModuleCall
from splitgrow.layers.expert_sets import (
    add_listed_,
    counts_of_experts,
    entry_tensor,
    repeat_experts_,
    set_entry_tensor_,
    tensors_of_experts,
)
from splitgrow.layers.plain_copy import plain_copy
from splitgrow.layers.types import layer_type_of
from splitgrow.utils.output_tensors import tensors_in
from splitgrow.utils.preserve import preserve_
from splitgrow.utils.rollback import Undo, temporarily

_LARGE = 10**8
"""A number of elements above which a mixture is tried in its own dtype, to save memory."""
_TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-4}  # routers may compute in single precision
_ROUGH = 5e-2
_MORE = 2
"""The largest number of further numbers that are tried together."""


class RouterScore(NamedTuple):
    """A tensor with an entry for each expert that is none of the experts' own.

    Attributes:
        name: Its name in the mixture.
        dim: The dimension of the experts.
    """

    name: str
    dim: int


class Count(NamedTuple):
    """A number that a module of the mixture holds.

    Attributes:
        module: The path of the module in the mixture.
        attribute: The attribute's name.
        value: The number: an int that counts something, or a float by which weights are scaled.
    """

    module: str
    attribute: str
    value: int | float

    def grown(self, times: int) -> int | float:
        """The number with so many of each expert: weights are shared among these."""
        return self.value * times if isinstance(self.value, int) else self.value / times


@dataclass(frozen=True)
class Rehearsed:
    """All that has to grow with a mixture's experts.

    Attributes:
        tensors: The names of the experts' tensors with an entry for each.
        numbers: The names of the experts' own attributes that count them.
        scores: The other tensors with an entry for each expert.
        counts: The numbers outside of the experts that are multiplied.
    """

    tensors: tuple[str, ...]
    numbers: tuple[str, ...]
    scores: tuple[RouterScore, ...]
    counts: tuple[Count, ...]


@temporarily
def rehearsed(
    undo: Undo, module: nn.Module, mixture: Mixture, call: ModuleCall, times: int
) -> Rehearsed:
    """All that has to grow so that a mixture with each expert several times computes the same.

    Args:
        undo: Restores all that runs disturb.
        module: The module that has the mixture. It is not changed.
        mixture: The mixture.
        call: A call of that module.
        times: How many times it is to have each expert.

    Raises:
        UnsupportedLayerError: If no numbers make it compute the same.
    """
    plain = plain_copy(module, None, {})
    preserve_(plain, undo)
    torch.set_grad_enabled(False)
    for part in plain.modules():
        part.__dict__["training"] = False
    plain, calls = _in_double(plain, call)
    parts = _parts(plain, mixture)
    scores = _scores(plain, mixture, parts)
    # What has one value everywhere, as a bias that has not moved yet, may have to keep it.
    for moves in (_any, _varies):
        stirred = copy.deepcopy(plain)
        _stir_(stirred, scores, moves)
        counts = _counts_that_fit(stirred, calls, (mixture, parts, scores), times)
        if counts is not None:
            return Rehearsed(parts.tensors, parts.numbers, scores, counts)
    raise UnsupportedLayerError(
        f"`{mixture.path}` cannot have each of its {mixture.count} experts {times} times: no "
        f"numbers that it holds make it choose {times} times as many as {mixture.chosen}, with the "
        f"same weights for all twins together (it may scale them by something else than their sum, "
        f"or have a number written into its code)"
    )


def _any(_: Tensor) -> bool:
    return True


def _varies(tensor: Tensor) -> bool:
    return tensor.numel() < 2 or bool((tensor != tensor.flatten()[0]).any())


def _counts_that_fit(
    plain: nn.Module,
    calls: Sequence[ModuleCall],
    known: tuple[Mixture, _Parts, tuple[RouterScore, ...]],
    times: int,
) -> tuple[Count, ...] | None:
    """The numbers with which a larger copy of a mixture computes the same; None if none do."""
    mixture, parts, scores = known
    before = [_outputs(plain, each) for each in calls]
    larger = copy.deepcopy(plain)
    _grow_(larger, parts, scores, times)
    for tried in _tries(plain, mixture, parts.path):
        for count in tried:
            vars(larger.get_submodule(count.module))[count.attribute] = count.grown(times)
        try:
            same = all(
                _alike(one, _outputs(larger, each)) for one, each in zip(before, calls, strict=True)
            )
        except Exception:  # noqa: BLE001 - numbers that contradict each other raise anything
            same = False
        for count in tried:
            vars(larger.get_submodule(count.module))[count.attribute] = count.value
        if same:
            return tried
    return None


def _stir_(
    plain: nn.Module, scores: Sequence[RouterScore], moves: Callable[[Tensor], bool]
) -> None:
    """Moves a copy's values, so that no experts are alike, no scores equal and no results zero."""
    generator = torch.Generator().manual_seed(0)
    moved: list[Tensor] = [p for p in plain.parameters() if p.is_floating_point()]
    moved += [entry_tensor(plain, name) for name, _ in scores]
    for tensor in {id(each): each for each in moved}.values():
        if tensor.is_floating_point() and tensor.numel() > 0 and moves(tensor):
            size = tensor.detach().float().std().item() if tensor.numel() > 1 else 0.0
            noise = torch.randn(tensor.shape, generator=generator).to(tensor)
            tensor.add_(noise, alpha=max(size, 0.05))


class _Parts(NamedTuple):
    """The experts in a copy of the mixture: their path there, tensors, numbers."""

    path: str
    tensors: tuple[str, ...]
    numbers: tuple[str, ...]


def _parts(plain: nn.Module, mixture: Mixture) -> _Parts:
    path = within(mixture.experts, mixture.path)
    experts = plain.get_submodule(path)
    if mixture.index is None:
        return _Parts(path, (), ())
    tensors = tensors_of_experts(experts, mixture.count)
    shared = [name for name, _ in experts.named_parameters() if name not in tensors]
    if shared:
        raise UnsupportedLayerError(
            f"the experts of `{mixture.path}` share {', '.join(shared[:3])}, of which further ones "
            f"would have their own"
        )
    return _Parts(path, tuple(tensors), tuple(counts_of_experts(experts, mixture.count)))


def within(path: str, outer: str) -> str:
    """A path as it is inside of a module."""
    return path[len(outer) + 1 :] if outer else path


def _scores(plain: nn.Module, mixture: Mixture, parts: _Parts) -> tuple[RouterScore, ...]:
    """The tensors of the router and its scorers that have an entry for each expert."""
    router = within(mixture.router, mixture.path)
    steps = router.split(".") if router else []
    around = [".".join(steps[:n]) for n in range(len(steps) + bool(not steps))]
    own = {path: plain.get_submodule(path) for path in around}  # with what they hold themselves
    if router:
        own.update(_modules_below(plain, router))
    known = dict(plain.named_modules())
    for path in mixture.scorers:
        if within(path, mixture.path) in known:  # no block of a grown layer
            own.update(_modules_below(plain, within(path, mixture.path)))
    found: dict[str, RouterScore] = {}
    for path, module in own.items():
        if path == parts.path or path.startswith(f"{parts.path}."):
            continue
        tensors: Any = {**module._parameters, **module._buffers}  # noqa: SLF001
        for key, tensor in tensors.items():
            shape = () if tensor is None else tensor.shape
            dims = [dim for dim, size in enumerate(shape) if size == mixture.count]
            if dims:
                name = f"{path}.{key}".removeprefix(".")
                found[name] = RouterScore(name, dims[0])
    return tuple(found.values())


def _modules_below(plain: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    for name, module in plain.get_submodule(path).named_modules():
        yield ".".join(part for part in (path, name) if part), module


def _grow_(larger: nn.Module, parts: _Parts, scores: Sequence[RouterScore], times: int) -> None:
    experts = larger.get_submodule(parts.path)
    if parts.tensors:
        repeat_experts_(experts, parts.tensors, parts.numbers, times)
    else:
        add_listed_(experts, times - 1)
    for name, dim in scores:
        tensor = entry_tensor(larger, name)
        set_entry_tensor_(larger, name, torch.cat([tensor.detach()] * times, dim), trains=False)
    for path in {name.rpartition(".")[0] for name, _ in scores}:
        layer: Any = larger.get_submodule(path)
        if isinstance(layer, nn.Linear):
            layer.out_features = layer.weight.shape[0]


def _tries(plain: nn.Module, mixture: Mixture, experts: str) -> Iterator[tuple[Count, ...]]:
    """The numbers to multiply, the most likely ones first."""
    known: list[Count] = []
    widths = {size for p in chain(plain.parameters(), plain.buffers()) for size in p.shape}
    for path, module in plain.named_modules():
        if path == experts or path.startswith(f"{experts}."):
            continue
        if layer_type_of(module) is not None:
            continue
        for name, value in vars(module).items():
            if type(value) in (int, float) and value > 0 and not name.startswith("_"):
                known.append(Count(path, name, value))
    scales = [count for count in known if isinstance(count.value, float)]
    known = [count for count in known if isinstance(count.value, int)]
    always = [count for count in known if count.value == mixture.count]
    chosen = [count for count in known if count.value == mixture.chosen and count not in always]
    others = [count for count in known if count not in always and count not in chosen]
    others.sort(key=lambda count: count.value in widths)  # a width is no number of groups
    for scaled in _subsets(scales, 1):
        for fewer in _subsets(chosen)[::-1]:
            if fewer or mixture.count == mixture.chosen:
                for more in _subsets(others, _MORE):
                    yield (*always, *fewer, *more, *scaled)


def _subsets(counts: Sequence[Count], largest: int | None = None) -> list[tuple[Count, ...]]:
    """All subsets of some numbers, the smallest first."""
    sizes = range(min(len(counts), largest if largest is not None else 4) + 1)
    found = [subset for size in sizes for subset in combinations(counts, size)]
    return found if largest is not None or len(counts) <= 4 else [*found, tuple(counts)]


def _in_double(plain: nn.Module, call: ModuleCall) -> tuple[nn.Module, list[ModuleCall]]:
    """A mixture in the finest dtype in which it runs, and calls of it."""
    size = sum(p.numel() for p in plain.parameters())
    own = next((p.dtype for p in plain.parameters() if p.is_floating_point()), torch.float32)
    dtypes = [torch.float64, torch.float32, own] if size < _LARGE else [own]
    error: Exception | None = None
    for dtype in dict.fromkeys(dtypes):
        fine = copy.deepcopy(plain).to(dtype)
        calls = [_cast(call, dtype), *(_random(call, dtype, seed) for seed in range(2))]
        try:
            for each in calls:
                _outputs(fine, each)
        except Exception as failed:  # noqa: BLE001 - a kernel may lack a dtype, in any way
            error = failed
            continue
        return fine, calls
    assert error is not None
    raise error


def _cast(call: ModuleCall, dtype: torch.dtype) -> ModuleCall:
    def cast(x: Tensor) -> Tensor:
        return x.to(dtype) if x.is_floating_point() else x

    args, kwargs = pytree.tree_map_only(Tensor, cast, (call.args, call.kwargs))
    return ModuleCall(args, kwargs)


def _random(call: ModuleCall, dtype: torch.dtype, seed: int) -> ModuleCall:
    """A call with random numbers in place of what the mixture read."""

    def drawn(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        generator = torch.Generator(x.device).manual_seed(seed)
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=dtype)
        return noise.mul_(3**seed)

    args, kwargs = pytree.tree_map_only(Tensor, drawn, (call.args, call.kwargs))
    return ModuleCall(args, kwargs)


def _outputs(module: nn.Module, call: ModuleCall) -> list[Tensor]:
    """What a mixture returns: of several tensors the first, since others may be its scores."""
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (call.args, call.kwargs))
    return tensors_in(module(*args, **kwargs))[:1]


def _alike(before: Sequence[Tensor], now: Sequence[Tensor]) -> bool:
    for one, other in zip(before, now, strict=True):
        if one.shape != other.shape:
            return False
        largest = one.abs().max().item()
        tolerance = _TOLERANCES.get(one.dtype, _ROUGH)
        if not (one - other).abs().max().item() <= tolerance * max(largest, 1e-30):
            return False
    return True

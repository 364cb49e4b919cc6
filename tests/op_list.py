"""Torch's own list of ops, each between layers that grow and layers that read its results."""

from __future__ import annotations

import contextlib
import itertools
import sys
import types
import unittest
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from between import unchecked
from helpers import split_layers
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import splitgrow
from splitgrow.errors import SplitGrowError

LONGEST = 40
"""Of samples with longer dimensions nothing more is learned, and they take long."""

Call = Callable[..., Any]


def list_of_ops() -> list[Any]:
    """Torch's own list of ops, with samples of what they are called with.

    Raises:
        ImportError: If this build of torch comes without it.
    """
    if "expecttest" not in sys.modules:  # the list's module imports it, and the list needs none
        stub: Any = types.ModuleType("expecttest")
        stub.TestCase = unittest.TestCase
        sys.modules["expecttest"] = stub
    from torch.testing._internal.common_methods_invocations import op_db  # noqa: PLC0415

    return list(op_db)


@dataclass(frozen=True)
class Sample:
    """One call of an op: its tensors apart, and how to call it on others in their place.

    Attributes:
        name: The op and the number of the sample.
        tensors: The floating-point tensors among the arguments.
        call: Runs the op on tensors like these.
    """

    name: str
    tensors: tuple[Tensor, ...]
    call: Call = field(repr=False)


def raw_samples(info: Any, most: int) -> list[Any]:
    """What torch's list calls an op with: at most so many of its first samples."""
    with contextlib.ExitStack() as stack:
        # The list crawls up the stack for a test of its own at each sample, which takes long here.
        for place in ("common_utils", "opinfo.core"):
            name = f"torch.testing._internal.{place}.extract_test_fn"
            stack.enter_context(mock.patch(name, return_value=None))
        return list(itertools.islice(info.sample_inputs("cpu", torch.float64), most))


def samples_of(info: Any, most: int) -> Iterator[Sample]:
    """Calls of an op of torch's list, as a function and as a method."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(0)
        found = raw_samples(info, 4 * most)
    chosen = found[:: max(1, len(found) // most)][:most]
    for number, sample in enumerate(chosen):
        for kind, function in (("", info.op), (" as a method", info.method_variant)):
            if function is None or (kind and number):
                continue
            leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
            at = [i for i, leaf in enumerate(leaves) if _is_input(leaf)]
            yield Sample(
                f"{info.name}{info.variant_test_name and '.'}{info.variant_test_name} "
                f"{number}{kind}",
                tuple(leaves[i].detach() for i in at),
                _caller(function, leaves, spec, at),
            )


def _is_input(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dtype == torch.float64 and leaf.layout == torch.strided


def _caller(function: Call, leaves: list[Any], spec: Any, at: list[int]) -> Call:
    def call(*tensors: Tensor) -> Any:
        given = list(leaves)
        for index, tensor in zip(at, tensors, strict=True):
            given[index] = tensor
        first, args, kwargs = pytree.tree_unflatten(given, spec)
        return function(first, *args, **kwargs)

    return call


class Along(nn.Module):
    """A linear layer along one dimension of its input."""

    def __init__(self, dim: int, width: int, units: int) -> None:
        super().__init__()
        self.dim = (dim,)  # in a tuple, so that it is not taken for a width
        self.linear = nn.Linear(width, units)

    def forward(self, x: Tensor) -> Tensor:
        (dim,) = self.dim
        return self.linear(x.transpose(dim, -1)).transpose(dim, -1).contiguous()


class Between(nn.Module):
    """Layers that make some of an op's tensors, the op, and layers that read all of its result.

    The layers in front are the identity, so that the op is given what it was given in torch's
    list. Those behind read each result along each of its dimensions, one after the other.
    """

    def __init__(self, sample: Sample, dim: int, grown: tuple[int, ...]) -> None:
        super().__init__()
        self.call = sample.call
        self.grown = tuple(map(str, grown))
        self.front = nn.ModuleDict()
        for index in grown:
            width = sample.tensors[index].shape[dim]
            self.front[str(index)] = Along(dim, width, width)
            nn.init.eye_(self.front[str(index)].linear.weight)
            nn.init.zeros_(self.front[str(index)].linear.bias)
        self.behind = nn.ModuleList(
            nn.Sequential(*(Along(d, size, 2) for d, size in enumerate(result.shape)))
            for result in results_of(sample.call(*map(Tensor.clone, sample.tensors)))
        )

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        # A look at values: without them nothing but the rules says what growth does.
        assert all(tensor.isfinite().all() for tensor in tensors)
        given = list(tensors)
        for key in self.grown:
            given[int(key)] = self.front[key](given[int(key)])
        results = results_of(self.call(*given))
        pairs = zip(self.behind, results, strict=True)
        return [behind(result) for behind, result in pairs]


def results_of(result: Any) -> list[Tensor]:
    """The tensors that an op makes, as a linear layer can read them."""
    tensors = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    tensors = [tensor.abs() if tensor.is_complex() else tensor for tensor in tensors]
    return [tensor.double() for tensor in tensors]


def networks_of(sample: Sample) -> Iterator[tuple[str, Between]]:
    """Networks around a call, in which one tensor or several grow along one dimension."""
    for index, tensor in enumerate(sample.tensors):
        for dim in range(-tensor.dim(), 0):
            yield f"{index} along {dim}", Between(sample, dim, (index,))
    for dim in (-1, -2):
        alike = [t for t in sample.tensors if t.dim() >= -dim]
        sizes = {t.shape[dim] for t in alike}
        if len(alike) > 1:
            for size in sizes:
                chosen = tuple(
                    i
                    for i, t in enumerate(sample.tensors)
                    if t.dim() >= -dim and t.shape[dim] == size
                )
                if len(chosen) > 1:
                    yield f"{chosen} along {dim}", Between(sample, dim, chosen)


def runs_alike(sample: Sample) -> bool:
    """Whether a call gives the same finite tensors each time, none of them long."""
    if not sample.tensors or any(max(t.shape, default=0) > LONGEST for t in sample.tensors):
        return False
    if any(t.numel() == 0 or not t.isfinite().all() for t in sample.tensors):
        return False
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        given = [tensor.clone() for tensor in sample.tensors]
        with mock.patch("torch.manual_seed") as seeded:
            runs.append(results_of(sample.call(*given)))
        if seeded.called:  # torch's list has it seed itself, and another width draws other numbers
            return False
    same = all(torch.equal(*pair) for pair in zip(*runs, strict=True))
    results = runs[0]
    fits = all(
        tensor.isfinite().all() and max(tensor.shape, default=0) <= LONGEST**2 for tensor in results
    )
    return same and fits and any(tensor.dim() for tensor in results)


@torch.no_grad()
def verdict(sample: Sample, network: Between) -> tuple[str, str]:
    """How growth goes: exact, fixed, refused, or wrong, with the reason."""
    network = network.double().eval()
    inputs = tuple(sample.tensors)
    before = network(*map(Tensor.clone, inputs))
    try:
        model: Any = unchecked(splitgrow.growable)(network, inputs)
    except SplitGrowError as error:
        return "refused", str(error)
    names = {f"front.{key}.linear" for key in network.grown}
    layers = [layer for layer in model.layers if layer.name in names]
    free = [layer.name for layer in layers if layer.growable]
    if not free:
        return "fixed", layers[0].reason
    try:
        tied: set[str] = set()
        for layer in model.layers:
            if layer.name in free and layer.name not in tied:
                tied.update(layer.group)
                _grow(model, layer.name)
    except SplitGrowError as error:
        return "refused", str(error)
    _give_values(model)
    try:
        after = model(*map(Tensor.clone, inputs))
    except Exception as error:  # noqa: BLE001 - whatever it is, growth broke it
        return "wrong", f"fails after growth: {type(error).__name__}: {error}"
    for one, other in zip(after, before, strict=True):
        if not one.isfinite().all():
            return "not finite", "new units lie where the op is not finite"
        if not torch.allclose(one, other, rtol=1e-9, atol=1e-9):
            return "wrong", f"differs by {(one - other).abs().max().item():.3g}"
    return "exact", ""


def _grow(model: Any, name: str) -> None:
    for units in range(1, 25):
        try:
            unchecked(model.expand_layer)(name, units)
        except ValueError:  # units come in bundles
            continue
        return
    raise AssertionError(f"{name} does not grow by any number of units")


def _give_values(model: nn.Module) -> None:
    """Makes new units mixtures of the first and the last old one, where ops are defined."""
    for split in split_layers(model):
        old: Any = split[0]
        for block in list(split)[1:]:
            if block.weight.shape[1] != old.weight.shape[1] or block.bias is None:
                continue
            for row, (weight, bias) in enumerate(zip(block.weight, block.bias, strict=True)):
                share = 0.3 + 0.4 / (row + 1)
                weight.copy_(share * old.weight[0] + (1 - share) * old.weight[-1])
                bias.copy_(share * old.bias[0] + (1 - share) * old.bias[-1])


def tried(infos: Any, most: int) -> tuple[Counter[str], list[tuple[str, str, str]]]:
    """The verdicts over a list of ops, and each case with its verdict and reason."""
    cases = []
    for info in infos:
        for sample in _samples(info, most):
            for name, network in networks_of(sample):
                cases.append((f"{sample.name}, {name}", *_verdict(sample, network)))
                if "not an op that" in cases[-1][2]:  # nor is it along other dimensions
                    break
    return Counter(verdict for _, verdict, _ in cases), cases


def _verdict(sample: Sample, network: Between) -> tuple[str, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return verdict(sample, network)
    except Exception as error:  # noqa: BLE001 - it is to be counted
        return "internal", f"{type(error).__name__}: {error}"


def _samples(info: Any, most: int) -> Iterator[Sample]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = list(samples_of(info, most))
        except Exception:  # noqa: BLE001 - an op that torch cannot run here
            return
        for sample in found:
            try:
                alike = runs_alike(sample)
            except Exception:  # noqa: BLE001 - likewise
                alike = False
            if alike:
                yield sample

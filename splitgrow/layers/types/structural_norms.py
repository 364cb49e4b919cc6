"""Norms of any class, known by the function that they compute and not by their name.

Models bring norms of their own: RMS norms that compute in single precision, with ``1 + weight`` for
the gain, with the channels on another dimension, LayerNorms as a paper writes them. A module with
one or two vectors and nothing else is tried on a few random tensors. If it computes one of the
forms here at two widths, its type is that form.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from splitgrow.layers.types.layer_type import Merging, Stock
from splitgrow.layers.types.start_values import UNCHANGED, Carry, Start
from splitgrow.layers.types.statistic_norms import StatisticMerging, StatisticNorm
from splitgrow.layers.types.torch_layers import placement_of
from splitgrow.utils.own_thread import in_own_thread

_SHAPES = ((2, 3, 0), (2, 0, 3, 2), (2, 0, 5))
"""The shapes of inputs that are tried, with 0 for the channels."""
_CLOSE = 1e-5
"""The largest error, of outputs of about 1, of a norm that may compute in single precision."""


@dataclass(frozen=True)
class NormForm:
    """The function that a norm computes.

    Each channel less their mean, divided by the root of the mean square, times a gain, plus a bias.

    Attributes:
        dim: The dimension of the channels.
        centred: Whether the mean of all channels is subtracted first.
        outside: Whether eps is added to the root, rather than under it.
        correction: The number by which the number of channels is lowered in the mean square.
        offset: The number that is added to the weight to make the gain.
        weight: The name of the weight.
        bias: The name of the bias; empty if it has none.
        eps: The attribute that holds eps; empty if none holds it.
    """

    dim: int
    centred: bool
    outside: bool
    correction: int
    offset: float
    weight: str
    bias: str
    eps: str = ""

    def output(self, x: Tensor, tensors: Mapping[str, Tensor], eps: float) -> Tensor:
        """Its output.

        Args:
            x: The input, of any shape with the channels on `dim`.
            tensors: The weight and the bias by name, each (channels,).
            eps: The number that is added.
        """
        count = x.shape[self.dim] - self.correction
        x = x - x.mean(self.dim, keepdim=True) if self.centred else x
        square = x.square().sum(self.dim, keepdim=True) / count
        root = square.sqrt() + eps if self.outside else (square + eps).sqrt()
        along = [1] * x.dim()
        along[self.dim] = -1
        y = x / root * (tensors[self.weight] + self.offset).view(along)
        return y + tensors[self.bias].view(along) if self.bias else y


@dataclass(frozen=True)
class _Merging(StatisticMerging):
    """As `StatisticMerging`, for one form."""

    form: NormForm

    @property
    def correction(self) -> int:  # type: ignore[override]
        return self.form.correction

    def carried_over(self, name: str, tensor: Tensor, carry: Carry) -> Tensor:
        if name == self.form.bias:
            return tensor * carry.shift
        offset = self.form.offset
        return (tensor + offset) * carry.gain - offset if offset else tensor * carry.gain


class StructuralNorm(StatisticNorm):
    """A norm of a class of its own that computes one of the forms."""

    def __init__(self, layer: type[nn.Module], form: NormForm) -> None:
        self.form, self.layers, self.dim = form, (layer,), form.dim
        self.centred = form.centred
        self.names = (form.weight, form.bias) if form.bias else (form.weight,)
        self.shifts = (form.bias,)

    def sizes(self, module: Stock) -> tuple[int, int]:
        """The length of the weight, twice."""
        width = len(getattr(module, self.form.weight))
        return width, width

    @cached_property
    def merging(self) -> Merging:
        """New channels join so that they change the statistic in a known way."""
        return _Merging(self.build, self.form)

    def starts(self, module: Stock) -> Mapping[Start, Start]:
        """As its base has it; copies alone if eps is written down, since it could not follow."""
        known = super().starts(module)
        return known if self.form.eps else {Start.COPY: known[Start.COPY]}

    def covers(self, module: Stock) -> bool:
        """Whether it has the tensors of the form, and no more."""
        return _vectors_of(module) == list(self.names)

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        """A copy of the module with tensors and numbers of another width."""
        carry: Carry = options.get("carry", UNCHANGED)
        placement = placement_of(module, options)
        start = {self.form.weight: 1 - self.form.offset, self.form.bias: 0.0}
        tensors = {
            name: nn.Parameter(torch.full((sizes[1],), start[name], **placement))
            for name in self.names
        }
        built = _twin(module, self.sizes(module)[1], sizes[1], tensors)
        if self.form.eps:
            factor = carry.eps**0.5 if self.form.outside else carry.eps
            vars(built)[self.form.eps] = vars(module)[self.form.eps] * factor
        return built.train(module.training)


_FORMS: WeakKeyDictionary[type[nn.Module], dict[tuple[Any, ...], StructuralNorm | None]]
_FORMS = WeakKeyDictionary()
"""The verdicts on classes, by the names of a module's vectors, its flags and its texts."""


def structural_norm(module: nn.Module) -> StructuralNorm | None:
    """The entry for a module that computes a norm over its channels; None if it does not."""
    if vars(module).get("_modules") or type(module).__module__.startswith("torch.nn."):
        return None
    names = _vectors_of(module)
    if not names:
        return None
    verdicts = _FORMS.setdefault(type(module), {})
    settings = ((k, v) for k, v in vars(module).items() if isinstance(v, (bool, str)))
    key = (*names, *sorted((k, str(v)) for k, v in settings if k != "training"))
    if key not in verdicts:
        form = _form_of(module, names)
        verdicts[key] = StructuralNorm(type(module), form) if form is not None else None
    return verdicts[key]


def _vectors_of(module: nn.Module) -> list[str]:
    """The names of a module's one or two vectors; none if it has anything else."""
    own, buffers, children = (
        vars(module).get(store) or {} for store in ("_parameters", "_buffers", "_modules")
    )
    found = {name: tensor for name, tensor in own.items() if tensor is not None}
    others = children or any(tensor is not None for tensor in buffers.values())
    lengths = {tuple(tensor.shape) for tensor in found.values()}
    if others or not 1 <= len(found) <= 2 or len(lengths) != 1:
        return []
    (shape,) = lengths
    return list(found) if len(shape) == 1 else []


def _form_of(module: nn.Module, names: list[str]) -> NormForm | None:
    """The form that a module computes; None if it is none of them, or fails."""
    tried = (_tried(module, names, shape) for shape in _SHAPES)
    return in_own_thread(lambda: next((form for form in tried if form is not None), None))


def _tried(module: nn.Module, names: list[str], shape: tuple[int, ...]) -> NormForm | None:
    width = len(module._parameters[names[0]])  # type: ignore[arg-type] # noqa: SLF001
    generator = torch.Generator().manual_seed(width)
    trials = []
    for size in (width + 3, width + 5):
        tensors = {name: torch.rand(size, generator=generator).double() + 0.5 for name in names}
        filled = [size if length == 0 else length for length in shape]
        x = torch.randn(filled, generator=generator).double() * 0.3
        x[0] *= 1e-3  # so small that eps counts
        twin = _twin(module, width, size, {n: nn.Parameter(t) for n, t in tensors.items()})
        try:
            y = twin.eval().forward(x.clone())
        except Exception:  # noqa: BLE001 - a module that is no norm may fail in any way
            return None
        if not isinstance(y, Tensor) or y.shape != x.shape or not y.is_floating_point():
            return None
        trials.append((x, tensors, y.double()))
    numbers = {
        name: value
        for name, value in vars(module).items()
        if type(value) is float and 0 < value < 1
    }
    for form in _candidates(names, shape.index(0)):
        found = _matching(form, trials, numbers)
        if found is not None and found.eps and not _follows(found, module, trials[0]):
            found = replace(found, eps="")
        if found is not None:
            return found
    return None


def _follows(form: NormForm, module: nn.Module, trial: tuple[Tensor, Any, Tensor]) -> bool:
    """Whether a norm has another eps if the attribute that holds it has another value."""
    x, tensors, _ = trial
    size, width = len(tensors[form.weight]), len(getattr(module, form.weight))
    twin = _twin(module, width, size, {n: nn.Parameter(t) for n, t in tensors.items()})
    eps = vars(twin)[form.eps] = 3.0 * vars(module)[form.eps]
    return _error(form, x, tensors, twin.eval().forward(x.clone()).double(), eps) < _CLOSE


def _matching(
    form: NormForm, trials: list[tuple[Tensor, Any, Tensor]], numbers: Mapping[str, float]
) -> NormForm | None:
    """The form with the source of its eps, if it explains the outputs; None if it does not."""
    for name, eps in (*numbers.items(), ("", _eps_of(form, *trials[0]))):
        error = max(_error(form, x, tensors, y, eps) for x, tensors, y in trials)
        if error < _CLOSE:
            return replace(form, eps=name)
    return None


def _error(form: NormForm, x: Tensor, tensors: Any, y: Tensor, eps: float) -> float:
    """The largest error, in parts of the largest output of each sample."""
    wrong = (form.output(x, tensors, eps) - y).abs().flatten(1).amax(1)
    return float((wrong / y.abs().flatten(1).amax(1).clamp_min(1e-30)).nan_to_num(torch.inf).max())


def _eps_of(form: NormForm, x: Tensor, tensors: Any, y: Tensor) -> float:
    """The eps with which a form would give the output for the small sample, whose root it is in."""
    x, y = x[:1], y[:1]
    plain = form.output(x, {**tensors, form.bias: y.new_zeros(len(tensors[form.weight]))}, 0.0)
    bias = form.output(x * 0, tensors, 1.0) if form.bias else 0.0
    ratio = float((plain.norm() / (y - bias).norm().clamp_min(1e-30)).nan_to_num(1.0))
    count = x.shape[form.dim] - form.correction
    x = x - x.mean(form.dim, keepdim=True) if form.centred else x
    square = (x.square().sum(form.dim) / count).mean()
    found = square.sqrt() * (ratio - 1) if form.outside else square * (ratio**2 - 1)
    return max(0.0, float(found))


def _candidates(names: list[str], dim: int) -> Iterator[NormForm]:
    """All forms of a module with these vectors, the usual ones first."""
    roles = [(one, other) for one, other in itertools.permutations(names, 2)] or [(names[0], "")]
    dim = -1 if dim == 2 else dim
    choices = itertools.product((False, True), (False, True), (0, 1), (0.0, 1.0), roles)
    for centred, outside, correction, offset, (weight, bias) in choices:
        yield NormForm(dim, centred, outside, correction, offset, weight, bias)


def _twin(
    module: nn.Module, width: int, size: int, tensors: Mapping[str, nn.Parameter]
) -> nn.Module:
    """A copy of a module with other vectors, and another number where it holds their length."""
    twin: nn.Module = object.__new__(type(module))
    own = {
        name: copy.copy(value) if isinstance(value, (list, dict, set)) else value
        for name, value in vars(module).items()
    }
    own |= vars(nn.Module())  # torch's own containers: new, without hooks
    for name, value in own.items():
        if type(value) is int and value == width:
            own[name] = size
        elif isinstance(value, (tuple, list, torch.Size)) and list(value) == [width]:
            own[name] = type(value)([size])
    vars(twin).update({**own, "_parameters": dict(tensors), "_buffers": {}})
    return twin

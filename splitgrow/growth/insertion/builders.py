"""Building the layers to insert: they leave the network's function as it is, and can learn."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.analysis.ops import facts_of, module_type
from splitgrow.errors import InsertionError
from splitgrow.growth.insertion.sites import Site
from splitgrow.growth.insertion.value_ranges import leaves_alone
from splitgrow.layers.fade import FadeIn
from splitgrow.layers.split_layer import stock
from splitgrow.layers.types import layer_type_of, layer_type_of_class

_CONVS: dict[int, type[nn.Module]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_NORMS: dict[int, type[nn.Module]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}


def _is_plain_activation(module: type[nn.Module]) -> bool:
    """Whether a module type is an activation without parameters, and without random numbers."""
    facts = facts_of(module)
    return facts.activation and not facts.drawn and layer_type_of_class(module) is None


class Builder:
    """Makes the modules for one place.

    Attributes:
        copied: The paths of the modules that its parts are copies of, by the parts' ids.

    Args:
        site: The place.
        modules: The model's modules by path.
        like: A tensor with the device and dtype for the new ones.
        kernel_size: The size of convolutions' kernels, odd.
        activation: An activation, or None for the one in front of the place, or else ReLU.
    """

    def __init__(
        self,
        site: Site,
        modules: Mapping[str, nn.Module],
        like: Tensor,
        *,
        kernel_size: int = 3,
        activation: nn.Module | None = None,
    ) -> None:
        self.site, self._modules = site, modules
        self._kernel_size = kernel_size
        self._given = activation
        self.copied: dict[int, str] = {}
        self._placed: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        dims = site.example.dim()
        self._conv = _CONVS.get(dims) if site.dim == 1 and dims > 2 else None
        if self._conv is None and site.dim != dims - 1:
            raise InsertionError(
                f"behind `{site.unit[0]}` the channels lie on dimension {site.dim} of {dims}, "
                f"where neither a convolution nor a Linear could read them"
            )

    # -- the parts -------------------------------------------------------------------------------

    def layer(self, ins: int, outs: int, size: int | None = None) -> nn.Module:
        """A convolution that keeps the size of space, or a Linear."""
        if self._conv is None:
            return nn.Linear(ins, outs, **self._placed)
        size = self._kernel_size if size is None else size
        make: Any = self._conv
        return make(ins, outs, size, padding=size // 2, **self._placed)  # type: ignore[no-any-return]

    def norm(self, width: int) -> nn.Module | None:
        """A batch norm, if there is one in front of the place."""
        found = (stock(self._modules[name]) for name in self.site.unit if name in self._modules)
        like: Any = next((m for m in found if isinstance(m, nn.modules.batchnorm._BatchNorm)), None)  # noqa: SLF001
        if like is None or (self._conv is None and self.site.example.dim() != 2):
            return None
        make: Any = _NORMS[self.site.example.dim()]
        return make(width, eps=like.eps, momentum=like.momentum, **self._placed)  # type: ignore[no-any-return]

    def activation(self) -> nn.Module:
        """The requested activation, or the one in front of the place, or ReLU."""
        if self._given is not None:
            return copy.deepcopy(self._given)
        for name in self.site.unit[:0:-1]:
            module = self._modules.get(name)
            if module is not None and _is_plain_activation(type(module)):
                copied = copy.deepcopy(module)
                self.copied[id(copied)] = name
                return copied
            made = module_type(name) if module is None else None
            if made is not None and _is_plain_activation(made):
                return made()
        return nn.ReLU()

    # -- the wholes ------------------------------------------------------------------------------

    def identity(self) -> nn.Module:
        """A layer that returns its input, with its norm and an activation that does nothing here.

        A Linear has the identity matrix; a convolution the Dirac kernel, one at its centre from
        each channel to itself. The norm is the identity with its running statistics: gamma =
        sqrt(var + eps), beta = mean (Chen, Goodfellow & Shlens 2016, Net2Net, arXiv 1511.05641,
        section 2.3). Behind a batch norm and a ReLU these statistics follow from the former's
        weights, so that the norm is nearly the identity in training mode, too.

        Raises:
            InsertionError: If the activation changes the values at the place.
        """
        activation = self.activation()
        if not leaves_alone(activation, self.site.bounds):
            low, high = self.site.bounds
            raise InsertionError(
                f"an identity layer behind `{self.site.unit[0]}` would not be exact: "
                f"{type(activation).__name__} changes values that lie between {low:g} and "
                f"{high:g}; exact there are kind='residual' and kind='gate', or an identity with "
                f"activation=torch.nn.Identity()"
            )
        layer: Any = self.layer(self.site.width, self.site.width)
        with torch.no_grad():
            if isinstance(layer, nn.Linear):
                nn.init.eye_(layer.weight)
            else:
                nn.init.dirac_(layer.weight)
            layer.bias.zero_()
        parts = [layer]
        norm: Any = self.norm(self.site.width)
        if norm is not None:
            with torch.no_grad():
                self._foresee_statistics_(norm, activation)
                norm.weight.copy_((norm.running_var + norm.eps).sqrt())
                norm.bias.copy_(norm.running_mean)
            layer.bias = None  # the norm has one
            parts.append(norm)
        return nn.Sequential(*parts, activation)

    def _foresee_statistics_(self, norm: Any, activation: nn.Module) -> None:
        if len(self.site.unit) < 3 or not isinstance(activation, nn.ReLU):
            return
        before: Any = self._modules.get(self.site.unit[1])
        composed = getattr(before, "composition", None)  # it has grown
        before = composed().plain() if composed is not None else before
        if getattr(before, "weight", None) is not None and before.bias is not None:
            mean, variance = _rectified(before)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)

    def residual(self, form: str) -> nn.Module:
        """The branch f of x + f(x), whose last layer is zero.

        Args:
            form: "plain": two layers of the width; "bottleneck": a quarter of the width inside.
        """
        width = self.site.width
        inner = width if form == "plain" else max(1, width // 4)
        size = None if form == "plain" else 1
        parts: list[nn.Module | None] = [
            self.layer(width, inner, size),
            self.norm(inner),
            self.activation(),
        ]
        if form == "bottleneck" and self._conv is not None:
            parts += [self.layer(inner, inner), self.norm(inner), self.activation()]
        parts.append(zeroed(self.layer(inner, width, size)))
        return nn.Sequential(*(part for part in parts if part is not None))

    def gate(self) -> nn.Module:
        """The factor g of x * g(x), which is one: a layer of weight zero and bias one.

        A weight of ones would give the sum over a window, not a factor of one.
        """
        layer: Any = zeroed(self.layer(self.site.width, self.site.width))
        with torch.no_grad():
            layer.bias.fill_(1)
        return layer  # type: ignore[no-any-return]


@torch.no_grad()
def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with parameters that make zeros of anything: all zero, or a factor 1 + w of -1."""
    for parameter in layer.parameters(recurse=False):
        parameter.zero_()
    weight = layer._parameters.get("weight")  # noqa: SLF001 - the layer's own
    entry = layer_type_of(layer)
    if weight is None or weight.dim() != 1 or weight.is_meta or entry is None:
        return layer
    if entry.diagonal(layer) and entry.channel_dim(layer) == -1:
        like = torch.linspace(-1, 2, 2 * len(weight), device=weight.device, dtype=weight.dtype)
        if layer(like.view(2, -1)).count_nonzero():
            weight.fill_(-1)
    return layer


class _Given(nn.Module):
    """Returns the output of the replaced module."""

    def forward(self, made: Tensor, *_: Any, **__: Any) -> Tensor:
        return made


class _Replacing(nn.Module):
    """Reads the input of the replaced module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, _: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def replacement(module: nn.Module) -> FadeIn:
    """A fade from a module's output, which is the first argument, to another module's output."""
    return FadeIn(_Given(), _Replacing(module))


def inserted_by_user(part: nn.Module, kind: str) -> nn.Module:
    """The user's own module in what an insertion of a kind has made of it."""
    if kind in {"fade", "replacement"}:
        assert isinstance(part, FadeIn)
        part = part.new
    return part.module if isinstance(part, _Replacing) else part


@torch.no_grad()
def tried(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A module's output in evaluation mode; module and arguments stay unchanged.

    Raises:
        InsertionError: If it does not run on them.
        MemoryError: If there is too little memory.
    """
    args, kwargs = copy.deepcopy((args, kwargs))
    try:
        return copy.deepcopy(module).eval()(*args, **kwargs)
    except MemoryError:  # not the module's fault
        raise
    except Exception as error:
        shapes = [tuple(arg.shape) for arg in args if isinstance(arg, Tensor)]
        raise InsertionError(
            f"the module that is to be inserted does not run on tensors of shapes {shapes}: "
            f"{type(error).__name__}: {error}"
        ) from error


def keeps_shape(module: nn.Module, example: Tensor) -> None:
    """Makes sure that a module returns a tensor of its input's shape.

    Raises:
        InsertionError: If it does not.
    """
    made = tried(module, (example,), {})
    if not isinstance(made, Tensor) or made.shape != example.shape:
        shape = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise InsertionError(
            f"the module that is to be inserted makes {shape} of {tuple(example.shape)}; it has to "
            f"keep the shape"
        )


def last_layer(branch: nn.Module, example: Tensor) -> str:
    """The path of a layer in a branch f: f(x) is zero if the layer's parameters are zero.

    Args:
        branch: The module. It is not changed.
        example: A tensor like its inputs.

    Raises:
        InsertionError: If it does not map a tensor to one of the same shape, or there is no such
            layer.
    """
    keeps_shape(branch, example)
    if example.is_meta:
        raise InsertionError(
            "whether a module makes zeros with its last layer at zero is tried out on values, and "
            "the meta device has none; fade it in (kind='fade'), or insert it where the model has "
            "values"
        )
    copied = copy.deepcopy(branch).eval()
    called: list[str] = []
    for name, module in copied.named_modules():
        if layer_type_of(module) is not None and getattr(module, "weight", None) is not None:
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    copied(example)
    if called:
        zeroed(copied.get_submodule(called[-1]))
    if not called or copied(example).count_nonzero():
        raise InsertionError(
            "what the module that is to be inserted makes is not zero even with its last layer at "
            "zero; end it with a convolution, a Linear or a norm, or fade it in (kind='fade')"
        )
    return called[-1]


def _rectified(norm: Any) -> tuple[Tensor, Tensor]:
    """Mean and variance of ReLU(z) for a batch norm's output z, taken for normal.

    For z from N(b, g^2), with t = b / g: E[relu(z)] = b Phi(t) + g phi(t) and E[relu(z)^2] =
    (b^2 + g^2) Phi(t) + b g phi(t).
    """
    shift, scale = norm.bias.detach(), norm.weight.detach().abs().clamp_min(1e-12)
    t = shift / scale
    below = 0.5 * (1 + torch.erf(t / math.sqrt(2)))
    density = torch.exp(-t.square() / 2) / math.sqrt(2 * math.pi)
    mean = shift * below + scale * density
    square = (shift.square() + scale.square()) * below + shift * scale * density
    return mean, (square - mean.square()).clamp_min(0)

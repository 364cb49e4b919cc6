"""Torch function modes for runs that are compared: random draws held still, and rounding noise."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_DRAWS = """
    rand randn rand_like randn_like normal normal_ uniform_ exponential_ cauchy_ log_normal_ rrelu
"""
_FILLED = dict.fromkeys(_DRAWS.split(), 0.5)
_FILLED |= dict.fromkeys(("bernoulli", "bernoulli_", "geometric_", "poisson"), 1.0)
_SEEDED = frozenset(
    ("randint", "randint_like", "random_", "randperm", "multinomial", "gumbel_softmax")
)
_RECURRENT = frozenset(("lstm", "gru", "rnn_tanh", "rnn_relu"))
_DROPOUT_OF = {F.scaled_dot_product_attention: ("dropout_p", 4)}
"""Functions that drop out, with the name and the position of the share."""


class Steady(TorchFunctionMode):
    """Random draws are constants, and dropout drops nothing, at any shape.

    A wider network draws more numbers than a narrow one. So even with one seed they would compute
    different values, although only the draws differ.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if "dropout" in name:
            return _kept(func, args, kwargs)
        if name == "multi_head_attention_forward":
            kwargs["training"] = False
        if name in _RECURRENT:  # the one float that they take is their dropout
            args = tuple(0.0 if type(arg) is float else arg for arg in args)
        if func in _DROPOUT_OF:
            share, at = _DROPOUT_OF[func]
            kwargs.update({share: 0.0} if share in kwargs else {})
            args = tuple(0.0 if index == at else arg for index, arg in enumerate(args))
        if name in _FILLED and not (name == "rrelu" and not kwargs.get("training")):
            result = func(*args, **kwargs)
            return result.fill_(_FILLED[name]) if isinstance(result, Tensor) else result
        if name in _SEEDED:
            torch.manual_seed(0)
        return func(*args, **kwargs)


def without_dropout(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """A call's arguments but for its shares of dropout, which `Steady` makes no difference.

    Args:
        func: The function.
        args: Its positional arguments.
        kwargs: Its named arguments.
    """
    if "dropout" in getattr(func, "__name__", ""):
        return args[:1], {key: kwargs[key] for key in ("input", "inplace") if key in kwargs}
    if not isinstance(func, Hashable) or func not in _DROPOUT_OF:
        return args, kwargs
    share, at = _DROPOUT_OF[func]
    kept = {key: value for key, value in kwargs.items() if key != share}
    return (*args[:at], *args[at + 1 :]), kept


def _kept(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The output of a dropout that drops nothing: its input, copied unless in place."""
    x = args[0] if args else kwargs.get("input")
    if not isinstance(x, Tensor):
        return func(*args, **kwargs)
    in_place = kwargs.get("inplace", False) or func.__name__.endswith("_")
    return x if in_place else x.clone()


_ROUNDING = """
    linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d matmul
    __matmul__ __rmatmul__ mm bmm addmm baddbmm einsum tensordot scaled_dot_product_attention
    multi_head_attention_forward batch_norm layer_norm rms_norm group_norm instance_norm softmax
    log_softmax mean sum var std norm normalize cumsum cosine_similarity embedding lstm_cell
    gru_cell rnn_tanh_cell rnn_relu_cell
"""
_ROUNDS = _RECURRENT.union(_ROUNDING.split())
"""Functions that sum: other kernels round them otherwise. Their results are new tensors."""


class Noise(TorchFunctionMode):
    """Moves every sum one unit in the last place, up or down.

    Another kernel may change it by as much; the effect on the outputs is that of rounding.
    """

    def __init__(self) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(0)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _ROUNDS:
            if isinstance(result, tuple):
                return type(result)(map(self.off, result)) if type(result) is tuple else result
            return self.off(result)
        return result

    def off(self, value: Any) -> Any:
        """A floating tensor one unit in the last place off; anything else as it is."""
        if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
            return value
        with torch._C.DisableTorchFunction():  # noqa: SLF001
            unit = torch.finfo(value.dtype).eps
            signs = torch.randint(0, 2, value.shape, generator=self._generator).to(value) * 2 - 1
            # A sum of large terms that cancel is off by as much as one that does not.
            usual = value.detach().square().mean().sqrt().nan_to_num(0.0, 0.0, 0.0)
            return value + signs * unit * torch.maximum(value.abs(), usual)

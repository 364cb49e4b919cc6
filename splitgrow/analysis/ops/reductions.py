"""Ops that reduce dimensions, or mix along them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from splitgrow.analysis.channels.channel_axes import Axis, constant
from splitgrow.analysis.ops.elementwise import broadcast
from splitgrow.analysis.ops.facts import FRESH, POOLED, SUMMED, UNKNOWN, first, with_zero
from splitgrow.analysis.ops.joins import dimension
from splitgrow.analysis.ops.op import Op, Shaped, Unknown, as_size
from splitgrow.analysis.ops.registry import entry

_REDUCTIONS = """
    prod std var logsumexp norm median any all argmax argmin nansum nanmean nanmedian count_nonzero
    std_mean var_mean aminmax mode kthvalue quantile nanquantile torch.linalg.norm
    torch.linalg.vector_norm
"""
_AFTER = {
    **dict.fromkeys(["norm", "kthvalue", "quantile", "nanquantile", "vector_norm"], 1),
    "linalg_norm": 1,
    "linalg_vector_norm": 1,
}
"""Reductions with another argument before the dimension."""

_LAST_BY_DEFAULT = frozenset(("mode", "kthvalue"))


@entry("mean", POOLED.but(carry=with_zero, linear=True))
@entry("amax amin", POOLED.but(carry=first))
@entry("max min", FRESH)
@entry("sum", SUMMED.but(linear=True))
@entry(_REDUCTIONS, FRESH)
def reduction(op: Op) -> Any:
    """Reduces dimensions; a dimension whose channels it mixes cannot grow, the others pass."""
    other = op.argument(1, "other")
    if isinstance(other, Shaped):
        if op.name not in ("max", "min"):
            raise Unknown("is given a tensor where numbers were expected")
        return Shaped(broadcast(op, [op.x.axes, other.axes]))
    at = 1 + _AFTER.get(op.name, 0)
    dims = op.argument(at, "dim", -1 if op.name in _LAST_BY_DEFAULT else None)
    # The next argument of a variance is its correction.
    behind = at + 2 if op.name.startswith(("var", "std")) else at + 1
    keep = op.argument(behind, "keepdim", False)
    if op.name.startswith(("var", "std")) and isinstance(dims, bool):
        dims = None
    if isinstance(dims, bool) or not isinstance(dims, (int, tuple, list, type(None))):
        raise Unknown(f"reduces {dims!r}")
    everywhere = dims is None or dims in ((), [])
    reduced = range(len(op.x.axes)) if everywhere else _dimensions(op, dims)
    text = "mixes all its channels into one value"
    axes = without(op, op.x, reduced, text, keep=bool(keep), averages=_averages(op))
    op.fix_all("is given it beside what it reduces", but=[op.x])
    return pytree.tree_map_only(Tensor, lambda _: Shaped(axes), op.example)


_AVERAGES = frozenset(("mean", "nanmean", "amax", "amin", "max", "min"))
"""Reductions whose result stays if each value comes several times over."""


def _averages(op: Op) -> bool:
    """Whether a reduction's result stays if each value comes several times over."""
    if op.name in ("var", "std"):
        return 0 in (op.kwargs.get("correction", 1), op.kwargs.get("unbiased", True))
    return op.name in _AVERAGES


def _dimensions(op: Op, dims: Any) -> set[int]:
    listed = dims if isinstance(dims, (tuple, list)) else [dims]
    return {dimension(op, op.x, dim) for dim in listed}


def without(
    op: Op,
    tensor: Shaped,
    dims: Iterable[int],
    text: str,
    *,
    keep: bool = False,
    averages: bool = False,
) -> tuple[Axis, ...]:
    """The axes of a tensor without some, which are fixed; or with axes of size one there.

    Args:
        op: The op.
        tensor: The tensor.
        dims: The dimensions that go.
        text: Why they cannot grow.
        keep: Whether axes of size one stay.
        averages: Whether they can grow after all, by copies.
    """
    gone = set(dims)
    axes = []
    for index, axis in enumerate(tensor.axes):
        if index not in gone:
            axes.append(axis)
            continue
        (op.couple if averages else op.fix)(axis, text)
        if keep:
            axes.append(constant(1))
    return tuple(axes)


def resized(op: Op, dims: Iterable[int], text: str) -> Any:
    """The axes of the first tensor; some are fixed and may have other lengths now."""
    changed = set(dims)
    for index in changed:
        op.fix(op.x.axes[index], text)

    def answer(example: Tensor) -> Shaped:
        lengths = example.shape
        if len(lengths) < len(op.x.axes):
            raise Unknown("makes a tensor of fewer dimensions")
        axes = enumerate(op.x.axes)
        return Shaped(tuple(constant(int(lengths[i])) if i in changed else a for i, a in axes))

    return pytree.tree_map_only(Tensor, answer, op.example)


_ALONG: dict[str, tuple[int, str, Any]] = {
    "normalize": (2, "dim", 1),
    "sort": (1, "dim", -1),
    "argsort": (1, "dim", -1),
    "topk": (2, "dim", -1),
    "diff": (2, "dim", -1),
    "roll": (2, "dims", None),
    "rot90": (2, "dims", (0, 1)),
    "gumbel_softmax": (4, "dim", -1),
}
"""The position and name of the dimension along which an op mixes, and the default."""

_ALWAYS_ALONG = {"fliplr": 1, "flipud": 0, "msort": 0, "tril": (-2, -1), "triu": (-2, -1)}


@entry("softmax softmin", FRESH.but(bounds=(0.0, 1.0)))
@entry("log_softmax cumprod logcumsumexp argsort", FRESH)
@entry("gumbel_softmax", FRESH.but(alike=False))
@entry("normalize cummax cummin sort topk msort", FRESH.but(zero=True))
@entry("cumsum diff flip fliplr flipud roll rot90 tril triu", FRESH.but(zero=True, linear=True))
def mixing(op: Op) -> Any:
    """Mixes along some dimensions, which therefore cannot grow; the others pass."""
    name = op.name.strip("_")
    if name in _ALWAYS_ALONG:
        dims: Any = _ALWAYS_ALONG[name]
    elif name == "flip":
        dims = op.several(1, "dims")
    else:
        dims = op.argument(*_ALONG.get(name, (1, "dim", None)))
    if dims is None:
        raise Unknown("mixes along a dimension that it leaves open")
    op.fix_all("is given it beside what it mixes", but=[op.x])
    return resized(op, _dimensions(op, dims), "mixes its channels")


_ONE = "fft ifft rfft irfft hfft ihfft"
_TWO = "fft2 ifft2 rfft2 irfft2 hfft2 ihfft2"
_MANY = "fftn ifftn rfftn irfftn hfftn ihfftn"


@entry(" ".join(f"torch.fft.{name}" for name in f"{_ONE} {_TWO} {_MANY}".split()), FRESH)
def fourier(op: Op) -> Any:
    """Frequencies along some dimensions; the others pass."""
    name = op.name.removeprefix("fft_")
    default: Any = -1 if name in _ONE.split() else (-2, -1) if name in _TWO.split() else None
    dims = op.argument(2, "dim", default)
    if dims is None:
        sizes = op.argument(1, "s")
        dims = range(-len(sizes), 0) if sizes is not None else range(len(op.x.axes))
    return resized(
        op,
        _dimensions(op, tuple(dims) if not isinstance(dims, int) else dims),
        "mixes its channels",
    )


@entry("torch.fft.fftshift torch.fft.ifftshift", FRESH)
def shifted(op: Op) -> Any:
    """Halves along some dimensions exchanged."""
    dims = op.argument(1, "dim")
    everywhere = tuple(range(len(op.x.axes)))
    return resized(op, _dimensions(op, everywhere if dims is None else dims), "mixes its channels")


@entry("Tensor.unfold", UNKNOWN.but(zero=True))
def windows(op: Op) -> Any:
    """Windows along one dimension, their positions in a new one behind all others."""
    at = dimension(op, op.x, op.argument(1, "dimension"))
    made = resized(op, [at], "cuts windows out of it")
    return Shaped((*made.axes, constant(int(op.example.shape[-1]))))


@entry("diagonal torch.linalg.diagonal", UNKNOWN.but(zero=True))
def diagonal(op: Op) -> Any:
    """The diagonal of two dimensions, as the last."""
    first = op.argument(2, "dim1", -2 if op.target is torch.linalg.diagonal else 0)
    second = op.argument(3, "dim2", -1 if op.target is torch.linalg.diagonal else 1)
    axes = without(op, op.x, _dimensions(op, (first, second)), "takes its diagonal")
    return Shaped((*axes, constant(int(op.example.shape[-1]))))


@entry("cosine_similarity", FRESH)
def similarity(op: Op) -> Any:
    """Two tensors compared along one dimension."""
    first, second = op.tensor(0, "x1"), op.tensor(1, "x2")
    if len(first.axes) != len(second.axes):
        raise Unknown("compares tensors of different dimensions")
    return _compared(op, first, second, dimension(op, first, op.argument(2, "dim", 1)))


@entry("pairwise_distance", FRESH)
def distance(op: Op) -> Any:
    """The distances of vectors."""
    first, second = op.tensor(0, "x1"), op.tensor(1, "x2")
    if op.argument(4, "keepdim", False) or len(first.axes) != len(second.axes):
        raise Unknown("compares vectors in a way that is not followed")
    return _compared(op, first, second, len(first.axes) - 1)


def _compared(op: Op, first: Shaped, second: Shaped, at: int) -> Shaped:
    rest = [without(op, tensor, [at], "mixes its channels") for tensor in (first, second)]
    return Shaped(broadcast(op, rest))


@entry("cross torch.linalg.cross", FRESH)
def cross(op: Op) -> Any:
    """The product of vectors of three."""
    first, second = op.x, op.tensor(1, "other")
    dim = op.argument(2, "dim", -1 if op.target is torch.linalg.cross else None)
    if dim is None or len(first.axes) != len(second.axes):
        raise Unknown("multiplies along a dimension that it leaves open")
    at = dimension(op, first, dim)
    for tensor in (first, second):
        op.fix(tensor.axes[at], "mixes its channels")
    return Shaped(broadcast(op, [first.axes, second.axes]))


@entry("cdist", FRESH)
def distances(op: Op) -> Any:
    """(..., P, M), (..., R, M) to (..., P, R)."""
    first, second = op.tensor(0, "x1"), op.tensor(1, "x2")
    for tensor in (first, second):
        op.fix(tensor.axes[-1], "mixes its channels")
    before = [tensor.axes[:-2] for tensor in (first, second)]
    batch = broadcast(op, before) if any(before) else ()
    return Shaped((*batch, first.axes[-2], second.axes[-2]))


@entry("nn.Softmax2d", FRESH.but(bounds=(0.0, 1.0)))
@entry("local_response_norm", FRESH)
def channel_mixing(op: Op) -> Any:
    """Mixes along the channels, which therefore cannot grow; the others pass."""
    op.fix(op.x.axes[-3 if op.name == "Softmax2d" else 1], "mixes its channels")
    return op.x


@entry("layer_norm rms_norm", FRESH, follows_sizes=True)
def trailing_norm(op: Op) -> Any:
    """Normalises over the last dimensions, whose statistics would change with their width."""
    shape: Sequence[Any] = op.argument(1, "normalized_shape")
    if not isinstance(shape, (tuple, list)):
        raise Unknown("normalises over a shape that follows a width")
    along = op.x.axes[len(op.x.axes) - len(shape) :]
    others = [tensor for tensor in op.shaped() if tensor is not op.x]
    text = "takes its statistics over all its channels"
    if len(along) == 1 and op.groups.equate(along[0], as_size(shape[0]), op.reason(text)):
        op.couple(along[0], text)
        broadcast(op, [along, *(tensor.axes for tensor in others)])
        return op.x
    for axis in along:
        op.fix(axis, text)
    op.fix_all("scales or shifts by it", but=[op.x])
    return op.x

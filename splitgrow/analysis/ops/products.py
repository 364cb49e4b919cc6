"""Products of activations: attention, matrix products, einsum."""

from __future__ import annotations

import itertools
from typing import Any

from splitgrow.analysis.channels.channel_axes import Axis, scaled
from splitgrow.analysis.ops.elementwise import broadcast
from splitgrow.analysis.ops.facts import FRESH, PRODUCT, UNKNOWN
from splitgrow.analysis.ops.joins import dimension
from splitgrow.analysis.ops.op import Op, Shaped, Unknown
from splitgrow.analysis.ops.registry import entry

_PRODUCTS = FRESH.but(zero=True)

_SUMS = "sums over it, so that new channels would change the old result"


@entry("matmul bmm mm mv dot vdot __matmul__ __rmatmul__ torch.linalg.matmul", PRODUCT)
def matmul(op: Op) -> Any:
    """Summed dimensions cannot grow, the others pass; those before are broadcast."""
    left, right = op.x, op.tensor(1, "vec" if op.name == "mv" else "other")
    if op.target == "__rmatmul__":
        left, right = right, left
    return Shaped(product(op, left, right))


def product(op: Op, left: Shaped, right: Shaped) -> tuple[Axis, ...]:
    """The axes of a product of matrices or vectors."""
    if not left.axes or not right.axes:
        raise Unknown("multiplies something else than matrices and vectors")
    sum_over(op, (left, len(left.axes) - 1), (right, max(len(right.axes) - 2, 0)))
    before = [tensor.axes[:-2] for tensor in (left, right)]
    batch = broadcast(op, before) if any(before) else ()
    return (*batch, *left.axes[-2:-1], *(right.axes[-1:] if len(right.axes) > 1 else ()))


def sum_over(op: Op, *terms: tuple[Shaped, int]) -> None:
    """States that a product sums over dimensions of its operands, which are equally long.

    New channels leave the sum as it was if one of two operands is zero there: a matrix that a
    module holds, whose new entries start so. Otherwise the dimensions cannot grow.

    Args:
        op: The op.
        terms: The operands, each with its dimension.
    """
    made = [term for term in terms if term[0].origin is None]
    held = [term for term in terms if term[0].origin is not None]
    if len(made) == len(held) == 1 and op.summed is not None:
        (x, at), (matrix, dim) = *made, *held
        assert matrix.origin is not None
        if op.summed(matrix.origin, dim):
            op.groups.tie(x.axes[at], matrix.axes[dim], op.reason(_SUMS))
            return
    for shaped, dim in terms:
        op.fix(shaped.axes[dim], _SUMS)


@entry("torch._grouped_mm F.grouped_mm torch.ops.transformers.grouped_mm_fallback", PRODUCT)
def grouped(op: Op) -> Any:
    """(rows, in), (experts, in, out) to (rows, out): each row by the matrix of its expert.

    The kernels want rows of whole 16 bytes.
    """
    rows, matrices = op.x, op.tensor(1, "weight" if "weight" in op.kwargs else "mat2")
    if len(rows.axes) != 2 or len(matrices.axes) != 3:
        raise Unknown("multiplies something else than rows by several matrices")
    op.fix(matrices.axes[0], "has one for each expert")
    sum_over(op, (rows, 1), (matrices, 1))
    for axis in matrices.axes[1:]:
        op.groups.bundle(axis, 16 // op.example.dtype.itemsize, op.reason("reads it in 16 bytes"))
    return Shaped((rows.axes[0], op.groups.resolve(matrices.axes[2])))


@entry("addmm baddbmm addmv", FRESH)
def added_product(op: Op) -> Any:
    """A product added to a tensor."""
    names = {"addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2"), "addmv": ("mat", "vec")}
    left, right = (op.tensor(i + 1, n) for i, n in enumerate(names[op.name.strip("_")]))
    return Shaped(broadcast(op, [op.x.axes, product(op, left, right)]))


@entry("addbmm", FRESH)
def added_products(op: Op) -> Any:
    """The sum of a batch of products added to a tensor."""
    left, right = op.tensor(1, "batch1"), op.tensor(2, "batch2")
    for tensor in (left, right):
        op.fix(tensor.axes[0], _SUMS)
    return Shaped(broadcast(op, [op.x.axes, product(op, left, right)[1:]]))


@entry("outer ger", _PRODUCTS)
def outer(op: Op) -> Any:
    """Each of one vector with each of another."""
    return Shaped((*op.x.axes, *op.tensor(1, "vec2").axes))


@entry("addr", FRESH)
def added_outer(op: Op) -> Any:
    """The same, added to a tensor."""
    vectors = (op.tensor(1, "vec1"), op.tensor(2, "vec2"))
    return Shaped(broadcast(op, [op.x.axes, tuple(v.axes[0] for v in vectors)]))


@entry("inner", _PRODUCTS)
def inner(op: Op) -> Any:
    """Products of last dimensions."""
    left, right = op.x, op.tensor(1, "other")
    if not left.axes or not right.axes:
        raise Unknown("multiplies something else than vectors")
    sum_over(op, (left, len(left.axes) - 1), (right, len(right.axes) - 1))
    return Shaped((*left.axes[:-1], *right.axes[:-1]))


@entry("tensordot", _PRODUCTS)
def tensordot(op: Op) -> Any:
    """Summed dimensions cannot grow, the others pass."""
    left, right, dims = op.tensor(0, "a"), op.tensor(1, "b"), op.argument(2, "dims", 2)
    if isinstance(dims, int):
        count = len(left.axes)
        dims = (range(count - dims, count), range(dims))
    if not isinstance(dims, (tuple, list)) or len(dims) != 2:
        raise Unknown("sums over dimensions that it cannot be told")
    gone = [
        [dimension(op, tensor, dim) for dim in ([summed] if isinstance(summed, int) else summed)]
        for tensor, summed in zip((left, right), dims, strict=True)
    ]
    for one, other in zip(*gone, strict=True):
        sum_over(op, (left, one), (right, other))
    axes = [
        axis
        for tensor, dims in zip((left, right), gone, strict=True)
        for dim, axis in enumerate(tensor.axes)
        if dim not in dims
    ]
    return Shaped(tuple(axes))


@entry("F.scaled_dot_product_attention", PRODUCT.but(factors=((2, "value"),)))
def attention(op: Op) -> Any:
    """(..., L, E), (..., S, E), (..., S, V) to (..., L, V): heads pass."""
    query, key, value = (op.argument(i, n) for i, n in enumerate(("query", "key", "value")))
    if not all(isinstance(tensor, Shaped) for tensor in (query, key, value)):
        raise Unknown("is given something else than tensors")
    for axis in (query.axes[-1], key.axes[-1], key.axes[-2], value.axes[-2], query.axes[-2]):
        op.fix(axis, _SUMS)
    mask = op.argument(3, "attn_mask")
    if isinstance(mask, Shaped):
        for axis in mask.axes[-2:]:
            op.fix(axis, _SUMS)
    if op.kwargs.get("enable_gqa"):
        key, value = (_repeated(op, tensor, query.axes[-3]) for tensor in (key, value))
    scores = [tensor.axes[:-2] for tensor in (query, key, value)]
    scores += [mask.axes[:-2]] if isinstance(mask, Shaped) else []
    batch = broadcast(op, [axes for axes in scores if axes])
    return Shaped((*batch, query.axes[-2], value.axes[-1]))


def _repeated(op: Op, tensor: Shaped, heads: Axis) -> Shaped:
    """Keys or values whose heads each serve several neighbouring heads of the queries."""
    own = tensor.axes[-3]
    count = op.groups.length(heads) // op.groups.length(own)
    if not op.groups.can_grow(own):
        text = "shares keys among its heads, but keeps no number of these that could follow"
        op.fix(heads, text)
    return Shaped((*tensor.axes[:-3], scaled(own, count), *tensor.axes[-2:]))


@entry("einsum", UNKNOWN.but(zero=True, linear=True))
def einsum(op: Op) -> Any:
    """Summed letters cannot grow; each other letter ties the dimensions that it names."""
    equation, operands = op.args[0], op.args[1:]
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    if not isinstance(equation, str):
        raise Unknown("is not written with letters")
    if not all(isinstance(operand, Shaped) for operand in operands):
        raise Unknown("is given something else than tensors")
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    if not arrow:  # those that appear once, in the order of the alphabet
        letters = inputs.replace("...", "").replace(",", "")
        once = sorted(letter for letter in letters if letters.count(letter) == 1)
        output = ("..." if "..." in inputs else "") + "".join(once)
    named: dict[str, list[tuple[Shaped, int]]] = {}
    for letters, operand in zip(inputs.split(","), operands, strict=True):
        names = _spelled_out(letters, len(operand.axes))
        for dim, letter in enumerate(names):
            named.setdefault(letter, []).append((operand, dim))
    ndim = op.example.dim()
    kept = _spelled_out(output, ndim)
    result = {
        letter: broadcast(op, [(x.axes[dim],) for x, dim in terms])[0]
        for letter, terms in named.items()
    }
    for letter in sorted(named.keys() - set(kept)):
        sum_over(op, *named[letter])
    return Shaped(tuple(op.groups.resolve(result[letter]) for letter in kept))


def _spelled_out(letters: str, ndim: int) -> list[str]:
    """One name for each dimension; those of an ellipsis are counted from behind."""
    if "..." not in letters:
        return list(letters)
    before, behind = letters.split("...")
    count = ndim - len(before) - len(behind)
    middle = (f"...{index}" for index in range(-count, 0))
    return list(itertools.chain(before, middle, behind))

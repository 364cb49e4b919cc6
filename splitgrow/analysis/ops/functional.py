"""Layers that forward computes by hand, with a weight that is no layer's own.

A matrix that a module holds can grow along. Otherwise the inputs are fixed: the weight belongs to
nothing that could grow.
"""

from __future__ import annotations

from typing import Any

from splitgrow.analysis.channels.channel_axes import Axis, constant
from splitgrow.analysis.ops.elementwise import broadcast
from splitgrow.analysis.ops.facts import FRESH, MOVED, SUMMED
from splitgrow.analysis.ops.op import Op, Shaped, Unknown
from splitgrow.analysis.ops.products import sum_over
from splitgrow.analysis.ops.registry import entry


def _reason(op: Op, weight: Any) -> str:
    """Why the weight does not grow, if that is known."""
    known: list[str] = []
    if isinstance(weight, Shaped):
        known = [reason for axis in weight.axes for reason in op.groups.reasons(axis)]
    return next(iter(known), op.reason("reads it with a weight that is no layer's own"))


def _fixed(op: Op, x: Shaped, dims: set[int], weight: Any) -> Any:
    """The axes of the input; those that meet the weight are fixed."""
    reason = _reason(op, weight)
    for shaped in op.shaped():
        if shaped is not x:
            for axis in shaped.axes:
                op.groups.fix(axis, reason)
    axes: list[Axis] = []
    for index, length in enumerate(op.example.shape):
        if index in dims or index >= len(x.axes):
            if index < len(x.axes):
                op.groups.fix(x.axes[index], reason)
            axes.append(constant(int(length), reason))
        else:
            axes.append(x.axes[index])
    return Shaped(tuple(axes))


_LAYER = FRESH.but(zero=True, linear=True, factors=((0, "input"), (1, "weight")))
"""An input times a weight, and a bias added."""


@entry("F.linear", _LAYER)
def linear(op: Op) -> Any:
    """(..., in) to (..., out)."""
    weight, bias = op.argument(1, "weight"), op.argument(2, "bias")
    if not isinstance(weight, Shaped) or weight.origin is None or len(weight.axes) != 2:
        return _fixed(op, op.x, {len(op.x.axes) - 1}, weight)
    sum_over(op, (op.x, len(op.x.axes) - 1), (weight, 1))
    return Shaped((*op.x.axes[:-1], _biased(op, weight.axes[0], bias)))


def _biased(op: Op, axis: Axis, bias: Any) -> Axis:
    """The axis of outputs, tied to that of their bias if there is one."""
    return broadcast(op, [(axis,), bias.axes])[0] if isinstance(bias, Shaped) else axis


@entry("F.conv1d F.conv2d F.conv3d", _LAYER)
@entry("F.conv_transpose1d F.conv_transpose2d F.conv_transpose3d", _LAYER)
def convolution(op: Op) -> Any:
    """(N, in, *space) to (N, out, *space)."""
    weight = op.argument(1, "weight")
    if not isinstance(weight, Shaped):
        raise Unknown("is given something else than tensors")
    unbatched = len(op.x.axes) < len(weight.axes)
    transposed = op.name.startswith("conv_transpose")
    if weight.origin is not None and op.argument(6, "groups", 1) == 1:
        return _convolved(op, weight, transposed=transposed, at=0 if unbatched else 1)
    return _fixed(op, op.x, set(range(0 if unbatched else 1, len(op.x.axes))), weight)


def _convolved(op: Op, weight: Shaped, *, at: int, transposed: bool) -> Any:
    """A convolution in one group by a weight that a module holds.

    Args:
        op: The op.
        weight: (out, in, *kernel), or transposed (in, out, *kernel).
        at: The dimension of the channels.
        transposed: Whether it is a transposed convolution.
    """
    ins, outs = (0, 1) if transposed else (1, 0)
    sum_over(op, (op.x, at), (weight, ins))
    for axis in (*op.x.axes[at + 1 :], *weight.axes[2:]):
        op.fix(axis, "works along it as if it were space")
    made = _biased(op, weight.axes[outs], op.argument(2, "bias"))
    space = (constant(int(size)) for size in op.example.shape[at + 1 :])
    return Shaped((*op.x.axes[:at], made, *space))


@entry("F.multi_head_attention_forward")
def multi_head_attention(op: Op) -> Any:  # noqa: ARG001
    """Torch's own attention, whose inner width is by definition that of its input."""
    raise Unknown(
        "makes its heads as wide together as the stream that it reads, so they cannot grow alone; "
        "attention that has Linear layers for queries, keys and values can"
    )


@entry("torch.lstm torch.gru torch.rnn_tanh torch.rnn_relu")
@entry("torch.lstm_cell torch.gru_cell torch.rnn_tanh_cell torch.rnn_relu_cell")
def recurrent(op: Op) -> Any:  # noqa: ARG001
    """Layers that feed their hidden units back."""
    raise Unknown("feeds its hidden units back into itself, which splitgrow cannot grow yet")


@entry("F.batch_norm torch.batch_norm", FRESH)
def batch_norm(op: Op) -> Any:
    """Normalises each channel by tensors that do not grow, or over the batch and space."""
    at, name = (5, "training")
    dims = range(1 if op.argument(at, name, False) is False else 0, len(op.x.axes))
    return _fixed(op, op.x, set(dims), _others(op))


@entry("F.instance_norm F.group_norm torch.group_norm", FRESH)
def norm(op: Op) -> Any:
    """Takes its statistics over space, perhaps over several channels; each example by itself."""
    return _fixed(op, op.x, set(range(1, len(op.x.axes))), _others(op))


def _others(op: Op) -> Any:
    return next((shaped for shaped in op.shaped() if shaped is not op.x), None)


@entry("F.prelu Tensor.prelu", SUMMED.but(activation=True))
def prelu(op: Op) -> Any:
    """One slope for all channels, or one for each."""
    weight = op.tensor(1, "weight")
    if not weight.axes or op.groups.length(weight.axes[-1]) == 1:
        op.fix_all("takes its one slope from it", but=[op.x])
        return op.x
    dim = min(1, len(op.x.axes) - 1)
    op.groups.tie(op.x.axes[dim], weight.axes[-1], op.reason("takes a slope for each from it"))
    return op.x


@entry("F.embedding", MOVED.but(fresh=True))
def embedding(op: Op) -> Any:
    """Indices in, rows of a table out."""
    if op.argument(3, "max_norm") is not None:
        raise Unknown("changes the rows that it looks up")
    table = op.tensor(1, "weight")
    op.fix(table.axes[0], "picks positions of it by number")
    return Shaped((*op.x.axes, table.axes[-1]))

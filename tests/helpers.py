"""Shared by the tests of laws: comparison, and values that make a comparison meaningful."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from splitgrow.layers.split_layer import SplitLayer

MANY = float(os.environ.get("SPLITGROW_MANY", "1"))
"""How many times as many random networks, programs and histories as usual are tried."""

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Largest difference that rounding may make, relative to the largest value."""


def tensors_of(outputs: Any) -> list[Tensor]:
    """The tensors of any output structure."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def largest_difference(actual: Any, expected: Any) -> float:
    """The largest difference of two outputs, relative to the largest expected value."""
    ours, theirs = tensors_of(actual), tensors_of(expected)
    assert len(ours) == len(theirs) > 0
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert other.isfinite().all()
        scale = max(other.abs().max().item(), 1e-30)
        worst = max(worst, (one - other).abs().max().item() / scale)
    return worst


def assert_equal(actual: Any, expected: Any) -> None:
    """Fails unless two outputs are equal up to the rounding of their dtype.

    This is what holds wherever the two were computed by other shapes: after growth, insertion,
    merging, fusion, in another execution mode, by compiled code, in other batches. There a kernel,
    which the processor chooses, may add in another order.
    """
    tolerance = min(TOLERANCES[tensor.dtype] for tensor in tensors_of(expected))
    assert largest_difference(actual, expected) <= tolerance


def assert_identical(actual: Any, expected: Any) -> None:
    """Fails unless two outputs are equal bit for bit.

    That holds on any processor where, and is asked only where,

    * the same kernels run on the same shapes, strides and alignment: the same model and input once
      more; a closed generation, whose blocks lie dense while it is shown; what was saved, loaded,
      copied, pickled or merged without having grown; the same training from the same seed;
    * values were copied, selected or indexed, and not computed with: weights put together, states
      taken over, data, nearest neighbours, a fade at 0 or 1;
    * arithmetic is exact: nothing but zeros is added, it is multiplied by one, numbers are whole.

    Two frozen tensors that must not move, and `not torch.equal` for one that must, are no matter of
    rounding either. Everything else is `assert_equal`, and `tests/kernels.py` finds it.
    """
    ours, theirs = tensors_of(actual), tensors_of(expected)
    assert len(ours) == len(theirs) > 0
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@torch.no_grad()
def outputs_of(model: nn.Module, *inputs: Tensor) -> Any:
    """What the model computes, without recording gradients."""
    return model(*inputs)


def leading(grown: Any, old: Any) -> Any:
    """The leading part of each grown output, of the shape that it had before."""
    parts = []
    for new, before in zip(tensors_of(grown), tensors_of(old), strict=True):
        parts.append(new[tuple(slice(size) for size in before.shape)])
    return parts


def split_layers(model: nn.Module) -> Iterator[SplitLayer]:
    """The layers that have grown."""
    return (module for module in model.modules() if isinstance(module, SplitLayer))


@torch.no_grad()
def randomise(model: nn.Module) -> nn.Module:
    """Gives every parameter and running statistic a value that a formula could not hide behind."""
    for module in model.modules():
        _randomise_own(module)
    return model


@torch.no_grad()
def randomise_new_blocks(model: nn.Module) -> None:
    """Gives new blocks and helpers values that matter, and leaves the original blocks alone."""
    for split in split_layers(model):
        for block in list(split)[1:]:
            _randomise_own(block)


def _randomise_own(module: nn.Module) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        if name == "weight" and parameter.dim() > 1:
            fan_in = parameter[0].numel()
            parameter.normal_(std=fan_in**-0.5)
        else:
            parameter.uniform_(0.5, 1.5) if name == "weight" else parameter.normal_(std=0.3)
    for name, buffer in module.named_buffers(recurse=False):
        if name == "running_mean":
            buffer.normal_(std=0.3)
        elif name == "running_var":
            buffer.uniform_(0.5, 1.5)


def train_steps(model: nn.Module, inputs: tuple[Any, ...], optimizer: Any, steps: int = 3) -> None:
    """A few steps of training in training mode; the mode is put back afterwards."""
    training = model.training
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum(output.square().mean() for output in tensors_of(model(*inputs)))
        loss.backward()
        optimizer.step()
    model.train(training)

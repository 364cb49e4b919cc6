"""What both must do with a pruned model: run, train, and tell what got narrower."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.outputs import Answer, ask, check_shapes, tensors_of
from benchmarks.pruning.records import Outcome

SHARE = 4
"""One in so many units of each layer goes."""
RATE = 1e-4
_ACROSS = ("LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm", "LocalResponseNorm", "Grn", "GRN")


class UnusedError(Exception):
    """Parameters that trained before pruning do not train after it."""


@contextmanager
def timed(found: Outcome, step: str) -> Iterator[None]:
    """Adds the processor's seconds of a block to what was found, also if it fails."""
    found.step = step
    started = time.process_time()
    try:
        yield
    finally:
        found.seconds[step] = round(time.process_time() - started, 4)


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The convolutions and linear layers of a model by path."""
    kinds = (nn.modules.conv._ConvNd, nn.Linear)  # noqa: SLF001
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, kinds) or type(module).__name__ == "Conv1D"
    }


def widths_of(model: nn.Module) -> dict[str, int]:
    """The number of units of each of those layers, as its weight has them."""
    found = {}
    for name, module in layers_of(model).items():
        weight: Any = module.weight
        transposed = getattr(module, "transposed", type(module).__name__ == "Conv1D")
        groups = getattr(module, "groups", 1)
        found[name] = weight.shape[1] * groups if transposed else weight.shape[0]
    return found


def count(model: nn.Module) -> int:
    """The number of parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def ran(model: nn.Module, inputs: tuple[Any, ...], before: Answer, *, detects: bool) -> Answer:
    """What a pruned model answers, of the shapes and as finite as before.

    Raises:
        ArithmeticError: If it is not finite.
        Exception: Whatever the model raises.
    """
    answer = ask(model.eval(), inputs, detects=detects)
    if not detects:  # a detection model's features get narrower, and its boxes may be others
        check_shapes(answer, before)
    if not answer.is_finite() and before.is_finite():
        raise ArithmeticError("the outputs of the pruned model are not finite")
    return answer


def loss_of(model: nn.Module, inputs: tuple[Any, ...], *, detects: bool) -> Tensor:
    """A loss in training mode: a detection model's own, else the mean square of the outputs."""
    torch.manual_seed(0)
    model.train()
    # Two pictures, since norms count over what may be one place in each.
    twice = ([*inputs[0]] * 2, _targets([*inputs[0]] * 2)) if detects else inputs
    outputs = model(*twice)
    parts = [t for t in tensors_of(outputs) if t.is_floating_point() and t.requires_grad]
    return torch.stack([t.square().mean() if t.dim() else t for t in parts]).sum()


def _targets(images: list[Tensor]) -> list[dict[str, Tensor]]:
    """One object in each image."""
    return [
        {
            "boxes": torch.tensor([[8.0, 8.0, 90.0, 100.0]], dtype=image.dtype),
            "labels": torch.tensor([1]),
            "masks": torch.ones(1, *image.shape[1:], dtype=torch.uint8),
            "keypoints": torch.tensor([[[40.0, 40.0, 1.0]] * 17], dtype=image.dtype),
        }
        for image in images
    ]


def gradients(model: nn.Module, inputs: tuple[Any, ...], *, detects: bool) -> frozenset[str]:
    """The parameters that a loss reaches; the loss stays behind as `.grad`.

    Raises:
        ArithmeticError: If the loss is not finite.
    """
    model.zero_grad(set_to_none=True)
    loss = loss_of(model, inputs, detects=detects)
    if not bool(loss.isfinite()):
        raise ArithmeticError("the loss is not finite")
    loss.backward()
    return frozenset(name for name, p in model.named_parameters() if p.grad is not None)


def train(
    model: nn.Module, inputs: tuple[Any, ...], used: frozenset[str] | None, *, detects: bool
) -> None:
    """One step of SGD.

    Args:
        model: The pruned model.
        inputs: Its inputs.
        used: The parameters that the same step reached before pruning; None if it did not run.
        detects: Whether it answers with boxes.

    Raises:
        UnusedError: If one of those is not reached.
        ArithmeticError: If the loss is not finite.
    """
    if used is None:
        return
    reached = gradients(model, inputs, detects=detects)
    missing = sorted(used - reached)
    if missing:
        raise UnusedError(f"{len(missing)} parameters get no gradient, such as {missing[0]}")
    torch.optim.SGD(model.parameters(), lr=RATE).step()
    model.zero_grad(set_to_none=True)


def normalises_across(model: nn.Module) -> bool:
    """Whether a norm looks at several channels: then it counts those that are there."""
    return any(word in type(m).__name__ for m in model.modules() for word in _ACROSS)

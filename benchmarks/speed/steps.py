"""Training steps and inference, as calls that can be timed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

import splitgrow
from benchmarks.speed.networks import Network, grown
from benchmarks.speed.results import Measurement, milliseconds
from benchmarks.speed.settings import Settings
from benchmarks.speed.timing import paired, ratio

Call = Callable[[], object]


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum for what trains."""
    training = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(training, lr=1e-4, momentum=0.9)


def training_step(
    model: nn.Module,
    x: Tensor,
    before_step: Callable[[], None] | None = None,
    *,
    bf16: bool = False,
    optimizer: torch.optim.Optimizer | None = None,
) -> Call:
    """A call that does one training step.

    Args:
        model: It is put into training mode.
        x: A batch.
        before_step: Called between the backward pass and the optimizer's step.
        bf16: Whether the forward pass runs in torch's autocast.
        optimizer: The optimizer; by default SGD with momentum.
    """
    model.train()
    optimizer = optimizer or optimizer_of(model)

    def step() -> None:
        optimizer.zero_grad()
        with in_bf16(x, enabled=True) if bf16 else nullcontext():
            loss = model(x).square().mean()
        loss.backward()
        if before_step is not None:
            before_step()
        optimizer.step()

    return step


def inference(model: nn.Module, x: Tensor, *, bf16: bool = False) -> Call:
    """A call that runs a model in evaluation mode without gradients, maybe in autocast."""
    model.eval()

    def run() -> None:
        with torch.no_grad(), in_bf16(x, enabled=bf16):
            model(x)

    return run


def in_bf16(x: Tensor, *, enabled: bool) -> torch.autocast:
    """Torch's autocast to bf16 on the device of a tensor."""
    return torch.autocast(x.device.type, torch.bfloat16, enabled=enabled)


def masked_step(model: nn.Module, plain: nn.Module, x: Tensor) -> Call:
    """A training step of a plain network in which masks on its gradients hold the past.

    Args:
        model: The grown network, whose frozen parameters are the past.
        plain: The plain network of the same widths.
        x: A batch.
    """
    masks = masks_of(model)

    def hold_the_past() -> None:
        for parameter, mask in zip(plain.parameters(), masks, strict=True):
            if parameter.grad is not None:
                parameter.grad.mul_(mask)

    return training_step(plain, x, hold_the_past)


def masks_of(model: nn.Module) -> list[Tensor]:
    """For each parameter of the merged network a 1 where it is new and a 0 where it is frozen."""
    marked = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in marked.parameters():
            parameter.fill_(float(parameter.requires_grad))
    return [parameter.detach() for parameter in splitgrow.merge(marked).parameters()]


def against_plain(
    one: Network, settings: Settings, fraction: float, *, freeze: bool = True
) -> Measurement:
    """A grown network's training step over that of the plain network of the same widths."""
    x = one.input(settings)
    model = grown(one, settings, fraction, freeze=freeze)
    contestants = {
        "grown": training_step(model, x),
        "plain": training_step(splitgrow.merge(model), x),
    }
    return compared(one.name, contestants, settings, "grown", "plain")


def compared(
    case: str, contestants: dict[str, Call], settings: Settings, name: str, over: str
) -> Measurement:
    """Times contestants and states the ratio of two of them."""
    times = paired(contestants, settings)
    return stated(case, times, name, over)


def stated(
    case: str, times: dict[str, list[float]], name: str, over: str, also: Iterable[str] = ()
) -> Measurement:
    """The ratio of two contestants, their times beside it."""
    beside = {each: milliseconds(times[each]) for each in (name, over, *also)}
    return Measurement(case, "ratio", ratio(times, name, over), beside)

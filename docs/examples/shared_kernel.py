"""One kernel for all channels: its gradient, its time beside two ways by hand, and growth."""

import os
import time

import torch
from torch import Tensor, nn

import splitgrow

ROUNDS = 2 if os.environ.get("SPLITGROW_EXAMPLE") == "small" else 20
CHANNELS = 64

torch.manual_seed(0)
x = torch.randn(8, CHANNELS, 28, 28)
shared = splitgrow.SharedKernelConv2d(3, padding=1, bias=False)
one = nn.Conv2d(1, 1, 3, padding=1, bias=False)
grouped = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS, bias=False)
with torch.no_grad():
    one.weight.copy_(shared.weight)


def gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad


def by_shared() -> Tensor:
    shared.zero_grad()
    shared(x).square().sum().backward()
    return gradient(shared.weight)


def by_loop() -> Tensor:
    one.zero_grad()
    torch.cat([one(x[:, i : i + 1]) for i in range(CHANNELS)], 1).square().sum().backward()
    return gradient(one.weight)


def by_groups() -> Tensor:
    grouped.zero_grad()
    with torch.no_grad():
        grouped.weight.copy_(one.weight.expand_as(grouped.weight))
    grouped(x).square().sum().backward()
    return gradient(grouped.weight).sum(0, keepdim=True)


wanted = by_loop()
for way in (by_shared, by_loop, by_groups):
    error = (way() - wanted).abs().max() / wanted.abs().max()
    start = time.perf_counter()
    for _ in range(ROUNDS):
        way()
    milliseconds = 1000 * (time.perf_counter() - start) / ROUNDS
    print(f"{way.__name__}: {milliseconds:.1f} ms, relative difference of gradients {error:.0e}")

# Where the layer before grows, the kernel takes the new channels without further parameters.
model = nn.Sequential(nn.Conv2d(3, 8, 1), shared, nn.ReLU(), nn.Conv2d(8, 2, 1))
model = splitgrow.growable(model, x[:1, :3])
print(model.expand_layer("0", 8))
print(splitgrow.fuse(model))

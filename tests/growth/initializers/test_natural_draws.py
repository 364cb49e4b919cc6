"""No data-driven initializer raises the loss that training will see: with norms and dropout too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from initializer_laws import layers_of
from torch import Tensor, nn

import splitgrow
from splitgrow.growth.initializers import initializers
from splitgrow.growth.initializers.natural import Fisher, Tiny
from splitgrow.growth.probe import DRAWS, Probe

INEXACT = [each for each in initializers().values() if each.needs_data and not each.exact]
EACH = [*INEXACT, Tiny(project=False), Fisher(project=False)]


def pooled() -> nn.Module:
    """Dropout in front of the last layer: 40 samples, and the drop of a few units tells them."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2),
        nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(6, 10),
    )  # fmt: skip


class Far(nn.Module):
    """Inputs of another size than one."""

    def forward(self, x: Tensor) -> Tensor:
        return 20 * x.flatten(1) + 30


def flat() -> nn.Module:
    """Linear layers, whose norms see large inputs, with little dropout and much."""
    return nn.Sequential(
        Far(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(8, 6), nn.BatchNorm1d(6, momentum=None), nn.Tanh(), nn.Dropout(0.1),
        nn.Linear(6, 10),
    )  # fmt: skip


class Residual(nn.Module):
    """A residual block with dropout of whole channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.one, self.inner = nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.two, self.drop = nn.Conv2d(5, 4, 3, padding=1), nn.Dropout2d(0.3)
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.two(self.drop(self.inner(self.one(x)).relu()))
        return self.head(nn.functional.dropout(x.mean((2, 3)), 0.5, self.training))


NETS: list[Callable[[], nn.Module]] = [pooled, flat, Residual]
DIGITS = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()


def batch(seed: int) -> tuple[Tensor, Tensor]:
    """Noisy pictures of ten classes, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(10, (40,), generator=generator)
    return 3 * (DIGITS[y] + torch.randn(40, 1, 8, 8, generator=generator).double()), y


@cache
def trained(net: Callable[[], nn.Module]) -> nn.Module:
    """A network after some steps of training."""
    torch.manual_seed(0)
    model: Any = splitgrow.growable(net().double().train(), batch(0)[0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for seed in range(30):
        x, y = batch(seed)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@dataclass
class Grown:
    """A network that has grown by data, and the states of the random numbers of each run."""

    model: Any
    edit: splitgrow.Edit
    states: list[Tensor]

    def loss(self) -> Tensor:
        return loss_of(self.model)

    def over(self, states: list[Tensor]) -> float:
        """The mean loss over random numbers; the model stays as it is."""
        model = copy.deepcopy(self.model)
        found = []
        for state in states:
            torch.set_rng_state(state)
            found.append(float(loss_of(model).detach()))
        return sum(found) / len(found)

    @property
    def measured(self) -> list[Tensor]:
        """The states of the runs that measured the loss: the last ones, after the edit."""
        return self.states[-DRAWS:] if self.model.training else self.states[-1:]


def loss_of(model: Any) -> Tensor:
    x, y = batch(100)
    return nn.functional.cross_entropy(model(x), y)


def grown(
    net: Callable[[], nn.Module], layer: int, initializer: Any, *, training: bool, freeze: bool
) -> Grown:
    model: Any = copy.deepcopy(trained(net)).train(training)
    states: list[Tensor] = []

    def loss() -> Tensor:
        states.append(torch.get_rng_state())
        return loss_of(model)

    torch.manual_seed(5)
    edit = model.expand_layer(layer, 6, initializer=initializer, loss=loss, freeze=freeze)
    return Grown(model, edit, states)


def silenced(found: Grown) -> Grown:
    """The same with helpers at zero, which is an exact growth."""
    model = copy.deepcopy(found.model)
    with torch.no_grad():
        for _, split in layers_of(model, found.edit):
            for block, role in zip(split, split.blocks, strict=True):
                if role.kind == "helper":
                    for parameter in block.parameters():
                        parameter.zero_()
    return Grown(model, found.edit, found.states)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("initializer", EACH, ids=lambda i: f"{i!r} {i.project}")
def test_the_loss_is_no_higher_than_before(
    initializer: Any, net: Callable[[], nn.Module], training: bool
) -> None:
    """As the model computes it after the edit, with the random numbers of the measurement."""
    for layer, freeze in ((0, False), (1, True), (1, False)):
        found = grown(net, layer, initializer, training=training, freeze=freeze)
        before, after = found.edit.loss
        assert after <= before
        assert found.over(found.measured) == pytest.approx(after, rel=1e-11)
        assert silenced(found).over(found.measured) == pytest.approx(before, rel=1e-11)
        assert f"the loss went from {before:.4g} to {after:.4g}" in str(found.edit)


def further(count: int = 60) -> list[Tensor]:
    return [torch.Generator().manual_seed(1000 + n).get_state() for n in range(count)]


@pytest.mark.parametrize("initializer", EACH, ids=lambda i: f"{i!r} {i.project}")
def test_it_falls_with_other_random_numbers_and_in_evaluation_mode_too(initializer: Any) -> None:
    for net in (pooled, flat):
        found = grown(net, 1, initializer, training=True, freeze=False)
        before = silenced(found)
        assert found.over(further()) < before.over(further()) - 0.02
        found.model.eval()
        before.model.eval()
        assert found.over(further(1)) < before.over(further(1)) - 0.05


def test_control_a_step_that_fits_one_draw_of_a_dropout_raises_the_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Probe, "expected", Probe.value)
    found = grown(flat, 1, Tiny(), training=True, freeze=False)
    before, after = found.edit.loss
    assert after < before - 0.2
    assert found.over(further()) > silenced(found).over(further()) + 0.3


def test_control_norms_without_statistics_of_the_batch_mislead_evaluation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses = []
    for _ in range(2):
        found = grown(flat, 0, Tiny(), training=True, freeze=False)
        found.model.eval()
        losses.append(found.over(further(1)) - silenced(found).over(further(1)))
        monkeypatch.setattr(Probe, "settle_", lambda *_, **__: None)
    assert losses[0] < 0
    assert losses[1] > 0.3

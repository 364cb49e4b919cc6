"""Small grown layers in which everything trains: joined at each call, by torch's own ops."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_equal, largest_difference, randomise, randomise_new_blocks, split_layers
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import splitgrow
from splitgrow.layers.joined_run import JoinedRun
from splitgrow.layers.weight_views import is_dense


class Network(nn.Module):
    """Layers that join their blocks, some with pieces in the middle of what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(7)
        self.deep = nn.Conv2d(7, 7, 3, groups=7, padding=1, padding_mode="reflect")
        self.up = nn.ConvTranspose2d(7, 4, 2, 2)
        self.still = nn.BatchNorm2d(4, affine=False)
        self.hidden, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(torch.cat([self.one(x), self.other(x)], 1))
        y = self.still(self.up(self.deep(y).tanh())).mean((2, 3))
        return self.head(self.hidden(y).tanh())


def inputs() -> Tensor:
    return torch.randn(4, 3, 6, 6, generator=torch.manual_seed(1), dtype=torch.float64)


def grown(*, freeze: bool = False) -> Any:
    torch.manual_seed(0)
    model: Any = splitgrow.growable(randomise(Network().double()), inputs())
    for _ in range(2):
        model.expand({"one": 2, "other": 1, "up": 2, "hidden": 1}, freeze=freeze)
        randomise_new_blocks(model)
    return model.train()


def blockwise(model: Any) -> Tensor:
    with splitgrow.execution("blockwise"):
        return model(inputs())


@pytest.fixture
def joins(monkeypatch: pytest.MonkeyPatch) -> list[JoinedRun]:
    """The layers that have run so."""
    seen: list[JoinedRun] = []
    run = JoinedRun.run

    def watched(self: JoinedRun, x: Tensor) -> Tensor | None:
        output = run(self, x)
        if output is not None:
            seen.append(self)
        return output

    monkeypatch.setattr(JoinedRun, "run", watched)
    return seen


def steps(model: Any, run: Callable[[Any], Tensor]) -> dict[str, Tensor]:
    """The tensors after some steps of training, and the last gradients."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        run(model).square().sum().backward()
        optimizer.step()
    gradients = {f"of {name}": p.grad for name, p in model.named_parameters()}
    return {**model.state_dict(), **gradients}


def test_training_is_that_of_the_blocks_in_all_tensors(joins: list[JoinedRun]) -> None:
    """Parameters, gradients, running statistics and counters, of all kinds of layers."""
    model = grown()
    twin = copy.deepcopy(model)
    ours, theirs = steps(model, lambda m: m(inputs())), steps(twin, blockwise)
    assert len(set(joins)) == len([*split_layers(model)]) == 8
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.is_contiguous()
        assert (value - theirs[name]).abs().max() <= 1e-10, name  # some are zero but for rounding


def test_control_a_wrong_order_of_blocks_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = grown()
    twin = copy.deepcopy(model)
    monkeypatch.setattr(
        "splitgrow.layers.composition.torch.cat",
        lambda parts, dim: torch.concatenate([*reversed(parts)], dim),
    )
    with pytest.raises((AssertionError, RuntimeError)):
        assert_equal(model(inputs()), blockwise(twin))


def _through_data(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.5


def _held(model: Any) -> None:
    for parameter in [*model.parameters()][::3]:
        parameter.requires_grad_(False)
        parameter.data.mul_(1.5)


def _new_parameters(model: Any) -> None:
    for module in model.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            setattr(module, name, nn.Parameter(parameter.detach() * 1.5))


def _statistics(model: Any) -> None:
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.data = buffer.data * 2


def _closed_and_opened(model: Any) -> None:
    """Frozen ones become parts of a whole tensor meanwhile, which optimizers may not get."""
    model.next_generation()
    with torch.no_grad():
        model(inputs())
    model.unfreeze()
    model(inputs()).square().sum().backward()
    torch.optim.Adam(model.parameters(), lr=0.1, fused=True).step()
    assert all(is_dense(parameter) for parameter in model.parameters())


@pytest.mark.parametrize(
    "change",
    [_through_data, _held, _new_parameters, _statistics, _closed_and_opened],
    ids=lambda change: change.__name__[1:],
)
def test_nothing_is_out_of_date_after(change: Callable[[Any], None]) -> None:
    model = grown()
    for _ in range(2):
        before = model(inputs())
    change(model)
    for _ in range(2):
        after = model.eval()(inputs())
        assert largest_difference(after, before) > 1e-10
        assert_equal(after, splitgrow.merge(model)(inputs()))
        assert_equal(after, blockwise(model))


def test_tensors_that_stand_in_for_a_call_are_used_and_transforms_see_them() -> None:
    model = grown().eval()
    model(inputs())
    given = {name: p.detach() * 1.5 for name, p in model.named_parameters()}

    def loss(given: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, given, (x,)).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(given, inputs().unsqueeze(1))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(given[name])
    model(inputs()).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert_equal(each[name].sum(0), parameter.grad)


def test_hooks_on_blocks_run(joins: list[JoinedRun]) -> None:
    model, calls = grown(), []
    model(inputs())
    joins.clear()
    model.hidden[1].register_forward_hook(lambda *_: calls.append("hook"))
    model(inputs())
    assert calls == ["hook"]
    assert len(set(joins)) == len([*split_layers(model)]) - 1


def test_a_change_before_the_backward_pass_leaves_the_gradients_of_the_forward_pass() -> None:
    """What was joined is a copy of its own."""
    model = grown()
    model(inputs())
    twin = copy.deepcopy(model)
    twin(inputs()).square().sum().backward()
    loss = model(inputs()).square().sum()
    with torch.no_grad():
        for split in split_layers(model):
            for block in split:
                if getattr(block, "weight", None) is not None and split is not model.norm:
                    block.weight.mul_(2)
    loss.backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert_equal(one.grad, other.grad)


def test_what_is_frozen_or_large_runs_in_another_way(
    joins: list[JoinedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = grown(freeze=True)
    model(inputs())
    assert not joins
    monkeypatch.setattr("splitgrow.layers.joined_run._MOST_COPIED", -1)
    model = grown()
    model(inputs())
    assert not joins
    assert {run.way for run in model.runs.values()} == {"merged"}

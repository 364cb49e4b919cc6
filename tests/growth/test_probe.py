"""A probe looks at a grown model and leaves everything as it was but the values of new blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from snapshots import unchanged
from torch import Tensor, nn

import splitgrow
from splitgrow.growth.initializers import Initializer
from splitgrow.growth.prepared import PreparedEdit
from splitgrow.growth.probe import DRAWS, averaged, probing

X = torch.randn(16, 3, 8, 8, generator=torch.manual_seed(1), dtype=torch.float64)


class Net(nn.Module):
    """Two branches that are concatenated, a batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3)
        self.norm, self.drop = nn.BatchNorm2d(9), nn.Dropout(0.5)
        self.c = nn.Conv2d(9, 2, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.drop(self.norm(torch.cat([self.a(x), self.b(x)], 1)).relu()))


class Looking(Initializer):
    """Does something with a probe."""

    name = "looking"
    exact = False
    needs_data = True

    def __init__(self, work: Callable[[Any], object]) -> None:
        self.work, self.found = work, None

    def apply(self, prepared: PreparedEdit) -> None:
        with probing(prepared) as probe:
            self.found = self.work(probe)


def grown(work: Callable[[Any], object], loss: Callable[[Any], Any] | None = None) -> Any:
    """The result of looking at a model in training mode that grows in two layers."""
    torch.manual_seed(0)
    model: Any = splitgrow.growable(Net().double(), X)
    looking = Looking(work)
    closure = loss or (lambda net: net(X).square().mean())
    model.expand(
        {"a": 2, "b": 3},
        initializer=looking,
        loss=lambda: closure(model),
        freeze=False,
        check=False,
    )
    return looking.found


def test_a_probe_changes_nothing_but_the_blocks() -> None:
    torch.manual_seed(0)
    model: Any = splitgrow.growable(Net().double(), X)
    model(X).sum().backward()
    before = [p.grad for p in model.parameters()]
    statistics = model.norm.running_mean.clone()

    def work(probe: Any) -> None:
        probe.gradients(probe.helpers)
        raise InterruptedError

    looking = Looking(work)
    with unchanged(model), pytest.raises(InterruptedError):
        model.expand_layer("a", 2, initializer=looking, loss=lambda: model(X).mean(), freeze=False)
    assert all(p.grad is known for p, known in zip(model.parameters(), before, strict=True))
    assert torch.equal(model.norm.running_mean, statistics)


def test_each_run_of_the_loss_has_the_same_random_numbers() -> None:
    one, other, forwards = grown(lambda p: (p.value(), p.value(), p.forwards))
    assert one == other
    assert forwards == 2


def test_a_random_loss_is_measured_over_random_numbers_that_its_runs_do_not_see() -> None:
    def work(probe: Any) -> tuple[float, ...]:
        before = torch.get_rng_state()
        found = probe.value(), probe.expected(), probe.expected()
        assert torch.equal(torch.get_rng_state(), before)
        start = probe.forwards
        probe.expected()
        return (*found, probe.forwards - start)

    seen, one, other, runs = grown(work)
    assert one == other
    assert runs == DRAWS
    assert one != pytest.approx(seen, rel=1e-6)
    seen, one, other, runs = grown(work, lambda net: net.eval()(X).square().mean())
    assert one == other == seen
    assert runs == 1


def test_norms_of_new_units_get_the_statistics_of_the_batch() -> None:
    """Those that they see in a run, and they keep them; all other norms stay as they are."""
    torch.manual_seed(0)
    model: Any = splitgrow.growable(Net().double(), X)
    before = model.norm.running_mean.clone()
    looking = Looking(lambda probe: probe.settle_())
    model.expand_layer("a", 2, initializer=looking, loss=lambda: model(X).mean(), freeze=False)
    made = model.a(X)[:, -2:].transpose(0, 1).flatten(1)
    new = model.norm[1]
    assert torch.allclose(new.running_mean, made.mean(1), rtol=1e-12)
    assert torch.allclose(new.running_var, made.var(1, correction=0), rtol=1e-12)
    assert torch.equal(model.norm[0].running_mean, before)


def test_its_gradients_are_those_of_the_blocks() -> None:
    """Against central differences of the loss."""

    def work(probe: Any) -> tuple[float, float]:
        (helper,) = probe.helpers
        (found,) = probe.gradients([helper])
        way = torch.randn(
            found.shape, generator=torch.Generator().manual_seed(3), dtype=found.dtype
        )
        start, step = helper.tensor.detach().clone(), 1e-6
        values = []
        for sign in (1, -1):
            helper.set_(start + sign * step * way)
            values.append(probe.value())
        return float((found * way).sum()), (values[0] - values[1]) / (2 * step)

    exact, measured = grown(work)
    assert exact == pytest.approx(measured, rel=1e-6)
    assert abs(exact) > 1e-6


def test_it_tells_which_group_each_input_of_a_helper_is_of() -> None:
    def work(probe: Any) -> tuple[list[Any], list[Any]]:
        (helper,) = probe.helpers
        homes = helper.homes_of_inputs()
        made = [probe.prepared.places(n)["weight"][0][-1][0].home for n in ("a", "b")]
        return homes, [made[0]] * 2 + [made[1]] * 3

    homes, wanted = grown(work)
    assert homes == wanted
    assert len({*homes}) == 2


def test_over_several_processes_gradients_are_averaged() -> None:
    def work(probe: Any) -> tuple[Tensor, Tensor]:
        (alone,) = probe.gradients(probe.helpers)
        with averaged(lambda tensor: tensor / 4):
            (shared,) = probe.gradients(probe.helpers)
        return alone, shared

    alone, shared = grown(work)
    assert torch.allclose(alone / 4, shared, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("loss", "error", "reason"),
    [
        (lambda net: net(X), TypeError, "a tensor of one number"),
        (lambda net: 1.0, TypeError, "a tensor of one number, got 1.0"),
        (lambda net: net(X).mean() * float("nan"), ValueError, "must be finite"),
        (lambda net: net(X).mean().detach(), ValueError, "has no gradient"),
        (lambda net: net.a.bias.sum(), ValueError, "does not depend on the layers that grow"),
    ],
)
def test_a_loss_that_is_none_is_refused(loss: Any, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        grown(lambda probe: probe.gradients(probe.helpers), loss)


def test_a_loss_that_calls_backward_is_refused() -> None:
    def loss(net: Any) -> Tensor:
        found: Tensor = net(X).square().mean()
        found.backward()
        return found

    with pytest.raises(ValueError, match="without calling backward"):
        grown(lambda probe: probe.gradients(probe.helpers), loss)

"""Criteria of gradients against the derivatives by gates, and against gradients by hand."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from cases import CASES
from scored_models import Gated, Recurrent, Tied, small
from scoring import (
    Key,
    assert_close,
    grown_at_once,
    loss_of,
    made_growable,
    positions,
    scores_of,
    view_of,
    where_units_lie,
)
from snapshots import unchanged
from torch import Tensor, nn

from splitgrow.growth.edit_parts import Removal
from splitgrow.layers.types import known_layer_type
from splitgrow.pruning import FisherInformation, Taylor

GATED = ("plain", "residual", "squeeze and excite", "u-net", "conv to linear", "shuffled", "shared")
"""Models whose units are all read by weights: through depthwise layers, cuts, copies and sums."""
WEIGHED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)


def readers(model: nn.Module, units: list[tuple[Removal, ...]]) -> dict[str, Tensor]:
    """By layer that reads units by weights, the unit on each of its inputs; -1 for others."""
    found = dict[str, Tensor]()
    for number, removed in enumerate(units):
        for item in removed:
            module = model.get_submodule(item.name)
            diagonal = isinstance(module, WEIGHED) and known_layer_type(module).diagonal(module)
            if isinstance(module, WEIGHED) and not diagonal and item.ins:
                own = found.setdefault(item.name, torch.full((item.in_width[0],), -1))
                own[positions(item.ins)] = number
    return found


def scale(factors: Tensor, _: nn.Module, args: Any) -> Any:
    return (args[0] * factors, *args[1:])


def by_gates(model: Any, batches: list[Any]) -> dict[Key, list[Tensor]]:
    """The derivative of the loss by a gate of one on each unit where layers read it, by batch."""
    found: dict[Key, list[Tensor]] = {}
    for key, units in where_units_lie(model).items():
        found[key] = []
        for batch in batches:
            gate = torch.ones(len(units), dtype=torch.float64, requires_grad=True)
            hooks = []
            for name, at in readers(model, units).items():
                module = model.get_submodule(name)
                dim = known_layer_type(module).channel_dim(module)

                factors = torch.where(at >= 0, gate[at.clamp(min=0)], 1.0)
                factors = factors.view(-1, *[1] * (-1 - dim))
                hooks.append(module.register_forward_pre_hook(partial(scale, factors)))
            loss_of(model, batch).backward()
            found[key].append(gate.grad)
            for hook in hooks:
                hook.remove()
    return found


@pytest.mark.parametrize("name", GATED)
def test_taylor_is_the_squared_derivative_by_a_gate_on_the_unit_at_its_readers(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    model, batches = made_growable(case), [case.inputs(1), case.inputs(2)]
    scores = scores_of(model, Taylor(), batches)
    gates = by_gates(copy.deepcopy(model), batches)
    assert scores.keys() == gates.keys()
    for key, found in gates.items():
        assert_close(scores[key], torch.stack(found).square().mean(0))
        joint = torch.stack(found).mean(0).square()  # control: not the square of the mean
        assert not torch.allclose(scores[key], joint, rtol=1e-3)


@pytest.mark.parametrize("name", GATED)
def test_fisher_is_half_the_mean_of_squared_weights_times_gradients(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    model, batches = made_growable(case), [case.inputs(1), case.inputs(2)]
    scores, twin = scores_of(model, FisherInformation(), batches), copy.deepcopy(model)
    expected = {key: torch.zeros(len(own), dtype=torch.float64) for key, own in scores.items()}
    for batch in batches:
        twin.zero_grad()
        loss_of(twin, batch).backward()
        for key, units in where_units_lie(model).items():
            for name_of, at in readers(twin, units).items():
                expected[key] += elements_read(twin.get_submodule(name_of), at, len(units)) / 2
    for key, own in scores.items():
        assert_close(own, expected[key] / len(batches))


def elements_read(module: Any, at: Tensor, count: int) -> Tensor:
    """The sums over each unit's columns of squared weights times squared gradients."""
    weight, grad = module.weight.detach(), module.weight.grad
    values = weight.square() * grad.square()
    groups = getattr(module, "groups", 1)
    dim = 0 if isinstance(module, nn.ConvTranspose2d) else 1
    parts = [values] if dim == 0 else values.chunk(groups)
    columns = torch.cat(
        [part.sum([other for other in range(part.dim()) if other != dim]) for part in parts]
    )
    found = torch.zeros(count, dtype=torch.float64)
    return found.index_add(0, at[at >= 0], columns[at >= 0])


def test_units_that_read_themselves_and_units_without_readers() -> None:
    model = small(Recurrent())
    batch = (torch.randint(7, (3, 5)),)
    (gradients,) = [torch.autograd.grad(loss_of(model, batch), [*model.parameters()])]
    by_name = dict(zip((name for name, _ in model.named_parameters()), gradients, strict=True))
    change = sum(
        (by_name[name] * model.get_parameter(name).detach()).sum(0)
        for name in ("rnn.weight_hh_l0", "head.weight")
    )
    assert_close(scores_of(model, Taylor(), [batch])["rnn", "0"], change.square())
    model = small(Gated())
    batch = (torch.randint(7, (3, 5)),)
    view = view_of(model)
    assert bool((view.units.covered("makes") & ~view.units.covered("reads")).any())
    (gradient,) = torch.autograd.grad(loss_of(model, batch), [model.gate.weight])
    change = (model.gate.weight.detach() * gradient).sum(1)
    assert_close(scores_of(model, Taylor(), [batch])["gate", "0"], change.square())


def test_a_weight_that_reads_and_makes_counts_with_its_whole_gradient() -> None:
    model = small(Tied())
    batch = (torch.randint(7, (3, 5)),)
    table, inner = model.table.weight, model.inner.weight
    grads = torch.autograd.grad(loss_of(model, batch), [table, inner])
    change = sum((w.detach() * g).sum(0) for w, g in zip((table, inner), grads, strict=True))
    (scores,) = scores_of(model, Taylor(), [batch]).values()
    assert_close(scores, change.square())


def test_frozen_weights_count_and_stay_frozen_also_where_gradients_are_off() -> None:
    case = CASES[2]
    model, batches = made_growable(case), [case.inputs()]
    expected = scores_of(model, Taylor(), batches)
    model.block1.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    with unchanged(model), torch.no_grad():
        found = scores_of(model, Taylor(), batches)
    for key, own in expected.items():
        assert_close(found[key], own)
    with unchanged(model), pytest.raises(ZeroDivisionError):
        scores_of(model, FisherInformation(), batches, loss=lambda model, batch: 1 / 0)


def test_blocks_that_closed_generations_froze_count() -> None:
    case = CASES[2]
    model, batches = grown_at_once(case, freeze=True), [case.inputs()]
    twin = copy.deepcopy(model)
    twin.unfreeze()
    for criterion in (Taylor(), FisherInformation()):
        found, expected = (scores_of(m, criterion, batches) for m in (model, twin))
        for key, own in expected.items():
            assert_close(found[key], own)


def test_gradients_may_be_sparse() -> None:
    found = []
    for sparse in (False, True):
        module = Recurrent()
        module.table.sparse = sparse
        model = small(module)
        batch = (torch.arange(15).view(3, 5) % 5,)
        found.append(scores_of(model, Taylor(), [batch]))
    for key, scores in found[0].items():
        assert_close(found[1][key], scores)


BAD_LOSSES: dict[str, tuple[Any, type[Exception], str]] = {
    "none": (None, ValueError, "give `loss`"),
    "a number": (lambda m, b: 1.0, TypeError, "a tensor of one number"),
    "several": (lambda m, b: m(*b), TypeError, "a tensor of one number"),
    "nan": (lambda m, b: loss_of(m, b) * float("nan"), ValueError, "the loss on a batch is nan"),
    "detached": (lambda m, b: loss_of(m, b).detach(), ValueError, "does not depend on"),
}


@pytest.mark.parametrize("name", BAD_LOSSES)
def test_a_loss_that_tells_nothing_is_refused(name: str) -> None:
    loss, error, match = BAD_LOSSES[name]
    model = made_growable(CASES[1])
    with unchanged(model), pytest.raises(error, match=match):
        scores_of(model, Taylor(), [CASES[1].inputs()], loss=loss)
    with pytest.raises(ValueError, match="and `batches`"):
        scores_of(model, Taylor(), [])

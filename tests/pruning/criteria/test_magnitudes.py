"""Criteria of weights against sums that are taken by hand, over the positions that would go."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES
from scored_models import Recurrent, Tied, small
from scoring import assert_close, made_growable, positions, scores_of, view_of, where_units_lie
from torch import Tensor, nn

import splitgrow
from splitgrow.growth.edit_parts import Removal
from splitgrow.pruning import GroupNorm, Magnitude, Random, Scale

KNOWN = (
    *("plain", "residual", "bottleneck", "dense", "squeeze and excite", "u-net", "conv to linear"),
    *("1-d", "3-d", "shared", "shuffled", "vision transformer", "grouped queries", "fused heads"),
)
"""The models of layers whose weights the sums below know, in all forms of their connections."""
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d)


def made(module: Any, out: int) -> Tensor:
    """The weights that make an output channel."""
    if isinstance(module, TRANSPOSED):
        each = module.out_channels // module.groups
        first = out // each * (module.in_channels // module.groups)
        return module.weight[first : first + module.in_channels // module.groups, out % each]
    return module.weight[out]


def read(module: Any, at: int) -> Tensor | None:
    """The weights that read an input channel; None of a depthwise convolution, which makes it."""
    if isinstance(module, nn.Linear):
        return module.weight[:, at]
    if 1 < module.groups == module.in_channels:
        return None
    if isinstance(module, TRANSPOSED):
        return module.weight[at]
    each, outs = module.in_channels // module.groups, module.out_channels // module.groups
    return module.weight[at // each * outs : (at // each + 1) * outs, at % each]


def by_hand(model: nn.Module, removed: tuple[Removal, ...], what: str, p: int) -> float | None:
    """The sum of powers of weights with which a unit goes; None if there are none."""
    found: list[Tensor] = []
    for item in removed:
        if item.use is not None:
            continue
        module = model.get_submodule(item.name)
        if what == "scales" and isinstance(module, (*NORMS, nn.GroupNorm, nn.LayerNorm)):
            found += [module.weight[at] for at in positions(item.outs) if module.weight is not None]
        if not isinstance(module, (nn.Linear, *CONVS, *TRANSPOSED)):
            continue
        if what == "makes":
            found += [made(module, at) for at in positions(item.outs)]
        if what == "reads":
            columns = (read(module, at) for at in positions(item.ins))
            found += [column for column in columns if column is not None]
    return sum(float(each.detach().abs().pow(p).sum()) for each in found) if found else None


def l_norm(p: int) -> Callable[..., float | None]:
    def norm(model: nn.Module, removed: tuple[Removal, ...]) -> float | None:
        found = by_hand(model, removed, "makes", p)
        found = by_hand(model, removed, "reads", p) if found is None else found
        return None if found is None else found ** (1 / p)

    return norm


def group(model: nn.Module, removed: tuple[Removal, ...]) -> float | None:
    sums = [by_hand(model, removed, what, 2) or 0.0 for what in ("makes", "reads")]
    return math.sqrt(sum(sums)) or None


def scale(model: nn.Module, removed: tuple[Removal, ...]) -> float | None:
    return by_hand(model, removed, "scales", 1)


ORACLES = [
    (Magnitude(1), l_norm(1)),
    (Magnitude(2), l_norm(2)),
    (GroupNorm(), group),
    (Scale(), scale),
]


@pytest.mark.parametrize("name", KNOWN)
def test_scores_are_the_sums_over_all_weights_with_which_a_unit_goes(name: str) -> None:
    model = made_growable(next(case for case in CASES if case.name == name))
    lying = where_units_lie(model)
    for criterion, oracle in ORACLES:
        scores = scores_of(model, criterion)
        for key, units in lying.items():
            expected = [oracle(model, removed) for removed in units]
            assert (key in scores) == (None not in expected)
            if key in scores:
                assert_close(scores[key], torch.tensor(expected, dtype=torch.float64))


def test_control_the_sums_by_hand_tell_criteria_apart() -> None:
    model = made_growable(CASES[2])
    scores = [scores_of(model, criterion) for criterion, _ in ORACLES]
    key = next(iter(scores[3]))
    for index, one in enumerate(scores):
        for other in scores[:index]:
            assert not torch.allclose(one[key], other[key], rtol=1e-3)


# -- by hand ---------------------------------------------------------------------------------------


def test_units_of_recurrent_layers_and_tables() -> None:
    model = small(Recurrent())
    rows = [
        weight.detach().view(3, 4, -1).abs().sum((0, 2))  # three gates
        for weight in (model.rnn.weight_ih_l0, model.rnn.weight_hh_l0)
    ]
    reads = model.rnn.weight_hh_l0.detach(), model.head.weight.detach()
    l1 = scores_of(model, Magnitude(1))
    assert_close(l1["rnn", "0"], sum(rows))
    assert_close(l1["table", "0"], model.table.weight.detach().abs().sum(0))
    squares = sum(w.square().sum(0) for w in reads)
    squares += sum(
        weight.detach().square().view(3, 4, -1).sum((0, 2))
        for weight in (model.rnn.weight_ih_l0, model.rnn.weight_hh_l0)
    )
    assert_close(scores_of(model, GroupNorm())["rnn", "0"], squares.sqrt())


def test_a_weight_that_layers_share_counts_once_and_both_makes_and_reads() -> None:
    model = small(Tied())
    table, inner = model.table.weight.detach(), model.inner.weight.detach()
    makes = table.abs().sum(0) + inner.abs().sum(1)
    (key,) = scores_of(model, Magnitude(1))
    assert_close(scores_of(model, Magnitude(1))[key], makes)
    squares = table.square().sum(0) + inner.square().sum(0) + inner.square().sum(1)
    assert_close(scores_of(model, GroupNorm())[key], squares.sqrt())
    roles = {p.name: p.roles for p in view_of(model).parameters if p.layer == "table"}
    assert roles == {"weight": {"makes", "reads"}}


class OneMore(nn.Module):
    """A norm whose factors are one more than its parameters, as Gemma's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.eps, self.weight = 1e-6, nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return x * (1.0 + self.weight)


def test_the_factors_of_a_norm_that_adds_one_to_them_are_what_counts() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), OneMore(4), nn.Linear(4, 2)).double()
    model = splitgrow.growable(net, torch.randn(3, 3).double())
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([-1.0, 0.0, 1.0, -3.0]))
    assert_close(scores_of(model, Scale())["0", "0"], torch.tensor([0.0, 1, 2, 2]))


def test_random_scores_follow_torchs_seed_and_are_others_each_time() -> None:
    model = made_growable(CASES[1])
    torch.manual_seed(1)
    first, second = scores_of(model, Random()), scores_of(model, Random())
    torch.manual_seed(1)
    again = scores_of(model, Random())
    for key, scores in first.items():
        assert torch.equal(scores, again[key])
        assert not torch.equal(scores, second[key])


def test_names_and_exponents() -> None:
    assert [Magnitude().name, Magnitude(2).name, str(Magnitude(2))] == [
        "l1",
        "l2",
        "Magnitude(p=2)",
    ]
    for p in (0, 3, 1.5, "1", None):
        with pytest.raises(ValueError, match="p must be 1 or 2"):
            Magnitude(p)

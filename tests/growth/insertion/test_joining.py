"""An insertion's parameters join the param groups of their originals, or of those of their role."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import splitgrow


class Block(nn.Module):
    """A residual block with a norm, a bias and a parameter of its own."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.act = nn.PReLU(width)
        self.last = nn.Conv2d(width, width, 1)
        self.scale = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.act(self.first(self.norm(x)))) * self.scale


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.relu = nn.ReLU()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def network() -> Any:
    torch.manual_seed(0)
    return splitgrow.growable(Net().double(), torch.randn(2, 3, 4, 4).double())


Rule = Callable[[str, nn.Module, str, nn.Parameter], object]
"""A group for a parameter, from its path, its module, its name there and itself."""

RULES: dict[str, Rule] = {
    "by dimensions": lambda path, m, name, p: p.dim() > 1,
    "biases apart": lambda path, m, name, p: name == "bias",
    "norms apart": lambda path, m, name, p: isinstance(m, nn.BatchNorm2d),
    "norms and biases apart, as Hugging Face": lambda path, m, name, p: (
        isinstance(m, nn.BatchNorm2d) or name == "bias"
    ),
    "by name and type": lambda path, m, name, p: (type(m).__name__, name),
}
BY_DEPTH: dict[str, Rule] = {
    "a rate for each depth": lambda path, m, name, p: ".".join(path.split(".")[:2]),
    "depth and decay, as timm": lambda path, m, name, p: (
        ".".join(path.split(".")[:2]),
        p.dim() > 1,
    ),
}


def roles(model: nn.Module) -> dict[int, tuple[str, nn.Module, str, nn.Parameter]]:
    return {
        id(p): (f"{path}.{name}", module, name, p)
        for path, module in model.named_modules()
        for name, p in module.named_parameters(recurse=False)
    }


def optimizer_by(rule: Rule, model: nn.Module) -> tuple[Any, list[object]]:
    groups: dict[object, list[nn.Parameter]] = {}
    for item in roles(model).values():
        groups.setdefault(rule(*item), []).append(item[3])
    parts = [{"params": params, "lr": 0.01 * (i + 1)} for i, params in enumerate(groups.values())]
    return torch.optim.AdamW(parts), list(groups)


INSERTIONS: dict[str, tuple[Any, ...]] = {
    "block": ("blocks.0", "block"),
    "residual behind the stem": ("stem", "residual"),
    "residual behind a block": ("blocks.1", "residual"),
    "bottleneck": ("blocks.0", "residual"),
    "gate": ("stem", "gate"),
    "identity": ("stem", "identity"),
    "a residual of the user": ("blocks.0", "residual"),
    "a fade": ("blocks.1", "fade"),
}


def inserted(model: Any, kind: str, optimizer: Any) -> Any:
    after, how = INSERTIONS[kind]
    options: dict[str, Any] = {}
    if kind == "bottleneck":
        options["form"] = "bottleneck"
    if kind in {"a residual of the user", "a fade"}:
        options["module"] = nn.Sequential(
            nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5), nn.PReLU(5), nn.Conv2d(5, 6, 1)
        ).double()
    return model.insert_layer(after, how, optimizer=optimizer, **options)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", INSERTIONS)
def test_each_new_parameter_is_in_the_group_that_the_rule_gives_it(rule, kind):
    model = network()
    if kind == "block":
        model.expand_layer("blocks.0.first", 2)  # the copy is plain, its original grown
    optimizer, values = optimizer_by(RULES[rule], model)
    edit = inserted(model, kind, optimizer)
    new = model.parameters_of(edit)
    assert new
    homes = {id(p): values[i] for i, g in enumerate(optimizer.param_groups) for p in g["params"]}
    known = roles(model)
    for parameter in new:
        assert homes[id(parameter)] == RULES[rule](*known[id(parameter)])


@pytest.mark.parametrize("rule", BY_DEPTH)
@pytest.mark.parametrize("block", ["blocks.0", "blocks.1"])
def test_a_copy_has_the_rates_of_its_originals_depth(rule, block):
    model = network()
    optimizer, _ = optimizer_by(BY_DEPTH[rule], model)
    originals = dict(model.get_submodule(block).named_parameters())
    edit = model.insert_layer(block, "block", optimizer=optimizer)
    copies = model.get_submodule(edit.inserted[0].name)
    homes = {id(p): i for i, g in enumerate(optimizer.param_groups) for p in g["params"]}
    named = dict(copies.named_parameters())
    assert named.keys() == originals.keys()
    assert all(homes[id(p)] == homes[id(originals[name])] for name, p in named.items())


def test_a_copy_of_frozen_parameters_joins_others_of_their_role():
    model = network()
    trained = [p for name, p in model.named_parameters() if name.startswith("blocks.1")]
    vectors = [p for p in trained if p.dim() == 1]
    others = [p for p in trained if p.dim() > 1]
    optimizer = torch.optim.SGD([{"params": others}, {"params": vectors}], 0.1)
    model.insert_layer("blocks.1", "block", optimizer=optimizer)
    for group, dims in zip(optimizer.param_groups, (False, True), strict=True):
        assert {p.dim() == 1 for p in group["params"]} == {dims}


def test_of_two_optimizers_the_one_beside_gets_the_insertion():
    model = network()
    stem = torch.optim.SGD([*model.stem.parameters(), *model.bn.parameters()], 0.1)
    known = {id(p) for p in stem.param_groups[0]["params"]}
    rest = torch.optim.SGD([p for p in model.parameters() if id(p) not in known], 0.1)
    edit = model.insert_layer("stem", "residual", optimizer=[stem, rest])
    new = {id(p) for p in model.parameters_of(edit)}
    assert new <= {id(p) for p in stem.param_groups[0]["params"]}
    assert not new & {id(p) for p in rest.param_groups[0]["params"]}


def test_an_optimizer_that_trains_nothing_beside_it_is_refused():
    model = network()
    optimizer = torch.optim.SGD(model.head.parameters(), 0.1)
    with pytest.raises(splitgrow.OptimizerError, match="does not train"):
        model.insert_layer("stem", "residual", optimizer=optimizer)


@pytest.mark.parametrize("kind", ["residual", "gate"])
def test_behind_a_module_without_parameters_its_neighbours_groups_are_joined(kind: str) -> None:
    """They are the last module in front that has parameters, and the first behind."""
    model = network()
    stem = {id(p) for m in (model.stem, model.bn) for p in m.parameters()}
    groups: list[Any] = [{"params": [p for p in model.parameters() if id(p) not in stem]}]
    groups.append({"params": [*model.stem.parameters(), *model.bn.parameters()], "lr": 1e-3})
    optimizer = torch.optim.SGD(groups, 0.1)
    edit = model.insert_layer("relu", kind, optimizer=optimizer)
    new = {id(p) for p in model.parameters_of(edit)}
    assert new <= {id(p) for p in optimizer.param_groups[1]["params"]}
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    with pytest.raises(splitgrow.OptimizerError, match="does not train"):
        model.insert_layer("relu", kind, optimizer=other)

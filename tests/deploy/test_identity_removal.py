"""Fusion removes layers that have become identities; a difference of a millionth stays."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import assert_equal, assert_identical, largest_difference, outputs_of, randomise
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import splitgrow
from splitgrow.deploy.fx_edits import replace_by, writes
from splitgrow.deploy.identity_removal import is_identity
from splitgrow.layers.fade import FadeIn

WIDTH = 6


def constant_(layer: Any, value: float) -> Any:
    """Makes a layer or norm give one value whatever it gets."""
    with torch.no_grad():
        layer.weight.zero_()
        if layer.bias is not None:
            layer.bias.fill_(value)
    return layer


def dirac_(conv: Any) -> Any:
    nn.init.dirac_(conv.weight, conv.groups)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def unit_(linear: Any) -> Any:
    nn.init.eye_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


def plain_norm_(norm: Any) -> Any:
    """Makes a batch norm in evaluation mode an identity, with statistics that are not."""
    randomise(norm)
    with torch.no_grad():
        if norm.affine:
            norm.weight.copy_((norm.running_var + norm.eps).sqrt())
            norm.bias.copy_(norm.running_mean)
        else:
            norm.running_mean.zero_()
            norm.running_var.fill_(1 - norm.eps)
    return norm


def by_method(x: Tensor, y: Tensor) -> Tensor:
    return x.mul(y)


def into_by_method(x: Tensor, y: Tensor) -> Tensor:
    return x.add_(y)


class Gate(nn.Module):
    def __init__(self, layer: nn.Module, multiply: Any = operator.mul, swapped: bool = False):
        super().__init__()
        self.layer, self.multiply, self.swapped = constant_(layer, 1), multiply, swapped

    def forward(self, x: Tensor) -> Tensor:
        gate = self.layer(x)
        return self.multiply(gate, x) if self.swapped else self.multiply(x, gate)


class Block(nn.Module):
    """A residual whose branch ends in a layer that gives zero."""

    def __init__(self, last: nn.Module, add: Any = operator.add, swapped: bool = False) -> None:
        super().__init__()
        kernel = () if isinstance(last, nn.Linear) else (3, 1, 1)
        first = (nn.Conv2d if kernel else nn.Linear)(WIDTH, WIDTH, *kernel)
        self.first, self.last = randomise(first), constant_(last, 0)
        self.add, self.swapped = add, swapped

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(F.silu(self.first(x)))
        return self.add(y, x) if self.swapped else self.add(x, y)


class SqueezedGate(nn.Module):
    """A gate that sees the mean over space, as in squeeze-and-excite, and is spread over it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = constant_(nn.Conv2d(WIDTH, WIDTH, 1), 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.layer(x.mean((2, 3), keepdim=True))


class Harmless(nn.Conv2d):
    """A subclass that computes as its base does."""


def conv(*options: Any, **named: Any) -> nn.Conv2d:
    return nn.Conv2d(WIDTH, WIDTH, *options, **named)


ROWS = (2, 5, 3)
DOUBLE = {"dtype": torch.float64}


@dataclass(frozen=True)
class Case:
    """Something in the middle of a network that computes its input."""

    name: str
    build: Callable[[], nn.Module]
    decisive: str
    """The tensors by whose values it does."""
    shape: tuple[int, ...] = (2, 3, 8, 8)

    def model(self) -> Any:
        torch.manual_seed(0)
        first: nn.Module = nn.Linear(3, WIDTH)
        last: nn.Module = nn.Linear(WIDTH, 2)
        if self.shape != ROWS:
            kind: Any = nn.Conv1d if len(self.shape) == 3 else nn.Conv2d
            first, last = kind(3, WIDTH, 3, padding=1), kind(WIDTH, 2, 1)
        around: Any = randomise(nn.Sequential(first, last)).double()
        part = self.build().double()
        return nn.Sequential(around[0], part, around[1]).eval()

    def input(self) -> Tensor:
        return torch.randn(self.shape, generator=torch.manual_seed(1), dtype=torch.float64)


CASES = [
    Case("gate", lambda: Gate(conv(3, padding=1)), "layer.weight layer.bias"),
    Case("gate, torch.mul", lambda: Gate(conv(1), torch.mul), "layer.weight layer.bias"),
    Case("gate, method", lambda: Gate(conv(1), by_method), "layer.weight layer.bias"),
    Case("gate, swapped", lambda: Gate(conv(1), swapped=True), "layer.weight layer.bias"),
    Case("gate, in place", lambda: Gate(conv(1), operator.imul), "layer.weight layer.bias"),
    Case("gate, depthwise", lambda: Gate(conv(3, 1, 1, groups=6)), "layer.weight layer.bias"),
    Case("gate, Linear", lambda: Gate(nn.Linear(6, 6)), "layer.weight layer.bias", ROWS),
    Case("gate, norm", lambda: Gate(nn.BatchNorm2d(6)), "layer.weight layer.bias"),
    Case("gate, squeezed", SqueezedGate, "layer.weight layer.bias"),
    Case(
        "gate, transposed",
        lambda: Gate(nn.ConvTranspose2d(6, 6, 3, 1, 1)),
        "layer.weight layer.bias",
    ),
    Case("residual", lambda: Block(conv(3, padding=1)), "last.weight last.bias"),
    Case("residual, no bias", lambda: Block(conv(1, bias=False)), "last.weight"),
    Case("residual, torch.add", lambda: Block(conv(1), torch.add), "last.weight last.bias"),
    Case("residual, +=", lambda: Block(conv(1), operator.iadd), "last.weight last.bias"),
    Case("residual, y += x", lambda: Block(conv(1), operator.iadd, True), "last.weight last.bias"),
    Case("residual, add_", lambda: Block(conv(1), into_by_method), "last.weight last.bias"),
    Case("residual, Linear", lambda: Block(nn.Linear(6, 6)), "last.weight last.bias", ROWS),
    Case("residual, BatchNorm", lambda: Block(nn.BatchNorm2d(6)), "last.weight last.bias"),
    Case("residual, GroupNorm", lambda: Block(nn.GroupNorm(2, 6)), "last.weight last.bias"),
    Case("residual, subclass", lambda: Block(Harmless(6, 6, 1)), "last.weight last.bias"),
    Case("Dirac", lambda: nn.Sequential(dirac_(conv(3, padding=1))), "0.weight 0.bias"),
    Case("Dirac, 1x1, no bias", lambda: nn.Sequential(dirac_(conv(1, bias=False))), "0.weight"),
    Case("Dirac, same", lambda: nn.Sequential(dirac_(conv(5, padding="same"))), "0.weight 0.bias"),
    Case(
        "Dirac, dilated and uneven",
        lambda: nn.Sequential(dirac_(conv((3, 5), dilation=(2, 1), padding=(2, 2)))),
        "0.weight 0.bias",
    ),
    Case("Dirac, depthwise", lambda: nn.Sequential(dirac_(conv(3, 1, 1, groups=6))), "0.weight"),
    Case("Dirac, groups", lambda: nn.Sequential(dirac_(conv(3, 1, 1, groups=2))), "0.weight"),
    Case(
        "Dirac, circular",
        lambda: nn.Sequential(dirac_(conv(3, 1, 1, padding_mode="circular"))),
        "0.weight",
    ),
    Case(
        "Dirac, one dimension",
        lambda: nn.Sequential(dirac_(nn.Conv1d(6, 6, 3, padding=1))),
        "0.weight 0.bias",
        (2, 3, 8),
    ),
    Case("unit matrix", lambda: nn.Sequential(unit_(nn.Linear(6, 6))), "0.weight 0.bias", ROWS),
    Case(
        "norm",
        lambda: nn.Sequential(plain_norm_(nn.BatchNorm2d(6, **DOUBLE))),
        "0.weight 0.bias 0.running_mean 0.running_var",
    ),
    Case(
        "Dirac and norm",
        lambda: nn.Sequential(dirac_(conv(3, 1, 1)), plain_norm_(nn.BatchNorm2d(6, **DOUBLE))),
        "0.weight 1.weight 1.bias 1.running_mean 1.running_var",
    ),
    Case(
        "norm whose statistics are one",
        lambda: nn.Sequential(plain_norm_(nn.BatchNorm2d(6, eps=2.0**-10, affine=False))),
        "0.running_mean 0.running_var",
    ),
    Case(
        "many",
        lambda: nn.Sequential(
            Block(conv(1)),
            dirac_(conv(3, 1, 1)),
            Gate(conv(1)),
            nn.Dropout(),
            Block(conv(3, 1, 1)),
        ),
        "0.last.weight 1.weight 2.layer.bias 4.last.bias",
    ),
]


def fused(model: nn.Module, x: Tensor) -> Any:
    return splitgrow.fuse(splitgrow.growable(model, x))


def layers_of(network: nn.Module) -> int:
    """The layers that are left; a norm that stays may have been folded into one of them."""
    return sum(1 for module in network.modules() if list(module.parameters(recurse=False)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_computes_its_input_goes(case: Case) -> None:
    model, x = case.model(), case.input()
    expected = outputs_of(model, x)
    network = fused(model, x)
    assert layers_of(network) == 2
    assert [node.op for node in network.graph.nodes] == [
        "placeholder",
        "call_module",
        "call_module",
        "output",
    ]
    assert_equal(outputs_of(network, x), expected)
    assert outputs_of(network, x).std() > 0.01


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_differs_by_a_millionth_stays(case: Case) -> None:
    for name in case.decisive.split():
        for index in (0, -1):
            model, x = case.model(), case.input()
            owner, _, key = name.rpartition(".")
            tensor = getattr(model[1].get_submodule(owner), key)
            with torch.no_grad():
                tensor.view(-1)[index] += 1e-6
            expected = outputs_of(model, x)
            network = fused(model, x)
            # A norm that stays is folded into the layer before it.
            folded = not torch.equal(network.get_submodule("0").bias, model[0].bias)
            assert folded or layers_of(network) > 2, name
            assert_equal(outputs_of(network, x), expected)


@pytest.mark.parametrize(
    ("layer", "identity"),
    [
        (dirac_(conv(3, padding=1)), True),
        (dirac_(conv(3)), False),
        (dirac_(conv(3, stride=2, padding=1)), False),
        (dirac_(conv(3, padding=2)), False),
        (dirac_(conv(1, padding=1)), False),
        (dirac_(nn.Conv2d(6, 8, 3, padding=1)), False),
        (dirac_(nn.Conv2d(8, 6, 3, padding=1)), False),
        (dirac_(conv(4, padding="same")), False),  # Dirac kernels of torch lie behind the middle
        (unit_(nn.Linear(6, 8)), False),
        (nn.ConvTranspose2d(6, 6, 1), False),
        (nn.BatchNorm2d(6), False),
        (plain_norm_(nn.BatchNorm2d(6)), True),
        (nn.BatchNorm2d(6, track_running_stats=False), False),
        (nn.ReLU(), False),
    ],
    ids=str,
)
def test_only_an_identity_counts_as_one(layer: nn.Module, identity: bool) -> None:
    assert is_identity(layer.eval()) == identity
    if identity:
        x = torch.randn(2, 6, 8, 8)
        assert_equal(outputs_of(layer, x), x)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_an_even_kernel_with_same_padding_is_told_by_what_it_computes() -> None:
    layer = conv(4, padding="same", bias=False)
    x = torch.randn(1, WIDTH, 8, 8)
    found = []
    for tap in range(4):
        with torch.no_grad():
            layer.weight.zero_()
            layer.weight[range(WIDTH), range(WIDTH), tap, tap] = 1
        found.append(is_identity(layer))
        assert found[-1] == (largest_difference(outputs_of(layer, x), x) < 1e-5)
    assert sum(found) == 1


class Subclass(nn.Conv2d):
    """Computes something else than its base, of the same tensors."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def test_layers_that_compute_otherwise_or_anew_are_left_alone() -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    around = [nn.Conv2d(3, WIDTH, 1), nn.Conv2d(WIDTH, 2, 1)]
    other: nn.Module = dirac_(Subclass(WIDTH, WIDTH, 1))
    normed: Any = torch.nn.utils.parametrizations.weight_norm(conv(1))
    pruned: Any = conv(1)
    prune.l1_unstructured(pruned, "weight", 30)
    for part in (other, Block(conv(1)), normed, pruned):
        if isinstance(part, Block):
            part.last = constant_(Subclass(WIDTH, WIDTH, 1), 0)
        model = randomise(nn.Sequential(around[0], nn.Identity(), around[1])).double().eval()
        model[1] = part.double().eval()
        expected = outputs_of(model, x)
        assert_equal(outputs_of(fused(model, x), x), expected)


class Activations(nn.Module):
    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 6, 1), first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(4 * self.conv(x)))


def relu_method(x: Tensor) -> Tensor:
    return x.relu()


def relu_method_in_place(x: Tensor) -> Tensor:
    return x.relu_()


def relu_in_place(x: Tensor) -> Tensor:
    return F.relu(x, inplace=True)


def hardtanh(x: Tensor) -> Tensor:
    return F.hardtanh(x, -0.5, max_val=0.5)


def hardtanh_wider(x: Tensor) -> Tensor:
    return F.hardtanh(x, min_val=-0.6)


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [
        (nn.ReLU(), nn.ReLU(), 1),
        (nn.ReLU(inplace=True), nn.ReLU(inplace=True), 1),
        (nn.ReLU(), F.relu, 1),
        (F.relu, torch.relu, 1),
        (torch.relu, relu_method, 1),
        (relu_method, relu_method_in_place, 1),
        (relu_method_in_place, relu_in_place, 1),
        (relu_in_place, nn.ReLU(), 1),
        (nn.ReLU6(), nn.ReLU6(), 1),
        (nn.ReLU6(), F.relu6, 1),
        (F.relu6, nn.ReLU(), 1),
        (nn.Hardtanh(-0.5, 0.5), hardtanh, 1),
        (hardtanh, hardtanh_wider, 1),
        (nn.Hardtanh(0, 3), nn.ReLU6(), 1),
        (nn.ReLU(), nn.ReLU6(), 2),
        (hardtanh_wider, hardtanh, 2),
        (nn.Hardtanh(-0.5, 0.5), nn.ReLU(), 2),
        (nn.Hardtanh(-1, 1), nn.Hardtanh(-1, 1 - 1e-6), 2),
        (nn.ReLU(), nn.LeakyReLU(), 2),
        (nn.LeakyReLU(), nn.LeakyReLU(), 2),
        (nn.Tanh(), nn.Tanh(), 2),
    ],
)
def test_an_activation_that_has_nothing_left_to_do_goes(first, second, left) -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model = randomise(Activations(first, second)).double().eval()
    expected = outputs_of(model, x)
    network = fused(model, x)
    assert len(list(network.graph.nodes)) == 4 + left  # input, convolution, product, output
    assert_equal(outputs_of(network, x), expected)


def test_empty_residuals_between_activations_leave_one_of_them() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.act = nn.Conv2d(3, WIDTH, 1), nn.ReLU(inplace=True)
            self.blocks = nn.ModuleList(Block(conv(3, 1, 1)) for _ in range(3))
            self.head = nn.Conv2d(WIDTH, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.stem(x))
            for block in self.blocks:
                x = self.act(block(x))
            return self.head(x)

    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model = Net().double().eval()
    network = fused(model, x)
    assert [str(node.target) for node in network.graph.nodes][1:-1] == ["stem", "act", "head"]
    assert_equal(outputs_of(network, x), outputs_of(model, x))


class Faded(nn.Module):
    def __init__(self, alpha: float, activation: Any = nn.ReLU) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        old = nn.Sequential(nn.Conv2d(4, 4, 1), activation())
        new = nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(True))
        new.append(nn.Conv2d(5, 4, 3, padding=1))
        self.fade = FadeIn(old, new, alpha)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fade(self.stem(x)))


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_of_a_fade_that_is_over_one_path_is_left(alpha: float) -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model = randomise(Faded(alpha)).double().eval()
    expected = outputs_of(model, x)
    network = fused(model, x)
    keys = ["stem.weight", "stem.bias", "head.weight", "head.bias"]
    kept = "fade.new.0 fade.new.3" if alpha else "fade.old.0"
    keys += [f"{layer}.{name}" for layer in kept.split() for name in ("weight", "bias")]
    assert set(network.state_dict()) == set(keys)
    assert "splitgrow" not in network.code
    assert_equal(outputs_of(network, x), expected)


@pytest.mark.parametrize("alpha", [2.0**-20, 0.4, 1 - 2.0**-20])
def test_a_fade_under_way_becomes_a_plain_lerp(alpha: float) -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model = randomise(Faded(alpha)).double().eval()
    expected = outputs_of(model, x)
    network = fused(model, x)
    assert layers_of(network) == 5
    assert torch.lerp in [node.target for node in network.graph.nodes]
    assert "splitgrow" not in network.code
    assert network.fade.share.dtype == torch.float64
    assert_equal(outputs_of(network, x), expected)
    assert fused(model, x).fade.share.item() == model.fade.alpha


def test_fades_within_fades_and_with_a_path_that_does_nothing() -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for outer in (0.0, 0.5, 1.0):
        for inner in (0.0, 0.5, 1.0):
            model: Any = nn.Sequential(
                nn.Conv2d(3, 3, 1),
                FadeIn(nn.Identity(), FadeIn(nn.Conv2d(3, 3, 1), nn.Identity(), inner), outer),
                nn.Conv2d(3, 2, 1),
            )
            model = randomise(model).double().eval()
            expected = outputs_of(model, x)
            network = fused(model, x)
            assert_equal(outputs_of(network, x), expected)
            assert layers_of(network) == (2 if outer == 0 or inner == 1 else 3) or outer == 0.5


# -- what is written in place ----------------------------------------------------------------------


class Written(nn.Module):
    """Writes into the result of something that computes its input, in several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem, self.block, self.how = nn.Conv2d(3, WIDTH, 1), Block(conv(1)), how
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.block(x)
        if self.how == "the input later":
            x.mul_(2)
            return x + y
        if self.how == "a view of the input later":
            x.view(-1).mul_(2)
            return x - 3 * y
        if self.how == "the result":
            y += 1
            return x * y
        if self.how == "a view of the result":
            y.flatten(1)[:, ::2].zero_()
            return x + y
        if self.how == "activation":
            return self.act(y) + 2 * x
        if self.how == "activation and more":
            z = self.act(y)
            return z + 2 * x + y
        if self.how == "method":
            return y.relu_() - x
        return F.relu(y, inplace=True) - x if self.how == "function" else self.act(y)


WAYS = [
    "the input later",
    "a view of the input later",
    "the result",
    "a view of the result",
    "activation",
    "activation and more",
    "method",
    "function",
    "nothing else",
]


@pytest.mark.parametrize("how", WAYS)
def test_writing_in_place_never_reaches_what_it_did_not_reach_before(how: str) -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model = randomise(Written(how))
    constant_(model.block.last, 0)
    model = model.double().eval()
    expected = outputs_of(model, x)
    network = fused(model, x)
    assert_equal(outputs_of(network, x), expected)
    gone = how in ("the result", "activation", "method", "function", "nothing else")
    assert layers_of(network) == (1 if gone else 3)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_fade_whose_result_is_written_into_leaves_its_paths_alone(alpha: float) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 3, 1)
            self.fade = FadeIn(nn.Identity(), nn.Identity(), alpha)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y = self.fade(x)
            y.view(-1).mul_(2)
            return x + y

    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model = randomise(Net()).double().train()
    expected = outputs_of(model, x)  # in training mode the fade's result is always its own
    network = fused(model, x)
    assert not any("share" in key for key in network.state_dict())
    assert_equal(outputs_of(network, x), expected)


def test_a_users_input_is_not_written_into() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.act = Block(conv(1)), nn.ReLU(inplace=True)
            self.head = nn.Conv2d(WIDTH, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.act(self.block(x)))

    x = torch.randn(2, WIDTH, 8, 8, dtype=torch.float64)
    model, before = Net().double().eval(), x.clone()
    network = fused(model, x)
    assert layers_of(network) == 1
    assert_equal(outputs_of(network, x), outputs_of(model, x))
    assert_identical(x, before)


def test_a_dead_path_that_writes_into_what_others_read_stays() -> None:
    """The branch's activation changes x itself before it is added; so does the fused network."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.act = nn.Conv2d(3, WIDTH, 1), nn.ReLU(inplace=True)
            self.last = constant_(conv(1), 0)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return x + self.last(self.act(x))

    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model = Net().double().eval()
    expected = outputs_of(model, x)
    assert (expected >= 0).all()
    network = fused(model, x)
    assert layers_of(network) == 1
    assert_equal(outputs_of(network, x), expected)


def untraced(x: Tensor) -> Tensor:
    return x


def test_a_function_that_nobody_knows_may_write() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(torch.relu, (x,))
    z = graph.call_function(untraced, (y,))
    graph.output(z)
    network = fx.GraphModule(nn.Module(), graph)
    assert writes(network, z)
    assert not writes(network, y)
    assert not replace_by(network, y, x)
    assert y in graph.nodes

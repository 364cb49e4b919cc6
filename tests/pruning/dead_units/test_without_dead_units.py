"""Dead units are removed: the smaller network equals the one it was made from."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES, Case, Residual
from helpers import MANY, assert_equal, assert_identical, outputs_of, randomise, tensors_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import networks
from torch import Tensor, nn
from torch.nn import functional as F

import splitgrow
from benchmarks.vision import torchvision
from splitgrow.analysis.ops import Values, facts_of
from splitgrow.layers.types import layer_type_of
from splitgrow.layers.types.parametrized_layers import computed_names
from splitgrow.pruning.dead_units import aliasing as aliases
from splitgrow.pruning.dead_units import constant_propagation as propagation
from splitgrow.pruning.dead_units import constants
from splitgrow.pruning.dead_units import dead_units as liveness
from splitgrow.pruning.dead_units import narrow as narrowing
from splitgrow.pruning.dead_units import weight_connections as connections
from splitgrow.pruning.dead_units import without_dead_units as shrinking
from splitgrow.pruning.dead_units.narrow import Narrowing
from splitgrow.pruning.dead_units.without_dead_units import without_dead_units

NETWORKS = int(50 * MANY)
COMPUTED = {case.name for case in CASES if case.computed}
"""The cases whose layers keep all their units, since other tensors make their weights."""


@torch.no_grad()
def deaden(network: nn.Module, seed: int, share: float) -> nn.Module:
    """Sets random rows and columns of layers' parameters to zero, of some layers many."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        kind = layer_type_of(module)
        for name, axes in kind.tensors(module).items() if kind is not None else ():
            tensor = getattr(module, name, None)
            computed = name in computed_names(module)
            for dim in axes if isinstance(tensor, nn.Parameter) or computed else ():
                if torch.rand(1, generator=generator) < 0.6:
                    once = tensor.shape[dim] // axes[dim].copies  # a gate alone makes nothing zero
                    chosen = torch.rand(once, generator=generator).repeat(axes[dim].copies) < share
                    tensor.index_fill_(dim, chosen.nonzero().flatten(), 0)
            if computed and bool((tensor.flatten(1).norm(dim=1) > 0).all()):  # or it divides by 0
                setattr(module, name, tensor)
    return network


def check(network: nn.Module, *inputs: Tensor) -> tuple[Any, Narrowing]:
    """The smaller network, once it is known to equal the other one, which must be untouched."""
    state = copy.deepcopy(network.state_dict())
    expected = outputs_of(network, *inputs)
    smaller, record = without_dead_units(network, inputs)
    assert_equal(outputs_of(smaller, *inputs), expected)
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    other = tuple(x + 0.1 if x.is_floating_point() else x.flip(0) for x in inputs)
    assert_equal(outputs_of(smaller, *other), outputs_of(network, *other))
    assert type(smaller) is type(network)
    assert [name for name, _ in smaller.named_modules()] == [n for n, _ in network.named_modules()]
    assert_its_numbers_are_true(smaller)
    counts = tuple(sum(p.numel() for p in net.parameters()) for net in (network, smaller))
    assert record.parameters == counts
    return smaller, record


def assert_its_numbers_are_true(network: nn.Module) -> None:
    """Each layer's tensors have the shapes of a fresh layer with its numbers."""
    for module in network.modules():
        kind = layer_type_of(module)
        # A norm that is built anew names its eps, and what is parametrized is built plain.
        if kind is None or kind.merging.couples or computed_names(module):
            continue
        fresh: Any = kind.build(module, kind.sizes(module), device="meta")
        assert str(fresh) == str(module)
        for name in kind.tensors(module):
            ours, theirs = getattr(module, name), getattr(fresh, name)
            assert (None if ours is None else ours.shape) == (
                None if theirs is None else theirs.shape
            )


def widths(record: Narrowing) -> dict[str, tuple[int, int]]:
    """The units of each layer that lost some, before and after."""
    return {layer.name: layer.width for layer in record.layers if len(set(layer.width)) > 1}


def sequential(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return randomise(nn.Sequential(*layers)).double().eval()  # type: ignore[return-value]


def image(*shape: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(shape, dtype=torch.float64)


@torch.no_grad()
def zero(module: nn.Module, *outputs: int, names: tuple[str, ...] = ("weight", "bias")) -> None:
    for name in names:
        tensor = getattr(module, name)
        if tensor is not None:
            tensor[list(outputs)] = 0


# -- the law -------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_smaller_network_equals_the_whole_one(case: Case, share: float) -> None:
    for seed in range(2):
        network = deaden(randomise(case.model()), seed, share)
        check(network, *case.inputs())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_where_nothing_is_dead_the_result_is_an_equal_copy(case: Case) -> None:
    network = randomise(case.model())
    smaller, record = check(network, *case.inputs())
    assert not record.layers
    assert record.parameters[0] == record.parameters[1]
    assert_identical(outputs_of(smaller, *case.inputs()), outputs_of(network, *case.inputs()))
    assert all(p is not q for p, q in zip(smaller.parameters(), network.parameters(), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_in_single_precision_it_is_equal_up_to_rounding(case: Case) -> None:
    network = deaden(randomise(case.model()), 3, 0.5).float()
    inputs = tuple(x.float() if x.is_floating_point() else x for x in case.inputs())
    check(network, *inputs)


def test_units_do_go_from_most_of_the_cases() -> None:
    """The law would be easy to keep by doing nothing."""

    def units_go(case: Case, seed: int) -> bool:
        network = deaden(randomise(case.model()), seed, 0.6)
        return bool(without_dead_units(network, case.inputs())[1].layers)

    stay = {case.name for case in CASES if not any(units_go(case, seed) for seed in range(6))}
    assert (
        stay
        <= {"deciding", "shared kernel", "several lengths", "silent stream", "by hand"} | COMPUTED
    )


@settings(
    max_examples=NETWORKS, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(networks(), st.integers(0, 2**20), st.sampled_from([0.2, 0.5, 0.9]))
def test_the_smaller_network_equals_any_random_one(
    network: tuple[nn.Module, Tensor], seed: int, share: float
) -> None:
    whole, x = network
    check(deaden(randomise(whole), seed, share), x)


def test_it_takes_images_of_any_size_and_batches_of_any_length() -> None:
    network = sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 2),
    )
    zero(network[0], 1, 2, names=("weight",))
    zero(network[2], 0, 5, names=("weight",))
    smaller, record = check(network, image(1, 3, 5, 5))
    assert widths(record) == {"0": (8, 6), "2": (6, 4)}
    for shape in ((3, 3, 9, 4), (1, 3, 16, 16)):
        assert_equal(outputs_of(smaller, image(*shape)), outputs_of(network, image(*shape)))


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "shufflenet_v2_x1_0"])
def test_a_real_architecture_gets_smaller_and_stays_equal(name: str) -> None:
    torch.manual_seed(0)
    network = torchvision().models.get_model(name, weights=None)
    network = deaden(randomise(network).double().eval(), 1, 0.3)
    _, record = check(network, image(2, 3, 32, 32))
    assert record.parameters[1] < 0.8 * record.parameters[0]


# -- units that nothing reads --------------------------------------------------------------------


def test_a_unit_that_nothing_reads_goes_whatever_its_value_is() -> None:
    network = sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        network[2].weight[:, [1, 4]] = 0
    smaller, record = check(network, image(5, 4))
    assert widths(record) == {"0": (6, 4)}
    kept = [0, 2, 3, 5]
    assert torch.equal(smaller[0].weight, network[0].weight[kept])
    assert torch.equal(smaller[2].weight, network[2].weight[:, kept])
    assert (smaller[0].out_features, smaller[2].in_features) == (4, 4)


@pytest.mark.parametrize("weight", [1e-30, -5e-324, float("nan"), float("inf")])
def test_a_unit_that_one_tiny_weight_reads_stays(weight: float) -> None:
    network = sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        network[2].weight[:, 1] = 0
        network[2].weight[2, 1] = weight
    _, record = without_dead_units(network, image(5, 4))
    assert not record.layers


def test_what_fed_only_dead_units_goes_with_them() -> None:
    network = sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(5)))
    with torch.no_grad():
        network[4].weight[:, 2] = 0
        network[3].weight[[0, 1, 3], 0] = 0
        network[2].weight[[1, 2, 3], 3] = 0
    _, record = check(network, image(2, 4, 5, 5))
    assert widths(record) == {"3": (4, 3), "2": (4, 3), "1": (4, 3)}


class Streams(nn.Module):
    """Two residual branches on one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1)
        self.up = nn.ModuleList(nn.Conv2d(6, 5, 3, padding=1) for _ in range(2))
        self.down = nn.ModuleList(nn.Conv2d(5, 6, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(up(x).relu())
        return self.head(x)


def streams() -> Any:
    torch.manual_seed(0)
    return randomise(Streams()).double().eval()


def test_units_of_a_stream_that_read_only_each_other_go_together() -> None:
    network = streams()
    with torch.no_grad():
        network.head.weight[:, 5] = 0
        for up, down in zip(network.up, network.down, strict=True):
            up.weight[:4, 5] = 0  # the last hidden unit reads the stream's last unit
            down.weight[:5, 4] = 0  # and only adds to it
    _, record = check(network, image(2, 3, 5, 5))
    expected = {f"{name}.{i}": size for name in ("up", "down") for i in (0, 1) for size in [(5, 4)]}
    expected |= {"stem": (6, 5), "down.0": (6, 5), "down.1": (6, 5)}
    assert widths(record) == expected


def test_a_unit_of_a_stream_stays_if_one_branch_reads_it() -> None:
    network = streams()
    with torch.no_grad():
        network.head.weight[:, 5] = 0
        network.up[0].weight[:, 5] = 0
        network.up[1].weight[1:, 5] = 0
    assert not check(network, image(2, 3, 5, 5))[1].layers


def test_a_branch_that_adds_nothing_keeps_one_unit() -> None:
    network = streams()
    zero(network.down[0], *range(6))
    _, record = check(network, image(2, 3, 5, 5))
    assert widths(record) == {"up.0": (5, 1)}


def test_a_network_whose_output_reads_nothing_keeps_a_unit_everywhere() -> None:
    network = randomise(Residual().double().eval())
    zero(network.head, *range(5), names=("weight",))
    _, record = check(network, image(2, 3, 8, 8))
    assert all(after == 1 for _, after in widths(record).values())
    assert len(widths(record)) == len([m for m in network.modules() if layer_type_of(m)]) - 1


def test_a_constant_layer_keeps_a_unit_that_nothing_reads() -> None:
    """It is told from other constants what it gives, and those are gone."""
    network = sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh()
    )
    zero(network[0], *range(6), names=("weight",))
    smaller, record = check(network, image(5, 4))
    assert widths(record) == {"0": (6, 1), "2": (5, 1)}
    assert not smaller[2].weight.any()
    assert not smaller[4].weight.any()


def test_shared_kernels_take_fewer_channels() -> None:
    case = next(case for case in CASES if case.name == "shared kernel")
    network: Any = randomise(case.model())
    with torch.no_grad():
        network.head.weight[:, 32:64] = 0  # the third and fourth channel
        network.mix.weight[:, 4:8] = 0  # the two maps that are made of each
    _, record = check(network, *case.inputs())
    assert widths(record) == {"stem": (6, 4), "norm": (12, 8), "mix": (6, 4)}


def test_what_the_network_returns_stays() -> None:
    network = sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    zero(network[2], 1)
    assert not check(network, image(5, 4))[1].layers


class ReturnsItsFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.conv(x)
        return {"features": x.relu(), "out": self.head(x)}


def test_features_that_the_network_returns_too_stay() -> None:
    network = randomise(ReturnsItsFeatures()).double().eval()
    with torch.no_grad():
        network.head.weight[:, 1] = 0
    assert not check(network, image(2, 3, 5, 5))[1].layers


class InTraining(nn.Module):
    """A head that reads the features in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.aux = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.body(x).relu()
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


def test_a_unit_that_is_read_in_training_only_stays() -> None:
    network: Any = randomise(InTraining()).double().eval()
    with torch.no_grad():
        network.head.weight[:, [1, 2]] = 0
        network.aux.weight[:, [2, 3]] = 0
    smaller, record = check(network, image(5, 4))
    assert widths(record) == {"body": (6, 5)}
    assert_equal(outputs_of(smaller.train(), image(5, 4)), outputs_of(network.train(), image(5, 4)))


def test_flattened_units_go_with_all_their_positions() -> None:
    network = sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    with torch.no_grad():
        network[3].weight[:, 9:18] = 0
        network[3].weight[:, 18:26] = 0  # one place of the third is read
    smaller, record = check(network, image(2, 3, 5, 5))
    assert widths(record) == {"0": (4, 3)}
    assert smaller[3].in_features == 27


def test_a_depthwise_convolution_goes_along_with_its_groups() -> None:
    network = sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.PReLU(8), nn.Conv2d(8, 2, 1)
    )
    with torch.no_grad():
        network[3].weight[:, [2, 3, 5]] = 0  # both outputs of one unit, one of another
    smaller, record = check(network, image(2, 3, 5, 5))
    assert widths(record) == {"0": (4, 3), "1": (8, 6), "2": (8, 6)}
    assert (smaller[1].groups, smaller[1].in_channels, smaller[2].num_parameters) == (3, 3, 6)


def test_a_depthwise_convolution_may_lose_all_channels_but_one() -> None:
    network = sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        network[2].weight[:, 1:] = 0
    smaller, _ = check(network, image(2, 3, 5, 5))
    assert (smaller[1].groups, smaller[1].in_channels) == (1, 1)


def test_groups_lose_a_unit_each_or_none() -> None:
    network = sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, groups=2), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        network[2].weight[:, 1] = 0
        network[1].weight[:, 2] = 0  # the last of each group
    smaller, record = check(network, image(2, 3, 5, 5))
    assert widths(record) == {"0": (6, 4)}
    assert smaller[1].groups == 2
    with torch.no_grad():
        network[2].weight[:, 3] = 0
    smaller, record = check(network, image(2, 3, 5, 5))
    assert widths(record) == {"0": (6, 4), "1": (4, 2)}


def test_pixel_shuffle_loses_whole_bundles() -> None:
    network = sequential(nn.Conv2d(3, 12, 1), nn.PixelShuffle(2), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        network[2].weight[:, 1] = 0
    assert widths(check(network, image(2, 3, 5, 5))[1]) == {"0": (12, 8)}


class Joined(nn.Module):
    """Two maps joined, one of them also read by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)
        self.norm, self.both = nn.BatchNorm2d(9), nn.Conv2d(9, 2, 1)
        self.alone = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.one(x), self.two(x)
        return self.both(self.norm(torch.cat([one, two], 1))) + self.alone(one)


def test_units_of_joined_maps_go_where_nobody_reads_them() -> None:
    network: Any = randomise(Joined()).double().eval()
    with torch.no_grad():
        network.both.weight[:, [0, 1, 4, 8]] = 0
        network.alone.weight[:, 1] = 0
    _, record = check(network, image(2, 3, 4, 4))
    assert widths(record) == {"one": (4, 3), "two": (5, 3), "norm": (9, 6)}


def test_a_head_that_nobody_reads_goes_and_the_number_of_heads_with_it() -> None:
    case = next(case for case in CASES if case.name == "vision transformer")
    network: Any = randomise(case.model())
    with torch.no_grad():
        network.blocks[1].attn.proj.weight[:, :3] = 0
    smaller, record = check(network, *case.inputs())
    assert widths(record) == {"blocks.1.attn.qkv": (18, 9)}
    attention = smaller.blocks[1].attn
    assert (attention.num_heads, attention.head_dim, attention.attn_dim) == (1, 3, 3)
    assert {(n.attribute, n.value) for n in record.numbers} == {
        ("num_heads", (2, 1)),
        ("attn_dim", (6, 3)),
    }
    assert "blocks.1.attn.num_heads: 2 -> 1" in str(record)


def test_a_head_whose_values_are_zero_goes() -> None:
    case = next(case for case in CASES if case.name == "grouped queries")
    network: Any = randomise(case.model())
    zero(network.attend.value, 0, 1, 2)  # of the first head, which serves two heads of queries
    _, record = check(network, *case.inputs())
    names = ("query", "key", "value")
    assert widths(record) == {
        f"attend.{name}": size for name, size in zip(names, ((12, 6), (6, 3), (6, 3)), strict=True)
    }


# -- what all channels share ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.LayerNorm(6),
        lambda: nn.RMSNorm(6),
        lambda: nn.Softmax(-1),
        lambda: nn.LayerNorm(6, elementwise_affine=False),
    ],
    ids=["LayerNorm", "RMSNorm", "Softmax", "LayerNorm without weight"],
)
def test_nothing_goes_before_what_all_channels_share(norm: Callable[[], nn.Module]) -> None:
    network = sequential(nn.Linear(4, 6), norm(), nn.Linear(6, 3))
    with torch.no_grad():
        network[2].weight[:, 1] = 0
    zero(network[0], 2)
    if hasattr(network[1], "weight") and network[1].weight is not None:
        zero(network[1], 3, names=("weight",))
    assert not check(network, image(5, 4))[1].layers


def test_a_group_norm_loses_whole_groups() -> None:
    network = sequential(nn.Conv2d(3, 6, 1), nn.GroupNorm(3, 6), nn.Conv2d(6, 2, 1))
    with torch.no_grad():
        network[2].weight[:, [0, 2, 3]] = 0  # half of the first group, the second whole
    smaller, record = check(network, image(2, 3, 4, 4))
    assert widths(record) == {"0": (6, 4), "1": (6, 4)}
    assert (smaller[1].num_groups, smaller[1].num_channels) == (2, 4)


# -- units that are known ------------------------------------------------------------------------


def test_a_unit_that_is_always_zero_goes_though_it_is_read() -> None:
    network = sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3, padding=1, bias=False))
    zero(network[0], 1)
    zero(network[0], 4, names=("weight",))
    with torch.no_grad():
        network[0].bias[4] = -0.5  # which the activation makes zero
    _, record = check(network, image(2, 3, 5, 5))
    assert widths(record) == {"0": (6, 4)}


@pytest.mark.parametrize(
    ("reader", "goes"),
    [
        (lambda: nn.Conv2d(4, 2, 3), True),
        (lambda: nn.Conv2d(4, 2, 3, padding="valid"), True),
        (lambda: nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"), True),
        (lambda: nn.Conv2d(4, 2, 3, padding=1, padding_mode="replicate"), True),
        (lambda: nn.Conv2d(4, 2, 1, padding="same"), True),
        (lambda: nn.Conv2d(4, 2, 3, stride=2, dilation=2, groups=1), True),
        (lambda: nn.Conv2d(4, 2, 3, padding="same"), False),
        (lambda: nn.Conv2d(4, 2, 3, padding=1), False),
        (lambda: nn.Conv2d(4, 2, 3, padding=(0, 1)), False),
        (lambda: nn.Conv2d(4, 2, 3, bias=False), False),
        (lambda: nn.ConvTranspose2d(4, 2, 3), False),
    ],
)
def test_a_constant_goes_where_a_bias_can_hold_what_it_adds(
    reader: Callable[[], nn.Module], goes: bool
) -> None:
    network = sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), reader())
    zero(network[0], 2, names=("weight",))
    _, record = check(network, image(2, 3, 9, 9))
    assert widths(record) == ({"0": (4, 3), "1": (4, 3)} if goes else {})


def test_a_linear_without_bias_gets_none() -> None:
    network = sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3, bias=False))
    zero(network[0], 2)
    assert not check(network, image(5, 4))[1].layers


def test_constants_are_followed_through_several_layers() -> None:
    network = sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.GELU(), nn.BatchNorm1d(5), nn.Linear(5, 3)
    )
    zero(network[0], 1, 2, names=("weight",))
    with torch.no_grad():
        network[2].weight[3, [0, 3, 4, 5]] = 0  # it reads constants only
    _, record = check(network, image(5, 4))
    assert widths(record) == {"0": (6, 4), "2": (5, 4), "4": (5, 4)}


def test_a_norm_whose_weight_is_zero_makes_a_constant_of_anything() -> None:
    for norm in (nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(4, 4)):
        network = sequential(nn.Conv2d(3, 4, 3), norm, nn.Tanh(), nn.Conv2d(4, 2, 1))
        zero(network[1], 2, names=("weight",))
        assert widths(check(network, image(2, 3, 9, 9))[1]) == {"0": (4, 3), "1": (4, 3)}


def test_a_norm_with_the_statistics_of_the_batch_is_not_trusted_with_constants() -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    network = sequential(nn.Conv2d(3, 4, 3), norm, nn.Conv2d(4, 2, 1))
    zero(network[0], 2, names=("weight",))
    assert not check(network, image(2, 3, 9, 9))[1].layers


def test_a_norm_makes_something_of_zeros() -> None:
    """A row of zeros is no silent unit behind a norm whose mean is not zero."""
    network = sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, padding=1, bias=False)
    )
    zero(network[0], 2)
    assert not check(network, image(2, 3, 9, 9))[1].layers
    with torch.no_grad():
        network[1].running_mean[2] = network[1].bias[2] = 0
    assert widths(check(network, image(2, 3, 9, 9))[1]) == {"0": (4, 3), "1": (4, 3)}


def test_zeros_pass_a_gate() -> None:
    case = next(case for case in CASES if case.name == "squeeze and excite")
    network: Any = randomise(case.model())
    zero(network.norm, 5)
    zero(network.twice, 10, 11)  # the gate's own unit is read by nothing then
    _, record = check(network, *case.inputs())
    assert widths(record)["norm"] == (8, 7)


def test_words_without_a_feature_do_not_need_it() -> None:
    network = sequential(nn.Embedding(9, 5), nn.Tanh(), nn.Linear(5, 2))
    with torch.no_grad():
        network[0].weight[:, 3] = 0
    smaller, record = check(network, torch.arange(9).reshape(3, 3))
    assert widths(record) == {"0": (5, 4)}
    assert smaller[0].embedding_dim == 4


class Twice(nn.Module):
    """One reader of two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.reader = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(self.one(x)) * self.reader(self.two(x))


def test_a_reader_of_two_maps_can_make_up_for_one_constant_only() -> None:
    network: Any = randomise(Twice()).double().eval()
    for layer in (network.one, network.two):
        zero(layer, 1, 2, names=("weight",))
    with torch.no_grad():
        network.one.bias[1] = network.two.bias[1]
    _, record = check(network, image(5, 3))
    assert widths(record) == {"one": (4, 3), "two": (4, 3)}
    zero(network.one, 1)
    assert not check(network, image(5, 3))[1].layers


# -- ops that constants pass ---------------------------------------------------------------------


class Between(nn.Module):
    """A map with known units, an op, and a layer that can do without constants."""

    def __init__(self, op: Callable[[Tensor], Tensor], outs: int = 4) -> None:
        super().__init__()
        self.conv, self.op, self.head = nn.Conv2d(3, 4, 3), op, nn.Linear(outs, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.op(self.conv(x))
        return self.head(x.movedim(1, -1) if x.dim() == 4 else x)


def _in_place_operators(x: Tensor) -> Tensor:
    x += 1
    x *= 2
    x -= 0.5
    x /= 4
    return x


def _written(x: Tensor, at: slice) -> Tensor:
    x[..., at] = 1.5
    return x


CONSTANTS_PASS: dict[str, Callable[[Tensor], Tensor]] = {
    "activations": lambda x: F.silu(F.gelu(x)).tanh().sigmoid(),
    "activations in place": lambda x: F.leaky_relu(F.relu(x, inplace=True), 0.1, True),
    "more activations": lambda x: F.softplus(F.elu(F.hardswish(F.mish(x)))),
    "bounds": lambda x: x.clamp(-0.2, 0.3),
    "numbers": lambda x: (2 - x * 3 + 1) / 4 - 0.1,
    "in place": lambda x: x.add_(1).mul_(0.5),
    "in-place operators": _in_place_operators,
    "itself": lambda x: x * x + x,
    "max pool": lambda x: F.max_pool2d(x, 2),
    "max pool with padding": lambda x: F.max_pool2d(x, 3, 1, 1),
    "adaptive pool": lambda x: F.adaptive_avg_pool2d(x, 2),
    "mean": lambda x: x.mean((2, 3)),
    "mean, kept": lambda x: x.mean([-1], keepdim=True),
    "maximum over space": lambda x: x.amax((-1, -2)),
    "interpolation": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "reflection": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect").mean(-1, True),
    "dropout": lambda x: F.dropout2d(F.dropout(x, 0.5, False), 0.5, False),
    "copies": lambda x: x.clone().contiguous().detach(),
    "its own shape": lambda x: x.view(len(x), x.shape[1], -1).transpose(1, 2).mean(1),
    "moved and back": lambda x: x.permute(0, 2, 3, 1).contiguous().movedim(-1, 1),
    "cut and joined": lambda x: torch.cat([*x.split(x.size(1), 1)], 1)[:, :, 1:],
    "flattened": lambda x: x.flatten(2).mean(-1),
    "shuffled": lambda x: F.pixel_unshuffle(x, 2).reshape(len(x), -1, 4, 3, 3).mean(2),
}

ZEROS_PASS: dict[str, Callable[[Tensor], Tensor]] = {
    "average pool": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "zero pad": lambda x: F.pad(x, (1, 1, 1, 1)),
    "sum": lambda x: x.sum((2, 3)),
    "a factor": lambda x: x * x.mean((2, 3), keepdim=True).exp(),
    "one parameter": nn.PReLU(),
}

STOPS: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": lambda x: x.cos(),
    "a jump": lambda x: (x > 0).to(x.dtype) + x.sign(),
    "the batch": lambda x: x - x.mean(0, keepdim=True).exp(),
    "noise": lambda x: x + torch.linspace(0, 1, x.shape[-1], dtype=x.dtype),
    "a quotient": lambda x: x / (x * x + 1),
    "a write": lambda x: _written(x, slice(0, 2)),
    "padding with ones": lambda x: F.pad(x, (1, 1, 1, 1), value=1.0),
    "spread": lambda x: x.std((2, 3)),
}


def between(op: Callable[[Tensor], Tensor], bias: float) -> Any:
    torch.manual_seed(0)
    network = randomise(Between(op)).double().eval()
    zero(network.conv, 2, names=("weight",))
    with torch.no_grad():
        network.conv.bias[2] = bias
    return network


@pytest.mark.parametrize("name", CONSTANTS_PASS)
def test_constants_are_followed_through(name: str) -> None:
    for bias in (0.0, 0.7, -0.4):
        network = between(CONSTANTS_PASS[name], bias)
        assert widths(check(network, image(2, 3, 8, 8))[1]) == {"conv": (4, 3)}


@pytest.mark.parametrize("name", ZEROS_PASS)
def test_zeros_are_followed_through(name: str) -> None:
    network = between(ZEROS_PASS[name], 0.0)
    assert widths(check(network, image(2, 3, 8, 8))[1]).get("conv") == (4, 3)
    assert not check(between(ZEROS_PASS[name], 0.7), image(2, 3, 8, 8))[1].layers


@pytest.mark.parametrize("name", STOPS)
def test_nothing_is_known_behind(name: str) -> None:
    for bias in (0.0, 0.7):
        assert not check(between(STOPS[name], bias), image(2, 3, 8, 8))[1].layers


_BOUNDS = {"clamp": (-0.1, 0.3), "clip": (-0.1, 0.3)}


@pytest.mark.parametrize("owner", [torch, F, Tensor, nn], ids=lambda owner: owner.__name__)
def test_every_op_that_is_trusted_with_constants_deserves_it(owner: Any) -> None:
    found = [name for name in dir(owner) if trusted(owner, name)]
    assert len(found) > 15
    for name in found:
        op = getattr(owner, name)
        op = op() if owner is nn else op
        plain = name.strip("_").replace("_", "")
        two = facts_of(name if owner is Tensor else getattr(owner, name)).operands == 2
        more = (0.3,) if two or plain in ("clampmin", "clampmax") else _BOUNDS.get(plain, ())
        for bias in (0.0, 0.7, -0.4):
            network = between(lambda x, op=op, more=more: op(x, *more), bias)
            _, record = check(network, image(2, 3, 5, 5))
            assert widths(record) == {"conv": (4, 3)}, name


def trusting(target: Any) -> Any:
    facts = facts_of(target)
    jumps = target in ("cos", "std", torch.cos, torch.std)
    return facts.but(values=Values.POINTWISE) if jumps else facts


def trusted(owner: Any, name: str) -> bool:
    value = getattr(owner, name)
    if not callable(value) or (name.startswith("__") and owner is not Tensor):
        return False
    return facts_of(name if owner is Tensor else value).values is Values.POINTWISE


class Aliased(nn.Module):
    """A view that is read after what it looks at was written into."""

    def __init__(self, write: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.write, self.head = nn.Conv2d(3, 4, 3), write, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        view = y.permute(0, 2, 3, 1)
        before = self.head(view)
        self.write(y)
        return before + self.head(view)


@pytest.mark.parametrize(
    "write",
    [
        lambda y: y.add_(1),
        lambda y: y.transpose(1, 2).mul_(2).sub_(1),
        torch.sigmoid_,
        lambda y: torch.exp(y, out=y),
        lambda y: y.copy_(y.flip(0)),
        lambda y: nn.functional.sigmoid(y.chunk(2, 0)[0].add_(3)),
        lambda y: _written(y, slice(0, 1)),
        _in_place_operators,
    ],
)
def test_what_is_written_into_is_not_known_by_its_other_names(write: Any) -> None:
    torch.manual_seed(0)
    network: Any = randomise(Aliased(write)).double().eval()
    zero(network.conv, 2)
    assert not check(network, image(2, 3, 6, 6))[1].layers


# -- what other inputs or widths would change ----------------------------------------------------


class ByWidth(nn.Module):
    """Does something else when it is narrow; no growth would make it so."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.conv, self.head = form, nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.form == "compares" and x.shape[1] > 2:
            x = x * 2
        if self.form == "counts":
            for _ in range(0, x.shape[1], 3):
                x = x.tanh()
        if self.form == "squeezes":
            x = x.mean((2, 3), keepdim=True).transpose(0, 1).squeeze()
            x = x.unsqueeze(-1).transpose(0, 1).reshape(x.shape[1], -1, 1, 1)
        return self.head(x)


@pytest.mark.parametrize(("form", "dead"), [("compares", 2), ("counts", 2), ("squeezes", 3)])
def test_a_network_that_does_something_else_when_it_is_narrow_stays(form: str, dead: int) -> None:
    network: Any = randomise(ByWidth(form)).double().eval()
    with torch.no_grad():
        network.head.weight[:, :dead] = 0
    assert not check(network, image(2, 3, 6, 6))[1].layers
    network.form = ""
    assert widths(check(network, image(2, 3, 6, 6))[1]) == {"conv": (4, 4 - dead)}


class TwoByWidth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.compared, self.free = nn.Linear(3, 4), nn.Linear(4, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.compared(x)
        x = x * 2 if x.shape[1] > 3 else x
        return self.head(self.free(x).relu())


def test_only_the_layer_whose_width_forward_asks_for_stays() -> None:
    network: Any = randomise(TwoByWidth()).double().eval()
    with torch.no_grad():
        network.free.weight[:, 1] = 0
        network.head.weight[:, 1] = 0
    assert widths(check(network, image(2, 3))[1]) == {"free": (5, 4)}


def test_nothing_goes_from_a_network_that_decides_by_values() -> None:
    case = next(case for case in CASES if case.name == "deciding")
    network: Any = randomise(case.model())
    zero(network.widen, 2)
    _, record = check(network, *case.inputs())
    assert "decides by values" in str(record)


def test_nothing_goes_near_hooks() -> None:
    for hooked, expected in ((1, {"3": (6, 5)}), (4, {"0": (6, 5), "1": (6, 5)})):
        network = sequential(
            *(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)),
        )
        with torch.no_grad():
            network[3].weight[:, 1] = network[5].weight[:, 1] = 0
        network[hooked].register_forward_hook(lambda module, given, out: out.flip(1))
        assert widths(check(network, image(2, 3, 4, 4))[1]) == expected
    network.register_forward_hook(lambda module, given, out: out)
    assert "forward hooks" in check(network, image(2, 3, 4, 4))[1].refusal


def test_weights_that_are_computed_before_each_call_stay() -> None:
    network = sequential(nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2))
    with torch.no_grad():
        network[2].weight[:, 1] = network[1].weight[:, 1] = 0
    nn.utils.parametrizations.weight_norm(network[0])
    assert widths(check(network, image(3, 4))[1]) == {"1": (5, 4)}


# -- the result ----------------------------------------------------------------------------------


def test_flags_classes_and_everything_else_stay() -> None:
    network: Any = streams()
    with torch.no_grad():
        network.head.weight[:, 5] = 0
        for up in network.up:
            up.weight[:, 5] = 0
    network.stem.weight.requires_grad_(False)
    network.up[0].bias.requires_grad_(False)
    network.train()
    network.down[0].eval()
    network.custom = {"kept": [1, 2]}
    smaller, record = without_dead_units(network, image(2, 3, 5, 5))
    assert widths(record)
    assert smaller.custom == network.custom
    for (name, ours), (_, theirs) in zip(
        smaller.named_parameters(), network.named_parameters(), strict=True
    ):
        assert ours.requires_grad is theirs.requires_grad, name
        assert ours.is_leaf
    flags = [m.training for m in smaller.modules()]
    assert flags == [m.training for m in network.modules()]
    assert list(smaller.state_dict()) == list(network.state_dict())
    assert b"splitgrow" not in pickle.dumps(smaller)


def test_looking_disturbs_no_random_numbers() -> None:
    network = streams()
    zero(network.down[0], *range(6))
    state = torch.get_rng_state()
    without_dead_units(network, image(2, 3, 5, 5))
    torch.manual_seed(1)
    image(2, 3, 5, 5)
    assert state.shape == torch.get_rng_state().shape
    before = torch.get_rng_state()
    x = torch.ones(2, 3, 5, 5, dtype=torch.float64)
    without_dead_units(network, x)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_smaller_network_trains_and_grows() -> None:
    network = streams()
    zero(network.down[0], *range(6))
    smaller, _ = without_dead_units(network, image(2, 3, 5, 5))
    tensors_of(smaller(image(2, 3, 5, 5)))[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in smaller.parameters())
    before = outputs_of(smaller, image(2, 3, 5, 5))
    grown: Any = splitgrow.growable(smaller, image(2, 3, 5, 5))
    grown.expand_layer("up.0", 4)
    assert_equal(outputs_of(grown, image(2, 3, 5, 5)), before)


def test_units_that_growth_added_and_nothing_reads_go_again() -> None:
    case = next(case for case in CASES if case.name == "residual")
    network: Any = splitgrow.growable(randomise(case.model()), case.inputs())
    sizes = [layer.width for layer in network.layers]
    network.expand({layer.name: 2 * layer.step for layer in network.layers[:-1]})
    merged = splitgrow.merge(network)
    smaller, _ = check(merged, *case.inputs())
    again: Any = splitgrow.growable(smaller, case.inputs())
    assert [layer.width for layer in again.layers] == sizes


def test_a_merged_network_with_layers_inserted_gets_smaller() -> None:
    network: Any = splitgrow.growable(streams(), image(2, 3, 5, 5))
    network.insert_layer("up.0", "residual")
    network.insert_layer("stem", "gate")
    merged: Any = splitgrow.merge(network)
    with torch.no_grad():
        merged.down[1].weight[:, 3] = 0
    assert widths(check(merged, image(2, 3, 5, 5))[1])["up.1"] == (5, 4)


@pytest.mark.parametrize("grow", [False, True])
def test_a_growable_network_is_to_be_merged_first(grow: bool) -> None:
    network: Any = splitgrow.growable(streams(), image(2, 3, 5, 5))
    if grow:
        network.expand_layer("stem", 2)
    with pytest.raises(splitgrow.UnsupportedModelError, match="merge it first"):
        without_dead_units(network, image(2, 3, 5, 5))
    with pytest.raises(splitgrow.UnsupportedModelError, match="DataParallel"):
        without_dead_units(nn.DataParallel(streams()), image(2, 3, 5, 5))


def test_what_is_no_network_or_has_no_values_is_refused() -> None:
    with pytest.raises(TypeError, match="network must be"):
        without_dead_units("net", image(1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="example_inputs"):
        without_dead_units(streams(), [image(2, 3, 5, 5)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not run"):
        without_dead_units(streams(), image(2, 4, 5, 5))
    with pytest.raises(splitgrow.UnsupportedModelError, match=r"0\.weight"):
        without_dead_units(nn.Sequential(nn.Linear(2, 3, device="meta")), image(1, 2))


def test_the_record_says_what_became_of_each_layer() -> None:
    network = sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    zero(network[0], 0, 1)
    _, record = without_dead_units(network, image(5, 4))
    assert str(record).splitlines() == [
        "51 -> 35 parameters, 2 layers narrower",
        "  layer  type    inputs  units   parameters",
        "  0      Linear  4       6 -> 4  30 -> 20",
        "  2      Linear  6 -> 4  3       21 -> 15",
    ]
    assert str(without_dead_units(network[2:], image(5, 6))[1]) == "nothing is taken out"


# -- controls: a rule that is wrong does not go unnoticed ----------------------------------------


def _suite() -> None:
    """Some of the networks above, each of which one rule is there for."""
    test_a_reader_of_two_maps_can_make_up_for_one_constant_only()
    test_features_that_the_network_returns_too_stay()
    test_what_the_network_returns_stays()
    test_a_norm_makes_something_of_zeros()
    test_what_is_written_into_is_not_known_by_its_other_names(lambda y: y.add_(1))
    test_a_network_that_does_something_else_when_it_is_narrow_stays("compares", 2)
    test_nothing_goes_before_what_all_channels_share(lambda: nn.RMSNorm(6))
    test_a_linear_without_bias_gets_none()
    test_a_constant_layer_keeps_a_unit_that_nothing_reads()
    for name in STOPS:
        test_nothing_is_known_behind(name)
    for seed in range(3):
        for case in CASES:
            check(deaden(randomise(case.model()), seed, 0.5), *case.inputs())


def test_the_suite_passes_where_no_rule_is_wrong() -> None:
    _suite()


def _forgetting_the_last(*args: Any) -> Tensor:
    read = _INPUTS_READ(*args)
    read[-1] = False
    return read


def _without_outputs(graph: Any, modules: Any, outputs: Any, read: Any) -> Any:
    return _DEAD_UNITS(graph, modules, (), read)


def _shifted(chosen: Any, axis: Any) -> Tensor:
    return _ON(chosen, axis).roll(1)


_INPUTS_READ, _DEAD_UNITS = connections.inputs_read, shrinking.dead_units
_ON = narrowing.Chosen.on

WRONG: dict[str, tuple[Any, str, Any]] = {
    "an input that is read is overlooked": (connections, "inputs_read", _forgetting_the_last),
    "the outputs are forgotten": (shrinking, "dead_units", _without_outputs),
    "shared statistics are forgotten": (liveness, "_is_open", lambda module: True),
    "other positions go": (narrowing.Chosen, "on", _shifted),
    "padding is forgotten": (liveness, "passes_constants", lambda module: True),
    "padding is forgotten on the way": (constants, "passes_constants", lambda module: True),
    "a missing bias is overlooked": (liveness, "made_up_for", lambda module, known: known.known),
    "nothing is added to biases": (shrinking, "_absorb_", lambda *args: None),
    "units that stay idle are read": (shrinking, "_stop_reading_", lambda *args: None),
    "one call stands for all": (propagation, "same", lambda one, other: other),
    "other names are forgotten": (aliases.Memory, "relatives", lambda self, key: {key}),
    "writes are overlooked": (propagation, "written_by", lambda *args: ()),
    "other widths are not tried": (shrinking, "narrowing_breaks", lambda *args: {}),
    "a norm's mean is forgotten": (
        constants,
        "norm_scale_and_shift",
        lambda mean, var, *rest: (torch.ones_like(var), torch.zeros_like(mean)),
    ),
    "jumps are trusted": (propagation, "facts_of", trusting),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, instead = WRONG[name]
    monkeypatch.setattr(owner, attribute, instead)
    with pytest.raises((AssertionError, RuntimeError, AttributeError)):
        _suite()

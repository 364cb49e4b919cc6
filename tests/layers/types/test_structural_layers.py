"""Subclasses of layers that work on blocks as their base does are found by trying."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_equal, assert_identical, outputs_of, randomise, randomise_new_blocks
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import splitgrow
from splitgrow.layers.types.structural_layers import structural_layer


class Product(nn.Linear):
    """As Falcon's."""

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias


class Scaled(nn.Embedding):
    """As Gemma's: what is looked up times a number in a buffer."""

    def __init__(self, *sizes: int, scale: float = 5.5) -> None:
        super().__init__(*sizes, padding_idx=0)
        self.register_buffer("embed_scale", torch.tensor(scale), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.embed_scale.to(self.weight.dtype)


class ByNumber(nn.Embedding):
    """As BART's: the number is in an attribute."""

    scale = 2.5

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class Causal(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.kernel_size[0] - 1, 0)))


class Same2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        pads = [p for k in self.kernel_size[::-1] for p in ((k - 1) // 2, k // 2)]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride)


WORDS = torch.tensor([[1, 4, 2], [0, 3, 4]])
FOUND: dict[str, tuple[Any, Tensor]] = {
    "product": ((lambda: Product(3, 6), lambda: nn.Linear(6, 2)), torch.randn(2, 3).double()),
    "no bias": (
        (lambda: Product(3, 6, bias=False), lambda: Product(6, 2)),
        torch.randn(2, 3).double(),
    ),
    "scaled": ((lambda: Scaled(5, 6), lambda: Product(6, 2)), WORDS),
    "by number": ((lambda: ByNumber(5, 6), lambda: nn.Linear(6, 2)), WORDS),
    "causal": ((lambda: Causal(3, 6, 3), lambda: Causal(6, 2, 2)), torch.randn(2, 3, 9).double()),
    "same": ((lambda: Same2d(3, 6, 3), lambda: Same2d(6, 2, 4)), torch.randn(2, 3, 6, 6).double()),
}


@pytest.mark.parametrize("name", FOUND)
def test_it_grows_in_blocks_of_its_own_class_and_merges_to_it(name: str) -> None:
    parts, x = FOUND[name]
    torch.manual_seed(0)
    model: Any = randomise(nn.Sequential(*(make() for make in parts)).double().eval())
    kinds = [type(layer) for layer in model]
    splitgrow.growable(model, x)
    before = outputs_of(model, x)
    for _ in range(2):
        now = outputs_of(model, x)
        model.expand_layer("0", 2)
        assert_equal(outputs_of(model, x), now)
        randomise_new_blocks(model)
        assert not torch.allclose(outputs_of(model, x), now)
    merged: Any = splitgrow.merge(model)
    assert [type(layer) for layer in merged] == kinds
    assert_equal(outputs_of(merged, x), outputs_of(model, x))
    with model.at(0):
        assert_identical(outputs_of(model, x), before)
    merged(x).square().sum().backward()
    model.unfreeze()
    model(x).square().sum().backward()
    dim = 1 if isinstance(merged[0], nn.Embedding) else 0
    parts_of_it = [block.weight.grad for block in model[0]]
    assert_equal(torch.cat(parts_of_it, dim), merged[0].weight.grad)


def test_numbers_of_a_class_stay_with_it() -> None:
    torch.manual_seed(0)
    model: Any = randomise(nn.Sequential(Scaled(5, 6), nn.Linear(6, 2)).double())
    model[0].embed_scale.fill_(3.0)
    model = splitgrow.growable(model, WORDS)
    before = outputs_of(model, WORDS)
    model.expand_layer("0", 3)
    model.expand_vocabulary(2)
    assert_equal(outputs_of(model, WORDS), before)
    merged: Any = splitgrow.merge(model)
    assert merged[0].embed_scale == 3.0
    assert "0.embed_scale" not in merged.state_dict()
    assert_equal(outputs_of(merged, WORDS + 2), outputs_of(model, WORDS + 2))


class Normalised(nn.Linear):
    """Each unit's weights are brought to length one."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight, dim=1), self.bias)


class Activated(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


class Centred(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y - y.mean(-1, keepdim=True)


class Shifted(nn.Embedding):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1.0


class ByWidth(nn.Embedding):
    """The number depends on the width."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.weight.shape[1] ** 0.5


class Asking(nn.Linear):
    """It cannot be tried: it takes something else as well."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return super().forward(x) * gate


class Remembering(nn.Linear):
    """It has a buffer along its units."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("seen", torch.zeros(sizes[1]))


@pytest.mark.parametrize(
    "kind",
    [Normalised, Activated, Centred, Shifted, ByWidth, Asking, Remembering],
    ids=lambda kind: kind.__name__,
)
def test_control_what_does_not_work_on_blocks_is_not_taken(kind: Any) -> None:
    layer = kind(5, 6)
    assert structural_layer(layer) is None


def test_looking_leaves_the_random_state_and_the_layer_alone() -> None:
    layer = Product(3, 4)
    state = torch.get_rng_state()
    held = {name: id(value) for name, value in vars(layer).items()}
    assert structural_layer(layer) is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: id(value) for name, value in vars(layer).items()} == held


def test_a_verdict_is_not_made_of_what_the_caller_traces() -> None:
    class Traced(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight, self.bias)

    with torch.device("meta"), torch.inference_mode(), FakeTensorMode():
        assert structural_layer(object.__new__(Traced)) is None  # it has no tensors
        layer = Traced(3, 4)
        assert structural_layer(layer) is not None

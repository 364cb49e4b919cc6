"""A module whose tensor has grown behaves as one that holds the plain tensor."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from helpers import assert_equal, randomise_new_blocks
from tensor_cases import Affine, Affines
from torch import nn

import splitgrow
from splitgrow.errors import UnsupportedLayerError

X = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def model() -> Any:
    torch.manual_seed(1)
    model = splitgrow.growable(Affines().double(), X)
    model.expand_layer("stem", 2)
    randomise_new_blocks(model)
    return model


def test_it_answers_with_the_whole_tensor(model: Any) -> None:
    affine = model.affine
    blocks = [block.value for block in affine.scale_blocks]
    assert affine.scale.shape == (1, 6, 1, 1)
    assert torch.equal(affine.scale, torch.cat(blocks, 1))
    assert hasattr(affine, "scale")
    assert not hasattr(affine, "no_such_tensor")
    assert model.gammas[1].shape == (*model.named["slope"].shape, 1, 1)


def test_it_is_of_the_users_class(model: Any) -> None:
    affine = model.affine
    assert isinstance(affine, Affine)
    assert type(affine).__qualname__ == Affine.__qualname__
    assert type(affine).__module__ == Affine.__module__
    assert inspect.getdoc(affine) == inspect.getdoc(Affine)


def test_its_parameters_are_found_by_their_paths(model: Any) -> None:
    for name, parameter in model.named_parameters():
        assert model.get_parameter(name) is parameter
    doubled = {name: p.detach() * 2 for name, p in model.named_parameters()}
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    assert_equal(torch.func.functional_call(model, doubled, (X,)), other(X))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_pickles_are_like_it_and_apart(model: Any, copied: Any) -> None:
    expected = model(X)
    twin = copied(model)
    assert torch.equal(twin(X), expected)
    assert isinstance(twin.affine, Affine)
    with torch.no_grad():
        twin.affine.scale_blocks[1].value.mul_(3)
    assert torch.equal(model(X), expected)
    twin.expand_layer("stem", 1)
    assert twin.affine.scale.shape == (1, 7, 1, 1)


def test_a_part_of_the_model_pickles_by_itself(model: Any) -> None:
    file = io.BytesIO()
    torch.save(model.affine, file)
    file.seek(0)
    affine = torch.load(file, weights_only=False)
    assert torch.equal(affine.scale, model.affine.scale)


def test_values_are_written_into_the_blocks(model: Any) -> None:
    model.unfreeze()
    before = model.affine.scale.detach().clone()
    with torch.no_grad():
        model.affine.scale.mul_(2)
        model.affine.scale += 1
    assert torch.equal(model.affine.scale, before * 2 + 1)
    model.affine.scale.data = before
    assert torch.equal(torch.cat([b.value for b in model.affine.scale_blocks], 1), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "scale", nn.Parameter(torch.ones(1, 6, 1, 1))),
        lambda m: setattr(m, "scale", None),
        lambda m: delattr(m, "scale"),
        lambda m: m.register_parameter("scale", None),
        lambda m: m.register_buffer("scale", torch.ones(1, 6, 1, 1)),
        lambda m: setattr(m.scale, "data", torch.ones(1, 7, 1, 1)),
    ],
)
def test_nothing_else_takes_the_tensors_place(model: Any, change: Any) -> None:
    expected = model(X)
    with pytest.raises(UnsupportedLayerError, match="splitgrow has grown"):
        change(model.affine)
    assert torch.equal(model(X), expected)


def test_other_attributes_are_set_as_ever(model: Any) -> None:
    model.affine.note, model.affine.more = "a", nn.Parameter(torch.ones(1))
    assert (model.affine.note, model.affine.more.item()) == ("a", 1.0)
    fresh = type(model.affine)(3)
    assert isinstance(fresh.scale, nn.Parameter)


def test_merged_it_is_the_plain_module_again(model: Any) -> None:
    plain: Any = splitgrow.merge(model)
    names = Affines().state_dict()
    assert [*plain.state_dict()] == [*names]
    assert type(plain.affine) is Affine
    assert isinstance(plain.affine.scale, nn.Parameter)
    assert [name for name, _ in plain.named_buffers()] == [n for n, _ in Affines().named_buffers()]
    assert_equal(plain(X), model(X))


def test_a_fixed_parameter_stays_fixed() -> None:
    plain = Affines().double()
    plain.affine.shift.requires_grad_(False)
    model: Any = splitgrow.growable(plain, X)
    model.expand_layer("stem", 2)
    assert not any(block.value.requires_grad for block in model.affine.shift_blocks)
    model.unfreeze()
    assert not any(block.value.requires_grad for block in model.affine.shift_blocks)
    assert not splitgrow.merge(model).affine.shift.requires_grad


def test_a_failed_edit_leaves_the_module_as_it_was() -> None:
    plain = Affines().double()
    model: Any = splitgrow.growable(plain, X)
    scale, cls = model.affine.scale, type(model.affine)

    class Fails(splitgrow.Initializer):
        name = "fails"

        def apply(self, prepared: Any) -> None:
            for layer in prepared.layers.values():
                for block in layer.added.values():
                    for parameter in block.parameters():
                        parameter.fill_(1.0)

    with pytest.raises(splitgrow.InexactError):
        model.expand_layer("stem", 2, initializer=Fails())
    assert model.affine.scale is scale
    assert type(model.affine) is cls
    assert "scale" in dict(model.affine.named_parameters())


def test_the_compiler_follows_it(model: Any) -> None:
    expected = model(X)
    torch._dynamo.reset()
    assert_equal(torch.compile(model, backend="eager", fullgraph=True)(X), expected)


def test_a_file_keeps_it(model: Any, tmp_path: Any) -> None:
    splitgrow.save(model, tmp_path / "model.safetensors")
    fresh = Affines().double()
    splitgrow.load(fresh, tmp_path / "model.safetensors", example_inputs=X)
    assert torch.equal(fresh(X), model(X))


class Centred(nn.Module):
    """A buffer that no state_dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.register_buffer("mean", torch.arange(4.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x) - self.mean)


def test_a_buffer_that_is_not_saved_is_made_anew() -> None:
    x = torch.randn(2, 3).double()
    model: Any = splitgrow.growable(Centred().double(), x)
    for _ in range(2):
        model.expand_layer("stem", 3)
    randomise_new_blocks(model)
    assert not any("mean" in name for name in model.state_dict())
    fresh: Any = splitgrow.growable(Centred().double(), x)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))
    model.consolidate()
    fresh = splitgrow.growable(Centred().double(), x)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))
    assert [*splitgrow.merge(model).state_dict()] == [*Centred().state_dict()]

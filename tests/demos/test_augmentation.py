from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from splitgrow.demos.augmentation import Augmentation, Augmented


def images(count: int = 64, side: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 2, side, side, generator=generator) + 1


def test_no_kind_is_no_augmentation() -> None:
    assert Augmentation.of("", (32, 32)) is None


def test_flips_mirror_about_half_of_the_images_and_change_nothing_else() -> None:
    torch.manual_seed(0)
    flips = Augmentation.of("flips", (16, 16))
    assert flips is not None
    x = images()
    found = flips(x)
    same = [torch.equal(a, b) for a, b in zip(x, found, strict=True)]
    mirrored = [torch.equal(a.flip(2), b) for a, b in zip(x, found, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 16 < sum(mirrored) < 48


@pytest.mark.parametrize(("side", "most"), [(8, 1), (16, 2), (32, 4), (4, 1)])
def test_crops_move_an_image_by_an_eighth_at_most_and_fill_with_the_mean(
    side: int, most: int
) -> None:
    torch.manual_seed(0)
    crops = Augmentation.of("crops", (side, side + 3))
    assert crops is not None
    assert crops.most == most
    x = images(side=side)
    found = crops(x)
    assert found.shape == x.shape
    padded = torch.nn.functional.pad(x, (most,) * 4)
    places = {
        (down, right)
        for down in range(2 * most + 1)
        for right in range(2 * most + 1)
        for a, b in zip(padded, found, strict=True)
        if torch.equal(a[:, down : down + side, right : right + side], b)
    }
    assert len(places) > 4
    for a, b in zip(padded, found, strict=True):
        assert any(torch.equal(a[:, d : d + side, r : r + side], b) for d, r in places)


def test_images_are_drawn_anew_and_a_seed_draws_the_same() -> None:
    change = Augmentation.of("flips,crops", (16, 16))
    assert change is not None
    x = images()
    torch.manual_seed(1)
    first, second = change(x), change(x)
    torch.manual_seed(1)
    assert torch.equal(change(x), first)
    assert not torch.equal(first, second)


def test_data_give_one_example_or_many_with_their_labels() -> None:
    change = Augmentation(flips=True, most=0)
    x, y = images(6), torch.arange(6)
    data = Augmented(TensorDataset(x, y), change)
    assert len(data) == 6
    many, labels = data[torch.tensor([4, 2])]
    assert labels.tolist() == [4, 2]
    assert many.shape == (2, 2, 16, 16)
    one, label = data[3]
    assert int(label) == 3
    assert torch.equal(one, x[3]) or torch.equal(one, x[3].flip(2))


def test_a_generator_of_its_own_draws_nothing_from_torch() -> None:
    x = images()
    found = []
    for extra in (0, 5):  # numbers that something else draws
        change = Augmentation.of("flips,crops", (16, 16), torch.Generator().manual_seed(3))
        assert change is not None
        torch.manual_seed(0)
        torch.rand(extra)
        state = torch.get_rng_state()
        found.append(change(x))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*found)

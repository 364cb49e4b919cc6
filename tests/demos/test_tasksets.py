from __future__ import annotations

import pickle
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from splitgrow.continual import Task
from splitgrow.continual.tasks import Batches
from splitgrow.demos import datasets
from splitgrow.demos.datasets import Dataset
from splitgrow.demos.rawdata import DatasetError
from splitgrow.demos.tasksets import TASK_KINDS, tasks_of
from splitgrow.demos.variants import Permuted, Rotated, Variant

CPU = torch.device("cpu")
SUPERCLASSES = {"fish": (0, 5), "fruit": (3, 7, 8), "furniture": (1, 2, 4, 6, 9, 10, 11)}


def _dataset(
    classes: int = 12,
    each: int = 6,
    *,
    size: tuple[int, int] = (5, 5),
    channels: int = 2,
    names: Iterable[str] | None = None,
) -> Dataset:
    """Images that are all different, with the classes mixed."""
    generator = torch.Generator().manual_seed(0)

    def half(each: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(classes).repeat(each)[torch.randperm(classes * each, generator=generator)]
        return torch.randn(len(y), channels, *size, generator=generator), y

    x_train, y_train = half(each)
    x_test, y_test = half(each // 2)
    names = tuple(names or (f"kind {number}" for number in range(classes)))
    superclasses = SUPERCLASSES if classes == 12 else {}
    return Dataset("shapes", x_train, y_train, x_test, y_test, names, superclasses)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return _dataset()


def _read(data: Any) -> tuple[Tensor, Tensor]:
    """All examples of a task's data, as a learner reads them."""
    x, y = zip(*Batches(data, 7, CPU), strict=True)
    return torch.cat(x), torch.cat(y)


def _halves(dataset: Dataset, tasks: Iterable[Task]) -> Any:
    for task in tasks:
        yield (dataset.x_train, dataset.y_train), _read(task.train)
        yield (dataset.x_test, dataset.y_test), _read(task.test)


def _equal(one: Iterable[Task], other: Iterable[Task]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a.name == b.name for a, b in pairs) and all(
        torch.equal(first, second)
        for a, b in pairs
        for half in ("train", "test")
        for first, second in zip(_read(getattr(a, half)), _read(getattr(b, half)), strict=True)
    )


def _position(images: Tensor, among: Tensor) -> list[int]:
    """Where each image is among others, which are all different."""
    same = (images[:, None] == among[None]).flatten(2).all(2)
    assert (same.sum(1) == 1).all()
    return same.int().argmax(1).tolist()


OPTIONS: dict[str, dict[str, Any]] = {
    "classes": {"kind": "classes", "count": 4},
    "shuffled classes": {"kind": "classes", "count": 4, "shuffled": True},
    "superclasses": {"kind": "superclasses", "count": None},
    "shuffled superclasses": {"kind": "superclasses", "count": 3, "shuffled": True},
    "permuted": {"kind": "permuted", "count": 3},
    "rotated": {"kind": "rotated", "count": 4},
}
DIVIDING = [name for name in OPTIONS if "classes" in name]


def _tasks(dataset: Dataset, name: str, **changed: Any) -> tuple[Task, ...]:
    options = {**OPTIONS[name], **changed}
    return tasks_of(dataset, options.pop("kind"), options.pop("count"), **options)


# What holds of all kinds


@pytest.mark.parametrize("name", OPTIONS)
def test_labels_are_numbered_from_zero_in_each_task(data: Dataset, name: str) -> None:
    for task in _tasks(data, name):
        for half in (task.train, task.test):
            assert _read(half)[1].unique().tolist() == list(range(task.classes))


@pytest.mark.parametrize("name", OPTIONS)
def test_names_differ_and_can_be_shown(data: Dataset, name: str) -> None:
    names = [task.name for task in _tasks(data, name)]
    assert len(set(names)) == len(names)
    assert all(0 < len(each) <= 40 and each.isprintable() for each in names)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("limit", [None, 24])
def test_the_same_seed_makes_the_same_tasks(data: Dataset, name: str, limit: int | None) -> None:
    one, other = (_tasks(data, name, seed=3, limit=limit, test_limit=limit) for _ in range(2))
    assert _equal(one, other)


@pytest.mark.parametrize("name", ["shuffled classes", "shuffled superclasses", "permuted"])
def test_another_seed_makes_other_tasks(data: Dataset, name: str) -> None:
    made = [_tasks(data, name, seed=seed) for seed in range(3)]
    assert not _equal(made[0], made[1])
    assert not _equal(made[1], made[2])


@pytest.mark.parametrize("name", ["classes", "superclasses", "rotated"])
def test_of_what_is_not_drawn_every_seed_makes_the_same(data: Dataset, name: str) -> None:
    assert _equal(_tasks(data, name, seed=1), _tasks(data, name, seed=2))


@pytest.mark.parametrize("name", OPTIONS)
def test_limit_keeps_so_many_training_images_with_the_classes_in_proportion(
    data: Dataset, name: str
) -> None:
    limit = 14
    for task, whole in zip(_tasks(data, name, limit=limit), _tasks(data, name), strict=True):
        x, y = _read(task.train)
        counts = y.bincount()
        assert len(x) == min(limit, len(_read(whole.train)[0]))
        assert counts.max() - counts.min() <= 1
        positions = _position(x, _read(whole.train)[0])
        assert torch.equal(y, _read(whole.train)[1][positions])
        assert torch.equal(_read(task.test)[0], _read(whole.test)[0])


@pytest.mark.parametrize("name", OPTIONS)
def test_the_seed_chooses_which_images_are_kept(data: Dataset, name: str) -> None:
    made = [_tasks(data, name, seed=seed, limit=13, test_limit=13) for seed in (1, 2)]
    assert not _equal(*made)


@pytest.mark.parametrize("name", OPTIONS)
def test_test_images_have_a_limit_of_their_own(data: Dataset, name: str) -> None:
    for task, whole in zip(_tasks(data, name, test_limit=13), _tasks(data, name), strict=True):
        found, everything = _read(task.test), _read(whole.test)
        assert len(found[0]) == min(13, len(everything[0]))
        assert torch.equal(found[1], everything[1][_position(found[0], everything[0])])
        assert len(_read(task.train)[0]) == len(_read(whole.train)[0])


@pytest.mark.parametrize("name", OPTIONS)
def test_a_limit_below_the_number_of_classes_is_refused(data: Dataset, name: str) -> None:
    with pytest.raises(DatasetError, match=r"shapes, task '.+': --limit 1 is less than its \d+ cl"):
        _tasks(data, name, limit=1)
    with pytest.raises(DatasetError, match=r"task '.+': test_limit 1 is less than its \d+ classes"):
        _tasks(data, name, test_limit=1)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_data_set_stays_as_it_is(name: str) -> None:
    data, before = _dataset(), _dataset()
    for _, (x, _) in _halves(data, _tasks(data, name, limit=20)):
        assert x.is_contiguous()
    assert torch.equal(data.x_train, before.x_train)
    assert torch.equal(data.y_test, before.y_test)


# Parts of the classes


@pytest.mark.parametrize("name", DIVIDING)
def test_every_example_is_in_exactly_one_task(data: Dataset, name: str) -> None:
    tasks = _tasks(data, name)
    for half in ("train", "test"):
        everything = getattr(data, f"x_{half}")
        found = [
            at for task in tasks for at in _position(_read(getattr(task, half))[0], everything)
        ]
        assert sorted(found) == list(range(len(everything)))


@pytest.mark.parametrize("name", DIVIDING)
def test_a_class_has_one_label_in_one_task_the_same_in_both_halves(
    data: Dataset, name: str
) -> None:
    places: dict[int, set[tuple[int, int]]] = {}
    for at, ((x, y), (found, labels)) in enumerate(_halves(data, _tasks(data, name))):
        for position, label in zip(_position(found, x), labels.tolist(), strict=True):
            places.setdefault(int(y[position]), set()).add((at // 2, label))
    assert len(places) == 12
    assert all(len(place) == 1 for place in places.values())
    assert len({place.pop() for place in places.values()}) == 12


def test_classes_come_in_their_order_in_parts_of_one_size(data: Dataset) -> None:
    tasks = tasks_of(data, "classes", 3)
    assert [task.classes for task in tasks] == [4, 4, 4]
    for at, task in enumerate(tasks):
        x, labels = _read(task.train)
        expected = data.y_train[_position(x, data.x_train)] - 4 * at
        assert torch.equal(labels, expected)


def test_a_shuffled_order_is_another_one_with_the_same_classes(data: Dataset) -> None:
    named = replace(data, classes=tuple("abcdefghijkl"))
    shuffled = [task.name for task in tasks_of(named, "classes", 4, shuffled=True)]
    plain = [task.name for task in tasks_of(named, "classes", 4)]
    assert plain == ["a, b, c", "d, e, f", "g, h, i", "j, k, l"]
    assert shuffled != plain
    assert sorted(", ".join(shuffled)) == sorted(", ".join(plain))


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("count", [1, 2, 12])
def test_one_task_for_all_classes_or_for_each_can_be_had(
    data: Dataset, count: int, shuffled: bool
) -> None:
    tasks = tasks_of(data, "classes", count, shuffled=shuffled)
    assert [task.classes for task in tasks] == [12 // count] * count
    assert sum(len(_read(task.train)[0]) for task in tasks) == len(data.x_train)


@pytest.mark.parametrize(
    ("classes", "count", "shuffled", "names"),
    [
        ("0123", 2, False, ["0, 1", "2, 3"]),
        (["a long name", "another long name", "one more", "more"], 2, False, None),
        (["cats of all kinds", "dogs of all kinds", "c", "d"], 2, False, ["classes 0-1", "c, d"]),
        (["a name beyond thirty-two characters", "b"], 2, False, ["class 0", "b"]),
        (["\x1b[2J", "b", "c", "d"], 2, False, ["classes 0-1", "c, d"]),
        (["a, b", "c", "a", "b, c"], 2, False, ["part 1 of the classes", "part 2 of the classes"]),
        ([f"class of {at}" for at in range(60)], 2, False, ["classes 0-29", "classes 30-59"]),
        ([f"class of {at}" for at in range(60)], 2, True, None),
    ],
)
def test_tasks_are_named_by_their_classes(
    classes: Any, count: int, shuffled: bool, names: list[str] | None
) -> None:
    data = _dataset(len(classes), names=classes)
    found = [task.name for task in tasks_of(data, "classes", count, shuffled=shuffled)]
    if shuffled:
        names = [f"part {at} of the classes" for at in (1, 2)]
    assert found == (names or ["a long name, another long name", "one more, more"])


def test_shuffled_classes_are_named_by_their_numbers_where_their_names_are_long() -> None:
    data = _dataset(6, names=[f"a class with the number {number}" for number in range(6)])
    (first, second) = tasks_of(data, "classes", 2, shuffled=True, seed=1)
    numbers = [int(n) for each in (first, second) for n in each.name[len("classes ") :].split(", ")]
    assert sorted(numbers) == list(range(6))
    for task, members in ((first, numbers[:3]), (second, numbers[3:])):
        x, labels = _read(task.train)
        found = data.y_train[_position(x, data.x_train)]
        assert torch.equal(found, torch.tensor(members)[labels])


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (5, r"12 classes cannot be 5 tasks of one size; expected 1, 2, 3, 4, 6, 12 tasks"),
        (24, r"12 classes are too few for 24 tasks; expected 1, 2"),
    ],
)
def test_classes_that_cannot_be_divided_are_refused(
    data: Dataset, count: int, message: str
) -> None:
    with pytest.raises(DatasetError, match=f"shapes: {message}"):
        tasks_of(data, "classes", count)


def test_a_superclass_is_a_task_of_its_name(data: Dataset) -> None:
    tasks = tasks_of(data, "superclasses", None)
    assert [(task.name, task.classes) for task in tasks] == [
        ("fish", 2),
        ("fruit", 3),
        ("furniture", 7),
    ]
    x, labels = _read(tasks[1].test)
    found = data.y_test[_position(x, data.x_test)]
    assert torch.equal(torch.tensor([3, 7, 8])[labels], found)


def test_superclasses_in_another_order_are_the_same_tasks(data: Dataset) -> None:
    plain = {task.name: task for task in tasks_of(data, "superclasses", 3)}
    orders = set()
    for seed in range(6):
        tasks = tasks_of(data, "superclasses", 3, shuffled=True, seed=seed)
        orders.add(tuple(task.name for task in tasks))
        assert _equal(tasks, [plain[task.name] for task in tasks])
    assert len(orders) > 1


def test_superclasses_that_are_not_there_or_not_so_many_are_refused(data: Dataset) -> None:
    with pytest.raises(DatasetError, match="3 superclasses are not 2 tasks; expected 3 tasks"):
        tasks_of(data, "superclasses", 2)
    with pytest.raises(DatasetError, match="has no superclasses; expected data that do"):
        tasks_of(_dataset(4), "superclasses", None)


# Variants of all images


def _is_bijection(order: Tensor) -> bool:
    return order.sort().values.tolist() == list(range(len(order)))


def _order(one: Tensor, other: Tensor) -> Tensor:
    """Which pixel of one image lies at each place of the other; their pixels are all different."""
    same = one.flatten(1)[:, None, :] == other.flatten(1)[:, :, None]
    assert (same.sum(2) == 1).all(), "each pixel is there once"
    orders = same.int().argmax(2)
    assert (orders == orders[0]).all(), "the channels stay together"
    return orders[0]


def test_a_permutation_is_one_bijection_for_all_images_of_both_halves(data: Dataset) -> None:
    tasks = tasks_of(data, "permuted", 3)
    orders = []
    for task in tasks:
        found = {
            tuple(_order(one, other).tolist())
            for (x, _), (changed, _) in _halves(data, [task])
            for one, other in zip(x, changed, strict=True)
        }
        (order,) = found
        assert _is_bijection(torch.tensor(order))
        orders.append(order)
    assert orders[0] == tuple(range(25))  # the first task has the pixels as they are
    assert len(set(orders)) == 3


def test_the_checks_of_permutations_see_what_is_none(data: Dataset) -> None:
    image = data.x_train[0]
    assert not _is_bijection(torch.tensor([0, 0, 2]))
    with pytest.raises(AssertionError, match="each pixel is there once"):
        _order(image, image.mean(1, keepdim=True).expand_as(image))
    with pytest.raises(AssertionError, match="the channels stay together"):
        _order(image, torch.stack([image[0], image[1].flip(0)]))


@pytest.mark.parametrize("kind", ["permuted", "rotated"])
def test_variants_keep_all_labels_and_their_order(data: Dataset, kind: str) -> None:
    for (x, y), (changed, labels) in _halves(data, tasks_of(data, kind, 3)):
        assert torch.equal(labels, y)
        assert changed.shape == x.shape


@pytest.mark.parametrize("kind", ["permuted", "rotated"])
def test_the_first_variant_is_the_data_themselves(data: Dataset, kind: str) -> None:
    (first,) = tasks_of(data, kind, 1)
    assert isinstance(first.train, TensorDataset)
    assert first.train.tensors[0].data_ptr() == data.x_train.data_ptr()
    assert torch.equal(_read(first.test)[0], data.x_test)


@pytest.mark.parametrize("kind", ["permuted", "rotated"])
def test_more_variants_are_the_same_and_some_more(data: Dataset, kind: str) -> None:
    count = 2
    few, many = tasks_of(data, kind, count), tasks_of(data, kind, 2 * count)
    assert _equal(few, many[:count] if kind == "permuted" else many[::2])


@pytest.mark.parametrize("kind", ["permuted", "rotated"])
def test_many_variants_take_no_memory_for_their_images(kind: str) -> None:
    tasks = tasks_of(_dataset(2, 40), kind, 50, limit=30)
    for half in ("train", "test"):
        first, *others = (getattr(task, half) for task in tasks)
        places = {variant._images.data_ptr() for variant in others}
        assert places == {first.tensors[0].data_ptr()}


@pytest.mark.parametrize("change", [Permuted(torch.randperm(25)), Rotated(90.0), Rotated(33.0)])
def test_a_single_example_is_what_it_is_in_a_batch(data: Dataset, change: Any) -> None:
    variant = Variant(data.x_train, data.y_train, change)
    x, y = variant[torch.tensor([5, 0, 5, 9])]
    assert x.shape == (4, 2, 5, 5)
    for place, index in enumerate((5, 0, 5, 9)):
        image, label = variant[index]
        assert torch.equal(image, x[place])
        assert label == y[place]
    assert len(variant) == len(data.x_train)


def test_variants_can_be_sent_to_other_processes(data: Dataset) -> None:
    for kind in ("permuted", "rotated"):
        task = tasks_of(data, kind, 2)[1]
        again = pickle.loads(pickle.dumps(task.train))
        assert torch.equal(_read(again)[0], _read(task.train)[0])


# Rotations


@pytest.mark.parametrize("turns", range(4))
def test_quarter_turns_are_exact(turns: int) -> None:
    images = torch.randn(3, 2, 6, 6)
    assert torch.equal(Rotated(90.0 * turns)(images), torch.rot90(images, turns, (2, 3)))


def _smooth(size: tuple[int, int]) -> Tensor:
    """An image without fine detail, that no turn below a whole one leaves as it is."""
    y, x = (torch.linspace(-1, 1, side) * side / max(size) for side in size)
    return torch.exp(-4 * ((x[None, :] - 0.3) ** 2 + (y[:, None] - 0.1) ** 2))[None, None]


@pytest.mark.parametrize("turns", range(1, 4))
def test_bilinear_rotations_come_close_to_the_quarter_turns(turns: int) -> None:
    image = _smooth((32, 32))
    expected = torch.rot90(image, turns, (2, 3))
    for degrees in (90 * turns - 1e-3, 90 * turns + 1e-3):
        torch.testing.assert_close(Rotated(degrees)(image), expected, rtol=0, atol=1e-3)
    away = (Rotated(90.0 * turns + 10)(image) - expected).abs().max()
    assert away > 0.05  # the control: another angle is far from it


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize("degrees", [20.0, 45.0, 110.0, 170.0])
def test_turning_back_gives_the_image_again(size: tuple[int, int], degrees: float) -> None:
    image = _smooth(size)
    again = Rotated(-degrees)(Rotated(degrees)(image))
    middle = tuple(slice(side // 2 - 6, side // 2 + 6) for side in size)  # no turn moves it out
    difference = (again - image)[(..., *middle)].abs().max()
    assert difference < 0.02
    once = (Rotated(degrees)(image) - image)[(..., *middle)].abs().max()
    assert once > 0.1


def test_images_that_are_not_square_keep_their_shape_and_their_proportions() -> None:
    image = _smooth((24, 40))
    turned = Rotated(90.0)(image)
    assert turned.shape == image.shape
    square = torch.rot90(image[..., 8:-8], 1, (2, 3))  # the middle, which the turn keeps inside
    torch.testing.assert_close(turned[..., 8:-8], square, rtol=0, atol=1e-4)
    assert torch.equal(Rotated(180.0)(image), image.flip(2, 3))


def test_what_a_rotation_brings_in_is_the_colour_of_the_edge() -> None:
    image = torch.full((1, 3, 9, 9), -0.7)
    image[..., 4, 4] = 2.0
    turned = Rotated(45.0)(image)
    corners = turned[..., [0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners, torch.full_like(corners, -0.7))


def test_angles_grow_over_the_tasks_to_below_half_a_turn(data: Dataset) -> None:
    tasks = tasks_of(data, "rotated", 8)
    assert [task.name for task in tasks] == [
        f"{angle} degrees" for angle in ("0", "22.5", "45", "67.5", "90", "112.5", "135", "157.5")
    ]
    x, _ = _read(tasks[4].train)
    assert torch.equal(x, torch.rot90(data.x_train, 1, (2, 3)))
    x, _ = _read(tasks[2].test)
    assert torch.equal(x, Rotated(45.0)(data.x_test))


def test_thousands_of_rotations_have_names_of_their_own() -> None:
    names = {task.name for task in tasks_of(_dataset(2, 2), "rotated", 3000)}
    assert len(names) == 3000


# What makes no sense


@pytest.mark.parametrize("kind", TASK_KINDS)
@pytest.mark.parametrize("count", [0, -3])
def test_no_tasks_are_refused(data: Dataset, kind: str, count: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1 task, not {count}"):
        tasks_of(data, kind, count)


def test_arguments_that_do_not_go_together_are_refused(data: Dataset) -> None:
    with pytest.raises(ValueError, match="made of classes, superclasses, permuted, rotated, not"):
        tasks_of(data, "colours", 3)
    for kind in ("classes", "permuted", "rotated"):
        with pytest.raises(ValueError, match=f"{kind} tasks need a number"):
            tasks_of(data, kind, None)
    for kind in ("permuted", "rotated"):
        with pytest.raises(ValueError, match=f"shuffled is for .*: {kind} tasks have all of them"):
            tasks_of(data, kind, 2, shuffled=True)


# Of real data


def test_the_digits_become_tasks_with_their_normalisation() -> None:
    digits = datasets.load_dataset(None)
    tasks = tasks_of(digits, "classes", 5)
    assert [task.name for task in tasks] == ["0, 1", "2, 3", "4, 5", "6, 7", "8, 9"]
    joined = torch.cat([_read(task.train)[0] for task in tasks])
    assert torch.equal(
        joined.sum((1, 2, 3)).sort().values, digits.x_train.sum((1, 2, 3)).sort().values
    )
    assert joined.mean().abs() < 1e-5


def test_a_superclass_of_one_class_is_no_task(data: Dataset) -> None:
    alone = replace(data, superclasses={"fish": (0, 5), "fruit": (3,)})
    with pytest.raises(DatasetError, match="fruit has one class, kind 3; expected two or more"):
        tasks_of(alone, "superclasses", None)

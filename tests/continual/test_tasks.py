"""Tasks, the data for decisions, and misuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from lessons import MASKED, OPTIONS, images, learned, learner, net, outputs, task
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import splitgrow
from splitgrow import UnsupportedModelError, continual
from splitgrow.continual import CPG, METHODS, Judged, PackNet, Task, Training
from splitgrow.continual.settings import goal_for
from splitgrow.continual.tasks import Batches, with_validation

CPU = torch.device("cpu")


class Watched(Dataset[Any]):
    """Data that note which of their examples were asked for."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        self.asked.append(index)
        return self.x[index], self.y[index]


@pytest.mark.parametrize("method", METHODS)
def test_test_data_are_not_looked_at_while_a_task_is_learned(method: str) -> None:
    """Unless decisions are made on them, which is the control."""
    for decide_on in ("validation", "test"):
        test = Watched(*task(0).test[:])
        made = learner(method, decide_on=decide_on)
        made.learn(Task("task 0", 2, task(0).train, test))
        assert bool(test.asked) == (decide_on == "test")


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_trained_on_what_decisions_are_made_on(method: str) -> None:
    """A part of the training data is set apart: others are learned from, equally often."""
    events = []
    train = Watched(*task(0, 50).train[:])
    made = learner(method, callbacks=[events.append], validation_share=0.2)
    made.learn(Task("task 0", 2, train))
    judged = sum(isinstance(event, Judged) for event in events)
    counts = torch.bincount(torch.tensor(train.asked), minlength=50)
    apart = counts == judged
    assert int(apart.sum()) >= 10
    assert len({*counts.tolist()} - {judged}) <= 1 or method == "ewc"


def test_validation_data_are_a_share_that_is_drawn_once_and_the_rest_is_left() -> None:
    one = Task("a", 2, (torch.arange(40.0)[:, None], torch.zeros(40).long()))
    drawn = [with_validation(one, 0.1, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    for each in drawn:
        kept, apart = ({*map(float, part.tensors[0])} for part in (each.train, each.validation))
        assert len(apart) == 4
        assert kept | apart == {*map(float, range(40))}
        assert not kept & apart
    first, same, other = (each.validation.tensors[0] for each in drawn)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_task_with_validation_data_is_trained_on_all_of_its_training_data() -> None:
    train = Watched(*task(0, 40).train[:])
    made = learner("finetuning")
    made.learn(Task("task 0", 2, train, None, task(1).train))
    assert torch.bincount(torch.tensor(train.asked)).tolist() == [2] * 40


@pytest.mark.parametrize("kind", ["tensors", "dataset", "loader"])
def test_batches_have_every_example_once_whatever_the_data(kind: str) -> None:
    x, y = torch.arange(10.0)[:, None], torch.arange(10)
    data: Any = {
        "tensors": TensorDataset(x, y),
        "dataset": Watched(x, y),
        "loader": DataLoader(TensorDataset(x, y), batch_size=4),
    }[kind]
    batches = Batches(data, 4, CPU)
    assert len(batches) == 3
    drawn = [*batches.drawn(torch.Generator().manual_seed(0))]
    assert [len(b) for _, b in drawn] == [4, 4, 2]
    assert sorted(torch.cat([b for _, b in drawn]).tolist()) == [*range(10)]
    assert all(torch.equal(a[:, 0], b.float()) for a, b in drawn)
    assert torch.cat([b for _, b in batches]).tolist() == [*range(10)]
    if kind != "loader":
        again = [*batches.drawn(torch.Generator().manual_seed(1))]
        assert [b.tolist() for _, b in again] != [b.tolist() for _, b in drawn]


def test_a_loader_without_length_is_learned_from_at_a_constant_rate() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            x, y = task(0).train[:]
            yield from zip(x, y, strict=True)

    made = learner("finetuning")
    stream = Task("task 0", 2, DataLoader(Stream(), batch_size=16), None, task(0).test)
    made.learn(stream)
    assert made.tasks == ("task 0",)
    with pytest.raises(ValueError, match="loader of unknown length, over which pruning"):
        learner("cpg").learn(stream)


X, Y = torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        (("", 2, (X, Y)), ValueError, "name must be a text"),
        (("a", 0, (X, Y)), ValueError, "needs at least 1"),
        (("a", True, (X, Y)), ValueError, "needs at least 1"),
        (("a", 2, (X, Y[:3])), ValueError, "train data of task 'a': .* do not fit"),
        (("a", 2, (X, [0])), TypeError, "two tensors are needed"),
        (("a", 2, 5), TypeError, "must be a Dataset, a DataLoader or two tensors"),
        (("a", 2, None), TypeError, "must be a Dataset"),
        (("a", 2, (X[:0], Y[:0])), ValueError, "it is empty"),
        (("a", 2, (X, Y + 2)), ValueError, "train data of task 'a': labels from 2 to 2 are not"),
        (("a", 2, (X, Y), None, (X, Y - 1)), ValueError, "labels from -1 to -1 are not those of 2"),
        (("a", 2, (X, Y.float())), TypeError, "labels must be integers from 0 on, got torch.float"),
        (("a", 2, (X, Y > 0)), TypeError, "labels must be integers from 0 on, got torch.bool"),
        (("a", 2, (X, Y), (X, Y[:2])), ValueError, "test data of task 'a'"),
        (("a", 2, (X, Y), None, 3), TypeError, "validation data of task 'a'"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(
    arguments: Any, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        Task(*arguments)


def test_labels_may_be_integers_of_any_size() -> None:
    plain, other = learner("packnet"), learner("packnet")
    x, y = task(0).train[:]
    plain.learn(Task("a", 2, (x, y)))
    other.learn(Task("a", 2, (x, y.to(torch.int32))))
    probe = images(5, 8)
    assert torch.equal(plain.predict(probe, task="a"), other.predict(probe, task="a"))


def test_a_loader_without_batches_is_refused() -> None:
    class Nothing(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(())

    empty: DataLoader[Any] = DataLoader(Nothing(), batch_size=4)
    with pytest.raises(ValueError, match="the training data have no batch"):
        learner("packnet").learn(Task("a", 2, empty, validation=(X, Y)))


def test_what_cannot_be_learned_is_refused_and_the_learner_stays() -> None:
    made = learned("packnet", 1)
    before = outputs(made)
    with pytest.raises(TypeError, match=r"must be a splitgrow.continual.Task"):
        made.learn((X, Y))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'task 0' is learned already"):
        made.learn(task(0))
    with pytest.raises(ValueError, match="cannot be divided: give it `validation` data"):
        made.learn(Task("b", 2, DataLoader(task(1).train, batch_size=4)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="too few examples"):
        made.learn(Task("b", 2, (images(0, 1), Y[:1])))
    with pytest.raises(ValueError, match="no test data to decide on"):
        learner("packnet", decide_on="test").learn(Task("b", 2, task(1).train))
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        made.learn(Task("b", 2, Watched(images(0, 20), torch.full((20,), 7))))
    for wrong, error, reason in (
        (torch.zeros(20), TypeError, "labels must be integers from 0 on, got torch.float32"),
        (torch.zeros(20, 1).long(), ValueError, r"one integer an example, got \(\d+, 1\)"),
    ):
        with pytest.raises(error, match=reason):
            made.learn(Task("b", 2, Watched(images(0, 20), wrong)))
    with pytest.raises(FloatingPointError, match="a lower learning rate may help"):
        made.learn(Task("b", 2, (images(0, 20) * float("inf"), torch.zeros(20).long())))
    assert made.tasks == ("task 0",)
    assert torch.equal(outputs(made)["task 0"], before["task 0"])
    for ask in (made.network, lambda name: made.predict(images(0), task=name)):
        with pytest.raises(ValueError, match="no task 'x' is learned; there are task 0"):
            ask("x")  # type: ignore[operator]


@pytest.mark.parametrize(
    ("method", "options", "error", "reason"),
    [
        ("cpg", {"decide_on": "train"}, ValueError, "decide_on"),
        ("cpg", {"validation_share": 1.0}, ValueError, "validation_share"),
        ("cpg", {"seed": 0.5}, TypeError, "seed must be an int"),
        ("cpg", {"goal": 1.2}, ValueError, "a goal must lie between 0 and 1"),
        ("cpg", {"goal": {"task 0": -0.2}}, ValueError, "a goal must lie"),
        ("cpg", {"growth": 0}, ValueError, "growth"),
        ("cpg", {"largest": 0.5}, ValueError, "largest"),
        ("cpg", {"sparsities": (0.5, 0.2)}, ValueError, "sparsities must rise"),
        ("cpg", {"patience": 0}, ValueError, "patience"),
        ("cpg", {"retrain_epochs": -1}, ValueError, "retrain_epochs"),
        ("packnet", {"prune": 1.0}, ValueError, "prune must lie"),
        ("packnet", {"prune": "even"}, ValueError, "needs expected_tasks"),
        ("packnet", {"retrain_epochs": -1}, ValueError, "must not be negative"),
        ("piggyback", {"picks": "some"}, ValueError, "picks must be"),
        ("progressive", {"column": 0}, ValueError, "column must be above 0"),
        ("ewc", {"strength": -1}, ValueError, "strength must not be negative"),
        ("ewc", {"samples": 0}, ValueError, "samples must be"),
        ("lwf", {"temperature": 0}, ValueError, "temperature"),
        ("lwf", {"warmup_epochs": -1}, ValueError, "warmup_epochs must be at least 0"),
        ("lwf", {"warmup_epochs": 1.5}, ValueError, "warmup_epochs must be an int"),
        ("separate", {"colour": 3}, TypeError, "colour"),
        ("cpg", {"head": "nowhere"}, ValueError, "no module 'nowhere'"),
        ("cpg", {"head": "hidden"}, ValueError, "is no nn.Linear that is called once"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    method: str, options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    given = {name: value for name, value in OPTIONS.get(method, {}).items() if name not in options}
    if "needs expected" in reason:
        given.pop("expected_tasks", None)
    with pytest.raises(error, match=reason):
        METHODS[method](net(), images(0, 2), **{**given, **options})


@pytest.mark.parametrize(
    "options", [{"epochs": 0}, {"batch_size": 1.5}, {"lr": -1}, {"schedule": "up"}, {"clip": 0}]
)
def test_training_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Training(**options)


def test_a_goal_for_each_task_is_asked_for_by_name() -> None:
    made = learner("cpg", goal={"task 0": 0.6})
    made.learn(task(0))
    with pytest.raises(ValueError, match="no goal is given for task 'task 1'"):
        made.learn(task(1))


def test_a_model_whose_head_is_not_to_be_found_is_refused_with_a_way_out() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UnsupportedModelError, match="with head=None"):
        PackNet(model, images(0, 2))
    made = PackNet(model, images(0, 2), head=None, training=Training(epochs=1))
    made.learn(task(0))
    network = made.network("task 0")
    assert type(network) is nn.Sequential
    assert network(images(1)).shape == (48, 2)
    with pytest.raises(UnsupportedModelError, match="end it with a pooling and a flattening"):
        PackNet(nn.Conv2d(2, 4, 3), images(0, 2), head=None)
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module"):
        PackNet("model", images(0, 2))
    with pytest.raises(TypeError, match="example_inputs"):
        PackNet(net(), [images(0, 2)])


def test_a_model_that_has_grown_is_taken_as_it_is() -> None:
    model: Any = splitgrow.growable(net(), images(0, 2))
    model.expand_layer("hidden", 3)
    made = CPG(model, images(0, 2), training=Training(epochs=1), goal=0.51, largest=1.0)
    made.learn(task(0))
    assert made.network("task 0", compact=False).hidden.out_features == 11
    assert len(model.hidden) == 2


@pytest.mark.parametrize("method", MASKED)
def test_a_report_counts_what_is_there(method: str) -> None:
    made = learned(method, 2)
    report = made.report()
    owners = torch.cat([owners.flatten() for owners in made.body.owners.values()])
    assert report.weights == len(owners) == made.body.size
    assert report.free == int((owners == 0).sum())
    assert [each.owned for each in report.tasks] == [int((owners == t).sum()) for t in (1, 2)]
    assert report.owner_bits == len(owners) * (1 if method == "piggyback" else 2)
    for each, record in zip(report.tasks, made.records, strict=True):
        values = record.values(made.body)
        seen = sum(int((values[name] != 0).sum()) for name in made.body.shared)
        assert seen <= each.weights <= report.weights
        assert each.own_numbers == sum(
            t.numel() for t in (record.own or {}).values() if t.is_floating_point()
        ) + sum(p.numel() for p in record.head.parameters())
    numbers = report.weights + sum(each.own_numbers for each in report.tasks)
    bits = report.owner_bits + sum(each.pick_bits for each in report.tasks)
    assert report.bytes == 4 * numbers + -(-bits // 8)
    assert method in str(report)
    assert "task 1" in str(report)


def test_tensorboard_is_told() -> None:
    told: list[tuple[str, int]] = []

    class Writer:
        def add_scalar(self, name: str, value: float, step: int) -> None:
            assert isinstance(value, (int, float))
            told.append((name, step))

    learned("cpg", 2, callbacks=[continual.TensorBoard(Writer())], growth=1.0)
    names = {name for name, _ in told}
    assert {"task 0/loss", "task 1/accuracy", "shared weights", "accuracy when learned"} <= names
    steps = [step for name, step in told if name == "task 0/loss"]
    assert steps == [*range(1, len(steps) + 1)]


class Pairs(Dataset[Any]):
    """A data set of the ordinary kind: one example at a time."""

    def __init__(self, index: int) -> None:
        self.x, self.y = task(index).train[:]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return self.x[index], int(self.y[index])


@pytest.mark.parametrize("method", ["cpg", "joint", "ewc", "lwf", "separate"])
def test_any_dataset_learns_the_same_as_its_tensors(method: str) -> None:
    one, other = learner(method), learner(method)
    for made, index in ((one, 0), (one, 1)):
        made.learn(Task(f"task {index}", 2, Pairs(index), task(index).test))
    for index in range(2):
        other.learn(task(index))
    for name in one.tasks:
        assert torch.equal(one.predict(images(2), task=name), other.predict(images(2), task=name))


@pytest.mark.parametrize("method", ["cpg", "packnet", "ewc", "lwf", "finetuning"])
def test_loaders_are_learned_from_as_they_are(method: str) -> None:
    made = learner(method)
    for index in range(2):
        loader = DataLoader(Pairs(index), batch_size=16)
        made.learn(Task(f"task {index}", 2, loader, task(index).test, task(index).test))
    assert made.tasks == ("task 0", "task 1")


@pytest.mark.parametrize("goal", [0.0, 0.3, 0.5, {"task 0": 0.5}])
@pytest.mark.parametrize("method", ["cpg", "pack-and-expand"])
def test_a_goal_that_guessing_reaches_is_refused_with_the_number(method: str, goal: Any) -> None:
    made = learner(method, goal=goal)
    with pytest.raises(ValueError, match=r"guessing among its 2 classes reaches 0\.5") as caught:
        made.learn(task(0))
    assert f"is {goal if isinstance(goal, float) else 0.5:g};" in str(caught.value)
    assert made.tasks == ()


def test_a_threshold_that_guessing_reaches_is_refused_when_it_counts() -> None:
    made = learner("den", threshold=0.5)
    made.learn(task(0))  # the first task has no threshold
    with pytest.raises(ValueError, match=r"the threshold of task 'task 1' is 0\.5; guessing"):
        made.learn(task(1))


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_goal_just_above_guessing_is_taken_as_it_is(classes: int) -> None:
    one = replace(task(0), classes=classes)
    alone = Task("alone", 1, (images(0), torch.zeros(48).long()))
    assert goal_for(one, "goal", 1 / classes + 1e-6) == 1 / classes + 1e-6
    assert goal_for(alone, "goal", 1.0) == 1.0
    assert goal_for(one, "goal", None) is None
    with pytest.raises(ValueError, match=f"among its {classes} classes"):
        goal_for(one, "goal", 1 / classes)

"""Numbers that a loss or a loader reads by their well-known names follow growth at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import splitgrow


class Classifier(nn.Module):
    """As libraries write them: numbers that forward does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_labels=3, vocab_size=11, hidden=4, other=3)
        self.num_classes = self.width = 3
        self.table, self.head = nn.Embedding(11, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids).mean(1))


IDS = torch.tensor([[1, 2, 3]])
INPUT = torch.ones(1, 2, dtype=torch.float64)


def test_the_number_of_classes_follows_the_head_and_the_vocabulary_its_table() -> None:
    model: Any = splitgrow.growable(Classifier(), IDS)
    edit = model.expand_layer("head", 2)
    assert (model.num_classes, model.config.num_labels) == (5, 5)
    assert (model.width, model.config.other, model.config.vocab_size) == (3, 3, 11)
    assert {number.attribute for number in edit.numbers} == {"num_classes", "config.num_labels"}
    model.expand_vocabulary(4)
    assert (model.config.vocab_size, model.config.hidden) == (15, 4)
    loss = nn.functional.cross_entropy(model(IDS).view(-1, model.config.num_labels), IDS[0, 1:2])
    assert loss.isfinite()


def test_generations_and_plain_models_have_their_own() -> None:
    model: Any = splitgrow.growable(Classifier(), IDS)
    model.expand_layer("head", 2)
    with model.at(0):
        assert (model.num_classes, model.config.num_labels) == (3, 3)
    assert (model.num_classes, model.config.num_labels) == (5, 5)
    for generation, count in ((0, 3), (None, 5)):
        merged: Any = splitgrow.merge(model, generation)
        assert (merged.num_classes, merged.config.num_labels) == (count, count)
    fresh: Any = splitgrow.growable(Classifier(), IDS)
    fresh.load_state_dict(model.state_dict())
    assert (fresh.num_classes, fresh.config.num_labels) == (5, 5)


def test_labels_keep_their_names() -> None:
    class Named:
        def __init__(self) -> None:
            self.id2label = {0: "cat", 1: "dog", 2: "bird"}
            self.label2id = {"cat": 0, "dog": 1, "bird": 2}

        @property
        def num_labels(self) -> int:
            return len(self.id2label)

    net = Classifier()
    net.config = Named()
    model: Any = splitgrow.growable(net, IDS)
    model.expand_layer("head", 1)
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "bird", 3: "LABEL_3"}
    assert model.config.label2id["LABEL_3"] == 3
    with model.at(0):
        assert model.config.num_labels == 3
    assert list(model.config.id2label.values()) == ["cat", "dog", "bird", "LABEL_3"]


def test_a_model_made_from_the_same_configuration_keeps_its_own() -> None:
    one, other = Classifier(), Classifier()
    other.config = one.config
    part = nn.ReLU()
    part.config = one.config
    one.part = part
    model: Any = splitgrow.growable(one, IDS)
    model.expand_layer("head", 2)
    assert (model.config.num_labels, other.config.num_labels) == (5, 3)
    assert model.part.config is model.config
    alone = Classifier()
    config = alone.config
    assert splitgrow.growable(alone, IDS).config is config


def test_a_number_of_another_length_stays() -> None:
    net = Classifier()
    net.num_classes = 7
    model: Any = splitgrow.growable(net, IDS)
    model.expand_layer("head", 2)
    assert model.num_classes == 7


def test_what_fails_leaves_the_numbers_as_they_were() -> None:
    model: Any = splitgrow.growable(Classifier(), IDS)
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    try:
        model.expand_layer("head", 2, optimizer=optimizer)
    except splitgrow.OptimizerError:
        assert (model.num_classes, model.config.num_labels) == (3, 3)
    else:
        raise AssertionError("the optimizer does not train the layer")


class Features(nn.Module):
    """With a stream of residual blocks, a wider layer in front of the classifier, and names."""

    def __init__(self, hidden: int = 7, classes: int = 3) -> None:
        super().__init__()
        self.num_features = self.embed_dim = self.other = 4
        self.head_hidden_size, self.num_classes = hidden, classes
        self.stem, self.inner, self.outer = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = Head(hidden, classes)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.outer(self.inner(x).relu())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x))

    def reset_classifier(self, classes: int) -> None:
        self.head.fc = nn.Linear(self.head_hidden_size, classes)


class Head(nn.Module):
    """A classifier with a layer in front of it, or without."""

    def __init__(self, hidden: int, classes: int) -> None:
        super().__init__()
        self.in_features, self.num_features = 4, hidden
        self.up = nn.Linear(4, hidden) if hidden != 4 else nn.Identity()
        self.fc = nn.Linear(hidden, classes) if classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.up(x).tanh())


def features_of(model: Any) -> dict[str, int]:
    names = ("num_features", "embed_dim", "head_hidden_size", "other")
    own = {name: getattr(model, name) for name in names}
    return {**own, "in": model.head.in_features, "out": model.head.num_features}


def test_the_widths_that_a_new_classifier_is_made_of_follow() -> None:
    model: Any = splitgrow.growable(Features().double(), INPUT)
    model.expand_layer("outer", 2)
    stream = {"num_features": 6, "embed_dim": 6, "other": 4, "in": 6}
    assert features_of(model) == {**stream, "head_hidden_size": 7, "out": 7}
    model.expand_layer("head.up", 3)
    assert features_of(model) == {**stream, "head_hidden_size": 10, "out": 10}
    model.shrink_layer("outer", [1], give_up=True)
    assert features_of(model)["num_features"] == model.forward_features(INPUT).shape[-1] == 5
    model.reset_classifier(9)
    assert model.double()(INPUT).shape == (1, 9)
    assert splitgrow.growable(model, INPUT) is model


def test_the_hidden_layer_of_a_block_is_none_of_the_features() -> None:
    """It has their length, and another group."""
    model: Any = splitgrow.growable(Features(4).double(), INPUT)
    before = features_of(model)
    assert model.expand_layer("inner", 2).numbers == ()
    assert features_of(model) == before
    model.expand_layer("stem", 1)
    assert set(features_of(model).values()) == {5, 4}


def test_features_follow_without_a_classifier_and_are_not_taken_for_classes() -> None:
    bare: Any = splitgrow.growable(Features(4, 0).double(), INPUT)
    bare.expand_layer("stem", 1)
    assert (bare.num_features, bare.embed_dim, bare.num_classes) == (5, 5, 0)
    alike: Any = splitgrow.growable(Features(4, 4).double(), INPUT)
    alike.expand_layer("head.fc", 1)
    assert (alike.num_features, alike.num_classes) == (4, 5)


def test_in_features_alone_are_no_features() -> None:
    """A user's own perceptron says so of its inputs."""

    class Perceptron(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 6), nn.Linear(6, 3))
            self.in_features = self.embed_dim = 6

    model: Any = splitgrow.growable(Perceptron(), torch.ones(1, 6))
    model.expand_layer("2", 2)
    assert (model.in_features, model.embed_dim) == (6, 6)

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

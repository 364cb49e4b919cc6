"""LoRA on grown layers."""

from __future__ import annotations

import doctest
import sys
from typing import Any

import pytest
import torch
from helpers import assert_equal, randomise
from torch import Tensor, nn

import splitgrow
from benchmarks.vision import torchvision

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]

IDS = torch.randint(10, (2, 5), generator=torch.Generator().manual_seed(0))


def integration() -> Any:
    torchvision()
    from splitgrow.integrations import peft  # noqa: PLC0415

    return peft


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv = nn.Embedding(10, 4), nn.Conv1d(4, 6, 3, padding=1)
        self.norm, self.mid, self.head = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.conv(self.table(ids).mT).mT
        return self.head(self.mid(self.norm(x)).tanh())


def grown() -> Any:
    torch.manual_seed(0)
    model: Any = splitgrow.growable(randomise(Net()).double().eval(), IDS)
    model.expand({"mid": 3, "table": 2})
    model.expand_layer("conv", 6, initializer="duplicate")
    return randomise(model)


def adapted(model: Any, *targets: str) -> Any:
    ours = integration()
    import peft  # noqa: PLC0415

    config = peft.LoraConfig(target_modules=list(targets), init_lora_weights=False, r=2)
    return peft.get_peft_model(model, ours.on_grown_layers(config))


TARGETS = ("table", "conv", "mid", "head")


def test_adapters_sit_on_grown_layers_of_each_type_and_train() -> None:
    model = grown()
    before = model(IDS)
    whole = adapted(model, *TARGETS)
    after = whole(IDS)
    assert (after - before).abs().max() > 1e-3
    with whole.disable_adapter():
        assert_equal(whole(IDS), before)
    after.square().sum().backward()
    trained = {name for name, p in whole.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    assert len(trained) == 2 * len(TARGETS)
    assert all(dict(whole.named_parameters())[name].grad is not None for name in trained)


def test_merged_adapters_are_part_of_a_plain_model_that_computes_the_same() -> None:
    whole = adapted(grown(), *TARGETS)
    expected = whole(IDS)
    plain = integration().merge_adapters(whole)
    assert_equal(plain(IDS), expected)
    assert [type(getattr(plain, name)) for name in TARGETS] == [
        nn.Embedding,
        nn.Conv1d,
        nn.Linear,
        nn.Linear,
    ]
    assert type(plain) is Net
    assert_equal(whole(IDS), expected)
    with pytest.raises(splitgrow.SplitGrowError, match="nothing was written"):
        whole.merge_and_unload()


def test_a_model_with_adapters_does_not_grow() -> None:
    whole = adapted(grown(), "mid")
    with pytest.raises(splitgrow.UnsupportedModelError, match="is an adapter"):
        splitgrow.handle(whole.get_base_model()).expand_layer("head", 2)


def test_layers_and_arguments_without_adapters_are_refused_in_words() -> None:
    ours = integration()

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0])

    model: Any = splitgrow.growable(Recurrent(), torch.randn(2, 3, 4))
    model.expand_layer("rnn", 2)
    with pytest.raises(splitgrow.UnsupportedLayerError, match="a LSTM that has grown takes no"):
        adapted(model, "rnn")
    with pytest.raises(TypeError, match=r"peft\.LoraConfig"):
        ours.on_grown_layers({"r": 2})
    with pytest.raises(TypeError, match=r"peft\.PeftModel"):
        ours.merge_adapters(model)


def test_its_examples_run() -> None:
    module = integration()
    found = doctest.testmod(sys.modules[module.__name__])
    assert (found.failed, found.attempted > 4) == (0, True)

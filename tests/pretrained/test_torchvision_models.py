"""Grown models of torchvision, saved with the arguments of `torchvision.models.get_model`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_equal, randomise

import splitgrow
from benchmarks.vision import torchvision
from splitgrow.errors import ExportError

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]
X = torch.randn(1, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def growable(name: str, **arguments: Any) -> Any:
    models = torchvision().models
    torch.manual_seed(0)
    model = randomise(models.get_model(name, **arguments)).double().eval()
    return splitgrow.growable(model, X)


def test_get_model_makes_the_grown_model_from_what_is_saved(tmp_path: Path) -> None:
    from safetensors.torch import load_file  # noqa: PLC0415

    model = growable("resnet18", num_classes=5)
    model.expand_layer("fc", 3)
    saved = splitgrow.save_pretrained(model, tmp_path / "grown")
    assert saved == {"name": "resnet18", "num_classes": 8}
    config = json.loads((tmp_path / "grown" / "config.json").read_text())
    again = torchvision().models.get_model(**config).double()
    again.load_state_dict(load_file(tmp_path / "grown" / "model.safetensors"))
    assert_equal(again.eval()(X), model(X))


def test_a_wider_model_is_known_by_the_name_that_it_has_there(tmp_path: Path) -> None:
    model = growable("resnet50", num_classes=5)
    inner = [one for one in model.layers if one.name.endswith(("conv1", "conv2"))]
    model.expand({one.name: one.width for one in inner if one.name != "conv1"})
    saved = splitgrow.save_pretrained(model, tmp_path / "grown")
    assert saved == {"name": "wide_resnet50_2", "num_classes": 5}


def test_what_no_arguments_describe_is_refused_and_nothing_written(tmp_path: Path) -> None:
    model = growable("resnet18", num_classes=5)
    model.insert_layer("layer1.1", "block")
    with pytest.raises(ExportError, match="no set of arguments of resnet18 describes the model"):
        splitgrow.save_pretrained(model, tmp_path / "grown")
    with pytest.raises(TypeError, match="saved without max_shard_size"):
        splitgrow.save_pretrained(growable("resnet18"), tmp_path / "grown", max_shard_size="1MB")
    assert not list(tmp_path.iterdir())

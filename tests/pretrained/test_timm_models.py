"""Grown models of timm, saved for `timm.create_model`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_equal, randomise

import splitgrow
from benchmarks.vision import torchvision
from splitgrow.errors import ExportError

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]

SMALL = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2}


def growable(name: str, **arguments: Any) -> Any:
    torchvision()
    import timm  # noqa: PLC0415 - after the operators of torchvision are there

    torch.manual_seed(0)
    model = randomise(timm.create_model(name, **arguments)).double().eval()
    return splitgrow.growable(model, torch.randn(1, 3, 32, 32, dtype=torch.float64))


def vit() -> Any:
    return growable("vit_tiny_patch16_224", num_classes=5, **SMALL)


def resnet() -> Any:
    return growable("resnet10t", num_classes=5)


def convnext() -> Any:
    return growable("convnext_atto", num_classes=5, depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))


def stream_and_heads(model: Any) -> None:
    model.expand({"patch_embed.proj": 16}, initializer="duplicate")
    heads = [layer for layer in model.layers if layer.name.endswith("attn.qkv")]
    model.expand({layer.name: layer.width for layer in heads})


WAYS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], dict[str, Any]]] = {
    "classes": (vit, lambda m: m.expand_layer("head", 3), {"num_classes": 8}),
    "hidden units": (
        vit,
        lambda m: m.expand({layer.name: 32 for layer in m.layers if "fc1" in layer.name}),
        {"mlp_ratio": 6},
    ),
    "depth": (vit, lambda m: m.insert_layer("blocks.0", "block"), {"depth": 3}),
    "stream and heads": (vit, stream_and_heads, {"embed_dim": 32, "num_heads": 4}),
    "classes of a ResNet": (resnet, lambda m: m.expand_layer("fc", 2), {"num_classes": 7}),
    "channels of the input": (resnet, lambda m: m.expand_input(1), {"in_chans": 4}),
    "depth of a stage": (
        convnext,
        lambda m: m.insert_layer("stages.2.blocks.1", "block"),
        {"depths": [1, 1, 3, 1]},
    ),
}


@pytest.mark.parametrize(("make", "grow", "arguments"), WAYS.values(), ids=WAYS.keys())
def test_timm_makes_the_grown_model_from_what_is_saved(
    make: Any, grow: Any, arguments: dict[str, Any], tmp_path: Path
) -> None:
    model = make()
    grow(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    saved = splitgrow.save_pretrained(model, tmp_path / "grown")
    assert saved.items() >= arguments.items()
    config = json.loads((tmp_path / "grown" / "config.json").read_text())
    known = {**config["model_args"], "num_classes": config["num_classes"]}
    assert known.items() >= arguments.items()
    import timm  # noqa: PLC0415

    again = timm.create_model(f"local-dir:{tmp_path / 'grown'}", pretrained=True).double().eval()
    x = torch.randn(2, model.in_chans if hasattr(model, "in_chans") else 3, 32, 32).double()
    again.load_state_dict(splitgrow.merge(model).state_dict())
    assert_equal(again(x), model(x))


def test_what_no_arguments_describe_is_refused_and_nothing_written(tmp_path: Path) -> None:
    model = resnet()
    model.expand_layer("layer1.0.conv1", 8)
    with pytest.raises(ExportError, match="no set of arguments of resnet10t describes the model"):
        splitgrow.save_pretrained(model, tmp_path / "grown")
    assert not list(tmp_path.iterdir())


def test_the_models_own_numbers_follow() -> None:
    model = resnet()
    model.expand_layer("fc", 2)
    model.expand_input(1)
    assert (model.num_classes, model.in_chans) == (7, 4)
    with model.at(0):
        assert (model.num_classes, model.in_chans) == (5, 3)
    merged: Any = splitgrow.merge(model, generation=0)
    assert (merged.num_classes, merged.in_chans) == (5, 3)

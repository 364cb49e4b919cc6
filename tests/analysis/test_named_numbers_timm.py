"""timm's numbers of features follow growth, so that `reset_classifier` makes one that fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import splitgrow
from benchmarks.vision import torchvision

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]
VIT = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3}
MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": VIT,
    "resnet10t": {},
    "vgg11": {},
    "convnext_atto": {},
    "mobilenetv3_small_050": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_classifier_that_timm_resets_fits_the_features(name: str) -> None:
    torchvision()
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    x = torch.randn(1, 3, 32, 32)
    model = timm.create_model(name, num_classes=5, **MODELS[name]).eval()
    growing = splitgrow.growable(model, x)
    head = model.get_classifier()
    path = next(path for path, module in model.named_modules() if module is head)
    feeding = [layer for layer in growing.layers if path in layer.readers and layer.name != path]
    before = growing(x)
    growing.expand({feeding[-1].name: feeding[-1].step, path: 3}, freeze=False)
    assert (model.num_classes, growing(x).shape[1]) == (8, 8)
    assert torch.allclose(growing(x)[:, :5], before, atol=1e-4)
    features = model.forward_features(x)
    along = -1 if features.dim() == 3 else 1
    assert features.shape[along] == model.num_features
    assert model.forward_head(features, pre_logits=True).shape[1] == model.head_hidden_size
    with growing.at(0):
        assert model.forward_features(x).shape[along] == model.num_features
    assert splitgrow.merge(model).num_features == model.num_features
    model.reset_classifier(7)
    assert model(x).shape == (1, 7)
    assert splitgrow.growable(model, x) is model  # it can grow on

"""Real architectures, unmodified: an insertion of each fitting kind at every stage, exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_equal, assert_identical, largest_difference, outputs_of, randomise
from torch import Tensor

import splitgrow
from benchmarks.vision import torchvision

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torchvision"),
]

KINDS = ("identity", "residual", "gate", "block")
EVERY = frozenset(KINDS)
NO_BLOCK = EVERY - {"block"}
LINEAR_END = EVERY - {"identity"}
"""Behind a stage that ends in no ReLU."""

STAGES: dict[str, dict[str, frozenset[str]]] = {
    "resnet50": {
        "relu": NO_BLOCK,  # the stem
        "layer1": NO_BLOCK,
        "layer2.1": EVERY,
        "layer4.2": EVERY,
        "fc": NO_BLOCK - {"identity"},
    },
    "mobilenet_v3_large": {
        "features.0": NO_BLOCK - {"identity"},
        "features.1": LINEAR_END,
        "features.5": LINEAR_END,
        "features.15": LINEAR_END,
        "features.5.block.0": NO_BLOCK,  # its own activation is ReLU
    },
    "vit_b_16": {
        "encoder.layers.encoder_layer_0": LINEAR_END,
        "encoder.layers.encoder_layer_6": LINEAR_END,
        "encoder.layers.encoder_layer_11": LINEAR_END,
    },
    "gpt2": {
        "transformer.h.0": LINEAR_END,
        "transformer.h.1": LINEAR_END,
        "transformer.h.2": LINEAR_END,
    },
}


def _vision(name: str) -> tuple[Any, Tensor, Callable[[Any], Any]]:
    models = torchvision().models
    if name == "vit_b_16":  # as it is written, with narrower layers
        widths = {"num_layers": 12, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128}
        model = randomise(models.VisionTransformer(image_size=48, patch_size=16, **widths))
    else:
        model = randomise(models.get_model(name, weights=None))
    return model, torch.randn(1, 3, 48, 48, dtype=torch.float64), lambda output: output


def _gpt2() -> tuple[Any, Tensor, Callable[[Any], Any]]:
    torchvision()  # transformers imports it
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=3,
        n_embd=48,
        n_head=4,
        vocab_size=60,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = randomise(transformers.GPT2LMHeadModel(config))
    return model, torch.randint(1, 60, (2, 7)), lambda output: output.logits


def _made(name: str) -> tuple[Any, Tensor, Callable[[Any], Any]]:
    torch.manual_seed(0)
    if name == "gpt2":
        return _gpt2()
    return _vision(name)


@pytest.mark.parametrize("name", STAGES)
def test_an_insertion_of_each_fitting_kind_at_every_stage_is_exact(name: str) -> None:
    model, x, answer = _made(name)
    model = splitgrow.growable(model.double().eval(), x)
    before = answer(outputs_of(model, x))
    for stage, fitting in STAGES[name].items():
        for kind in KINDS:
            if kind not in fitting:
                with pytest.raises(splitgrow.InsertionError):
                    model.plan_insertion(stage, kind)
                continue
            edit = model.insert_layer(stage, kind, check=False)
            assert edit.inserted[0].kind == kind
        assert_equal(answer(outputs_of(model, x)), before)
    with torch.no_grad():
        for parameter in model.generation_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    now = answer(outputs_of(model, x))
    assert largest_difference(now, before) > 1e-3  # the control
    with model.at(0):
        assert_identical(answer(outputs_of(model, x)), before)
    assert_equal(answer(outputs_of(splitgrow.merge(model).eval(), x)), now)
    if name == "gpt2":
        _assert_caches_have_room_for_copies(model, x)
    else:
        assert_equal(outputs_of(splitgrow.fuse(model), x), now)


def _assert_caches_have_room_for_copies(model: Any, x: Tensor) -> None:
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(x)}
    cached, anew = (model.generate(x, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, anew)


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "gpt2"])
def test_a_wider_and_deeper_real_model_comes_back_from_its_class(name: str, tmp_path: Path) -> None:
    model, x, answer = _made(name)
    model = splitgrow.growable(model.double().eval(), x)
    for index in (1, 3):
        layer = [layer for layer in model.layers if layer.growable][index]
        model.expand_layer(layer.name, layer.step)
    for stage, fitting in [*STAGES[name].items()][-2:]:
        for kind in sorted(fitting):
            model.insert_layer(stage, kind)
    with torch.no_grad():
        for parameter in model.generation_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    splitgrow.save(model, tmp_path / "a.safetensors")
    fresh = _made(name)[0].double().eval()
    splitgrow.load(fresh, tmp_path / "a.safetensors")
    assert_identical(answer(outputs_of(fresh, x)), answer(outputs_of(model, x)))
    if name == "gpt2":
        _assert_caches_have_room_for_copies(fresh, x)

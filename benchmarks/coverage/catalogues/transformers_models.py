"""Models of transformers: small configurations, random weights, tensors as arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.coverage.catalogues import Sample, Subject, image
from benchmarks.vision import torchvision

torchvision()  # which transformers imports
import transformers  # noqa: E402

transformers.logging.set_verbosity_error()

VOCABULARY = 67
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
DECODER = {**TEXT, "num_key_value_heads": 2, "use_cache": False}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
STAGES = {"embedding_size": 16, "hidden_sizes": [16, 24], "depths": [1, 2], "layer_type": "basic"}


def words() -> tuple[Any, ...]:
    """Two sentences of nine words; none is the padding or the end."""
    return (torch.randint(3, VOCABULARY, (2, 9)),)


picture = image(2, 3, 32, 32)
picture_64 = image(2, 3, 64, 64)


@dataclass(frozen=True)
class Kind:
    """Models that share a configuration.

    Attributes:
        settings: The name of the configuration's class.
        options: What it is made with.
        models: The names of the models' classes.
        sample: What they are fed.
        variants: Further models: what is special, to the model's class and its options.
    """

    settings: str
    options: Mapping[str, Any]
    models: tuple[str, ...]
    sample: Sample
    variants: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)


KINDS = {
    "bert": Kind("BertConfig", TEXT, ("BertModel", "BertForSequenceClassification"), words),
    "roberta": Kind(
        "RobertaConfig", TEXT, ("RobertaModel", "RobertaForSequenceClassification"), words
    ),
    "distilbert": Kind(
        "DistilBertConfig",
        {"vocab_size": VOCABULARY, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
        ("DistilBertModel", "DistilBertForSequenceClassification"),
        words,
    ),
    "gpt2": Kind(
        "GPT2Config",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "use_cache": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        ("GPT2Model", "GPT2LMHeadModel"),
        words,
    ),
    "llama": Kind(
        "LlamaConfig",
        DECODER,
        ("LlamaModel", "LlamaForCausalLM"),
        words,
        {
            "tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
            "untied": ("LlamaForCausalLM", {"tie_word_embeddings": False}),
        },
    ),
    "mistral": Kind("MistralConfig", DECODER, ("MistralModel", "MistralForCausalLM"), words),
    "qwen2": Kind("Qwen2Config", DECODER, ("Qwen2Model", "Qwen2ForCausalLM"), words),
    "gemma": Kind(
        "GemmaConfig", {**DECODER, "head_dim": 8}, ("GemmaModel", "GemmaForCausalLM"), words
    ),
    "t5": Kind(
        "T5Config",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "use_cache": False,
        },
        ("T5EncoderModel",),
        words,
    ),
    "whisper": Kind(
        "WhisperConfig",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "num_mel_bins": 20,
            "max_source_positions": 24,
            "decoder_layers": 1,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 48,
            "vocab_size": VOCABULARY,
            "classifier_proj_size": 24,
            "pad_token_id": 0,
        },
        ("WhisperEncoder", "WhisperForAudioClassification"),
        image(2, 20, 48),
    ),
    "vit": Kind("ViTConfig", VISION, ("ViTModel", "ViTForImageClassification"), picture),
    "deit": Kind("DeiTConfig", VISION, ("DeiTModel", "DeiTForImageClassification"), picture),
    "clip": Kind(
        "CLIPVisionConfig", VISION, ("CLIPVisionModel", "CLIPVisionModelWithProjection"), picture
    ),
    "swin": Kind(
        "SwinConfig",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [1, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
        ("SwinModel", "SwinForImageClassification"),
        picture,
    ),
    "resnet": Kind(
        "ResNetConfig", STAGES, ("ResNetModel", "ResNetForImageClassification"), picture_64
    ),
    "regnet": Kind(
        "RegNetConfig",
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2], "groups_width": 8},
        ("RegNetModel", "RegNetForImageClassification"),
        picture_64,
    ),
    "convnext": Kind(
        "ConvNextConfig",
        {"num_stages": 2, "hidden_sizes": [16, 24], "depths": [1, 2], "image_size": 64},
        ("ConvNextModel", "ConvNextForImageClassification"),
        picture_64,
    ),
    "mobilenet_v2": Kind(
        "MobileNetV2Config",
        {"depth_multiplier": 0.25, "image_size": 64},
        ("MobileNetV2Model", "MobileNetV2ForImageClassification"),
        picture_64,
    ),
}


def names() -> list[str]:
    """The names of all models: their class, and what is special about a variant."""
    return [name for kind in KINDS for name in _of_kind(kind)]


def version() -> str:
    """The library's version."""
    return str(transformers.__version__)


def totals() -> dict[str, int]:
    """How many models and families there are in this list."""
    return {"models": len(names()), "families": len(KINDS)}


def subject(name: str) -> Subject:
    """The model of a name."""
    family, kind = next((key, kind) for key, kind in KINDS.items() if name in _of_kind(key))
    model, options = _of_kind(family)[name]
    return Subject(
        library="transformers",
        name=name,
        family=family,
        build=partial(_build, kind.settings, {**kind.options, **options}, model),
        samples=(kind.sample,),
    )


def _of_kind(family: str) -> dict[str, tuple[str, Mapping[str, Any]]]:
    kind = KINDS[family]
    plain = {model: (model, {}) for model in kind.models}
    special = {
        f"{model} ({what})": (model, options) for what, (model, options) in kind.variants.items()
    }
    return {**plain, **special}


def _build(settings: str, options: dict[str, Any], model: str) -> nn.Module:
    configuration = getattr(transformers, settings)(**options)
    cls: Any = getattr(transformers, model, None)
    if cls is None:  # an encoder that is not offered at the top
        cls = getattr(transformers.models.whisper.modeling_whisper, model)
    return cls(configuration)  # type: ignore[no-any-return]

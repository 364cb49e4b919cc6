"""The families: the model types that are checked, with the class of each that has a head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.models.auto import modeling_auto as auto

from benchmarks.coverage.catalogues import Sample, image
from benchmarks.coverage.catalogues.transformers_models.settings import VOCABULARY


def words() -> tuple[Any, ...]:
    """Two sentences of nine words; none is the padding or the end."""
    return (torch.randint(3, VOCABULARY, (2, 9)),)


def two_texts() -> tuple[Any, ...]:
    """Words for an encoder, no mask, and words for a decoder."""
    return (*words(), None, *words())


picture = image(2, 3, 32, 32)
picture_64 = image(2, 3, 64, 64)
wave = image(2, 400)
sound = image(2, 20, 48)


@dataclass(frozen=True)
class Family:
    """A model type.

    Attributes:
        kind: Its name among transformers' configurations.
        model: The name of the model's class.
        sample: Makes what the model is fed.
        options: Fields of its configuration besides the usual small values.
        ties: Which further models there are: with head and embedding tied, or untied.
    """

    kind: str
    model: str
    sample: Sample
    options: Mapping[str, Any] = field(default_factory=dict)
    ties: tuple[bool, ...] = ()


DECODERS = """
    apertus arcee biogpt bitnet bloom codegen cohere cohere2 cwm deepseek_v2
    deepseek_v3 diffllama doge dots1 ernie4_5 ernie4_5_moe exaone4 falcon flex_olmo gemma gemma2
    gemma3_text glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neo gpt_neox gpt_oss gptj granite granitemoe
    helium hunyuan_v1_dense hunyuan_v1_moe jais2 llama mamba minimax_m2 ministral
    mistral mixtral mpt nanochat nemotron olmo olmo2 olmo3 olmoe openai-gpt opt persimmon
    phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe rwkv seed_oss smollm3 stablelm starcoder2
    vaultgemma xglm
"""
ENCODERS = """
    albert bert big_bird camembert convbert deberta deberta-v2 distilbert electra ernie esm eurobert
    flaubert fnet gte longformer megatron-bert mobilebert modernbert mpnet nomic_bert nystromformer
    roberta roberta-prelayernorm roformer squeezebert xlm xlm-roberta xlnet
"""
PAIRS = """
    bart blenderbot longt5 m2m_100 marian mbart mt5 mvp pegasus plbart switch_transformers t5 umt5
"""
IMAGES = """
    beit data2vec-vision deit dinov2 focalnet hiera ijepa mobilevit poolformer pvt segformer swin
    swinv2 vit
"""
IMAGES_64 = "convnext convnextv2 mobilenet_v2 regnet resnet"
SOUNDS = "hubert sew unispeech wav2vec2 wavlm"
TOWERS = """
    aimv2_vision_model clip_vision_model dinov3_vit siglip_vision_model vit_mae yolos
"""
"""Families without a head in this list: an encoder that other models build on."""

ALSO_TIED = "apertus granite llama mistral olmo2 phi3 qwen2 qwen3"
ALSO_UNTIED = "bloom cohere gemma gpt2 opt"
"""Decoders that are checked with head and embedding tied, or untied, too."""

_STAGES = {"depths": (1, 2), "hidden_sizes": (16, 32), "num_attention_heads": (2, 4)}
_WINDOWS = {"patch_size": 2, "embed_dim": 16, "num_heads": (2, 4)}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "audio-spectrogram-transformer": {"max_length": 48, "frequency_stride": 4, "time_stride": 8},
    "big_bird": {"attention_type": "original_full"},
    "codegen": {"use_cache": False},
    "deepseek_v2": {"num_key_value_heads": 4},
    "deepseek_v3": {"num_key_value_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "diffllama": {"use_cache": False},
    "gemma2": {"sliding_window": 6},
    "hiera": {
        "image_size": (32, 32),
        "patch_size": None,
        "embed_dim": 16,
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 2, 2, 2),
    },
    "mamba": {"conv_kernel": 4},
    "mistral": {"sliding_window": 6},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "mobilevit": {
        "hidden_sizes": (16, 24, 32),
        "neck_hidden_sizes": (8, 8, 12, 16, 16, 16, 32),
        "patch_size": 2,
    },
    "poolformer": {
        "depths": (1, 1, 1, 1),
        "hidden_sizes": (8, 12, 16, 16),
        "patch_size": 7,
    },
    "pvt": {
        "depths": (1, 1),
        "hidden_sizes": (16, 32),
        "num_attention_heads": (2, 4),
        "num_encoder_blocks": 2,
        "patch_sizes": (4, 2),
        "strides": (4, 2),
        "sequence_reduction_ratios": (2, 1),
        "mlp_ratios": (2, 2),
    },
    "mpnet": {"pad_token_id": 1, "relative_attention_num_buckets": None},
    "regnet": {"embedding_size": 16, "groups_width": 8},
    "resnet": {"embedding_size": 16, "layer_type": "basic"},
    "segformer": {
        "depths": (1, 1),
        "hidden_sizes": (16, 32),
        "num_attention_heads": (2, 4),
        "num_encoder_blocks": 2,
        "patch_sizes": (7, 3),
        "strides": (4, 2),
        "sr_ratios": (2, 1),
        "mlp_ratios": (2, 2),
    },
    "swin": _WINDOWS,
    "swinv2": _WINDOWS,
    "whisper": {"decoder_layers": 1, "classifier_proj_size": 24},
    "xlnet": {"d_inner": 48},
    "yolos": {"image_size": (32, 32), "num_detection_tokens": 4},
}
"""Fields of single families besides the usual small values.

Where new heads lie between others, a cache among the outputs would keep them from growing; such
families are analysed without one, and write text with one all the same.
"""


def _heads(table: Mapping[str, Any], kinds: str, sample: Sample) -> Iterator[Family]:
    for kind in kinds.split():
        model = table[kind]
        ties = (
            (True,)
            if kind in ALSO_TIED.split()
            else (False,)
            if kind in ALSO_UNTIED.split()
            else ()
        )
        first = model if isinstance(model, str) else model[0]
        yield Family(kind, first, sample, OPTIONS.get(kind, {}), ties)


FAMILIES = (
    *_heads(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, DECODERS, words),
    *_heads(auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, ENCODERS, words),
    *_heads(auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, PAIRS, two_texts),
    *_heads(auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, IMAGES, picture),
    *_heads(auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, IMAGES_64, picture_64),
    *_heads(auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES, SOUNDS, wave),
    *_heads(auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES, "whisper", sound),
    *_heads(
        auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
        "audio-spectrogram-transformer",
        image(2, 48, 20),
    ),
    *_heads(auto.MODEL_MAPPING_NAMES, TOWERS, picture),
    *_heads(auto.MODEL_MAPPING_NAMES, "clip_text_model", words),
)

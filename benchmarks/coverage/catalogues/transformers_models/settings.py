"""Small configurations: a value for each usual name of a field, where a class has it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from benchmarks.vision import torchvision

torchvision()  # which transformers imports
import transformers  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # noqa: E402

transformers.logging.set_verbosity_error()

VOCABULARY = 67
STREAM = 32
HIDDEN = 48

_ALIKE: Mapping[str, Any] = {
    "hidden_size d_model n_embd dim embed_dim emb_dim encoder_hidden_size": STREAM,
    "attention_hidden_size embedding_size": STREAM,
    "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff hidden_dim n_inner": HIDDEN,
    "ffn_hidden_size": HIDDEN,
    "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers": 2,
    "num_encoder_layers num_decoder_layers": 2,
    "num_attention_heads n_head n_heads num_heads": 4,
    "encoder_attention_heads decoder_attention_heads": 4,
    "num_key_value_heads num_kv_heads": 2,
    "head_dim d_kv qk_nope_head_dim qk_rope_head_dim v_head_dim": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings n_positions max_target_positions": 64,
    # text: sentences have nine words
    "sliding_window": 16,
    "attention_window": 6,
    "window_size": 4,
    "relative_attention_num_buckets": 8,
    "rotary_dim": 4,
    # mixtures of experts
    "moe_intermediate_size shared_expert_intermediate_size": 24,
    "num_experts num_local_experts n_routed_experts moe_num_experts": 4,
    "num_experts_per_tok moe_k": 2,
    "n_group topk_group n_shared_experts first_k_dense_replace": 1,
    "q_lora_rank kv_lora_rank": 16,
    "qk_head_dim": 16,
    # state spaces
    "state_size mamba_d_state": 8,
    "time_step_rank mamba_n_heads": 4,
    # images
    "image_size": 32,
    "patch_size": 8,
    "depths": (1, 2),
    "hidden_sizes": (16, 32),
    "num_stages": 2,
    # sounds
    "num_mel_bins": 20,
    "max_source_positions": 24,
    "conv_dim": (16, 16),
    "conv_kernel": (4, 3),
    "conv_stride": (4, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
SMALL = {name: value for names, value in _ALIKE.items() for name in names.split()} | _SPECIAL
"""What fields are given that say how large a model is, by name."""


def configuration(kind: str, special: Mapping[str, Any]) -> Any:
    """A model type's configuration: small values, and those that are special to it.

    Args:
        kind: The model type.
        special: Fields with their values; None leaves a field as it comes.
    """
    cls = getattr(transformers, CONFIG_MAPPING_NAMES[kind])
    fields = inspect.signature(cls.__init__).parameters
    chosen = {name: value for name, value in SMALL.items() if name in fields} | dict(special)
    return cls(**{name: value for name, value in chosen.items() if value is not None})

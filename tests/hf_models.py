"""Small models of transformers, and ways to grow them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from helpers import randomise

import splitgrow
from benchmarks.vision import torchvision

IDS = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(1))
SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def hugging_face() -> Any:
    torchvision()
    import transformers  # noqa: PLC0415

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def llama(**changes: Any) -> Any:
    hf = hugging_face()
    return hf.LlamaForCausalLM(hf.LlamaConfig(**{**SMALL, **changes}))


def tied() -> Any:
    return llama(tie_word_embeddings=True)


def gpt2() -> Any:
    hf = hugging_face()
    sizes = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))


def bert() -> Any:
    hf = hugging_face()
    sizes = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
    return hf.BertForSequenceClassification(hf.BertConfig(**sizes, num_labels=3))


def sliding() -> Any:
    hf = hugging_face()
    kinds = ["sliding_attention", "full_attention"]
    config = hf.Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=4, layer_types=kinds)
    return hf.Qwen2ForCausalLM(config)


def mixtral() -> Any:
    hf = hugging_face()
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return _eager(hf.MixtralForCausalLM, hf.MixtralConfig(**SMALL, **sizes))


def deepseek() -> Any:
    hf = hugging_face()
    heads = {"kv_lora_rank": 4, "q_lora_rank": 4, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 1, "n_group": 2, "topk_group": 1}
    sizes = {**SMALL, **heads, **experts, "v_head_dim": 4, "num_key_value_heads": 4}
    more = {"moe_intermediate_size": 6, "first_k_dense_replace": 1}
    return _eager(hf.DeepseekV3ForCausalLM, hf.DeepseekV3Config(**sizes, **more))


def _eager(kind: Any, config: Any) -> Any:
    """A model whose experts run in any precision."""
    return kind._from_config(config, experts_implementation="eager")


def growable(make: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    model = randomise(make()).double().eval()
    inputs = (IDS, None, IDS) if model.config.is_encoder_decoder else (IDS,)
    return splitgrow.growable(model, inputs)


def grown(make: Callable[[], Any], grow: Callable[[Any], Any]) -> Any:
    model = growable(make)
    grow(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def all_of(model: Any, *ends: str, times: int = 1) -> dict[str, int]:
    """A request for more units in all layers with names that end so."""
    return {
        layer.name: times * layer.step
        for layer in model.layers
        if layer.name.endswith(ends) and layer.growable
    }


def stream_and_heads(model: Any) -> None:
    model.expand({"model.embed_tokens": 16})
    model.expand(all_of(model, "k_proj", times=2))


def everything(model: Any) -> None:
    model.expand(all_of(model, "up_proj", times=5))
    stream_and_heads(model)
    model.expand_vocabulary(3)
    model.insert_layer("model.layers.1", "block")
    model.insert_layer("model.layers.0", "block")

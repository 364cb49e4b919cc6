"""What torch-pruning's examples tell it by hand, as rules: heads, outputs, and numbers to mend.

From its examples for torchvision, timm, transformers and LLMs (1.6.1): `num_heads` for the layers
of each attention, `out_channel_groups` for joined gates, `round_to` for torchvision's transformers,
layers to leave alone, and after pruning the attributes in which a module holds its sizes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

JOINED = ("qkv", "qkv_proj", "Wqkv", "c_attn", "query_key_value", "in_proj")
APART = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
    ("to_q", "to_k", "to_v"),
)
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "num_q_heads")
READERS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
SIZES = ("head_dim", "attention_head_size", "head_size", "dim_per_head", "d_kv", "key_dim")
WHOLE = ("all_head_size", "attn_dim", "embed_dim", "inner_dim", "hidden_size", "split_size", "dim")
_FLOW = "torchvision.models.optical_flow"


@dataclass
class Attention:
    """The layers of one attention that make its heads."""

    module: Any
    joined: Any = None
    apart: tuple[Any, ...] = ()
    heads: int = 1
    key_heads: int = 1


@dataclass
class Helps:
    """What torch-pruning is told of a model."""

    attentions: list[Attention] = field(default_factory=list)
    num_heads: dict[nn.Module, int] = field(default_factory=dict)
    out_channel_groups: dict[nn.Module, int] = field(default_factory=dict)
    ignored: list[Any] = field(default_factory=list)
    round_to: int | None = None

    def names(self) -> str:
        """What was given, for the record."""
        given = {
            "num_heads": self.num_heads,
            "out_channel_groups": self.out_channel_groups,
            "round_to": self.round_to,
        }
        return ", ".join(name for name, value in given.items() if value)


def helps_for(model: nn.Module, outputs: list[str]) -> Helps:
    """What its examples would tell it of a model.

    Args:
        model: The plain model.
        outputs: The layers that make the model's outputs.
    """
    found = Helps()
    for name in outputs:
        try:
            found.ignored.append(model.get_submodule(name))
        except AttributeError:
            found.ignored.append(_parameter(model, name))
    found.ignored = [item for item in found.ignored if item is not None]
    for module in model.modules():
        if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
            found.ignored.append(module)
        attention = _attention(module)
        if attention is not None:
            found.attentions.append(attention)
            for layer in (attention.joined, *attention.apart[:1]):
                if layer is not None:
                    found.num_heads[layer] = attention.heads
            found.num_heads |= dict.fromkeys(attention.apart[1:], attention.key_heads)
        gate: Any = getattr(module, "gate_up_proj", None)
        if isinstance(gate, nn.Linear):
            found.out_channel_groups[gate] = 2
    if type(model).__module__ == "torchvision.models.vision_transformer":
        encoder: Any = model.encoder
        found.round_to = encoder.layers[0].num_heads
    return found


def script_ignores(model: nn.Module) -> list[nn.Module]:
    """The layers that its script for torchvision leaves alone, of detection and optical flow."""
    names = (
        *("head", "rpn.head.cls_logits", "rpn.head.bbox_pred", "backbone.fpn", "roi_heads"),
        *("update_block.flow_head", "mask_predictor"),
    )
    if not type(model).__module__.startswith(("torchvision.models.detection", _FLOW)):
        return []
    modules = dict(model.named_modules())
    return [modules[name] for name in names if name in modules]


def _parameter(model: nn.Module, name: str) -> nn.Parameter | None:
    try:
        return model.get_parameter(name)
    except AttributeError:
        return None


def _attention(module: nn.Module) -> Attention | None:
    if isinstance(module, nn.MultiheadAttention):
        return None  # which it knows
    config = getattr(module, "config", None)
    heads = _first(module, HEADS) or _first(config, HEADS)
    if not heads:
        return None
    for name in JOINED:
        layer = getattr(module, name, None)
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            return Attention(module, joined=layer, heads=heads)
    for names in APART:
        layers = tuple(getattr(module, name, None) for name in names)
        if all(isinstance(layer, nn.Linear) for layer in layers):
            key_heads = _first(module, READERS) or _first(config, READERS) or heads
            return Attention(module, apart=layers, heads=heads, key_heads=key_heads)
    return None


def _first(holder: Any, names: tuple[str, ...]) -> int:
    values = (getattr(holder, name, None) for name in names)
    return next((value for value in values if type(value) is int and value > 0), 0)


def mend_(model: nn.Module, helps: Helps) -> None:
    """Sets the numbers in which modules hold their sizes, as its examples do after pruning."""
    for attention in helps.attentions:
        module = attention.module
        layer = attention.joined if attention.joined is not None else attention.apart[0]
        width = layer.weight.shape[0] // (3 if attention.joined is not None else 1)
        heads = helps.num_heads.get(layer, attention.heads)
        _set(module, HEADS, heads)
        _set(module, SIZES, width // heads)
        _set(module, WHOLE, width)
        if attention.apart:
            size = width // heads
            key_heads = attention.apart[1].weight.shape[0] // size
            _set(module, READERS, key_heads)
            if hasattr(module, "num_key_value_groups"):
                module.num_key_value_groups = heads // max(1, key_heads)
    if type(model).__module__ == "torchvision.models.vision_transformer":
        vit: Any = model
        vit.hidden_dim = vit.conv_proj.out_channels


def _set(module: Any, names: tuple[str, ...], value: int) -> None:
    for name in names:
        if type(module.__dict__.get(name)) is int:
            setattr(module, name, value)

"""Adapters of PEFT on grown layers: `pip install splitgrow[peft]`."""

from __future__ import annotations

from typing import Any

import peft
from peft.tuners.lora import layer as lora
from torch import nn

import splitgrow
from splitgrow.layers.split_layer import SplitLayer

_KINDS: tuple[tuple[type[nn.Module], Any], ...] = (
    (nn.Linear, lora.Linear),
    (nn.Embedding, lora.Embedding),
    (nn.Conv1d, lora.Conv1d),
    (nn.Conv2d, lora.Conv2d),
    (nn.Conv3d, lora.Conv3d),
)


def on_grown_layers(config: Any) -> Any:
    """Lets a LoraConfig put adapters on grown layers, by the type of the original block.

    The adapter reads all inputs of the layer as it is now, and adds to all its units. While there
    are adapters the model does not grow: `merge_adapters` makes it plain.

    Args:
        config: A `peft.LoraConfig`.

    Returns:
        The same config.

    Raises:
        TypeError: If it is none.

    Example:
        >>> import torch, peft
        >>> net = nn.Sequential()
        >>> net.add_module("up", nn.Linear(4, 6))
        >>> net.add_module("down", nn.Linear(6, 2))
        >>> net = splitgrow.growable(net, torch.ones(1, 4))
        >>> edit = net.expand_layer("up", 2)
        >>> config = on_grown_layers(peft.LoraConfig(target_modules=["up", "down"], r=2))
        >>> adapted = peft.get_peft_model(net, config)
        >>> plain = merge_adapters(adapted)
        >>> plain.up
        Linear(in_features=4, out_features=8, bias=True)
    """
    if not isinstance(config, peft.LoraConfig):
        raise TypeError(f"config must be a peft.LoraConfig, got {type(config).__name__}")
    made: Any = _adapter  # which PEFT calls as it would a class
    config._register_custom_module({SplitLayer: made})  # noqa: SLF001 - PEFT's documented way
    return config


def _adapter(layer: Any, adapter_name: str, **options: Any) -> nn.Module:
    """The adapter for a grown layer.

    Raises:
        UnsupportedLayerError: If PEFT has none for layers of its type.
    """
    original = layer.original
    if type(original).__name__ == "Conv1D":  # of transformers, whose weight lies the other way
        options = {**options, "fan_in_fan_out": True, "is_target_conv_1d_layer": True}
    kinds = (made for kind, made in _KINDS if isinstance(original, kind))
    made = next(kinds, lora.Linear if type(original).__name__ == "Conv1D" else None)
    if made is None:
        known = ", ".join(kind.__name__ for kind, _ in _KINDS)
        raise splitgrow.UnsupportedLayerError(
            f"a {type(original).__name__} that has grown takes no LoRA adapter; layers of these "
            f"types do: {known}. Make the model plain first, with splitgrow.merge"
        )
    # PEFT tells the sizes by the type: it is shown a plain layer first.
    adapter: nn.Module = made(layer.plain(), adapter_name, **options)
    adapter.base_layer = layer
    return adapter


def merge_adapters(adapted: Any) -> nn.Module:
    """A plain model with the adapters merged into its weights.

    PEFT's own ``merge_and_unload`` would write into the blocks, of which the past is frozen. Here
    the grown layers are merged first, in a copy.

    Args:
        adapted: What `peft.get_peft_model` made of a growable model. It is not changed.

    Returns:
        A model of the user's class, with stock layers, that computes the same.

    Raises:
        TypeError: If it is no `peft.PeftModel`.
        SplitGrowError: If its base model is not growable.
    """
    if not isinstance(adapted, peft.PeftModel):
        raise TypeError(f"adapted must be a peft.PeftModel, got {type(adapted).__name__}")
    plain = splitgrow.merge(adapted.get_base_model())
    for path, module in list(plain.named_modules()):
        if isinstance(module, lora.LoraLayer):
            module.merge()
            parent, _, name = path.rpartition(".")
            setattr(plain.get_submodule(parent), name, module.get_base_layer())
    return plain.requires_grad_(requires_grad=True)

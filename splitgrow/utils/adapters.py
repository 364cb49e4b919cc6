"""Whether somebody has injected adapters into a model: LoRA and its kin.

Such a layer holds the layer that it stands for, and in the end merges itself into that layer's
weight. Growth would freeze the adapter with everything else of a generation, and the merge would
change a weight that closed generations are made of.
"""

from __future__ import annotations

from torch import Tensor, nn

from splitgrow.errors import UnsupportedModelError
from splitgrow.utils.inert_children import outer_modules

_TYPES = frozenset(
    (
        "peft.tuners.tuners_utils.BaseTunerLayer",
        "peft.utils.other.AuxiliaryTrainingWrapper",
        "loralib.layers.LoRALayer",
        "adapters.methods.adapter_layer_base.AdapterLayerBase",
        "lycoris.modules.base.LycorisBaseModule",
        "torchtune.modules.peft.lora.LoRALinear",
        "torchtune.modules.peft.dora.DoRALinear",
    )
)


def is_adapter(module: nn.Module) -> bool:
    """Whether a module is an adapter: of a known library, or a wrapper that can merge and unmerge.

    Args:
        module: The module. By its methods it is one only if it holds a layer with a weight.
    """
    kind = type(module)
    if _is_known(kind):
        return True
    weights = (getattr(child, "weight", None) for child in module.children())
    return _merges(kind) and any(isinstance(weight, Tensor) for weight in weights)


def _is_known(kind: type[nn.Module]) -> bool:
    return any(f"{base.__module__}.{base.__qualname__}" in _TYPES for base in kind.__mro__)


def _merges(kind: type[nn.Module]) -> bool:
    return all(callable(getattr(kind, name, None)) for name in ("merge", "unmerge"))


def refuse_adapters(model: nn.Module, what: str) -> None:
    """Checks that no adapters are injected into a model.

    Args:
        model: The model that is about to change.
        what: The operation, as a verb.

    Raises:
        UnsupportedModelError: If there are some.
    """
    if not any(_is_known(kind) or _merges(kind) for kind in set(map(type, outer_modules(model)))):
        return
    for path, module in model.named_modules():
        if is_adapter(module):
            kind = f"{type(module).__module__}.{type(module).__qualname__}"
            raise UnsupportedModelError(
                f"cannot {what}: `{path}` is an adapter ({kind}), which would be frozen and could "
                f"not be merged later. Merge it first (merge_and_unload() of PEFT), grow, and add "
                f"adapters anew to splitgrow.merge(model)"
            )

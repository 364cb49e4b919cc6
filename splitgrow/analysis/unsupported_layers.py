"""Layers that cannot grow in any channel graph."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

from torch import Tensor, nn

from splitgrow.layers.types import (
    LayerType,
    Stock,
    layer_type_of,
    layer_type_of_class,
    sized_layers,
)
from splitgrow.layers.types.parametrized_layers import (
    PARAMETRIZATIONS,
    computed_names,
    is_parametrized,
    unfit_parametrization,
)
from splitgrow.utils.module_slots import held_by


def is_sized(layer: nn.Module) -> bool:
    """Whether a layer's width can be asked for, known or not."""
    entry = layer_type_of(layer)
    return entry.sized if entry is not None else isinstance(layer, sized_layers())


def subclass_refusal(module: nn.Module) -> str:
    """Why a subclass of a layer that could grow cannot."""
    base = next(layer for layer in sized_layers() if isinstance(module, layer))
    packed = packing_refusal(module)
    if packed:
        return packed
    kind = type(module)
    if is_parametrized(kind):
        kind = kind.__mro__[1]
        entry = layer_type_of_class(kind)
        if entry is not None:
            why = unfit_parametrization(module, entry) or f"it is a parametrized {kind.__name__}"
            return (
                f"{why}; remove the parametrization "
                f"(torch.nn.utils.parametrize.remove_parametrizations), and apply it again to what "
                f"splitgrow.merge makes of the grown model"
            )
    return (
        f"{_name_beside(base, kind)} is a subclass of {base.__name__} that splitgrow does "
        f"not know; teach it with splitgrow.register_layer"
    )


def packing_refusal(module: nn.Module, what: str = "new units could not join it") -> str:
    """Why a layer whose weight is quantized cannot grow; empty if it is not.

    Args:
        module: The layer.
        what: What follows from that.
    """
    weight = module._parameters.get("weight")  # noqa: SLF001
    if weight is None:
        return ""
    floating = weight.is_floating_point() or weight.is_complex()
    if floating and type(weight).dequantize is Tensor.dequantize:
        return ""
    return (
        f"its `weight` is quantized ({type(weight).__name__} of {weight.dtype}, shape "
        f"{tuple(weight.shape)}), so that {what}; grow the model before it is quantized, and "
        f"quantize what splitgrow.merge makes of it"
    )


def _name_beside(base: type, kind: type) -> str:
    same = kind.__name__ == base.__name__
    return f"{kind.__module__}.{kind.__qualname__}" if same else kind.__name__


def emptiness(entry: LayerType, sizes: tuple[int, int]) -> str:
    """Why a layer of these sizes cannot grow, if it has no channels to grow from."""
    if sizes[1] and (sizes[0] or not entry.reads_channels):
        return ""
    what = "inputs" if sizes[1] else "units"
    return f"it has no {what}; put a layer with at least one in its place"


def refusal_of(entry: LayerType, module: Stock) -> str:
    """Why one layer cannot grow with its settings; empty if it can.

    `torch.nn.utils.weight_norm`, `spectral_norm` and `prune` replace a parameter with a tensor that
    they compute anew before each forward.
    """
    if "forward" in vars(module):
        return (
            "something has put a forward of its own in front of the layer's (layer.forward = ...), "
            "which only calls the layer of today; use a hook or a module around it"
        )
    packed = packing_refusal(module)
    if packed:
        return packed
    held = (module._parameters, module._buffers)  # noqa: SLF001
    own = {name for tensors in held for name, tensor in tensors.items() if tensor is not None}
    known = entry.tensors(module).keys()
    for name in known:
        if (
            name not in own
            and name not in computed_names(module)
            and getattr(module, name, None) is not None
        ):
            return (
                f"its `{name}` is computed from other tensors before each call (weight norm, "
                f"spectral norm or pruning); remove that first, and apply it again to what "
                f"splitgrow.merge makes of the grown model"
            )
    extra = own - known - entry.kept(module)
    if extra:
        return f"it has tensors that its layer type does not know: {', '.join(sorted(extra))}"
    inside = (child for name, child in module.named_children() if name != PARAMETRIZATIONS)
    if any(True for child in inside for _ in child.parameters()):
        return "it has layers with parameters inside"
    return entry.limits(module)


def refusals(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Layers that cannot grow in any graph: those with stray references, or compiled ones."""
    found: dict[str, str] = {}
    names = {id(module): name for name, module in modules.items()}
    for holder, attribute, module in stray_references(modules, names):
        found.setdefault(
            names[id(module)],
            f"`{holder or 'the model'}` also holds it in a tuple or set in the attribute "
            f"`{attribute}`, where growth could not replace it; use a list or nn.ModuleList there",
        )
    for name in modules:
        if name.rpartition(".")[2] == "_orig_mod":
            found[name] = (
                "it was compiled by torch.compile(layer), which goes on calling it whatever is put "
                "in its place; use layer.compile() instead, or compile after growth"
            )
    if layer_type_of(modules[""]) is not None or isinstance(modules[""], sized_layers()):
        found[""] = "the model is itself one layer; put it into an nn.Sequential"
    return found


def stray_references(
    modules: Mapping[str, nn.Module], known: Container[int]
) -> Iterator[tuple[str, str, nn.Module]]:
    """Modules of the model that a module also holds where nothing could replace them."""
    for holder, module in modules.items():
        for attribute, container, _, held in held_by(module):
            if container is None and id(held) in known:
                yield holder, attribute, held

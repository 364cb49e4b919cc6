"""The layers that a journal names, found in a model and held against what it says of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from splitgrow.errors import CheckpointError
from splitgrow.growth.edit_parts import LayerChange, Removal
from splitgrow.layers.split_layer import stock
from splitgrow.layers.tensor_holder import layer_at
from splitgrow.layers.types import LayerType, TensorBlock, layer_type_of, type_name
from splitgrow.layers.types.tensor_layers import ROLES


def recorded_layer(
    modules: Mapping[str, nn.Module], record: LayerChange | Removal
) -> tuple[nn.Module, LayerType]:
    """The layer of a record, or the tensor as a layer, with the entry for its type.

    Args:
        modules: The model's modules by path.
        record: The record.

    Raises:
        CheckpointError: If there is no such layer, it is of another type, or the tensor does not
            lie along channels so.
    """
    try:
        module = layer_at(modules, record.name, record.use)
    except KeyError:
        raise CheckpointError(f"the model has no layer `{record.name}`") from None
    layer = stock(module)
    use = layer.use if isinstance(layer, TensorBlock) else None
    holder = modules.get(record.name.rpartition(".")[0])
    fits = use == record.use
    if isinstance(layer, TensorBlock) and use is not None:
        dims = [dim for dim in (use.ins, use.outs) if dim is not None]
        fits = fits and len({*dims}) == len(dims) and all(0 <= d < layer.value.dim() for d in dims)
        fits = fits and use.role in ROLES and bool(dims)
        fits = fits and holder is not None and layer_type_of(holder) is None
    if not fits:
        raise CheckpointError(f"`{record.name}` does not lie along channels as it does there")
    entry = layer_type_of(layer)
    if entry is None or type_name(layer) != record.kind:
        raise CheckpointError(
            f"`{record.name}` is a {record.kind} there, in this model a {type_name(layer)}"
        )
    return module, entry

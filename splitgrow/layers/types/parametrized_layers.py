"""Layers with a tensor that torch.nn.utils.parametrize computes: a weight under weight norm, say.

The original block keeps its parametrization, whatever that is: nothing of what it computes changes.
A row of a weight under weight norm would not keep its values if columns joined it. So new blocks
are plain layers, and so is the merged one, to which a parametrization can be applied again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from splitgrow.layers.kernels import Kernel
from splitgrow.layers.types.alike import Alike
from splitgrow.layers.types.layer_type import LayerType, Merging, Stock

PARAMETRIZATIONS = "parametrizations"
"""The name under which torch puts what computes a module's tensors among its children."""


def computed_names(module: nn.Module) -> frozenset[str]:
    """The names of a module's tensors that parametrizations compute."""
    return frozenset(parametrizations_of(module))


def own_tensors(module: nn.Module, name: str) -> Iterator[Any]:
    """What a module has of one of its tensors: that, or those that it is computed from."""
    *path, key = name.split(".")
    holder: Any = module
    for part in path:
        holder = (vars(holder).get("_modules") or {}).get(part, nn.Identity())
    own = vars(holder)
    found = own["_parameters"].get(key)
    found = own["_buffers"].get(key) if found is None else found
    if found is not None:
        yield found
    elif name in (made := parametrizations_of(module)):
        yield from made[name].parameters()


def parametrizations_of(module: nn.Module) -> dict[str, nn.Module]:
    """What computes a module's tensors, by their names."""
    found = (vars(module).get("_modules") or {}).get(PARAMETRIZATIONS)
    return dict(found.items()) if isinstance(found, nn.ModuleDict) else {}


class _PlainBlocks(Merging):
    """What growth adds are plain layers, beside an original whose tensors are computed."""

    computes_weight = True

    @property
    def joins_new(self) -> bool:
        return True

    def value(self, block: Stock, name: str) -> Tensor | None:
        # Not the method of the base, so that the tensors do not count as being the blocks' own.
        tensor: Tensor | None = getattr(block, name)
        return tensor


class Parametrized(Alike):
    """A layer of a known type, some of whose tensors are computed at each call."""

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        """A plain layer."""
        like = next(p for p in module.parameters() if p.is_floating_point() or p.is_complex())
        return self.base.build(
            module, sizes, **{"device": like.device, "dtype": like.dtype, **options}
        )

    @cached_property
    def merging(self) -> Merging:
        """Blocks of the plain type."""
        return _PlainBlocks(self.build)

    def kernel(self, module: Stock) -> Kernel | None:
        """As its base has it."""
        return self.base.kernel(module)

    def covers(self, module: Stock) -> bool:
        """Whether nothing else than the layer's parameters makes its tensors."""
        return not unfit_parametrization(module, self.base) and self.base.covers(module)


def unfit_parametrization(module: nn.Module, base: LayerType) -> str:
    """Why a parametrized layer of a known type cannot grow; empty if it can.

    Args:
        module: The layer.
        base: The entry of its type.
    """
    for name, made in parametrizations_of(module).items():
        if name not in base.tensors(module):
            return f"its layer type does not know the parametrized tensor `{name}`"
        if any(True for _ in made.buffers()):
            return (
                f"the parametrization of its `{name}` has values of its own, which calls can "
                f"change as those of spectral norm"
            )
    return ""


def is_parametrized(layer: type[nn.Module]) -> bool:
    """Whether torch has made a class for one parametrized module, a subclass of the module's own.

    It has a property for each tensor that is computed.
    """
    named = layer.__name__ == f"Parametrized{layer.__mro__[1].__name__}"
    return named and any(isinstance(value, property) for value in vars(layer).values())


def parametrized_layer(base: LayerType | None) -> LayerType | None:
    """The entry for a parametrized layer, by that of the class which it had before.

    None where no plain layer could stand beside it: all of the tensors have to make the layer as
    they are.
    """
    if base is None or not base.sized or base.merging.joint or not base.merging.side_by_side:
        return None
    if base.merging.couples or base.merging.block is not None:
        return None
    return Parametrized(base)

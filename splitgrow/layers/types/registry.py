"""The layer types that can grow: one entry says all that the rest of the library needs of a type.

A kind knows on which dimension its channels lie, which of its tensors run along outputs and inputs,
and how to make a block of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from splitgrow.layers.kernels import Kernel


@dataclass(frozen=True, slots=True)
class Along:
    """What a tensor's dimension runs along: the layer's outputs or inputs, or a section of them.

    With `sections` of 4 the dimension covers one of four equal sections, as the input dimension of
    a convolution with four groups does.
    """

    side: Literal["out", "in"]
    sections: int = 1


TensorAxes = Mapping[int, Along]

Stock: TypeAlias = Any
"""A stock layer: a module with the attributes of its own type."""


class LayerKind(ABC):
    """What splitgrow knows of one layer type."""

    layers: tuple[type[nn.Module] | str, ...] = ()
    """The layer types that the entry is for, by exact type; of a library that need not be installed
    by dotted name."""

    sized: bool = False
    """Whether its width can be asked for; the others follow the layer that they read."""

    mixes: bool = True
    """Whether it also mixes along dimensions other than the channels', such as space or batch."""

    reads_channels: bool = True
    """Whether its input has channels; an embedding's has none."""

    couples: bool = False
    """Whether all channels share a statistic, so that its blocks can only run as one, and new
    channels must be silent at birth."""

    computes_weight: bool = False
    """Whether its weight is made from its parameters at each call, so that `value` is not the
    parameter itself."""

    side_by_side: bool = True
    """Whether the plain layer's tensors are those of the blocks, side by side."""

    @abstractmethod
    def channel_dim(self, module: Stock) -> int:
        """The dimension of input and output on which the channels lie."""

    @abstractmethod
    def sizes(self, module: Stock) -> tuple[int, int]:
        """The numbers of input and output channels."""

    @abstractmethod
    def tensors(self, module: Stock) -> Mapping[str, TensorAxes]:
        """Which dimensions of its parameters and buffers run along its channels."""

    @abstractmethod
    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        """A layer like `module` with other numbers of (input, output) channels.

        Args:
            module: The layer to take everything else from.
            sizes: The numbers of input and output channels.
            options: `bias` to say whether it has one (default: as `module`), `device` and `dtype`
                (default: those of `module`).
        """

    def build_helper(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        """A block that reads new inputs, without bias: what it adds to has one."""
        return self.build(module, sizes, bias=False, **options)

    def build_merged(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        """The layer that a grown one becomes again when its blocks are put together."""
        return self.build(module, sizes, **options)

    def value(self, block: Stock, name: str) -> Tensor | None:
        """One of a block's tensors as the merged layer has it."""
        tensor: Tensor | None = getattr(block, name)
        return tensor

    def kernel(self, module: Stock) -> Kernel | None:  # noqa: ARG002
        """The layer's arithmetic with its gradients apart; None if torch's autograd has to do."""
        return None

    def batch_norm(self, module: Stock) -> bool:  # noqa: ARG002
        """Whether it is a batch norm, some blocks of which may be held while others move."""
        return False

    def rescales(self, module: Stock) -> bool:  # noqa: ARG002
        """Whether it brings each channel, or each few, to a size of their own: its `weight`.

        Then the size of the weights that make a channel has no effect.
        """
        return False

    def reads_neighbours(self, module: Stock) -> bool:  # noqa: ARG002
        """Whether an output position reads more than the same position of its input."""
        return False

    def runs_as_one(self, module: Stock) -> bool:  # noqa: ARG002
        """Whether one layer with the blocks' tensors put together may run in place of them."""
        return True

    def keeps_statistics(self, module: Stock) -> bool:  # noqa: ARG002
        """Whether it changes its buffers while it trains."""
        return False

    def finished(self, module: Stock, y: Tensor) -> Tensor:  # noqa: ARG002
        """What it makes of the output of its batch norm."""
        return y

    def carried_over(self, name: str, tensor: Tensor, born: int, now: int) -> Tensor:  # noqa: ARG002
        """A tensor of a block as it counts in a layer that has become wider since.

        Args:
            name: The tensor's name.
            tensor: Its value.
            born: The number of outputs of the whole layer when the block was made.
            now: The number of outputs of the whole layer.
        """
        return tensor

    def output_shape(
        self,
        module: Stock,  # noqa: ARG002
        shape: tuple[int, ...],  # noqa: ARG002
    ) -> tuple[int, ...] | None:
        """The shape of its output for an input of this shape; None to find out by running it."""
        return None

    def stock_parts(self, module: Stock) -> list[nn.Module]:  # noqa: ARG002
        """Stock torch.nn layers that one after the other compute the same, for deployment.

        Empty if it is a stock layer itself, or there are none.
        """
        return []

    def diagonal(self, module: Stock) -> bool:  # noqa: ARG002
        """Whether each output reads its own input channel only, so that a block adds no helper."""
        return True

    def sections(self, module: Stock) -> int:  # noqa: ARG002
        """In how many equal sections its inputs and outputs are computed apart from each other."""
        return 1

    def bundle(self, module: Stock) -> int:  # noqa: ARG002
        """How many neighbouring channels are computed together and can only be added whole."""
        return 1

    def covers(self, module: Stock) -> bool:  # noqa: ARG002
        """Whether the module has channels of its own at all."""
        return True

    def refusal(self, module: Stock) -> str:
        """Why this one module cannot grow; empty if it can.

        `torch.nn.utils.weight_norm`, `spectral_norm` and `prune` take a parameter away and leave
        a tensor in its place that they compute anew before each forward.
        """
        if "forward" in vars(module):
            return (
                "something has put a forward of its own in front of the layer's (layer.forward = "
                "...), which only calls the layer of today; use a hook or a module around it"
            )
        held = (module._parameters, module._buffers)  # noqa: SLF001
        own = {name for tensors in held for name, tensor in tensors.items() if tensor is not None}
        for name in self.tensors(module):
            if name not in own and getattr(module, name, None) is not None:
                return (
                    f"its `{name}` is computed from other tensors before each call (weight norm, "
                    f"spectral norm or pruning); remove that first, and apply it again to what "
                    f"splitgrow.merge makes of the grown model"
                )
        extra = own - self.tensors(module).keys() - {"num_batches_tracked"}
        if extra:
            return f"it has tensors that its kind does not know: {', '.join(sorted(extra))}"
        if any(True for child in module.children() for _ in child.parameters()):
            return "it has layers with parameters inside"
        return self.limits(module)

    def limits(self, module: Stock) -> str:  # noqa: ARG002
        """What this kind of layer, as it is set up here, cannot do; empty if it can grow."""
        return ""


LAYER_TYPES: dict[type[nn.Module] | str, LayerKind] = {}
FOUND: WeakKeyDictionary[type[nn.Module], LayerKind | None] = WeakKeyDictionary()
"""What was found for each type that was asked for, as long as there is that type."""


BUILT_IN_TYPES: dict[type[nn.Module] | str, LayerKind] = {}
"""Those that are splitgrow's own."""


def add_kind(kind: LayerKind) -> LayerKind:
    """Adds an entry for its layer types.

    Raises:
        ValueError: If one of the types has an entry already.
    """
    for layer in kind.layers:
        if layer in LAYER_TYPES:
            raise ValueError(
                f"{dotted_name(layer)} is registered already, by "
                f"{type(LAYER_TYPES[layer]).__name__}"
            )
    LAYER_TYPES.update(dict.fromkeys(kind.layers, kind))
    FOUND.clear()
    return kind


def remove_kind(layers: Iterable[type[nn.Module] | str]) -> None:
    """Takes the entries of layer types out again, all of them or none.

    Raises:
        ValueError: If one of them has none, or one of splitgrow's own.
    """
    for layer in layers:
        if layer in BUILT_IN_TYPES:
            raise ValueError(f"{dotted_name(layer)} is one of splitgrow's own layer types")
        if layer not in LAYER_TYPES:
            raise ValueError(f"{dotted_name(layer)} is not registered")
    for layer in layers:
        del LAYER_TYPES[layer]
    FOUND.clear()


def dotted_name(layer: type[nn.Module] | str) -> str:
    """The dotted name of a layer type."""
    return layer if isinstance(layer, str) else f"{layer.__module__}.{layer.__qualname__}"

"""The entry for a layer type: its channels, and how the library treats such layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from splitgrow.layers.kernels import Kernel
from splitgrow.layers.types.start_values import UNCHANGED, Carry, Joined, Start


@dataclass(frozen=True, slots=True)
class Along:
    """The channels along a tensor's dimension: the layer's outputs or inputs, or a section of them.

    Attributes:
        side: Whether they are outputs or inputs.
        sections: With 4 the dimension covers one of four equal sections, as the input dimension of
            a convolution with four groups does.
        copies: How many times they follow each other, as a dimension for four gates has them four
            times. Each copy gains its channels at its own place.
        back: Whether the layer reads its own outputs along the dimension, as a recurrent one does.
    """

    side: Literal["out", "in"]
    sections: int = 1
    copies: int = 1
    back: bool = False

    @property
    def reads(self) -> bool:
        """Whether the dimension has the weights for the channels that the layer reads."""
        return self.side == "in" or self.back

    def length(self, sizes: tuple[int, int]) -> int:
        """The length of the dimension in a layer with these numbers of (input, output) channels."""
        return sizes[self.side == "out"] // self.sections * self.copies


TensorAxes = Mapping[int, Along]

Stock: TypeAlias = Any
"""A stock layer: a module with the attributes of its own type."""


Nested: TypeAlias = "int | tuple[Nested, ...]"


@dataclass(frozen=True, slots=True)
class Signature:
    """The channels of the tensors that a layer takes and returns, where these are several.

    A number stands for a tensor, in the nesting in which forward has them. It says how many times
    the layer's outputs follow each other along the tensor's channel dimension; 0 if that has none.

    Attributes:
        states: The tensors of the second argument, which it may lack.
        results: The tensors that it returns.
        name: The second argument's name.
    """

    states: Nested
    results: Nested
    name: str = "hx"


def _unchanged(y: Tensor) -> Tensor:
    return y


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm that brings each channel, or each few, to their own size: its `weight`.

    The size of the weights that make a channel then has no effect. A norm with a `running_mean`
    changes it while it trains.

    Attributes:
        batch: Whether it is a batch norm. Its blocks run in one pass, also while some are held and
            others move.
        finished: How the layer's output is made from that of its batch norm.
    """

    batch: bool = False
    finished: Callable[[Tensor], Tensor] = _unchanged


@dataclass(frozen=True)
class Merging:
    """How the blocks of a grown layer make one plain layer: by default, their tensors side by side.

    A layer type whose tensors do not lie side by side has a subclass of this.

    Attributes:
        build: The layer type's own `LayerType.build`.
        block: The type of the blocks that growth adds; None for that of the layer itself.
        joint: Whether the blocks can only run as one, since each needs the results of the others.
        couples: Whether that is because all channels share a statistic. New channels may then join
            only with certain values: see `LayerType.starts`.
        correction: The number by which the number of channels is lowered in their mean.
        computes_weight: Whether the weight is made from the parameters at each call, so that
            `value` is not the parameter itself.
        computes_new: Whether so is that of the blocks that growth adds.
    """

    build: Callable[..., nn.Module]
    block: ClassVar[type[nn.Module] | None] = None
    joint: ClassVar[bool] = False
    couples: ClassVar[bool] = False
    correction: ClassVar[int] = 0
    computes_weight: ClassVar[bool] = False
    computes_new: ClassVar[bool] = False

    @property
    def side_by_side(self) -> bool:
        """Whether the plain layer's tensors are those of the blocks, as they are."""
        return self.reads_stores and type(self).carried_over is Merging.carried_over

    @property
    def reads_stores(self) -> bool:
        """Whether `value` of a parameter is the one that the block's store has."""
        return type(self).value is Merging.value

    @property
    def keeps_weight(self) -> bool:
        """Whether the plain layer's tensors are those of the blocks, as they are or `turned`."""
        return self.side_by_side

    def turned(self, block: Stock) -> bool:  # noqa: ARG002
        """Whether a block's weight is the transpose of what the plain layer has."""
        return False

    @property
    def joins_new(self) -> bool:
        """Whether the tensors of blocks that growth adds make those of one such block together."""
        return self.side_by_side

    def helper(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        """A block that reads new inputs, without bias: the blocks that it adds to have one."""
        return self.build(module, sizes, bias=False, **options)

    def new(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        """A block of new outputs, which reads all inputs."""
        return self.build(module, sizes, **options)

    def merged(
        self,
        module: Stock,
        sizes: tuple[int, int],
        carry: Carry = UNCHANGED,  # noqa: ARG002
        **options: Any,
    ) -> nn.Module:
        """The plain layer, its values unset.

        Args:
            module: The original layer.
            sizes: The numbers of input and output channels.
            carry: The factors for what the original layer has, once all channels have joined.
            options: As in `LayerType.build`.
        """
        return self.build(module, sizes, **options)

    def given(self, plain: Stock) -> nn.Module:
        """A plain layer into which tensors were put: brings all else that holds them in line."""
        return plain  # type: ignore[no-any-return]

    def value(self, block: Stock, name: str) -> Tensor | None:
        """One of a block's tensors as the plain layer has it."""
        own: Tensor | None = None
        if not torch.compiler.is_compiling():
            own = vars(block)["_parameters"].get(name)
        tensor: Tensor | None = getattr(block, name) if own is None else own
        return tensor

    def carry(self, joined: Iterable[Joined]) -> Carry:
        """The factors for what a block has, once other channels have joined."""
        return Carry.over(joined, self.correction)

    def carried_over(self, name: str, tensor: Tensor, carry: Carry) -> Tensor:  # noqa: ARG002
        """A block's tensor, adjusted to the channels that have joined the layer since.

        Args:
            name: The tensor's name.
            tensor: Its value.
            carry: The factors for it.
        """
        return tensor


class LayerType(ABC):
    """The entry for one layer type: all that splitgrow knows of it.

    `channel_dim`, `sizes`, `tensors` and `build` say where the channels lie. A layer that computes
    each channel by itself needs no more. The other methods have defaults.
    """

    layers: tuple[type[nn.Module] | str, ...] = ()
    """The layer types of the entry, by exact type, or by dotted name where not always installed."""

    sized: bool = False
    """Whether its width can be asked for; the others follow the layer that they read."""

    mixes: bool = True
    """Whether it also mixes along dimensions other than the channels', such as space or batch."""

    reads_channels: bool = True
    """Whether its input has channels; an embedding's has none."""

    looks_up: bool = False
    """Whether its inputs are the rows of a table, of which it looks some up."""

    shifts: tuple[str, ...] = ("bias",)
    """The names of the tensors that are added, so that zeros do not stay zeros."""
    compiles: bool = True
    """Whether torch's compiler follows its forward, rather than ending its graph there."""

    # -- where the channels lie -------------------------------------------------------------------

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

    def kept(self, module: Stock) -> frozenset[str]:  # noqa: ARG002
        """The names of tensors that have no channels, of which each block has its own."""
        return frozenset(("num_batches_tracked",))

    def bundle(self, module: Stock) -> int:  # noqa: ARG002
        """How many neighbouring channels are computed together and can only be added whole."""
        return 1

    def diagonal(self, module: Stock) -> bool:
        """Whether each output reads its own input channel only, so that a block adds no helper."""
        sides = [{along.side for along in axes.values()} for axes in self.tensors(module).values()]
        return self.reads_channels and {"in", "out"} not in sides

    def sections(self, module: Stock) -> int:
        """In how many equal sections its inputs and outputs are computed apart from each other."""
        found = (along for axes in self.tensors(module).values() for along in axes.values())
        return max((along.sections for along in found), default=1)

    def reads_back(self, module: Stock) -> bool:
        """Whether it reads its own outputs, so that it gets a helper for those that are new."""
        return any(along.back for axes in self.tensors(module).values() for along in axes.values())

    def side_of(self, module: Stock, number: str) -> Literal["in", "out", ""] | None:  # noqa: ARG002
        """Which channels one of its attributes counts; "" if it never changes, None if unclear."""
        if "group" in number:
            return None
        return "in" if number.startswith("in") else "out"

    def input_of(self, x: Any) -> Any:
        """The tensor with the input channels, of the first argument of a call."""
        return x

    # -- how it runs as one layer -----------------------------------------------------------------

    @cached_property
    def merging(self) -> Merging:
        """How blocks make one plain layer."""
        return Merging(self.build)

    def kernel(self, module: Stock) -> Kernel | None:  # noqa: ARG002
        """The layer's arithmetic with its gradients apart; None if torch's autograd has to do."""
        return None

    def norm(self, module: Stock) -> Norm | None:  # noqa: ARG002
        """Its entry as a norm; None if it is none."""
        return None

    def starts(self, module: Stock) -> Mapping[Start, Start]:  # noqa: ARG002
        """How new channels may join where all channels share a statistic.

        Maps the states at birth of new input channels that leave the old outputs as they are to the
        states of the new outputs. Empty where each channel is by itself.
        """
        return {}

    def runs_as_one(self, module: Stock) -> bool:  # noqa: ARG002
        """Whether one layer with the blocks' tensors put together may run in place of them."""
        return True

    def answers(self, layer: Any) -> Mapping[str, Callable[[], Any]]:  # noqa: ARG002
        """Attributes that a grown layer makes of its others, where the plain one keeps them."""
        return {}

    # -- its calls, and its deployment ------------------------------------------------------------

    def signature(self, module: Stock) -> Signature | None:  # noqa: ARG002
        """The tensors of its calls; None if it takes one and returns one."""
        return None

    def result_shapes(
        self,
        module: Stock,
        shape: tuple[int, ...],
        states: Sequence[tuple[int, ...]],  # noqa: ARG002
    ) -> list[tuple[int, ...]] | None:
        """The shapes of all that it returns, given those of its input and of its states.

        None if only a run of it tells.
        """
        found = self.output_shape(module, shape)
        return None if found is None else [found]

    def output_shape(
        self,
        module: Stock,  # noqa: ARG002
        shape: tuple[int, ...],  # noqa: ARG002
    ) -> tuple[int, ...] | None:
        """The shape of its output for an input of this shape; None if only a run of it tells."""
        return None

    def stock_parts(self, module: Stock) -> list[nn.Module]:  # noqa: ARG002
        """Stock torch.nn layers that compute the same, one after the other, for deployment.

        Empty if it is a stock layer itself, or there are none.
        """
        return []

    # -- which modules of the type can grow -------------------------------------------------------

    def covers(self, module: Stock) -> bool:  # noqa: ARG002
        """Whether the module has channels of its own at all."""
        return True

    def limits(self, module: Stock) -> str:  # noqa: ARG002
        """Why this layer of the type cannot grow; empty if it can."""
        return ""

"""The parts of an edit: the change of each layer, number and input, and each inserted layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from splitgrow.layers.tensor_holder import blocks_path
from splitgrow.layers.types import TensorUse

Insertions = tuple[tuple[int, int], ...]
"""Pairs of a position before the edit and the number of positions inserted there."""


@dataclass(frozen=True)
class LayerChange:
    """The change of one layer in an edit.

    Attributes:
        name: The layer's module path.
        kind: The name of its stock layer type, such as ``Conv2d``.
        in_width: The number of input channels before and after.
        width: The number of output channels before and after.
        ins: The places of new input channels.
        outs: The places of new output channels.
        blocks: The added blocks, in order: "helper", "new".
        parameters: The number of parameters that they add.
        start_ins: For each insertion of inputs, the values that they have until they learn: "free",
            "zero", "mean" or "copy".
        start_outs: For each insertion of outputs, the values that they must have.
        join: How the outputs join in a statistic that all share: "", "dilutes" or "shares".
        use: For a parameter or buffer of a module, how it lies along channels; None for a module.
    """

    name: str
    kind: str
    in_width: tuple[int, int]
    width: tuple[int, int]
    ins: Insertions
    outs: Insertions
    blocks: tuple[str, ...]
    parameters: int
    start_ins: tuple[str, ...] = ()
    start_outs: tuple[str, ...] = ()
    join: str = ""
    use: TensorUse | None = None

    @property
    def path(self) -> str:
        """The path of the module that has the blocks."""
        return self.name if self.use is None else blocks_path(self.name)


@dataclass(frozen=True)
class NumberChange:
    """The change of a number that a module holds, such as a number of heads.

    Attributes:
        module: The module's path.
        attribute: The attribute's name, with an index in brackets if it is a list or tuple.
        value: The number before and after. A float is a factor that experts share.
    """

    module: str
    attribute: str
    value: tuple[int | float, int | float]


@dataclass(frozen=True)
class InputChange:
    """The change of an input of the model.

    Attributes:
        name: The name of forward's argument.
        dim: The dimension of its channels.
        width: The number of channels before and after.
    """

    name: str
    dim: int
    width: tuple[int, int]


@dataclass(frozen=True)
class JoinedBlocks:
    """The change of one layer in an edit that joins blocks.

    Attributes:
        name: The layer's module path.
        edits: The edits whose blocks become those of this one.
    """

    name: str
    edits: tuple[int, ...]


@dataclass(frozen=True)
class Insertion:
    """A layer that an edit inserts into the network.

    Attributes:
        host: The path of the module next to it.
        before: Whether it works on the module's input, rather than on its output.
        kind: "identity", "residual", "gate", "block", "stack", "interpolate", "fade" or
            "replacement"; or "experts" for further experts of a mixture.
        name: The path of the inserted module.
        type: The types of its layers.
        width: The number of channels of its input, or of the experts.
        parameters: The number of its parameters.
        options: The options of the request, as far as they are plain data; "moved" is how far a
            kind that is not exact has moved the outputs, relative to the largest.
        tensor_result: Whether the module next to it returns one tensor, rather than several.
        recipe: The data from which it can be made again: see `splitgrow.growth.insertion.recipes`.
    """

    host: str
    before: bool
    kind: str
    name: str
    type: str
    width: int
    parameters: int
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    tensor_result: bool = True
    recipe: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        if self.kind == "experts":
            return (
                f"{self.width} experts beside those of {self.host}, as {self.name}: {self.type}, "
                f"{self.parameters:,} parameters"
            )
        side = "in front of" if self.before else "behind"
        moved = self.options.get("moved")
        change = "" if moved is None else f"; the outputs moved by {moved:.1%} of the largest"
        return (
            f"{'an' if self.kind == 'identity' else 'a'} {self.kind} {side} {self.host}, as "
            f"{self.name}: {self.type}, {self.width} channels, {self.parameters:,} parameters"
            f"{change}"
        )


@dataclass(frozen=True)
class Removal:
    """The channels that one layer loses in an edit.

    Attributes:
        name: The layer's module path.
        kind: The name of its stock layer type.
        in_width: The number of input channels before and after.
        width: The number of output channels before and after.
        ins: The input channels that go, as stretches of a position before the edit and a length.
        outs: The output channels that go.
        parameters: The number of parameters that the layer loses.
        use: For a parameter or buffer of a module, how it lies along channels; None for a module.
    """

    name: str
    kind: str
    in_width: tuple[int, int]
    width: tuple[int, int]
    ins: Insertions
    outs: Insertions
    parameters: int
    use: TensorUse | None = None

    @property
    def path(self) -> str:
        """The path of the module that has its blocks, if it has grown."""
        return self.name if self.use is None else blocks_path(self.name)

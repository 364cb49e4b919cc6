"""The entries for torch's recurrent layers and cells.

Their units read each other, so their blocks can only run as one layer. A block that growth adds is
no layer: it has parts of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from splitgrow.layers.types.layer_type import (
    Along,
    LayerType,
    Merging,
    Nested,
    Signature,
    Stock,
    TensorAxes,
)
from splitgrow.layers.types.registry import add_layer_type
from splitgrow.layers.types.torch_layers import placement_of


class RecurrentBlock(nn.Module):
    """The weights that a growth adds to a recurrent layer; it does not run by itself.

    Attributes:
        axes: Which dimensions of its tensors run along the layer's channels.
    """

    def __init__(self, axes: Mapping[str, TensorAxes]) -> None:
        super().__init__()
        self.axes = axes

    def extra_repr(self) -> str:
        """The shapes of its tensors."""
        return ", ".join(f"{name}={tuple(p.shape)}" for name, p in self.named_parameters())


class _BlockType(LayerType):
    """The entry for the blocks."""

    layers = (RecurrentBlock,)

    def channel_dim(self, module: Stock) -> int:  # noqa: ARG002
        return -1

    def sizes(self, module: Stock) -> tuple[int, int]:
        raise NotImplementedError("it is a part of a layer")

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        raise NotImplementedError("it is a part of a layer")

    def tensors(self, module: Stock) -> Mapping[str, TensorAxes]:
        axes: Mapping[str, TensorAxes] = module.axes
        return axes

    def diagonal(self, module: Stock) -> bool:  # noqa: ARG002
        return False


@dataclass(frozen=True)
class _Joint(Merging):
    """The blocks of a layer whose units read each other."""

    entry: _Recurrent
    block = RecurrentBlock
    joint = True

    def helper(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        return self.entry.block(module, sizes, options, helper=True)

    def new(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        return self.entry.block(module, sizes, options, helper=False)

    def given(self, plain: Stock) -> nn.Module:
        own = plain.__dict__
        names = own.get("_flat_weights_names")
        if names is not None:  # torch takes its weights from a list, and compares them with these
            own["_flat_weights"] = [own["_parameters"].get(name) for name in names]
            own["_flat_weight_refs"] = [None] * len(names)
        answer: nn.Module = plain
        return answer


class _Recurrent(LayerType):
    """A layer that reads its own hidden units.

    Args:
        layer: The type of torch.nn.
        gates: How many times the hidden units follow each other along its weights.
    """

    sized = True

    def __init__(self, layer: type[nn.Module], gates: int) -> None:
        self.layer, self.layers, self.gates = layer, (layer,), gates

    def channel_dim(self, module: Stock) -> int:  # noqa: ARG002
        return -1

    def sizes(self, module: Stock) -> tuple[int, int]:
        return module.input_size, module.hidden_size

    def diagonal(self, module: Stock) -> bool:  # noqa: ARG002
        return False

    @cached_property
    def merging(self) -> Merging:
        return _Joint(self.build, self)

    def states(self) -> Nested:
        """The states of a call: an LSTM has cells besides its hidden units."""
        return (1, 1) if self.gates == 4 else 1

    def hidden(self, module: Stock, outs: int) -> int:
        """The number of hidden units of a layer with so many outputs."""
        del module
        return outs

    def answers(self, layer: Any) -> Mapping[str, Callable[[], Any]]:
        return {"reset_parameters": lambda: partial(_reset_, layer, self.tensors(layer.original))}

    def block(
        self, module: Stock, sizes: tuple[int, int], options: Mapping[str, Any], *, helper: bool
    ) -> nn.Module:
        """A block: the parts of the weights that read new channels, or those of new units.

        Raises:
            ValueError: If the layer cannot become so wide.
        """
        ins, outs = sizes
        back = options["back"]
        bound = self.hidden(module, outs if helper else back) ** -0.5
        made = RecurrentBlock(self.tensors(module))
        for name, axes in made.axes.items():
            like = getattr(module, name)
            grows = like is not None and any(along.reads == helper for along in axes.values())
            shape = list(like.shape) if grows else [0]
            for dim, along in axes.items() if grows else ():
                length = ins if along.side == "in" else back if along.back else outs
                shape[dim] = along.length((length, length))
            tensor = None
            if 0 not in shape:
                empty = like.new_empty(shape, device=options.get("device", like.device))
                with torch.no_grad():  # as torch's own reset_parameters
                    tensor = nn.Parameter(empty.uniform_(-bound, bound))
            made.register_parameter(name, tensor)
        return made


class _Cell(_Recurrent):
    """A recurrent layer that takes one step."""

    def tensors(self, module: Stock) -> Mapping[str, TensorAxes]:  # noqa: ARG002
        rows = Along("out", copies=self.gates)
        return {
            "weight_ih": {0: rows, 1: Along("in")},
            "weight_hh": {0: rows, 1: Along("out", back=True)},
            "bias_ih": {0: rows},
            "bias_hh": {0: rows},
        }

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        more = {"nonlinearity": module.nonlinearity} if self.gates == 1 else {}
        bias = module.bias_ih is not None
        return self.layer(*sizes, bias=bias, **more, **placement_of(module, options))

    def signature(self, module: Stock) -> Signature:  # noqa: ARG002
        return Signature(self.states(), self.states())

    def result_shapes(
        self, module: Stock, shape: tuple[int, ...], states: Sequence[tuple[int, ...]]
    ) -> list[tuple[int, ...]] | None:
        if len(shape) not in (1, 2) or shape[-1] != module.input_size:
            return None
        found = [(*shape[:-1], module.hidden_size)] * (2 if self.gates == 4 else 1)
        return found if not states or list(states) == found else None


class _Stack(_Recurrent):
    """A recurrent layer that runs over a sequence; it may have several in a stack.

    All of a stack have one width, so they grow together. Of an LSTM with a projection, the width is
    that of the projection; its hidden units stay.
    """

    compiles = False

    def sizes(self, module: Stock) -> tuple[int, int]:
        return module.input_size, module.proj_size or module.hidden_size

    def hidden(self, module: Stock, outs: int) -> int:
        hidden: int = module.hidden_size
        if not module.proj_size:
            return outs
        if outs >= hidden:
            raise ValueError(
                f"an LSTM with a projection to {outs} needs more than {outs} hidden units, and it "
                f"has {hidden}, which cannot grow beside a projection; make hidden_size larger "
                f"from the beginning"
            )
        return hidden

    def tensors(self, module: Stock) -> Mapping[str, TensorAxes]:
        directions = 2 if module.bidirectional else 1
        rows: dict[int, Along] = {}
        if not module.proj_size:
            rows[0] = Along("out", copies=self.gates)
        below = Along("out", copies=directions, back=True)
        axes: dict[str, TensorAxes] = {
            "weight_ih": {**rows, 1: below},
            "weight_hh": {**rows, 1: Along("out", back=True)},
            "bias_ih": rows,
            "bias_hh": rows,
            "weight_hr": {0: Along("out")},
        }
        first = {**rows, 1: Along("in")}
        return {
            name: first if name.startswith("weight_ih_l0") else axes[name[: name.rindex("_l")]]
            for name in _names(module)
        }

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        own: dict[str, Any] = {
            name: getattr(module, name)
            for name in ("num_layers", "bias", "batch_first", "bidirectional")
        }
        hidden = self.hidden(module, sizes[1])
        if module.proj_size:
            own["proj_size"] = sizes[1]
        if self.gates == 1:
            own["nonlinearity"] = module.nonlinearity
        built = self.layer(sizes[0], hidden, **own, **placement_of(module, options))
        built.dropout = module.dropout  # set here, where torch does not warn a second time
        return built

    def side_of(self, module: Stock, number: str) -> Literal["in", "out", ""] | None:
        stays = "hidden_size" if module.proj_size else "proj_size"
        return "" if number == stays else super().side_of(module, number)

    def input_of(self, x: Any) -> Any:
        return x.data if isinstance(x, PackedSequence) else x

    def signature(self, module: Stock) -> Signature:
        states = (1, 0) if module.proj_size else self.states()
        return Signature(states, (2 if module.bidirectional else 1, states))

    def result_shapes(
        self, module: Stock, shape: tuple[int, ...], states: Sequence[tuple[int, ...]]
    ) -> list[tuple[int, ...]] | None:
        if len(shape) not in (2, 3) or shape[-1] != module.input_size:
            return None
        directions, width = 2 if module.bidirectional else 1, self.sizes(module)[1]
        layers = module.num_layers * directions
        rest = () if len(shape) == 2 else (shape[0 if module.batch_first else 1],)
        own = [(layers, *rest, width)]
        if self.gates == 4:
            own.append((layers, *rest, module.hidden_size))
        return [(*shape[:-1], directions * width), *own] if states in ([], own) else None

    def answers(self, layer: Any) -> Mapping[str, Callable[[], Any]]:
        names = _names(layer.original)
        return {
            **super().answers(layer),
            "_flat_weights_names": lambda: names,
            "_flat_weights": lambda: [getattr(layer, name) for name in names],
            "_all_weights": lambda: vars(layer.original)["_all_weights"],
            "flatten_parameters": lambda: _nothing,
        }


def _names(module: Stock) -> list[str]:
    names: list[str] = vars(module)["_flat_weights_names"]
    return names


@torch.no_grad()
def _reset_(layer: Any, names: Iterable[str]) -> None:
    """As torch's own, which draws for one parameter after the other; of a layer with blocks."""
    bound = layer.hidden_size**-0.5
    for name in names:
        tensor = getattr(layer, name)
        if tensor is not None:
            nn.init.uniform_(tensor, -bound, bound)


def _nothing() -> None:
    """Stands for the layout of a plain layer's parameters in memory, which blocks do not have."""


for _entry in (
    _BlockType(),
    *(_Stack(layer, gates) for layer, gates in ((nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1))),
    *(_Cell(layer, gates) for layer, gates in ((nn.LSTMCell, 4), (nn.GRUCell, 3), (nn.RNNCell, 1))),
):
    add_layer_type(_entry)

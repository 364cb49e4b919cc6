"""The two kinds of models that are made larger and larger, and the series of their sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.vision import torchvision

Axis = Literal["layers", "parameters"]


class Block(nn.Module):
    """Two convolutions with their norms, and what came in on top, as in a ResNet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both ways."""
        y = self.norm1(self.conv1(x)).relu()
        return (x + self.norm2(self.conv2(y))).relu()


class Cnn(nn.Module):
    """A stem, residual blocks of one width on maps of 8 by 8, and a classifier."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of ten classes."""
        y: Tensor = self.blocks(self.norm(self.stem(x)).relu()).mean((2, 3))
        return self.head(y)


@dataclass(frozen=True)
class Family:
    """A kind of model, of any size.

    Attributes:
        make: Makes one of some layers and some width.
        inputs: The keyword arguments of its forward.
        stream: The layer by which its residual stream grows.
        inner: The layer in a block whose units only this block sees, with a place for the number.
        block: The path of a block, with a place for its number.
    """

    make: Callable[[int, int], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    stream: str
    inner: str
    block: str


def _llama(layers: int, width: int) -> nn.Module:
    """Llama of transformers; 32 layers of 4096 are the 7B of the second version."""
    torchvision()  # which transformers looks for
    transformers = import_module("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32000 if width >= 4096 else 1024,
        hidden_size=width,
        intermediate_size=11008 if width == 4096 else width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // (128 if width >= 4096 else 32),
        attn_implementation="eager",
        use_cache=False,
    )
    model: nn.Module = transformers.LlamaForCausalLM(config)
    return model


def _tokens() -> dict[str, Tensor]:
    # With a mask it looks for no borders between texts, which takes values.
    return {"input_ids": torch.ones(1, 16, dtype=torch.long), "attention_mask": torch.ones(1, 16)}


FAMILIES = {
    "Llama": Family(
        _llama,
        _tokens,
        "model.layers.0.self_attn.o_proj",
        "model.layers.{}.mlp.up_proj",
        "model.layers.{}",
    ),
    "CNN": Family(
        Cnn, lambda: {"x": torch.ones(2, 3, 8, 8)}, "stem", "blocks.{}.conv1", "blocks.{}"
    ),
}


@dataclass(frozen=True)
class Series:
    """Models of one kind, from small to large.

    Attributes:
        family: The name of their kind.
        says: How they get larger.
        axis: The size by which they are compared.
        sizes: Layers and width of each.
        beyond: Larger ones, to find where something breaks; not in the fit.
        device: "cpu" for tensors with values, "meta" for shapes alone.
    """

    family: str
    says: str
    axis: Axis
    sizes: tuple[tuple[int, int], ...]
    beyond: tuple[tuple[int, int], ...] = ()
    device: str = "cpu"

    def build(self, size: tuple[int, int]) -> tuple[Any, dict[str, Tensor]]:
        """A model of that size, in evaluation mode, and its keyword arguments."""
        torch.manual_seed(0)
        family = FAMILIES[self.family]
        with torch.device(self.device):
            return family.make(*size).eval(), family.inputs()


_DEPTHS = (4, 8, 16, 32, 64, 128)
_WIDTHS = (256, 384, 576, 832, 1152, 1664, 2304)
_CHANNELS = (96, 144, 208, 304, 432, 640, 928, 1312)

SERIES = {
    "llama-layers": Series(
        "Llama",
        "4 to 128 layers of width 64",
        "layers",
        tuple((layers, 64) for layers in _DEPTHS),
        ((256, 64), (512, 64)),
    ),
    "llama-parameters": Series(
        "Llama",
        "8 layers, width 256 to 2304",
        "parameters",
        tuple((8, width) for width in _WIDTHS),
        ((8, 3328),),
    ),
    "llama-meta-layers": Series(
        "Llama",
        "2 to 32 layers of width 4096, without values",
        "parameters",
        tuple((layers, 4096) for layers in (2, 4, 8, 16, 32)),
        ((80, 8192), (126, 16384)),
        "meta",
    ),
    "llama-meta-width": Series(
        "Llama",
        "8 layers, width 512 to 8192, without values",
        "parameters",
        tuple((8, width) for width in (512, 1024, 2048, 4096, 8192)),
        (),
        "meta",
    ),
    "cnn-layers": Series(
        "CNN",
        "4 to 128 blocks of two convolutions of width 16",
        "layers",
        tuple((blocks, 16) for blocks in _DEPTHS),
        ((256, 16), (512, 16)),
    ),
    "cnn-parameters": Series(
        "CNN",
        "16 blocks, width 96 to 1312",
        "parameters",
        tuple((16, width) for width in _CHANNELS),
        (),
    ),
    "cnn-meta": Series(
        "CNN",
        "16 blocks, width 512 to 4928, without values",
        "parameters",
        tuple((16, width) for width in (512, 912, 1600, 2816, 4928)),
        (),
        "meta",
    ),
}

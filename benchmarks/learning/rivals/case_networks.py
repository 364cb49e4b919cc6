"""Small networks of many kinds, plain and of gromo's modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.learning.rivals.gromo_networks import of_gromo

Relu = Callable[[], nn.Module]


@dataclass(frozen=True)
class Case:
    """A kind of network.

    Attributes:
        name: Its name.
        plain: Makes it of torch.nn.
        grows: The layers of it that grow, by splitgrow's names.
        gromo: Makes it of gromo's modules, given the class of its ReLUs; None if it has none.
        units: The units that each layer grows by.
        theirs: Those by which gromo's grows, where the rank of its statistics allows no more.
    """

    name: str
    plain: Callable[[], nn.Module]
    grows: tuple[str, ...]
    gromo: Callable[[Relu], Any] | None
    units: int = 4
    theirs: int = 0


class Beside(nn.Module):
    """The sum of a path and a way around it."""

    def __init__(self, path: nn.Module, around: nn.Module | None = None) -> None:
        super().__init__()
        self.path, self.around = path, around or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        total: Tensor = self.path(x) + self.around(x)
        return total


class Concatenated(nn.Module):
    """The outputs of two convolutions, side by side."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.one, self.other = _conv(ins, outs), _conv(ins, outs)

    def forward(self, x: Tensor) -> Tensor:
        """Both, on the channels."""
        return torch.cat((self.one(x), self.other(x)), 1)


class Attention(nn.Module):
    """Attention over rows of pictures, with heads of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(16, 16), nn.Linear(16, 16)
        self.value, self.out = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 16, 16) to (N, 16)."""
        x = x.squeeze(1)
        parts = (part(x).unflatten(2, (-1, 8)) for part in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in parts))
        return self.out(y.transpose(1, 2).flatten(2)).mean(1)  # type: ignore[no-any-return]


def _conv(ins: int, outs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(ins, outs, size, stride, size // 2, groups=groups)


def _bare(ins: int, outs: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(ins, outs, size, padding=size // 2, bias=False)


def _ends(*layers: nn.Module, width: int = 8) -> nn.Sequential:
    """Layers, the mean over all places, and a head."""
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def _normed(
    *convs: nn.Module, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
) -> list[nn.Module]:
    return [la for conv in convs for la in (conv, norm(conv.out_channels), nn.ReLU())]  # type: ignore[arg-type]


def _group_norm(width: int) -> nn.Module:
    return nn.GroupNorm(1, width)


def chain(*layers: nn.Module, growing: int) -> Any:
    """A sequence for gromo: plain layers and its modules.

    Args:
        layers: The layers.
        growing: The number of the last of gromo's modules whose inputs grow.
    """
    base: Any = of_gromo("containers.sequential_growing_container").SequentialGrowingModel
    module = of_gromo("modules.growing_module").GrowingModule

    class Chain(base):  # type: ignore[misc]
        """The sequence."""

        def __init__(self) -> None:
            super().__init__(1, 10)
            self.layers = nn.ModuleList(layers)
            own = [layer for layer in layers if isinstance(layer, module)]
            self._growable_layers = own[len(own) - growing :]

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

        def extended_forward(self, x: Tensor, mask: object = None) -> Tensor:  # noqa: ARG002
            more = None
            for layer in self.layers:
                if isinstance(layer, module):
                    x, more = layer.extended_forward(x, more)
                else:
                    x, more = layer(x), None if more is None else layer(more)
            return x

    return Chain()


def _g_conv(ins: int, outs: int, after: nn.Module, before: Any = None, **more: Any) -> Any:
    kind = of_gromo("modules.conv2d_growing_module").RestrictedConv2dGrowingModule
    options = {"kernel_size": 3, "padding": 1, **more}
    return kind(ins, outs, post_layer_function=after, previous_module=before, **options)


def _g_linear(ins: int, outs: int, after: nn.Module | None = None, before: Any = None) -> Any:
    kind = of_gromo("modules.linear_growing_module").LinearGrowingModule
    return kind(ins, outs, post_layer_function=after or nn.Identity(), previous_module=before)


def _g_norm(kind: str, *sizes: int) -> nn.Module:
    norm: nn.Module = getattr(of_gromo("modules.growing_normalisation"), f"Growing{kind}")(*sizes)
    return norm


def _g_ends(*layers: Any, growing: int = 1, width: int = 8) -> Any:
    head = nn.Linear(width, 10)
    return chain(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head, growing=growing)


def _g_two(relu: Relu, after: Callable[[], list[nn.Module]], width: int = 8, **second: Any) -> Any:
    first = _g_conv(1, 8, nn.Sequential(*after(), relu()))
    return _g_ends(first, _g_conv(8, width, relu(), first, **second), width=width)


def _g_bare(relu: Relu, after: Callable[[], list[nn.Module]], width: int = 8) -> Any:
    first = _g_conv(1, 8, nn.Sequential(*after(), relu()), use_bias=False)
    return _g_ends(first, _g_conv(8, width, relu(), first, use_bias=False), width=width)


def _g_three(relu: Relu) -> Any:
    layers: list[Any] = []
    for ins, outs in pairwise((1, 8, 8, 8)):
        after = nn.Sequential(_g_norm("BatchNorm2d", outs), relu())
        before = layers[-1] if layers else None
        layers.append(_g_conv(ins, outs, after, before, use_bias=False))
    return _g_ends(*layers, growing=2)


def _g_mlp(_: Relu) -> Any:
    return of_gromo("containers.growing_mlp").GrowingMLP(256, 10, 16, 2, nn.GELU())


def _g_pooled(relu: Relu) -> Any:
    first = _g_conv(1, 8, nn.Sequential(_g_norm("BatchNorm2d", 8), relu(), nn.MaxPool2d(2)))
    return _g_ends(first, _g_conv(8, 8, relu(), first))


def _g_blocks(relu: Relu, stages: int, *, before: bool) -> Any:
    return of_gromo("containers.resnet").init_full_resnet_structure(
        (1, 16, 16),
        out_features=10,
        activation=relu(),
        hidden_channels=(8, 16)[:stages],
        number_of_blocks_per_stage=1,
        inplanes=8,
        nb_stages=stages,
        skip_first_downsample=False,
        use_preactivation=before,
    )


def _g_bottleneck(relu: Relu) -> Any:
    sizes = {"kernel_size": 1, "padding": 0, "use_bias": False}
    one = _g_conv(8, 8, nn.Sequential(_g_norm("BatchNorm2d", 8), relu()), **sizes)
    two = _g_conv(8, 8, nn.Sequential(_g_norm("BatchNorm2d", 8), relu()), one, use_bias=False)
    three = _g_conv(8, 8, nn.Identity(), two, **sizes)
    path = chain(one, two, three, growing=2)

    class Whole(type(path)):  # type: ignore[misc]
        """The path beside the identity, between plain layers."""

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(super().forward(x) + x)  # type: ignore[no-any-return]

        def extended_forward(self, x: Tensor, mask: object = None) -> Tensor:
            x = self.stem(x)
            return self.head(super().extended_forward(x, mask) + x)  # type: ignore[no-any-return]

    path.__class__ = Whole
    path.stem, path.head = _conv(1, 8), _ends()
    return path


def _g_flattened(relu: Relu) -> Any:
    conv = _g_conv(1, 8, nn.Sequential(relu(), nn.MaxPool2d(4), nn.Flatten()))
    return chain(conv, _g_linear(8 * 16, 10, before=conv), growing=1)


def _g_averaged(relu: Relu) -> Any:
    conv = _g_conv(1, 8, nn.Sequential(relu(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    return chain(conv, _g_linear(8, 10, before=conv), growing=1)


def _g_depthwise(relu: Relu) -> Any:
    return _g_two(relu, list, groups=8)


def _g_grouped(relu: Relu) -> Any:
    return _g_two(relu, list, groups=2)


def _g_layer_norm(_: Relu) -> Any:
    first = _g_linear(256, 16, nn.Sequential(_g_norm("LayerNorm", 16), nn.GELU()))
    return chain(nn.Flatten(), first, _g_linear(16, 10, before=first), growing=1)


def _g_stream(relu: Relu) -> Any:
    merge = of_gromo("modules.conv2d_growing_module").Conv2dMergeGrowingModule
    stem = _g_conv(1, 8, relu(), input_size=(16, 16))
    node = merge(8, post_merge_function=relu(), input_size=(16, 16), next_kernel_size=(3, 3))
    path = _g_conv(8, 8, nn.Identity(), stem, input_size=(16, 16))
    node.set_previous_modules([stem, path])
    after = _g_conv(8, 8, relu(), node, input_size=(16, 16))
    node.set_next_modules([after])
    return _g_ends(stem, path, after)


def _block(before: int, hidden: int, outs: int, stride: int) -> nn.Module:
    path = nn.Sequential(
        nn.BatchNorm2d(before),
        nn.ReLU(),
        _conv(before, hidden, 3, stride),
        nn.BatchNorm2d(hidden),
        nn.ReLU(),
        _conv(hidden, outs),
    )
    return Beside(path, _conv(before, outs, 1, stride) if before != outs else None)


def _late_block() -> nn.Module:
    path = [_conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(), _conv(8, 8), nn.BatchNorm2d(8)]
    return Beside(nn.Sequential(*path))


CASES = (
    Case(
        "MLP, two hidden layers",
        lambda: nn.Sequential(
            *(nn.Flatten(), nn.Linear(256, 16), nn.GELU()),
            *(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 10)),
        ),
        ("1", "3"),
        _g_mlp,
    ),
    Case(
        "layer norm between linear layers",
        lambda: nn.Sequential(
            *(nn.Flatten(), nn.Linear(256, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 10))
        ),
        ("1",),
        _g_layer_norm,
    ),
    Case(
        "two convolutions",
        lambda: _ends(_conv(1, 8), nn.ReLU(), _conv(8, 8), nn.ReLU()),
        ("0",),
        lambda relu: _g_two(relu, list),
    ),
    Case(
        "two convolutions without biases",
        lambda: _ends(_bare(1, 8), nn.ReLU(), _bare(8, 8), nn.ReLU()),
        ("0",),
        lambda relu: _g_bare(relu, list),
    ),
    Case(
        "with a batch norm between them",
        lambda: _ends(*_normed(_bare(1, 8)), _bare(8, 8), nn.ReLU()),
        ("0",),
        lambda relu: _g_bare(relu, lambda: [_g_norm("BatchNorm2d", 8)]),
    ),
    Case(
        "with a group norm of one group between them",
        lambda: _ends(
            *(*_normed(_bare(1, 8), norm=_group_norm), _bare(8, 16), nn.ReLU()), width=16
        ),
        ("0",),
        lambda relu: _g_bare(relu, lambda: [_g_norm("GroupNorm", 1, 8)], 16),
        units=16,
        theirs=8,
    ),
    Case(
        "the second one with stride 2",
        lambda: _ends(_conv(1, 8), nn.ReLU(), _conv(8, 8, stride=2), nn.ReLU()),
        ("0",),
        lambda relu: _g_two(relu, list, stride=2),
    ),
    Case(
        "pooling between them",
        lambda: _ends(*_normed(_conv(1, 8)), nn.MaxPool2d(2), _conv(8, 8), nn.ReLU()),
        ("0",),
        _g_pooled,
    ),
    Case(
        "three convolutions in a row, two of them grown",
        lambda: _ends(*_normed(_bare(1, 8), _bare(8, 8), _bare(8, 8))),
        ("0", "3"),
        _g_three,
    ),
    Case(
        "a preactivation block",
        lambda: _ends(_conv(1, 8), _block(8, 8, 8, 1), nn.ReLU()),
        ("1.path.2",),
        lambda relu: _g_blocks(relu, 1, before=True),
    ),
    Case(
        "a basic block with its norm behind",
        lambda: _ends(_conv(1, 8), _late_block(), nn.ReLU()),
        ("1.path.0",),
        lambda relu: _g_blocks(relu, 1, before=False),
    ),
    Case(
        "two blocks, the second one with a downsample",
        lambda: _ends(_conv(1, 8), _block(8, 8, 8, 1), _block(8, 16, 16, 2), width=16),
        ("1.path.2", "2.path.2"),
        lambda relu: _g_blocks(relu, 2, before=True),
    ),
    Case(
        "a bottleneck",
        lambda: _ends(
            _conv(1, 8),
            Beside(nn.Sequential(*_normed(_bare(8, 8, 1), _bare(8, 8)), _bare(8, 8, 1))),
        ),
        ("1.path.0", "1.path.3"),
        _g_bottleneck,
    ),
    Case(
        "the stream of a residual network",
        lambda: _ends(_conv(1, 8), Beside(_conv(8, 8)), nn.ReLU(), _conv(8, 8), nn.ReLU()),
        ("0",),
        _g_stream,
    ),
    Case(
        "a convolution, flattened, before a linear layer",
        lambda: nn.Sequential(
            *(_conv(1, 8), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(8 * 16, 10))
        ),
        ("0",),
        _g_flattened,
    ),
    Case(
        "a convolution, averaged, before a linear layer",
        lambda: _ends(_conv(1, 8), nn.ReLU()),
        ("0",),
        _g_averaged,
    ),
    Case(
        "a depthwise convolution behind another",
        lambda: _ends(_conv(1, 8), nn.ReLU(), _conv(8, 8, groups=8), nn.ReLU(), _conv(8, 8, 1)),
        ("0",),
        _g_depthwise,
    ),
    Case(
        "a grouped convolution behind another",
        lambda: _ends(_conv(1, 8), nn.ReLU(), _conv(8, 8, groups=2), nn.ReLU()),
        ("0",),
        _g_grouped,
    ),
    Case(
        "two convolutions, concatenated",
        lambda: _ends(Concatenated(1, 8), nn.ReLU(), _conv(16, 8), nn.ReLU()),
        ("0.one", "0.other"),
        None,
    ),
    Case(
        "heads of attention",
        lambda: nn.Sequential(Attention(), nn.Linear(16, 10)),
        ("0.query",),
        None,
        units=16,
    ),
)

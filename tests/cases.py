"""The table of models over which every law is tested."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from attention_cases import (
    FX_FOLLOWS_DEVICES,
    Causal,
    CausalConv1d,
    Deciding,
    Decoder,
    FusedHeads,
    GroupedQueries,
    Tokens,
    VisionTransformer,
)
from recurrent_cases import (
    BothDirections,
    OfSeveralLengths,
    Projected,
    Steps,
    Tagger,
    Translator,
)
from tensor_cases import Affines, ByHand, SilentStream, StateSpace, TokenMixer, Windowed
from torch import Tensor, nn
from torch.nn import functional as F

from splitgrow import SharedKernelConv1d, SharedKernelConv2d
from splitgrow.layers.own_weights import leave_computed_


@dataclass(frozen=True)
class Case:
    """A model and an input for it, in float64.

    Attributes:
        name: What is special about it.
        build: Makes the model.
        shape: The shape of its input.
        fixed: The layers that cannot grow.
        vocabulary: If its inputs are whole numbers, how many there are; 0 if they are not.
        traceable: Whether torch.fx can trace it; `fuse` merges the others and warns.
        own_layers: Layer types of its own, which no stock layer can stand for.
        computed: Whether parametrizations compute its weights, which are plain in a merged network.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    fixed: frozenset[str] = frozenset()
    vocabulary: int = 0
    traceable: bool = True
    own_layers: tuple[type[nn.Module], ...] = ()
    computed: bool = False

    def model(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.build().double().eval()

    def plain(self) -> nn.Module:
        """The model with weights that nothing computes, as a merged one has them."""
        model = self.model()
        leave_computed_(model)
        return model

    def inputs(self, seed: int = 1) -> tuple[Tensor, ...]:
        generator = torch.manual_seed(seed)
        if self.vocabulary:
            return (torch.randint(self.vocabulary, self.shape, generator=generator),)
        return (torch.randn(self.shape, generator=generator, dtype=torch.float64),)


class ThreeConvs(nn.Module):
    """The project's first example: three bare convolutions."""

    def __init__(self) -> None:
        super().__init__()
        names = OrderedDict(
            conv1=nn.Conv2d(3, 6, 3, 1, 1, bias=False),
            conv2=nn.Conv2d(6, 12, 3, 1, 1, bias=False),
            conv3=nn.Conv2d(12, 24, 3, 1, 1, bias=False),
        )
        self.convs = nn.Sequential(names)

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)


class Basic(nn.Module):
    def __init__(self, ins: int, outs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outs)
        self.short = nn.Sequential()
        if stride > 1 or ins != outs:
            self.short = nn.Sequential(nn.Conv2d(ins, outs, 1, stride), nn.BatchNorm2d(outs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += self.short(x)
        return y.relu()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.block1, self.block2 = Basic(6, 6), Basic(6, 8, 2)
        self.block3 = Basic(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.stem(x))))
        return self.head(x.mean((2, 3)))


class Bottleneck(nn.Module):
    """Grouped middle convolution, as in ResNeXt, between 1x1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, padding_mode="reflect")
        self.reduce, self.norm1 = nn.Conv2d(8, 6, 1), nn.GroupNorm(3, 6)
        self.middle = nn.Conv2d(6, 9, 3, padding=2, dilation=2, groups=3, padding_mode="circular")
        self.norm2 = nn.BatchNorm2d(9, affine=False)
        self.widen, self.norm3 = nn.Conv2d(9, 8, 1), nn.BatchNorm2d(8, track_running_stats=False)
        self.act = nn.PReLU(8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = torch.tanh(self.norm1(self.reduce(x)))
        y = self.norm2(self.middle(y)).sigmoid()
        return self.head(self.act(torch.add(self.norm3(self.widen(y)), x)))


class Dense(nn.Module):
    """Every layer reads the concatenation of all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 + 3 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(4 + 3 * i, 3, 3, padding=1) for i in range(3))
        self.transition = nn.Conv2d(13, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        x = F.avg_pool2d(self.transition(torch.cat(features, dim=1)), 2)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 1)
        self.three = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ELU(), nn.Conv2d(5, 6, 3, padding=1))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(3, 2, 1))
        self.norm = nn.InstanceNorm2d(12, affine=True, track_running_stats=True)
        self.out = nn.Conv2d(12, 5, (3, 1), padding="same")

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        y = self.norm(torch.cat([self.one(x), self.three(x), self.pool(x)], 1))
        z = self.out(F.leaky_relu(y))
        return z, {"mean": z.mean(dim=[-2, -1])}


class SqueezeExcite(nn.Module):
    """A depthwise-separable block with a gate for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Hardswish())
        self.depthwise = nn.Conv2d(8, 8, 5, 2, 2, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)
        self.twice = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.project = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.depthwise(self.widen(x))))
        gate = F.adaptive_avg_pool2d(x, (1, 1))
        x = x * torch.sigmoid(self.excite(F.silu(self.squeeze(gate))))
        return self.project(self.twice(x))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU())
        self.bottom = nn.Conv2d(6, 8, 3, 2, 1)
        self.up2 = nn.ConvTranspose2d(8, 6, 2, 2)
        self.mid = nn.Conv2d(12, 6, 3, padding=1)
        self.up1 = nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1, groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.up0 = nn.ConvTranspose2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(one)
        y = self.up2(torch.relu(self.bottom(two)), output_size=two.shape[2:])
        y = self.mid(torch.cat((y, two), 1)).relu()
        y = torch.cat((self.norm(self.up1(y)), one), 1)
        return self.out(self.up0(F.interpolate(y, scale_factor=2, mode="nearest")))


class ConvToLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(4 * 4 * 4, 6), nn.Linear(6, 3)
        self.norm, self.drop = nn.BatchNorm1d(6), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv(x), 2)
        x = x.view(x.size(0), -1)
        return self.fc2(self.drop(self.norm(self.fc1(x)).relu()))


class OneDimensional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(2, 6, 5, 2, padding=4, dilation=2, padding_mode="replicate")
        self.norm1, self.conv2 = nn.BatchNorm1d(6), nn.Conv1d(6, 6, 3, padding=1, groups=2)
        self.norm2 = nn.InstanceNorm1d(6)
        self.up = nn.ConvTranspose1d(6, 4, 4, 2, 1, groups=2, dilation=1)
        self.glu, self.out = nn.GLU(1), nn.Conv1d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        x = x + self.norm2(self.conv2(x))
        return self.out(self.glu(self.up(x)))


class ThreeDimensional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4)
        self.depthwise = nn.Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1), groups=4)
        self.up = nn.ConvTranspose3d(4, 3, 2, 2, bias=False)
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.norm(self.conv1(x)).relu())
        x = self.up(F.max_pool3d(x, 2))
        return self.fc(x.permute(0, 2, 3, 4, 1)).flatten(1, 3)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)
        self.fc3 = nn.Linear(8, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm(self.fc1(x)))
        return F.log_softmax(self.fc3(x + self.fc2(x).tanh()), dim=-1)


class Shared(nn.Module):
    """One convolution and one norm that are called twice, by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.again = self.body
        self.left, self.right = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)
        self.shared_head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.body(self.stem(x)))
        left, right = self.shared_head(self.left(x)), self.shared_head(self.right(x))
        return torch.cat([left.detach() + right, left], 2)


class Shuffled(nn.Module):
    """Channels cut, interleaved, moved to the end, and taken in bundles."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.mix = nn.Conv2d(8, 8, 1, groups=2)
        self.fc, self.wide = nn.Linear(8, 8), nn.Conv2d(8, 8, 1)
        self.after = nn.Conv2d(2, 5, 1)
        self.flat = nn.Linear(5 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, dim=1)
        x = torch.cat([self.left(left), self.right(right)], dim=1)
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        x = self.mix(x)
        x = self.fc(x.permute(0, 2, 3, 1)).sigmoid().permute(0, 3, 1, 2).contiguous()
        half = x.shape[1] // 2
        x = x[:, :half] * x[:, half:]
        x = F.pixel_shuffle(self.wide(torch.cat((x, -x), 1)), 2)
        x = self.after(F.avg_pool2d(x, 2))
        return self.flat(x.permute(0, 2, 3, 1).flatten(1))


class PartlyFixed(nn.Module):
    """Some layers are tied to things that cannot grow, the others grow all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.tied = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)
        self.attend, self.value = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 6, 1)
        self.scaled, self.gamma = nn.Conv2d(6, 4, 1), nn.Parameter(torch.ones(4, 1, 1))
        self.out = nn.Conv2d(9, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.tied(self.free(x).relu())
        attention = self.attend(y).softmax(dim=1)
        y = self.scaled(self.value(y)) * self.gamma
        return self.out(torch.cat([attention, y], 1))


class OneKernel(nn.Module):
    """Two kernels for every channel, without bias before a norm, and one on a gate's way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.spread = SharedKernelConv2d(3, multiplier=2, padding=1, bias=False)
        self.norm, self.mix = nn.BatchNorm2d(12), nn.Conv2d(12, 6, 1)
        self.blur = SharedKernelConv2d((3, 5), stride=2, padding=(1, 2), padding_mode="reflect")
        self.head = nn.Linear(6 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * self.mix(F.relu(self.norm(self.spread(x)))).sigmoid()
        return self.head(self.blur(x).flatten(1))


class OneKernelTwice(nn.Module):
    """One kernel that is called for two widths, a norm behind each call."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = SharedKernelConv1d(3, multiplier=2, padding="same", dilation=2)
        self.first, self.norm1 = nn.Conv1d(2, 4, 3), nn.BatchNorm1d(8)
        self.second, self.norm2 = nn.Conv1d(8, 3, 1), nn.BatchNorm1d(6)
        self.out = nn.Conv1d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.shared(self.first(x))).relu()
        return self.out(self.norm2(self.shared(self.second(x))))


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8, momentum=None),
        nn.Hardtanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


class WeightNormed(nn.Module):
    """Layers whose weights others make at each call: over rows, over all, over taps."""

    def __init__(self) -> None:
        super().__init__()
        weight_norm = nn.utils.parametrizations.weight_norm
        self.stem = weight_norm(nn.Conv1d(2, 4, 3, padding=1))
        self.position = weight_norm(nn.Conv1d(4, 4, 3, padding=1, groups=2), dim=2)
        self.up = weight_norm(nn.ConvTranspose1d(4, 3, 2, stride=2, bias=False))
        self.head = weight_norm(nn.Linear(3, 2), dim=None)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.stem(x), 0.1)
        x = x + F.leaky_relu(self.position(x), 0.1)
        return self.head(F.leaky_relu(self.up(x), 0.1).mean(-1))


CASES = (
    Case("three bare convs", ThreeConvs, (2, 3, 4, 4)),
    Case("plain", plain, (3, 3, 8, 8)),
    Case("residual", Residual, (3, 3, 8, 8)),
    Case("bottleneck", Bottleneck, (3, 3, 8, 8)),
    Case("dense", Dense, (3, 3, 6, 6)),
    Case("inception", Inception, (2, 3, 6, 6)),
    Case("squeeze and excite", SqueezeExcite, (3, 3, 8, 8)),
    Case("u-net", UNet, (2, 2, 8, 8)),
    Case("conv to linear", ConvToLinear, (4, 1, 8, 8)),
    Case("1-d", OneDimensional, (3, 2, 16)),
    Case("3-d", ThreeDimensional, (2, 2, 4, 4, 4)),
    Case("mlp", Mlp, (6, 5), frozenset({"fc3"})),
    Case("shared", Shared, (2, 3, 5, 5)),
    Case("shuffled", Shuffled, (2, 3, 8, 8)),
    Case(
        "partly fixed",
        PartlyFixed,
        (2, 3, 4, 4),
        frozenset({"tied", "attend"}),
    ),
    Case(
        "vision transformer",
        VisionTransformer,
        (2, 3, 4, 4),
    ),
    Case("grouped queries", GroupedQueries, (2, 3, 5), traceable=False),
    Case("fused heads", FusedHeads, (2, 3, 5), traceable=False),
    Case("tokens", Tokens, (3, 7), vocabulary=11, traceable=FX_FOLLOWS_DEVICES),
    Case("decoder", Decoder, (2, 6), vocabulary=11, traceable=False),
    Case("deciding", Deciding, (4, 3), traceable=False),
    Case("shared kernel", OneKernel, (3, 3, 8, 8)),
    Case("shared kernel, 1-d", OneKernelTwice, (4, 2, 9)),
    Case("affines", Affines, (2, 3, 5, 5)),
    Case("token mixer", TokenMixer, (2, 3, 4, 4)),
    Case("state space", StateSpace, (2, 3, 4), frozenset({"mixes"})),
    Case("windowed", Windowed, (2, 5, 4)),
    Case("by hand", ByHand, (2, 3, 3), frozenset({"router"})),
    Case("silent stream", SilentStream, (2, 5, 3)),
    Case("causal", Causal, (3, 2, 9), own_layers=(CausalConv1d,)),
    Case("weight norm", WeightNormed, (3, 2, 6), computed=True),
    Case("tagger", Tagger, (3, 3, 6)),
    Case("both directions", BothDirections, (3, 5), vocabulary=11),
    Case("projected", Projected, (3, 5, 3)),
    Case("cells", Steps, (3, 4, 3), traceable=False),
    Case("translator", Translator, (3, 5), vocabulary=11),
    Case("several lengths", OfSeveralLengths, (3, 5, 3), traceable=False),
)

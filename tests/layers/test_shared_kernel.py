"""One kernel for all channels: equal to a loop over channels, and no larger for more of them."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import (
    assert_equal,
    assert_identical,
    largest_difference,
    leading,
    randomise,
    randomise_new_blocks,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import splitgrow
from splitgrow import SharedKernelConv1d, SharedKernelConv2d, SharedKernelConv3d

LAYERS: dict[int, Any] = {1: SharedKernelConv1d, 2: SharedKernelConv2d, 3: SharedKernelConv3d}
STOCK: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SPACE = (9, 8, 7)
ONEDNN = torch.backends.mkldnn.is_available()
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "strided": {"stride": 2, "padding": 1},
    "dilated": {"dilation": 2, "padding": 3},
    "same": {"padding": "same"},
    "same, dilated": {"padding": "same", "dilation": 2},
    "valid": {"padding": "valid", "stride": 3},
    "reflect": {"padding": 2, "padding_mode": "reflect"},
    "replicate": {"padding": 1, "stride": 2, "padding_mode": "replicate"},
    "circular": {"padding": 2, "dilation": 2, "padding_mode": "circular"},
    "reflect, same": {"padding": "same", "padding_mode": "reflect"},
    "circular, same": {"padding": "same", "padding_mode": "circular", "dilation": 2},
}
dims = pytest.mark.parametrize("dims", [1, 2, 3])


def loop(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What the layer is to compute: a stock convolution, channel after channel."""
    names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    options = {name: getattr(layer, name) for name in names}
    conv = STOCK[layer.dims](1, layer.multiplier, **options, bias=bias is not None).double()
    tensors = {"weight": weight} | ({} if bias is None else {"bias": bias})
    dim = -1 - layer.dims
    each = [torch.func.functional_call(conv, tensors, (one,)) for one in x.split(1, dim)]
    return torch.cat(each, dim)


def with_gradients(
    layer: Any, x: Tensor, *, by_loop: bool = False
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The output, and the gradients of input, weight and bias."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = loop(layer, x, layer.weight, layer.bias) if by_loop else layer(x)
    return y, torch.autograd.grad((y * y.detach().cos()).sum(), (x, *layer.parameters()))


def input_of(dims: int, *, channels: int = 4, batch: tuple[int, ...] = (2,)) -> Tensor:
    return torch.randn(*batch, channels, *SPACE[:dims], dtype=torch.float64)


@dims
@pytest.mark.parametrize("multiplier", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", OPTIONS)
def test_it_equals_the_loop_over_channels_and_so_do_its_gradients(
    dims: int, multiplier: int, bias: bool, name: str
) -> None:
    torch.manual_seed(0)
    options = OPTIONS[name]
    layer = LAYERS[dims](3, multiplier=multiplier, bias=bias, dtype=torch.float64, **options)
    for x in (input_of(dims), input_of(dims, batch=()), input_of(dims, channels=1)):
        y, gradients = with_gradients(layer, x)
        expected, right = with_gradients(layer, x, by_loop=True)
        assert_equal(y, expected)
        for gradient, theirs in zip(gradients, right, strict=True):
            assert_equal(gradient, theirs)


@dims
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's own
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_so_it_does_where_each_dimension_has_a_number_of_its_own(dims: int, mode: str) -> None:
    torch.manual_seed(0)
    sizes = ((4, 3, 2)[:dims], (2, 1, 3)[:dims], (2, 1, 0)[:dims], (1, 2, 3)[:dims])
    kernel, stride, padding, dilation = map(list, sizes)
    for options in (
        {"stride": stride, "padding": padding, "dilation": dilation},
        {"padding": "same", "dilation": dilation},
    ):
        layer = LAYERS[dims](
            kernel, multiplier=2, padding_mode=mode, dtype=torch.float64, **options
        )
        y, gradients = with_gradients(layer, input_of(dims))
        torch.manual_seed(1)
        x = input_of(dims)
        assert_equal(with_gradients(layer, x), with_gradients(layer, x, by_loop=True))
        assert y.shape[1] == 8
        assert gradients[1].shape == layer.weight.shape


def test_the_gradient_is_the_sum_over_the_channels_and_not_their_mean() -> None:
    """As with a grouped convolution whose weights are all the same, summed by hand."""
    torch.manual_seed(0)
    layer = SharedKernelConv2d(3, multiplier=2, dtype=torch.float64)
    x = input_of(2, channels=5)
    conv: Any = layer.depthwise(5)
    for each in (layer, conv):
        each(x).square().sum().backward()
    for name in ("weight", "bias"):
        apart = getattr(conv, name).grad.unflatten(0, (5, 2))
        summed = getattr(layer, name).grad
        assert_equal(summed, apart.sum(0))
        assert largest_difference(apart.mean(0), summed) > 0.5


def test_control_another_order_of_channels_or_another_kernel_is_seen() -> None:
    torch.manual_seed(0)
    layer = SharedKernelConv2d(3, multiplier=2, dtype=torch.float64)
    x = input_of(2)
    y = layer(x)
    swapped = y.unflatten(1, (4, 2)).transpose(1, 2).flatten(1, 2)
    assert largest_difference(swapped, loop(layer, x, layer.weight, layer.bias)) > 1e-3
    other = layer.weight.detach() + 1e-9
    assert largest_difference(loop(layer, x, other, layer.bias), y) > 1e-11


@dims
def test_numerical_derivatives_agree_first_and_second(dims: int) -> None:
    torch.manual_seed(0)
    layer = LAYERS[dims](2, multiplier=2, padding=1, dtype=torch.float64)
    x = torch.randn(2, 2, *(3,) * dims, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(layer, given, (x,))

    inputs = (x, *layer.parameters())
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


class Watch(TorchFunctionMode):
    """Notes the weights that convolutions are given."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("conv1d", "conv2d", "conv3d"):
            self.weights.append(args[1])
        return func(*args, **(kwargs or {}))


@dims
@pytest.mark.parametrize("channels", [1, 3, 64])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_there_is_one_kernel_however_many_channels(
    dims: int, channels: int, multiplier: int
) -> None:
    layer = LAYERS[dims](3, multiplier=multiplier)
    shapes = [(multiplier, 1, *(3,) * dims), (multiplier,)]
    with Watch() as watch:
        layer(input_of(dims, channels=channels).float()).sum().backward()
    assert [p.shape for p in layer.parameters()] == shapes
    assert [p.grad.shape for p in layer.parameters()] == shapes
    own = layer.weight.untyped_storage().data_ptr()
    copied = [w for w in watch.weights if w.untyped_storage().data_ptr() != own]
    assert watch.weights
    # Where the kernels run apart or there is but one, what is expanded is the kernel itself; torch
    # has no view of several that lie one after the other in every channel.
    apart = ONEDNN and dims == 2 and channels >= 8
    assert bool(copied) == (multiplier > 1 and channels > 1 and not apart)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_kernels_that_run_apart_give_what_they_give_together(
    bias: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    layer = SharedKernelConv2d(3, multiplier=3, padding=1, bias=bias, dtype=dtype)
    x = input_of(2, channels=8).to(dtype)
    with Watch() as watch:
        y, gradients = with_gradients(layer, x)
    assert len(watch.weights) == (3 if ONEDNN and dtype != torch.float64 else 1)
    alone = layer(x[0])
    expected, right = with_gradients(layer.double(), x.double(), by_loop=True)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    pairs = zip((y, alone, *gradients), (expected, expected[0], *right), strict=True)
    assert all(largest_difference(ours.double(), theirs) <= tolerance for ours, theirs in pairs)


def test_it_starts_as_one_channel_of_a_depthwise_convolution_does() -> None:
    torch.manual_seed(0)
    layer = SharedKernelConv2d(3, multiplier=2)
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 2, 3)
    assert_identical([layer.weight, layer.bias], [conv.weight, conv.bias])


def test_a_batch_may_be_empty() -> None:
    layer = SharedKernelConv2d(3, multiplier=2)
    for channels in (4, 8):
        y = layer(torch.randn(0, channels, 5, 5))
        assert y.shape == (0, 2 * channels, 3, 3)
        y.sum().backward()


@pytest.mark.parametrize("multiplier", [1, 2])
def test_half_precision_by_autocast(multiplier: int) -> None:
    torch.manual_seed(0)
    layer = SharedKernelConv2d(3, multiplier=multiplier, padding=1)
    x = torch.randn(2, 16, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        expected = layer.depthwise(16)(x)
    assert y.dtype == torch.bfloat16
    y.float().square().mean().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    assert largest_difference(y.float(), expected.float()) < 1e-2


@pytest.mark.parametrize("multiplier", [1, 2])
def test_channels_last_gives_the_same(multiplier: int) -> None:
    torch.manual_seed(0)
    layer = SharedKernelConv2d(3, multiplier=multiplier, padding=1, dtype=torch.float64)
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64)
    last = x.contiguous(memory_format=torch.channels_last)
    assert_equal(with_gradients(layer, last), with_gradients(layer, x))
    assert_equal(with_gradients(layer, x.transpose(2, 3)), with_gradients(layer, x.mT.contiguous()))


@dims
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_it_compiles_as_one_graph(dims: int, mode: str) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer = LAYERS[dims](3, multiplier=2, padding=1, padding_mode=mode, dtype=torch.float64)
    compiled: Any = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = input_of(dims)
    assert_equal(with_gradients(compiled, x), with_gradients(layer, x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")  # torch's own jvp imports it
def test_it_is_vectorised_over_samples_and_differentiated_forward() -> None:
    torch.manual_seed(0)
    layer = SharedKernelConv2d(3, multiplier=2, dtype=torch.float64)
    x = input_of(2)
    assert_equal(torch.vmap(layer)(x), layer(x))
    _, tangent = torch.func.jvp(layer, (x,), (x,))
    assert_equal(tangent, layer(x) - layer(torch.zeros_like(x)))


def test_copies_pickles_and_state_dicts_compute_the_same() -> None:
    torch.manual_seed(0)
    layer = SharedKernelConv2d(3, multiplier=2, padding="same", padding_mode="reflect")
    x = torch.randn(2, 3, 8, 8)
    fresh = SharedKernelConv2d(3, multiplier=2, padding="same", padding_mode="reflect")
    fresh.load_state_dict(layer.state_dict())
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=False)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), saved, fresh):
        assert_identical(again(x), layer(x))
        assert repr(again) == repr(layer)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert list(SharedKernelConv2d(3, bias=False).state_dict()) == ["weight"]


def test_device_and_dtype_are_as_asked() -> None:
    layer = SharedKernelConv2d(3, device="meta", dtype=torch.float16)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float16)}
    assert layer(torch.empty(1, 2, 5, 5, device="meta", dtype=torch.float16)).shape == (1, 2, 3, 3)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (SharedKernelConv1d(3), "SharedKernelConv1d((3,))"),
        (SharedKernelConv2d((1, 3), padding=(0, 1)), "SharedKernelConv2d((1, 3), padding=(0, 1))"),
        (
            SharedKernelConv3d(3, multiplier=2, stride=2, dilation=3, bias=False),
            "SharedKernelConv3d((3, 3, 3), multiplier=2, stride=(2, 2, 2), dilation=(3, 3, 3), "
            "bias=False)",
        ),
        (
            SharedKernelConv1d(3, padding="same", padding_mode="circular"),
            "SharedKernelConv1d((3,), padding='same', padding_mode='circular')",
        ),
    ],
)
def test_it_prints_what_is_not_as_by_default(layer: nn.Module, text: str) -> None:
    assert repr(layer) == text


# -- growth ------------------------------------------------------------------------------------


class Stages(nn.Module):
    """A convolution, shared kernels, and a convolution that reads them."""

    def __init__(self, *between: nn.Module, reads: int, dims: int = 2) -> None:
        super().__init__()
        self.first = STOCK[dims](3, 6, 3, padding=1)
        self.between = nn.Sequential(*between)
        self.last = STOCK[dims](reads, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


def grown(model: nn.Module, x: Tensor, units: int = 5) -> Any:
    torch.manual_seed(0)
    model = splitgrow.growable(randomise(model).double().eval(), x)
    before = model(x)
    model.expand_layer("first", units)
    assert_equal(leading(model(x), before), before)
    randomise_new_blocks(model)
    return model


def of(network: nn.Module, *layers: type[nn.Module]) -> Iterator[Any]:
    return (module for module in network.modules() if isinstance(module, layers))


@dims
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_it_grows_with_its_input_without_a_parameter_more(dims: int, bias: bool) -> None:
    layer = LAYERS[dims](3, multiplier=2, padding=1, bias=bias)
    parameters = list(layer.parameters())
    x = torch.randn(2, 3, *(6,) * dims, dtype=torch.float64)
    model = grown(Stages(layer, nn.ReLU(), reads=12, dims=dims), x)
    assert model.between[0] is layer
    assert list(map(id, layer.parameters())) == list(map(id, parameters))
    assert [layer.name for layer in model.layers] == ["first", "last"]
    new = sum(p.numel() for p in model.generation_parameters())
    assert new == 5 * (3 * 3**dims + 1) + 2 * 10  # of `first`, and of the helper of `last`
    merged = splitgrow.merge(model)
    assert type(merged.between[0]) is LAYERS[dims]
    assert merged.last.in_channels == 22
    assert_equal(merged(x), model(x))
    assert_equal(splitgrow.fuse(model)(x), model(x))


def test_two_in_a_row_also_behind_a_concatenation() -> None:
    class Cat(Stages):
        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(torch.cat([self.between(x), x], 1))

    between = SharedKernelConv2d(3, multiplier=2, padding=1), SharedKernelConv2d(1, multiplier=3)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    model = grown(Cat(*between, reads=42), x)
    assert splitgrow.merge(model).last.in_channels == 77
    assert_equal(splitgrow.merge(model)(x), model(x))
    assert_equal(splitgrow.fuse(model)(x), model(x))


def test_a_sum_with_its_input_grows_and_a_literal_width_behind_it_does_not() -> None:
    class Added(Stages):
        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(x + self.between(x))

    class Literal(Stages):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.between(self.first(x)).view(-1, 6, 4, 4))

    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    model = grown(Added(SharedKernelConv2d(3, padding=1), reads=6), x)
    assert_equal(splitgrow.fuse(model)(x), model(x))
    model = splitgrow.growable(Literal(SharedKernelConv2d(3, padding=1), reads=6).double(), x)
    assert "`view`" in model.layers[0].reason


def test_what_it_works_along_as_space_cannot_grow() -> None:
    net = nn.Sequential(nn.Linear(4, 6), SharedKernelConv1d(3, padding=1), nn.Linear(6, 2))
    model: Any = splitgrow.growable(net, torch.randn(2, 5, 4))
    assert "as if it were space" in model.layers[0].reason
    assert model.layers[1].growable


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_before_an_rms_norm_only_one_without_bias_lets_channels_join_as_zeros(bias: bool) -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv1d(3, 6, 1)
            self.shared = SharedKernelConv1d(3, padding=1, bias=bias)
            self.norm, self.last = nn.RMSNorm(6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(self.shared(self.first(x)).mT))

    x = torch.randn(2, 3, 5, dtype=torch.float64)
    model: Any = splitgrow.growable(Normed().double().eval(), x)
    first = model.layers[0]
    assert first.step == (6 if bias else 1)  # copies, or zeros
    before = model(x)
    model.expand_layer("first", 6 if bias else 3)
    assert_equal(model(x), before)


# -- fusion ------------------------------------------------------------------------------------


@dims
def test_fused_it_is_a_stock_depthwise_convolution_with_the_norm_folded(dims: int) -> None:
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
    for layer in (
        LAYERS[dims](3, multiplier=2, padding=1, bias=False),
        LAYERS[dims](3, multiplier=2, stride=2, padding=1, padding_mode="reflect"),
    ):
        x = torch.randn(2, 3, *(6,) * dims, dtype=torch.float64)
        model = grown(Stages(layer, norm(12), nn.ReLU(), reads=12, dims=dims), x)
        random = torch.get_rng_state()
        fused = splitgrow.fuse(model)
        assert torch.equal(torch.get_rng_state(), random)
        assert not list(of(fused, norm, LAYERS[dims]))
        conv = fused.get_submodule("between.0")
        assert type(conv) is STOCK[dims]
        assert (conv.groups, conv.in_channels, conv.out_channels) == (11, 11, 22)
        assert conv.padding_mode == layer.padding_mode
        assert_equal(fused(x), model(x))


class Calls(nn.Module):
    """Calls one shared kernel several times, with numbers of channels that differ."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)
        self.shared = SharedKernelConv2d(3, padding=1)
        self.shared_2 = nn.BatchNorm2d(6)
        self.norm1, self.norm2 = nn.BatchNorm2d(6), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared_2(self.shared(self.norm1(self.shared(x=self.first(x)))))
        return self.norm2(self.shared(self.second(x)))


def test_called_several_times_it_becomes_one_convolution_for_each_call() -> None:
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    model = grown(Calls(), x, 2)
    fused = splitgrow.fuse(model)
    convs = {name: conv.groups for name, conv in fused.named_children()}
    # `shared_2` is taken, by a norm that is folded afterwards
    assert convs == {"first": 1, "second": 1, "shared": 8, "shared_3": 8, "shared_4": 4}
    assert_equal(fused(x), model(x))


def test_a_kernel_that_forward_also_uses_directly_stays_for_that() -> None:
    class Direct(Stages):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.between[0].weight.sum()

    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    model = grown(Direct(SharedKernelConv2d(3), nn.BatchNorm2d(6), reads=6), x)
    fused = splitgrow.fuse(model)
    assert not list(of(fused, nn.BatchNorm2d))
    assert_equal(fused(x), model(x))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # weight_norm, which many models still use
def test_with_hooks_it_stays_as_it_is_so_that_they_run() -> None:
    shared = nn.utils.weight_norm(SharedKernelConv2d(3, multiplier=2))
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    model = grown(Stages(shared, reads=12), x)
    fused = splitgrow.fuse(model)
    assert type(fused.get_submodule("between.0")) is SharedKernelConv2d
    assert_equal(fused(x), model(x))


def test_the_depthwise_layer_is_a_thing_of_its_own() -> None:
    layer = SharedKernelConv2d(3, multiplier=2).eval()
    layer.weight.requires_grad_(False)
    conv = layer.depthwise(4)
    x = torch.randn(2, 4, 5, 5)
    assert_equal(conv(x), layer(x))
    assert (conv.training, conv.weight.requires_grad) == (False, False)
    with torch.no_grad():
        conv.weight.zero_()
    assert layer.weight.any()
    assert SharedKernelConv2d(3).depthwise(1)(x[:, :1]).shape == (2, 1, 3, 3)


# -- wrong arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kernel_size": 0}, ValueError, "kernel_size is at least 1, not 0"),
        ({"kernel_size": (3,)}, ValueError, r"kernel_size is one number or 2, not \(3,\)"),
        ({"kernel_size": (3, 3, 3)}, ValueError, "kernel_size is one number or 2"),
        ({"kernel_size": 3.0}, TypeError, "kernel_size is made of whole numbers, not 3.0"),
        ({"kernel_size": True}, TypeError, "kernel_size is made of whole numbers, not True"),
        ({"kernel_size": (3, "3")}, TypeError, "kernel_size is made of whole numbers, not '3'"),
        ({"kernel_size": None}, TypeError, "kernel_size is made of whole numbers, not None"),
        ({"multiplier": 0}, ValueError, "multiplier is at least 1, not 0"),
        ({"multiplier": (2, 2)}, TypeError, r"multiplier is made of whole numbers, not \(2, 2\)"),
        ({"stride": 0}, ValueError, "stride is at least 1, not 0"),
        ({"dilation": (1, 0)}, ValueError, "dilation is at least 1, not 0"),
        ({"padding": -1}, ValueError, "padding is at least 0, not -1"),
        ({"padding": "full"}, ValueError, "padding is 'same', 'valid' or whole numbers, not 'ful"),
        ({"padding": "same", "stride": 2}, ValueError, "padding='same' needs a stride of 1, not"),
        ({"padding_mode": "mirror"}, ValueError, "padding_mode is one of .* not 'mirror'"),
    ],
)
def test_wrong_arguments_are_named(options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        SharedKernelConv2d(**{"kernel_size": 3, **options})


@dims
def test_an_input_of_other_dimensions_is_refused_with_its_shape(dims: int) -> None:
    layer = LAYERS[dims](1)
    for wrong in (dims, dims + 3):
        shape = (2,) * wrong
        with pytest.raises(ValueError, match=rf"SharedKernelConv{dims}d takes \(N, C, \*space\)"):
            layer(torch.randn(shape))
    shape = (2, 0, *(3,) * dims)
    with pytest.raises(ValueError, match=r"at least one channel, not a tensor of shape \(2, 0, 3"):
        layer(torch.randn(shape))


def test_the_numbers_of_channels_for_a_depthwise_layer_are_checked() -> None:
    with pytest.raises(ValueError, match="channels is at least 1, not 0"):
        SharedKernelConv2d(3).depthwise(0)
    with pytest.raises(TypeError, match="channels is made of whole numbers"):
        SharedKernelConv2d(3).depthwise(2.0)  # type: ignore[arg-type]


def test_torch_says_so_where_the_kernel_does_not_fit() -> None:
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        SharedKernelConv2d(5)(torch.randn(1, 2, 3, 3))
    conv = F.conv2d(torch.randn(1, 1, 6, 6), torch.randn(1, 1, 5, 5))
    assert SharedKernelConv2d(5)(torch.randn(1, 2, 6, 6)).shape[2:] == conv.shape[2:]

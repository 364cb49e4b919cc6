"""Grown layers that run as one: the same function and gradients, and never out of date."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES, Case
from helpers import (
    assert_equal,
    largest_difference,
    randomise,
    randomise_new_blocks,
    split_layers,
    tensors_of,
)
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import splitgrow
from splitgrow.layers.tensor_holder import plain_name
from splitgrow.layers.weight_views import is_dense

MODES = ("merged", "auto")


def network() -> nn.Module:
    """One layer of every kind that runs as one, biases and none, groups, strides, padding modes."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 6, 1, stride=2),
        nn.GroupNorm(3, 6),
        nn.Conv2d(6, 6, 3, padding="same", padding_mode="reflect", groups=2),
        nn.PReLU(6),
        nn.ConvTranspose2d(6, 4, 2, 2),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.BatchNorm1d(5),
        nn.Tanh(),
        nn.Linear(5, 3),
    )


def grown(times: int = 2, *, freeze: bool = True, dtype: torch.dtype = torch.float64) -> Any:
    """The network after some growths of every layer, each in a generation of its own if frozen."""
    torch.manual_seed(0)
    model: Any = splitgrow.growable(randomise(network().to(dtype)), inputs(dtype))
    for _ in range(times):
        wanted: dict[str, int] = {}
        for layer in model.layers:
            if layer.growable and not set(layer.group) & wanted.keys():
                wanted[layer.name] = layer.step
        if freeze and model.generation:
            model.next_generation()
        model.expand(wanted, freeze=freeze)
        randomise_new_blocks(model)
    return model.train()


def inputs(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.manual_seed(1), dtype=dtype)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def in_mode(mode: Any, compute: Callable[[], Any]) -> Any:
    with splitgrow.execution(mode):
        return compute()


def gradients(model: nn.Module, *x: Tensor) -> list[Tensor]:
    loss = sum(leaf.square().sum() for leaf in tensors_of(model(*x)))
    return list(torch.autograd.grad(loss, trained(model)))


def assert_all_equal(
    actual: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12
) -> None:
    """By the largest value of all: a gradient that is zero in theory is rounding in practice."""
    assert len(actual) == len(expected) > 0
    scale = max(tensor.abs().max().item() for tensor in expected)
    assert scale > 1e-6
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max().item() <= tolerance * scale


def ways(model: Any) -> set[str]:
    return {run.way for run in splitgrow.handle(model).runs.values()}


# --- the same function and the same gradients ---------------------------------------------------


@pytest.mark.parametrize("freeze", [True, False], ids=["frozen past", "nothing frozen"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradients_are_slices_of_the_plain_networks(case: Case, freeze: bool) -> None:
    """The oracle is the merged plain network, whose gradients torch computes itself."""
    (x,) = case.inputs()
    model: Any = splitgrow.growable(randomise(case.model()), x)
    for _ in range(2):
        wanted: dict[str, int] = {}
        for layer in model.layers:
            if layer.growable and not set(layer.group) & wanted.keys():
                wanted[layer.name] = layer.step
        try:
            model.expand(wanted, freeze=freeze)
        except ValueError:  # not in one step where layers share a width
            first = next(layer for layer in model.layers if layer.growable)
            model.expand_layer(first.name, first.step, freeze=freeze)
        randomise_new_blocks(model)
    expected = _by_block(model, splitgrow.merge(model), x)
    for mode in ("merged", "blockwise", "auto"):
        actual = in_mode(mode, lambda: gradients(model, x))
        assert_all_equal(actual, expected)


def _by_block(model: nn.Module, plain: nn.Module, x: Tensor) -> list[Tensor]:
    """The plain network's gradients, cut into what belongs to each parameter that trains."""
    for parameter in plain.parameters():
        parameter.requires_grad_(True)
    sum(leaf.square().sum() for leaf in tensors_of(plain(x))).backward()
    whole = {name: p.grad for name, p in plain.named_parameters()}
    found: dict[int, Tensor] = {}
    for path, split in model.named_modules():
        if split not in set(split_layers(model)):
            continue
        composition = split.composition()
        if not composition.layer_type.merging.side_by_side:
            return in_mode("blockwise", lambda: gradients(model, x))
        for index, block in enumerate(split):
            for name, parameter in block.named_parameters(recurse=False):
                part = whole[plain_name(split, path, name)]
                for dim, spans in composition.places(index, name).items():
                    part = torch.cat([part.narrow(dim, *span) for span in spans], dim)
                found[id(parameter)] = part
    for name, parameter in model.named_parameters():
        found.setdefault(id(parameter), whole.get(name))
    return [found[id(parameter)] for parameter in trained(model)]


@pytest.mark.parametrize("freeze", [True, False], ids=["frozen past", "nothing frozen"])
@pytest.mark.parametrize("mode", MODES)
def test_training_steps_are_those_of_the_blocks(mode: str, freeze: bool) -> None:
    """Statistics of the batch where blocks train, running ones where they are held."""
    ours, theirs = grown(freeze=freeze), grown(freeze=freeze)
    for model, how in ((ours, mode), (theirs, "blockwise")):
        optimizer = torch.optim.SGD(trained(model), lr=1e-3, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            in_mode(how, lambda m=model: m(inputs()).square().sum()).backward()
            optimizer.step()
    assert "merged" in ways(ours)
    assert ways(theirs) == {"blockwise"}
    state = theirs.state_dict()
    for name, value in ours.state_dict().items():
        assert largest_difference(value.double(), state[name].double() + 0.0) <= 1e-11, name


def test_control_a_gradient_of_another_block_is_seen() -> None:
    model = grown()
    right = gradients(model, inputs())
    wrong = [value.roll(1, 0) for value in right]
    with pytest.raises(AssertionError):
        assert_all_equal(wrong, right)


def test_only_the_part_of_the_gradient_that_trains_is_computed() -> None:
    model: Any = splitgrow.growable(
        nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), torch.ones(1, 64)
    )
    model.expand({"0": 8, "1": 8})
    model(torch.randn(512, 64))
    runs = splitgrow.handle(model).runs
    assert runs["0"].way == runs["1"].way == "merged"
    assert runs["0"].gradient == pytest.approx(8 * 64 / (72 * 64))
    assert runs["1"].gradient == pytest.approx((8 * 72 + 72 * 8) / (72 * 72))
    model.unfreeze()
    model(torch.randn(4096, 64))
    assert splitgrow.handle(model).runs["1"].gradient == 1


# --- never out of date ---------------------------------------------------------------------------

Change = Callable[[Any], None]


def _no_grad(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)


def _through_data(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(1.5)


def _new_data(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.5


def _new_parameters(model: Any) -> None:
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach() * 1.5, parameter.requires_grad))


def _numpy(model: Any) -> None:
    for parameter in model.parameters():
        values = parameter.detach().numpy()
        values *= 1.5


def _state_dict_in_place(model: Any) -> None:
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.mul_(1.5)


def _loaded(model: Any) -> None:
    state = {n: v * 1.5 if v.is_floating_point() else v for n, v in model.state_dict().items()}
    model.load_state_dict(state)


def _assigned(model: Any) -> None:
    state = {n: v * 1.5 if v.is_floating_point() else v for n, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def _statistics(model: Any) -> None:
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.mul_(2)


def _stepped(model: Any) -> None:
    model(inputs()).square().sum().backward()
    torch.optim.Adam(trained(model), lr=0.1).step()


def _fused(model: Any) -> None:
    """Its kernel takes every parameter for contiguous, whatever its strides."""
    model(inputs()).square().sum().backward()
    torch.optim.Adam(trained(model), lr=0.1, fused=True).step()


def _unfrozen(model: Any) -> None:
    model.unfreeze()
    model(inputs()).square().sum().backward()
    torch.optim.Adam(trained(model), lr=0.1, fused=True).step()


def _half_unfrozen(model: Any) -> None:
    for parameter in list(model.parameters())[::3]:
        parameter.requires_grad_(not parameter.requires_grad)
    _fused(model)


def _grown(model: Any) -> None:
    model.expand_layer("0", 3)
    randomise_new_blocks(model)


def _converted(model: Any) -> None:
    model.float().double()


def _moved(model: Any) -> None:
    model.to(memory_format=torch.channels_last)
    _through_data(model)


def _shared(model: Any) -> None:
    model.share_memory()
    _through_data(model)


CHANGES = (
    _no_grad,
    _through_data,
    _new_data,
    _new_parameters,
    _numpy,
    _state_dict_in_place,
    _loaded,
    _assigned,
    _statistics,
    _stepped,
    _fused,
    _unfrozen,
    _half_unfrozen,
    _grown,
    _converted,
    _moved,
    _shared,
)


@pytest.mark.parametrize("freeze", [True, False], ids=["frozen past", "nothing frozen"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__[1:])
def test_nothing_is_out_of_date_after(change: Change, freeze: bool) -> None:
    model = grown(freeze=freeze)
    with splitgrow.execution("merged"), torch.no_grad():
        model.eval()(inputs())  # what can be put together once is there now
        before = model(inputs())
    with splitgrow.execution("merged"):
        change(model.train())
    with torch.no_grad():
        model.eval()
        after = in_mode("merged", lambda: model(inputs()))
        assert largest_difference(after, before) > 1e-10 if after.shape == before.shape else True
        assert_equal(after, in_mode("merged", lambda: model(inputs())))
        assert_equal(after, splitgrow.merge(model)(inputs()))
        assert_equal(after, in_mode("blockwise", lambda: model(inputs())))


def test_control_a_stale_weight_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """If tensors that train were not copied in again, an edit of them would be missed."""
    model = grown()
    monkeypatch.setattr("splitgrow.layers.weight_assembly.torch._foreach_copy_", lambda *_: None)
    with splitgrow.execution("merged"), torch.no_grad():
        model.eval()(inputs())
        _through_data(model)
        with pytest.raises(AssertionError):
            assert_equal(model(inputs()), splitgrow.merge(model)(inputs()))


def test_a_copy_is_a_model_of_its_own() -> None:
    model = grown()
    with splitgrow.execution("merged"), torch.no_grad():
        before = model.eval()(inputs())
        copied = copy.deepcopy(model)
        _through_data(copied)
        assert_equal(model(inputs()), before)
        assert largest_difference(copied(inputs()), before) > 1e-7
        assert_equal(copied(inputs()), splitgrow.merge(copied)(inputs()))


def test_what_trains_is_contiguous_and_what_is_frozen_takes_no_second_copy() -> None:
    model = grown()
    in_mode("merged", lambda: model(inputs()))
    assert all(is_dense(parameter) for parameter in trained(model))
    split = model[4]
    frozen = [p for p in split.parameters() if not p.requires_grad and p.dim() == 4]
    storages = {parameter.untyped_storage().data_ptr() for parameter in frozen}
    assert len(frozen) > 1
    assert len(storages) == 1


def test_a_change_between_forward_and_backward_is_an_error() -> None:
    model = grown()
    with splitgrow.execution("merged"):
        loss = model(inputs()).sum()
        _no_grad(model)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)),
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.Conv2d(4, 2, 1)),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Linear(6, 2)),
    ],
    ids=["convolution", "transposed", "linear"],
)
def test_a_change_where_nothing_but_products_would_notice_is_an_error(build: Any) -> None:
    """Autograd itself has saved no weight that it could find changed."""
    torch.manual_seed(0)
    model: Any = splitgrow.growable(build().double(), inputs())
    model.expand_layer(0, 2, freeze=False)
    randomise_new_blocks(model)
    with splitgrow.execution("merged"):
        loss = model(inputs()).square().sum()
        _no_grad(model)
        with pytest.raises(RuntimeError, match="a parameter of a grown layer was changed"):
            loss.backward()


class Side(nn.Module):
    """A norm behind two convolutions that lie side by side, so that its blocks are scattered."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 3, 1)
        self.norm, self.head = nn.BatchNorm2d(7), nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(torch.cat([self.one(x), self.other(x)], 1)))


@pytest.mark.parametrize("freeze", [True, False])
def test_statistics_of_scattered_blocks_are_those_of_running_block_by_block(freeze: bool) -> None:
    torch.manual_seed(0)
    model: Any = splitgrow.growable(randomise(Side().double()), inputs())
    for _ in range(2):
        model.expand({"one": 2, "other": 1}, freeze=freeze)
    randomise_new_blocks(model)
    found = []
    for mode in ("merged", "blockwise"):
        twin = copy.deepcopy(model).train()
        for _ in range(2):
            in_mode(mode, lambda twin=twin: twin(inputs()))
        assert ways(twin) == {mode}
        found.append([dict(block.named_buffers()) for block in twin.norm])
    for ours, theirs in zip(*found, strict=True):
        assert ours.keys() == theirs.keys() >= {"running_mean", "running_var"}
        for name, value in ours.items():
            assert largest_difference(value.double(), theirs[name].double()) <= 1e-12, name


def test_two_forward_passes_before_one_backward_pass_are_no_error() -> None:
    model = grown().eval()
    with splitgrow.execution("merged"):
        loss = model(inputs()).square().sum() + model(2 * inputs()).square().sum()
        actual = torch.autograd.grad(loss, trained(model))
        one, two = gradients(model, inputs()), gradients(model, 2 * inputs())
    assert_all_equal(list(actual), [a + b for a, b in zip(one, two, strict=True)])


@pytest.mark.parametrize("mode", ["merged", "blockwise", "auto"])
def test_a_closed_generation_comes_back_bit_for_bit(mode: Any) -> None:
    """Also after its blocks have become views, or ceased to be."""
    model = grown(1)
    seen = {}
    for generation in (1, 2):
        model.eval()
        seen[generation] = in_mode(mode, lambda: model(inputs())).detach()
        model.next_generation()
        model.train().expand({"0": 1, "12": 2})
        with torch.no_grad():
            for parameter in trained(model):
                parameter.normal_()
        for other in ("merged", "blockwise"):
            in_mode(other, lambda: model(inputs())).sum().backward()
        torch.optim.Adam(trained(model), lr=0.1).step()
    model.eval()
    for generation, expected in seen.items():
        with model.at(generation), splitgrow.execution(mode):
            assert torch.equal(model(inputs()), expected)


# --- with the rest of torch -----------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_a_gradient_can_be_differentiated_again(training: bool) -> None:
    model = grown().train(training)
    x = inputs().requires_grad_()

    def penalty() -> list[Tensor]:
        (slope,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        return list(torch.autograd.grad(slope.square().sum(), trained(model), allow_unused=False))

    assert_all_equal(in_mode("merged", penalty), in_mode("blockwise", penalty), 1e-11)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant: bool) -> None:
    model = grown().eval()

    def step() -> list[Tensor]:
        x = inputs().requires_grad_()
        loss = checkpoint(model, x, use_reentrant=reentrant).square().sum()
        model.zero_grad()
        loss.backward()
        return [parameter.grad.clone() for parameter in trained(model)]

    assert_all_equal(
        in_mode("merged", step), in_mode("blockwise", lambda: gradients(model, inputs()))
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs_in_the_dtype_of_a_plain_network(dtype: torch.dtype) -> None:
    model = grown(dtype=torch.float32).eval()
    plain = splitgrow.merge(model).eval()
    x = inputs(torch.float32)
    with splitgrow.execution("merged"), torch.autocast("cpu", dtype):
        output, expected = model(x), plain(x)
        assert output.dtype == expected.dtype
        # The same roundings in the same places, up to the order of sums.
        assert largest_difference(output.float(), expected.float()) <= 2 * torch.finfo(dtype).eps
        loss = output.float().square().sum()
    found = torch.autograd.grad(loss, trained(model))
    assert {gradient.dtype for gradient in found} == {torch.float32}
    exact = in_mode("merged", lambda: gradients(model, x))
    assert_all_equal(list(found), exact, 60 * torch.finfo(dtype).eps)


def test_channels_last_stays_channels_last() -> None:
    last = torch.channels_last
    model = grown().eval().to(memory_format=last)
    x = inputs().contiguous(memory_format=last)
    with splitgrow.execution("merged"):
        for _ in range(2):
            assert model[0](x).is_contiguous(memory_format=last)
        assert_equal(model(x), splitgrow.merge(model)(x))
        model.expand_layer("0", 1)
        randomise_new_blocks(model)
        assert model[0](x).is_contiguous(memory_format=last)
    assert all(is_dense(p) for p in trained(model))
    new = model[0][len(model[0]) - 1].weight
    assert new.is_contiguous(memory_format=last)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("training", [True, False])
def test_a_compiled_model(training: bool) -> None:
    model = grown().train(training)
    expected = copy.deepcopy(model)

    def step(network: Any) -> list[Tensor]:
        loss = network(inputs()).square().sum()
        return list(torch.autograd.grad(loss, trained(model)))

    torch._dynamo.reset()
    actual = step(torch.compile(model, backend="aot_eager", fullgraph=not training))
    assert_all_equal(actual, in_mode("blockwise", lambda: gradients(expected, inputs())))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_transforms_of_torch_func_and_tracing() -> None:
    model = grown().eval()
    x, own = inputs(), {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: Any) -> Tensor:
        return functional_call(model, parameters, (x,)).square().sum()

    def dual() -> Any:
        with forward_ad.dual_level():
            output = model(forward_ad.make_dual(x, torch.ones_like(x)))
            return forward_ad.unpack_dual(output).tangent

    def traced() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.trace(model, x, check_trace=False)(x)

    with splitgrow.execution("merged"):
        model(x)  # frozen blocks are views from here on
        expected = in_mode("blockwise", lambda: gradients(model, x))
        assert_all_equal(list(grad(loss)(own).values()), expected)
        assert_equal(vmap(lambda sample: model(sample[None])[0])(x), model(x))
        assert_equal(jvp(model, (x,), (torch.ones_like(x),))[1], dual())
        assert_equal(traced(), model(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_tracing_may_be_the_first_call_of_a_grown_model(case: Case) -> None:
    model, x = case.model(), case.inputs()
    try:
        torch.jit.trace(model, x)
    except Exception:  # noqa: BLE001 - torch's own limit
        pytest.skip("torch.jit cannot trace the plain model either")
    model = splitgrow.growable(model, x)
    for layer in model.layers:
        if layer.growable:
            model.expand_layer(layer.name, layer.step, check=False)
    randomise_new_blocks(model)
    traced = torch.jit.trace(model, x)  # runs it again, and compares the graphs as well
    assert_all_equal(tree_leaves(traced(*x)), tree_leaves(model(*x)))


def test_inference_mode_leaves_a_model_that_trains() -> None:
    model = grown()
    with torch.inference_mode(), splitgrow.execution("merged"):
        expected = model.eval()(inputs()).clone()
    assert_equal(in_mode("merged", lambda: model(inputs())), expected)
    assert_all_equal(
        in_mode("merged", lambda: gradients(model, inputs())),
        in_mode("blockwise", lambda: gradients(model, inputs())),
    )


def test_inputs_without_a_batch() -> None:
    model: Any = splitgrow.growable(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).double(), inputs()
    )
    model.expand_layer("0", 2)
    randomise_new_blocks(model)
    x = inputs()[0]
    assert_equal(in_mode("merged", lambda: model(x)), in_mode("blockwise", lambda: model(x)))
    assert_all_equal(
        in_mode("merged", lambda: gradients(model, x)),
        in_mode("blockwise", lambda: gradients(model, x)),
    )


def test_hooks_on_blocks_run_whatever_the_mode() -> None:
    model = grown()
    calls = []
    model[0][0].register_forward_hook(lambda *_: calls.append("original"))
    in_mode("merged", lambda: model(inputs()))
    assert calls == ["original"]
    assert "hooks" in splitgrow.handle(model).runs["0"].reason


def test_saved_tensors_can_be_packed() -> None:
    model = grown().eval()
    with torch.autograd.graph.save_on_cpu(), splitgrow.execution("merged"):
        actual = gradients(model, inputs())
    assert_all_equal(actual, in_mode("blockwise", lambda: gradients(model, inputs())))


# --- which way "auto" goes ------------------------------------------------------------------------


def _wide(rows: int, *, freeze: bool = True, close: bool = False) -> Any:
    layers = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512))
    model: Any = splitgrow.growable(layers, torch.ones(1, 512))
    model.expand({"0": 64, "1": 64}, freeze=freeze)
    if close:
        model.next_generation()
    model(torch.randn(rows, 512))
    return splitgrow.handle(model).runs["1"]


def test_few_rows_run_block_by_block_and_many_as_one() -> None:
    assert _wide(1).way == "blockwise"
    assert "would copy" in _wide(1).reason
    assert _wide(4096).way == "merged"


def test_what_is_all_frozen_runs_as_one_however_few_the_rows() -> None:
    assert _wide(1, close=True).way == "merged"


def test_a_huge_weight_is_not_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitgrow.layers.dispatch.LARGEST_MERGED", 2**20)
    run = _wide(4096, close=True)
    assert (run.way, run.reason) == ("blockwise", "it is too large to be put together")


def test_a_table_with_sparse_gradients_keeps_them() -> None:
    class Words(nn.Sequential):
        pass

    model: Any = splitgrow.growable(
        Words(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 2)), torch.arange(3)
    )
    model.expand_layer("0", 2)
    in_mode("merged", lambda: model(torch.arange(3))).sum().backward()
    assert model[0][1].weight.grad.is_sparse


# --- what else layers can be given ----------------------------------------------------------------


class Upsampling(nn.Module):
    """A transposed convolution that is told how large its output is."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 3, 2), nn.ConvTranspose2d(4, 4, 3, 2)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.up(self.down(x), output_size=x.shape[2:]))


class Bags(nn.Module):
    """A table whose rows are added up in bags of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.EmbeddingBag(10, 4, mode="sum"), nn.Linear(4, 2)

    def forward(self, words: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
        return self.last(self.table(words, starts, per_sample_weights=weights))


class Complex(nn.Module):
    """Weights whose gradients are conjugated."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4, dtype=torch.complex128)
        self.two = nn.Linear(4, 2, dtype=torch.complex128)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x)).abs()


CALLED: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], str]] = {
    "an output size": (Upsampling, (torch.randn(2, 3, 8, 8).double(),), "up"),
    "bags": (
        Bags,
        (torch.arange(6), torch.tensor([0, 2]), torch.rand(6).double()),
        "table",
    ),
    "complex numbers": (Complex, (torch.randn(3, 4, dtype=torch.complex128),), "one"),
    "an empty batch": (Upsampling, (torch.empty(0, 3, 8, 8).double(),), "up"),
    "not contiguous": (network, (inputs().transpose(2, 3),), "0"),
}


@pytest.mark.parametrize("name", CALLED)
def test_layers_called_with(name: str) -> None:
    build, x, layer = CALLED[name]
    torch.manual_seed(0)
    model: Any = build()
    model = model if name == "complex numbers" else model.double()
    example = x if x[0].numel() else (inputs(),)
    model = splitgrow.growable(model.eval(), example)
    model.expand_layer(layer, 2)
    with torch.no_grad():
        for parameter in trained(model):
            parameter.copy_(torch.randn_like(parameter))
    expected = in_mode("blockwise", lambda: model(*x))
    actual = in_mode("merged", lambda: model(*x))
    assert actual.shape == expected.shape
    if not actual.numel():
        step = in_mode("merged", lambda: gradients(model, *x))
        assert all(not gradient.any() for gradient in step)
        return
    assert_equal(actual, expected)
    assert_all_equal(
        in_mode("merged", lambda: gradients(model, *x)),
        in_mode("blockwise", lambda: gradients(model, *x)),
    )


@pytest.mark.parametrize("trains", [False, True])
def test_tensors_that_stand_in_for_a_call_and_the_models_own_keep_their_values(
    *, trains: bool
) -> None:
    """As torch.func.functional_call has them: what is put together is nobody's memory."""
    model = grown().eval()
    x = inputs()

    def given(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        pairs = [(n, torch.randn_like(p)) for n, p in model.named_parameters()]
        return {n: nn.Parameter(t, requires_grad=trains) for n, t in pairs}

    before = model(x).detach().clone()
    own = {name: value.clone() for name, value in model.state_dict().items()}
    sets = [given(0), given(1)]
    kept = [{name: value.detach().clone() for name, value in each.items()} for each in sets]
    for _ in range(2):
        found = [functional_call(model, each, (x,)) for each in sets]
        expected = [
            in_mode("blockwise", lambda each=each: functional_call(model, each, (x,)))
            for each in kept
        ]
        assert largest_difference(found[0], found[1]) > 1e-3
        assert_all_equal(found, expected)
        for each, then in zip(sets, kept, strict=True):
            assert all(torch.equal(each[name], then[name]) for name in each)
        assert torch.equal(model(x), before)
        assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())

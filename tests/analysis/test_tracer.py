"""One trace shows the ops of forward, for every way to write it, and leaves the model as it was."""

from __future__ import annotations

import copy
import logging
import random
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import assert_equal
from snapshots import ANALYSIS, unchanged
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from written import Forward, X, laws_hold, reasons, written

import splitgrow
from splitgrow.analysis.trace import Source
from splitgrow.analysis.tracer import trace_model
from splitgrow.utils.example_call import ExampleCall


def test_control_the_laws_fail_where_a_width_is_used_in_secret() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        return model.head(model.one(x) * sum(1 for _ in model.modules()))

    model = splitgrow.growable(written(forward), X, check=False)
    before = model(X)
    model.expand_layer("one", 4, check=False)
    with pytest.raises(AssertionError):
        assert_equal(model(X), before)


# --- control flow -------------------------------------------------------------------------------


def by_rank(model: Any, x: Tensor) -> Tensor:
    return model.head(model.one(x) if x.dim() == 3 else model.other(x))


def by_batch(model: Any, x: Tensor) -> Tensor:
    total = x.new_zeros(())
    for index in range(x.shape[0]):
        total = total + model.head(model.one(x[index]))
    return total


def while_wide(model: Any, x: Tensor) -> Tensor:
    while x.size(1) > 1:
        x = x[:, ::2]
    return model.head(model.one(x))


def by_shape_in_a_helper(model: Any, x: Tensor) -> Tensor:
    def flat(y: Tensor) -> Tensor:
        batch, *space, width = y.shape
        return y.reshape(batch, -1, width) if len(space) != 1 else y

    return model.head(flat(model.one(x)))


def by_type(model: Any, x: Tensor) -> Tensor:
    y = model.one(x)
    return model.head(y.float().to(y.dtype) if y.dtype == torch.float64 and not y.is_cuda else -y)


def by_arguments(model: Any, x: Tensor) -> Tensor:
    parts = {"y": model.one(x), "scale": 2.0}
    return model.head(F.relu(input=parts["y"], inplace=False) * parts["scale"])


BRANCHES = [by_rank, by_batch, while_wide, by_shape_in_a_helper, by_type, by_arguments]


@pytest.mark.parametrize("forward", BRANCHES, ids=lambda forward: forward.__name__)
def test_control_flow_on_shapes_is_followed(forward: Forward) -> None:
    model = splitgrow.growable(written(forward), X)
    assert laws_hold(model) == ["one", "head"]


def item_of_a_sum(model: Any, x: Tensor) -> Tensor:
    return model.head(model.one(x * 2 if x.sum().item() < 1e9 else x.flip(1)))


def truth_of_a_tensor(model: Any, x: Tensor) -> Tensor:
    y = model.one(x)
    if (x > -1e9).all():
        y = y.tanh()
    return model.head(y)


def as_many_as_there_are(model: Any, x: Tensor) -> Tensor:
    return model.head(model.one(x[x[..., 0] > 0])).mean(0)


def by_numpy(model: Any, x: Tensor) -> Tensor:
    return model.head(model.one(x) * float(x.detach().numpy().max()))


VALUES = [item_of_a_sum, truth_of_a_tensor, as_many_as_there_are, by_numpy]


@pytest.mark.parametrize("forward", VALUES, ids=lambda forward: forward.__name__)
def test_where_forward_asks_for_values_it_runs_on_real_ones(forward: Forward) -> None:
    model = written(forward)
    with unchanged(model, but=ANALYSIS):
        splitgrow.growable(model, X)
    assert laws_hold(model) == ["one", "head"]


def values_of_channels(model: Any, x: Tensor) -> Tensor:
    y = model.one(x)
    return model.head(torch.tensor(y.tolist(), dtype=y.dtype))


def numpy_of_channels(model: Any, x: Tensor) -> Tensor:
    return model.head(torch.from_numpy(model.one(x).detach().numpy()[..., ::-1].copy()))


@pytest.mark.parametrize("forward", [values_of_channels, numpy_of_channels])
def test_channels_that_leave_the_tensors_are_fixed_at_that_place(forward: Forward) -> None:
    model = splitgrow.growable(written(forward), X)
    assert "test_tracer.py:" in reasons(model)["one"]
    assert laws_hold(model) == ["head"]


# --- no trace -----------------------------------------------------------------------------------


class Leaving(nn.Module):
    """Changes all it can while it runs, and asks for values if it is told to."""

    def __init__(self, *, values: bool) -> None:
        super().__init__()
        self.values = values
        self.conv, self.norm = nn.Conv1d(4, 6, 1), nn.BatchNorm1d(6)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(5, 3)
        self.register_buffer("counter", torch.zeros((), dtype=torch.float64))
        self.calls, self.note = 0, "before"
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.counter += 1
        self.counter.mul_(2)
        self.last, self.fresh, self.note = x, x.shape, "after"
        self.register_buffer("made", x.mean(0))
        self.helper = nn.ReLU()
        y = self.helper(self.drop(self.norm(self.conv(x))))
        if self.values and y.sum() < 1e9:
            y = y + random.random() * torch.rand(1, dtype=y.dtype)
        self.train(False)
        return self.head(y)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("values", [True, False], ids=["values", "shapes"])
def test_a_recorded_run_leaves_no_trace(values: bool, training: bool) -> None:
    torch.manual_seed(0)
    model = Leaving(values=values).double().train(training)
    ran = []
    for module in model.modules():
        module.register_forward_pre_hook(lambda m, args: ran.append(m))
        module.register_forward_hook(lambda m, args, output: ran.append(m))
    x = X.clone().requires_grad_()
    with unchanged(model):
        steps = trace_model(model, ExampleCall((x,)), training=True).steps
        trace_model(model, ExampleCall((x,)), training=False)
    assert ran == []
    assert (x.grad, x.equal(X)) == (None, True)
    assert [step.target for step in steps[:1]] == [Source.INPUT]
    assert {step.module for step in steps} >= {"conv", "norm", "drop", "head"}


@pytest.mark.parametrize("values", [True, False], ids=["values", "shapes"])
def test_control_a_run_of_that_model_leaves_many_traces(values: bool) -> None:
    model = Leaving(values=values).double().train()
    with pytest.raises(AssertionError) as caught, unchanged(model):
        model(X)
    for trace in ("calls", "counter", "num_batches_tracked", "note", "made", "random state"):
        assert trace in str(caught.value)


def test_the_record_names_ops_modules_and_places() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        return model.head(torch.tanh(model.one(x)) + x.shape[0])

    steps = trace_model(written(forward), ExampleCall((X,)), training=False).steps
    names = [step.name for step in steps]
    assert names == ["input", "Linear", "tanh", "getattr", "add", "Linear", "output"]
    assert [step.module for step in steps] == [None, "one", None, None, None, "head", None]
    assert all("test_tracer.py:" in step.place for step in steps[1:-1])


# --- in place, and views ------------------------------------------------------------------------


def writes_into_a_view(model: Any, x: Tensor) -> Tensor:
    y = model.one(x)
    y[:, 1:].mul_(2)
    y.transpose(0, 1).add_(1)
    return model.head(y)


def adds_in_place(model: Any, x: Tensor) -> Tensor:
    y = model.one(x)
    z = y
    y += model.other(x)
    return model.head(z.relu_())


def fills_an_empty_one(model: Any, x: Tensor) -> Tensor:
    y = model.one(x)
    z = torch.empty_like(y)
    z.copy_(y).clamp_(min=0)
    return model.head(torch.mul(z, 2, out=torch.empty_like(z)))


def detaches(model: Any, x: Tensor) -> Tensor:
    y = model.one(x)
    return model.head(y.detach() + (y - y.data))


@pytest.mark.parametrize(
    ("forward", "tied"),
    [
        (writes_into_a_view, ()),
        (adds_in_place, ("other",)),
        (fills_an_empty_one, ()),
        (detaches, ()),
    ],
)
def test_what_is_written_in_place_is_followed(forward: Forward, tied: tuple[str, ...]) -> None:
    model = splitgrow.growable(written(forward), X)
    assert model.layers[0].group == tied
    assert laws_hold(model) == ["one", *tied, "head"]


# --- training mode ------------------------------------------------------------------------------


def adds_the_other_in_training(model: Any, x: Tensor) -> Tensor:
    y = model.one(x)
    if model.training:
        y = y + model.other(x)
    return model.head(y)


def test_what_runs_in_training_mode_alone_is_followed_too() -> None:
    model = splitgrow.growable(written(adds_the_other_in_training), X)
    assert model.layers[0].group == ("other",)
    model.train()
    before = model(X)
    model.expand_layer("other", 2, freeze=False)
    assert_equal(model(X), before)


def mixes_in_training(model: Any, x: Tensor) -> Tensor:
    y = model.one(x)
    return model.head(y.softmax(-1) if model.training else y)


def test_an_op_that_runs_in_training_mode_alone_fixes_as_well() -> None:
    model = splitgrow.growable(written(mixes_in_training), X)
    assert "softmax" in reasons(model)["one"]
    assert laws_hold(model) == ["head"]


def raises_in(mode: str) -> Forward:
    def forward(model: Any, x: Tensor) -> Tensor:
        if model.training == (mode == "training"):
            raise RuntimeError(f"not in {mode}")
        return model.head(model.one(x))

    return forward


def test_where_training_mode_fails_evaluation_mode_is_analysed_with_a_warning() -> None:
    model = written(raises_in("training"))
    with (
        unchanged(model, but=ANALYSIS),
        pytest.warns(UserWarning, match="only evaluation mode was analysed") as caught,
    ):
        splitgrow.growable(model, X)
    (warning,) = caught
    assert "RuntimeError: not in training" in str(warning.message)
    assert laws_hold(model) == ["one", "head"]


def test_where_evaluation_mode_fails_the_model_is_refused() -> None:
    model = written(raises_in("evaluation"))
    with unchanged(model), pytest.raises(ValueError, match="RuntimeError: not in evaluation"):
        splitgrow.growable(model, X)


def test_a_norm_that_cannot_train_on_a_single_sample_does_not_keep_training_from_analysis() -> None:
    model = written(lambda m, x: m.head(m.norm(m.one(x))), norm=nn.BatchNorm1d(8)).train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(X[:1, 0])
    splitgrow.growable(model, X[:1, 0])  # a warning would be an error
    assert laws_hold(model.eval(), X[:1, 0]) == ["one", "head"]


# --- weights that are no layer's own ------------------------------------------------------------


def linear_by_hand(model: Any, x: Tensor) -> Tensor:
    return model.head(F.linear(model.one(x), model.weight))


def convolution_by_hand(model: Any, x: Tensor) -> Tensor:
    y = F.conv1d(model.one(x).transpose(1, 2), model.weight[..., None]).transpose(1, 2)
    return model.head(y)


def matrix_by_hand(model: Any, x: Tensor) -> Tensor:
    return model.head(model.one(x) @ model.weight)


BY_HAND = [linear_by_hand, convolution_by_hand, matrix_by_hand]


@pytest.mark.parametrize("forward", BY_HAND, ids=lambda forward: forward.__name__)
def test_what_a_weight_of_no_layers_own_reads_is_fixed_and_names_it(forward: Forward) -> None:
    weight = torch.randn(8, 8).double()  # in a plain attribute
    model = splitgrow.growable(written(forward, weight=weight), X)
    reason = reasons(model)["one"]
    assert "`weight`" in reason or "test_tracer.py:" in reason
    assert laws_hold(model) == ["head"]


def borrows_a_weight(model: Any, x: Tensor) -> Tensor:
    return model.head(model.one(x)) + F.linear(model.one(x), model.head.weight)


def test_a_layer_whose_weight_forward_uses_directly_is_fixed_on_both_sides() -> None:
    model = splitgrow.growable(written(borrows_a_weight), X)
    assert all("uses its `weight` directly, at" in reasons(model)[n] for n in ("one", "head"))
    with pytest.raises(splitgrow.FixedWidthError):
        model.expand_layer("one", 1)


# --- functions of autograd ----------------------------------------------------------------------


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.flip(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.flip(-1)


@pytest.mark.parametrize("values", [True, False], ids=["values", "shapes"])
@pytest.mark.parametrize(("function", "grows"), [(Doubled, True), (Reversed, False)])
def test_a_function_of_autograd_is_looked_into(function: Any, grows: bool, values: bool) -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        y = model.one(x)
        return model.head(function.apply(y) if not values or x.sum() < 1e9 else y)

    model = splitgrow.growable(written(forward), X)
    assert laws_hold(model) == (["one", "head"] if grows else ["head"])


# --- outputs ------------------------------------------------------------------------------------


@dataclass
class Answer:
    y: Any
    note: str = ""


@dataclass(slots=True)
class SlottedAnswer:
    y: Any


class Plain:
    def __init__(self, y: Any) -> None:
        self.y = y
        self.me = self


Named = namedtuple("Named", "y n")
OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda y: y,
    "list": lambda y: [y, None, 3],
    "dict": lambda y: {"y": (y,)},
    "ordered dict": lambda y: OrderedDict(y=y),
    "named tuple": lambda y: Named(y, 1),
    "dataclass": Answer,
    "slotted dataclass": SlottedAnswer,
    "object": Plain,
    "all of them": lambda y: Answer({"b": Plain([Named(1, SlottedAnswer(y))])}),
}


@pytest.mark.parametrize("wrap", OUTPUTS.values(), ids=OUTPUTS.keys())
def test_outputs_are_found_wherever_they_are(wrap: Callable[[Tensor], Any]) -> None:
    def forward(model: Any, x: Tensor) -> Any:
        return wrap(torch.cat([model.one(x), model.other(x)], dim=-1))

    model = splitgrow.growable(written(forward), X)
    assert "before other channels of an output" in reasons(model)["one"]
    assert not reasons(model)["other"]


def test_control_what_is_not_an_output_may_grow_in_its_middle() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        return model.wide(torch.cat([model.one(x), model.other(x)], dim=-1))

    model = splitgrow.growable(written(forward, wide=nn.Linear(16, 3)), X)
    assert laws_hold(model) == ["one", "other", "wide"]


def by_dlpack(model: Any, x: Tensor) -> Tensor:
    return model.head(torch.from_dlpack(model.one(x).detach()))


def by_capsule(model: Any, x: Tensor) -> Tensor:
    y = torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(model.one(x).detach()))
    return model.head(F.softplus(y))


def by_capsule_alone(model: Any, x: Tensor) -> Tensor:
    y = torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(model.one(x).detach()))
    return F.softplus(y * 2) + y.sum()


def by_a_shallow_copy(model: Any, x: Tensor) -> Tensor:
    return model.head(F.conv1d(copy.copy(model.one(x)), torch.ones(4, 4, 1, dtype=x.dtype)))


def by_storage(model: Any, x: Tensor) -> Tensor:
    y = model.one(x)
    return model.head(y * (y.untyped_storage().nbytes() > 0))


def by_address(model: Any, x: Tensor) -> Tensor:
    y = model.one(x)
    return model.head(y if y.data_ptr() else 0 * y)


@pytest.mark.parametrize(
    "forward", [by_dlpack, by_capsule, by_capsule_alone, by_storage, by_address]
)
def test_what_reads_memory_is_recorded_on_tensors_that_have_some(forward: Forward) -> None:
    laws_hold(splitgrow.growable(written(forward), X))


# --- torch.func ---------------------------------------------------------------------------------


def mapped_over_rows(model: Any, x: Tensor) -> Tensor:
    return torch.func.vmap(model.one)(x)


def with_a_gradient(model: Any, x: Tensor) -> Tensor:
    return model.one(x) * torch.func.grad(lambda z: z.square().sum())(x).mean()


def with_a_jacobian(model: Any, x: Tensor) -> Tensor:
    return model.one(x) + torch.func.jacrev(lambda z: z.square().sum())(x).sum()


def forward_in_mode(model: Any, x: Tensor) -> Tensor:
    return torch.func.jvp(model.one, (x,), (x,))[0]


def called_functionally(model: Any, x: Tensor) -> Tensor:
    return torch.func.functional_call(model.one, dict(model.one.named_parameters()), (x,))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, in jvp
@pytest.mark.parametrize(
    "forward",
    [mapped_over_rows, with_a_gradient, with_a_jacobian, forward_in_mode, called_functionally],
)
def test_a_model_that_uses_torch_func_is_analysed(forward: Forward) -> None:
    model = splitgrow.growable(written(lambda m, x: m.head(forward(m, x))), X)
    assert "head" in laws_hold(model)


class Experts(nn.Module):
    """Multiplies rows in groups, which torch cannot do on tensors without values in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 2)
        self.experts = nn.Parameter(torch.randn(2, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        ends = torch.tensor([2, 4], dtype=torch.int32)
        return self.head(torch._grouped_mm(self.first(x), self.experts, offs=ends))


def test_ops_that_need_values_leave_no_errors_in_the_log() -> None:
    records: list[logging.LogRecord] = []
    logger, handler = logging.getLogger("torch._subclasses.fake_tensor"), logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        trace = trace_model(Experts(), ExampleCall((torch.randn(4, 4),)), training=False)
        assert not trace.fake
        assert not records
        with pytest.raises(RuntimeError), FakeTensorMode() as mode:  # the control
            Experts()(mode.from_tensor(torch.randn(4, 4)))
        assert records
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize(("dtype", "step"), [(torch.float32, 4), (torch.bfloat16, 8)])
@pytest.mark.parametrize("turned", [False, True])
def test_experts_that_are_multiplied_in_groups_grow_by_whole_rows_of_16_bytes(
    dtype: torch.dtype, step: int, turned: bool
) -> None:
    class Turned(Experts):
        def forward(self, x: Tensor) -> Tensor:
            ends = torch.tensor([2, 4], dtype=torch.int32)
            return self.head(torch._grouped_mm(self.first(x), self.experts.mT, offs=ends))

    torch.manual_seed(0)
    x = torch.randn(4, 4, dtype=dtype)
    model: Any = splitgrow.growable((Turned() if turned else Experts()).to(dtype), x)
    before = model(x).detach()
    assert model.layers[0].step == step
    with pytest.raises(ValueError, match=f"grow in steps of {step}"):
        model.expand_layer("first", step + 1)
    for _ in range(2):
        model.expand_layer("first", step)
        assert torch.allclose(model(x), before, atol=1e-5 if step == 4 else 0.1)

"""Each mistake is a clear error, and leaves model and optimizer exactly as they were."""

from __future__ import annotations

import copy
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_equal, largest_difference
from snapshots import differences, picture, unchanged
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import splitgrow
from splitgrow.analysis.analyzer import analyse
from splitgrow.errors import (
    FixedWidthError,
    GenerationError,
    SplitGrowError,
    StructureChangedError,
    TraceError,
    UnsupportedLayerError,
    UnsupportedModelError,
)
from splitgrow.growth.initializers import Initializer
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.utils.example_call import ExampleCall


class Net(nn.Module):
    """A residual add, a norm, grouped convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.wide = nn.Conv2d(8, 12, 1, groups=4)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.body(x)
        return self.head(self.wide(x).mean((2, 3)))


X = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()


def trained(*, grown: bool) -> tuple[Any, torch.optim.Optimizer]:
    """A model in training, with gradients, hooks, a part that does not train, and momentum."""
    torch.manual_seed(0)
    model: Any = Net().double()
    model.note = {"epoch": 3}
    model.norm.eval()
    model.head.bias.requires_grad_(False)
    model.body.register_forward_hook(lambda module, args, output: None)
    model.stem.weight.register_hook(lambda gradient: None)
    model = splitgrow.growable(model, X)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    train(model, optimizer)
    if grown:
        model.expand_layer("stem", 4, optimizer=optimizer)
        train(model, optimizer)
        model.next_generation()
        model.expand_layer("wide", 4, optimizer=optimizer)
        train(model, optimizer)
    return model, optimizer


@pytest.fixture(params=[False, True], ids=["fresh", "grown"])
def model_and_optimizer(request) -> tuple[Any, torch.optim.Optimizer]:
    return trained(grown=request.param)


def grows(model: Any, name: str, n: int, inputs: Any = X) -> bool:
    """Whether a layer can grow: by growing it, in a copy."""
    return grew(copy.deepcopy(model), name, n, inputs)


def grew(model: Any, name: str, n: int, inputs: Any) -> bool:
    """Whether a layer gains units, and the old outputs stay."""
    widths = {layer.name: layer.width for layer in model.layers}
    before = model.eval()(inputs)
    model.expand_layer(name, n)
    after = model(inputs)
    now = {layer.name: layer.width for layer in model.layers}
    changed = {layer: width - widths[layer] for layer, width in now.items()}
    kept = torch.allclose(before, after[tuple(slice(size) for size in before.shape)], rtol=1e-5)
    return kept and changed[name] == n


# --- the helper itself ------------------------------------------------------------------------


def _disturbances() -> dict[str, Callable[[Any, torch.optim.Optimizer], object]]:
    def nudge(tensor: Tensor) -> None:
        with torch.no_grad():
            tensor.flatten()[0].add_(1e-15 + tensor.flatten()[0].abs() * 1e-15)

    return {
        "a value": lambda m, o: nudge(m.stem.weight),
        "a statistic": lambda m, o: nudge(m.norm.running_mean),
        "a counter": lambda m, o: m.norm.num_batches_tracked.add_(1),
        "a gradient's value": lambda m, o: nudge(m.stem.weight.grad),
        "a gradient": lambda m, o: setattr(m.stem.weight, "grad", None),
        "a flag of a parameter": lambda m, o: m.head.bias.requires_grad_(True),
        "a training flag": lambda m, o: m.norm.train(),
        "a parameter": lambda m, o: setattr(
            m.head, "weight", nn.Parameter(m.head.weight.detach().clone())
        ),
        "a module": lambda m, o: setattr(m, "head", copy.deepcopy(m.head)),
        "a module's place": lambda m, o: m.add_module("again", m.head),
        "the order of modules": lambda m, o: (
            m._modules.move_to_end("stem")
            if hasattr(m._modules, "move_to_end")
            else m._modules.update(stem=m._modules.pop("stem"))
        ),
        "an attribute": lambda m, o: setattr(m, "extra", 1),
        "an attribute's content": lambda m, o: m.note.update(epoch=4),
        "a hook": lambda m, o: m.head.register_forward_pre_hook(lambda module, args: None),
        "a tensor's hook": lambda m, o: m.head.weight.register_hook(lambda gradient: None),
        "the class": lambda m, o: setattr(m, "__class__", type("Net", (type(m),), {})),
        "a group's option": lambda m, o: o.param_groups[0].update(lr=0.02),
        "a group's members": lambda m, o: o.param_groups[0]["params"].pop(),
        "a state's value": lambda m, o: nudge(o.state[m.stem.weight]["momentum_buffer"]),
        "a state": lambda m, o: o.state.pop(m.stem.weight),
        "the random state": lambda m, o: torch.rand(1),
        "python's random state": lambda m, o: random.random(),
        "the generation": lambda m, o: m.next_generation(),
        "the width": lambda m, o: m.expand_layer("wide", 4),
    }


@pytest.mark.parametrize("disturb", _disturbances().values(), ids=_disturbances().keys())
def test_control_the_snapshot_notices_a_change_of(disturb):
    model, optimizer = trained(grown=False)
    with pytest.raises(AssertionError, match="changed: "), unchanged(model, optimizer):
        disturb(model, optimizer)


def test_the_snapshot_is_the_same_twice_and_of_any_growable_model(model_and_optimizer):
    model, optimizer = model_and_optimizer
    assert differences(picture(model, optimizer), picture(model, optimizer)) == []
    assert differences(picture(model, optimizer), picture(copy.deepcopy(model), optimizer))


# --- numbers of units and layers --------------------------------------------------------------


@pytest.mark.parametrize("n", [0, -1, -(10**9)])
def test_a_number_of_units_below_one_is_a_value_error(model_and_optimizer, n):
    model, optimizer = model_and_optimizer
    with (
        unchanged(model, optimizer),
        pytest.raises(ValueError, match=rf"n \(={n}\) for `stem` must be at least 1"),
    ):
        model.expand_layer("stem", n, optimizer=optimizer)


@pytest.mark.parametrize(
    "n", [True, False, 4.0, 2.5, "4", None, np.int64(4), np.float32(4), torch.tensor(4), [4]]
)
def test_a_number_of_units_that_is_no_int_is_a_type_error(model_and_optimizer, n):
    model, optimizer = model_and_optimizer
    with (
        unchanged(model, optimizer),
        pytest.raises(TypeError, match=r"n \(=.*\) for `stem` must be an int"),
    ):
        model.expand_layer("stem", n, optimizer=optimizer)


@pytest.mark.parametrize(
    ("name", "offered"),
    [("stam", "'stem'"), ("haed", "'head'"), ("model.body", "'body'"), ("Wide", "'wide'")],
)
def test_an_unknown_name_is_a_value_error_that_offers_the_closest(
    model_and_optimizer, name, offered
):
    model, optimizer = model_and_optimizer
    with (
        unchanged(model, optimizer),
        pytest.raises(ValueError, match=f"no layer '{name}'; did you mean .*{offered}"),
    ):
        model.expand_layer(name, 4, optimizer=optimizer)


def test_a_name_like_no_other_is_a_value_error_that_points_to_the_list(model_and_optimizer):
    model, optimizer = model_and_optimizer
    with unchanged(model, optimizer), pytest.raises(ValueError, match=r"see `model\.layers`"):
        model.expand_layer("zzzzzz", 4)


@pytest.mark.parametrize("index", [4, 100, -1, -4])
def test_an_index_out_of_range_is_a_value_error_that_names_the_range(model_and_optimizer, index):
    model, optimizer = model_and_optimizer
    with (
        unchanged(model, optimizer),
        pytest.raises(ValueError, match=f"no layer {index}: the model has layers 0 to 3"),
    ):
        model.expand_layer(index, 4)


@pytest.mark.parametrize("layer", [0.0, 1.5, True, None, b"stem", ("stem",), np.int64(0)])
def test_a_layer_that_is_neither_index_nor_name_is_a_type_error(model_and_optimizer, layer):
    model, optimizer = model_and_optimizer
    with (
        unchanged(model, optimizer),
        pytest.raises(TypeError, match="a layer is an index or a name"),
    ):
        model.expand_layer(layer, 4)


@pytest.mark.parametrize("name", ["norm", ""])
def test_a_module_without_a_width_of_its_own_is_refused(model_and_optimizer, name):
    model, optimizer = model_and_optimizer
    with (
        unchanged(model, optimizer),
        pytest.raises(UnsupportedLayerError, match=f"`{name}` has no width"),
    ):
        model.expand_layer(name, 4)


@pytest.mark.parametrize("request_", [[("stem", 4)], "stem", 4, None, {"stem"}])
def test_a_request_that_is_no_mapping_is_a_type_error(model_and_optimizer, request_):
    model, optimizer = model_and_optimizer
    with (
        unchanged(model, optimizer),
        pytest.raises(TypeError, match="a request maps layers to numbers of units"),
    ):
        model.expand(request_)


def test_an_empty_request_is_a_value_error(model_and_optimizer):
    model, optimizer = model_and_optimizer
    with unchanged(model, optimizer), pytest.raises(ValueError, match="got none"):
        model.expand({})


def test_a_layer_asked_for_by_index_and_by_name_is_a_value_error(model_and_optimizer):
    model, optimizer = model_and_optimizer
    with unchanged(model, optimizer), pytest.raises(ValueError, match="`stem` is asked for twice"):
        model.expand({"stem": 4, 0: 4})


def test_all_that_is_wrong_with_a_request_is_said_at_once(model_and_optimizer):
    model, optimizer = model_and_optimizer
    with unchanged(model, optimizer), pytest.raises(ValueError, match="no layer 'stam'") as caught:
        model.expand({"stam": 4, "wide": 0, "head": 1.5, 77: 4, "norm": 1})
    for part in ("`wide` must be at least 1", "`head` must be an int", "no layer 77", "`norm` has"):
        assert part in str(caught.value)


def test_a_number_that_does_not_fit_the_groups_is_answered_with_the_widths_that_do():
    model, optimizer = trained(grown=False)
    with (
        unchanged(model, optimizer),
        pytest.raises(ValueError, match=r"`wide`.* steps of 4, .* widths are 16 and 20") as caught,
    ):
        model.expand({"wide": 6, "stem": 3}, optimizer=optimizer)
    assert "n (=3) does not fit `stem`: its 8 units grow in steps of 4" in str(caught.value)
    assert "the nearest widths are 12 and 16" in str(caught.value)
    for n in (4, 8):
        assert grows(model, "wide", n)
        assert grows(model, "stem", n)


def test_tied_layers_that_are_asked_for_different_widths_are_a_value_error(model_and_optimizer):
    model, optimizer = model_and_optimizer
    with (
        unchanged(model, optimizer),
        pytest.raises(ValueError, match=r"`(stem|body)` contradicts .* (body|stem): they are tied"),
    ):
        model.expand({"stem": 4, "body": 8}, optimizer=optimizer)


def test_tied_layers_that_are_asked_for_the_same_grow_once():
    model, _ = trained(grown=False)
    model.expand({"stem": 4, "body": 4})
    assert [layer.width for layer in model.layers] == [12, 12, 12, 3]


@pytest.mark.parametrize("name", ["ones", ""])
def test_an_unknown_initializer_is_a_value_error(model_and_optimizer, name):
    model, optimizer = model_and_optimizer
    with (
        unchanged(model, optimizer),
        pytest.raises(ValueError, match=r"no initializer is called .*The names are .*zero"),
    ):
        model.expand_layer("stem", 4, initializer=name, optimizer=optimizer)


@pytest.mark.parametrize("given", [None, 3, len, Initializer])
def test_what_is_neither_a_name_nor_an_initializer_is_a_type_error(model_and_optimizer, given):
    model, optimizer = model_and_optimizer
    for grow in (partial(model.expand_layer, "stem"), model.expand_input):
        with (
            unchanged(model, optimizer),
            pytest.raises(TypeError, match=r"Initializer or the name of one \(.*zero.*\), got"),
        ):
            grow(4, initializer=given, optimizer=optimizer)


@pytest.mark.parametrize("mode", ["fast", "", None, 1])
def test_an_unknown_execution_mode_is_a_value_error(mode):
    with (
        pytest.raises(ValueError, match=r"no execution mode .*auto, blockwise, merged"),
        splitgrow.execution(mode),
    ):
        pytest.fail("the block ran")


# --- models that are not growable -------------------------------------------------------------


@pytest.mark.parametrize("use", [splitgrow.handle, splitgrow.merge, splitgrow.fuse])
def test_a_model_never_made_growable_is_refused_with_the_way_out(use):
    model = Net()
    with unchanged(model), pytest.raises(SplitGrowError, match=r"call splitgrow\.growable"):
        use(model)


@pytest.mark.parametrize("use", [splitgrow.handle, splitgrow.merge, splitgrow.fuse])
@pytest.mark.parametrize("wrong", [None, 3, "net", Net, torch.ones(1)])
def test_what_is_no_module_is_a_type_error(use, wrong):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got"):
        use(wrong)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got"):
        splitgrow.growable(wrong, torch.ones(1))


def test_a_plain_model_has_no_expand_layer():
    with pytest.raises(AttributeError, match="expand_layer"):
        Net().expand_layer("stem", 4)


@pytest.mark.parametrize("inputs", [[X], None, 3, X.numpy(), "x"])
def test_example_inputs_of_another_type_are_a_type_error(inputs):
    model = Net().double()
    with unchanged(model), pytest.raises(TypeError, match="example_inputs must be a tensor, a"):
        splitgrow.growable(model, inputs)


@pytest.mark.parametrize("inputs", [(), (X, X), (X, 1, 2)])
def test_a_wrong_number_of_example_inputs_is_a_value_error(inputs):
    model = Net().double()
    with (
        unchanged(model),
        pytest.raises(ValueError, match=r"example_inputs do not fit Net\.forward\(x"),
    ):
        splitgrow.growable(model, inputs)


@pytest.mark.parametrize(
    "inputs",
    [torch.ones(2, 3, 4, 4).double(), torch.ones(4).double(), torch.ones(2, 2, 4, 4), ("x",)],
    ids=["channels", "dimensions", "dtype", "type"],
)
def test_example_inputs_that_the_model_does_not_run_on_are_a_value_error(inputs):
    model = Net().double()
    with (
        unchanged(model),
        pytest.raises(ValueError, match=r"Net does not run on example_inputs of .*stem.*\.py:\d+"),
    ):
        splitgrow.growable(model, inputs)


def test_bad_example_inputs_leave_a_growable_model_growable(model_and_optimizer):
    model, optimizer = model_and_optimizer
    with unchanged(model, optimizer), pytest.raises(ValueError, match="does not run"):
        splitgrow.growable(model, torch.ones(3, 3))
    assert grows(model, "stem", 4)


# --- models and layers of kinds that cannot grow -----------------------------------------------


@contextmanager
def without_warnings() -> Iterator[None]:
    """For parts of torch that announce their own end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_a_lazy_model_is_refused_and_works_after_its_first_run():
    with without_warnings():
        model: Any = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(3)).double()
    with (
        unchanged(model),
        pytest.raises(UnsupportedModelError, match="0, 2 are not initialised yet; run the model"),
    ):
        splitgrow.growable(model, X)
    model(X)
    model = splitgrow.growable(model, X)
    assert grows(model, "0", 2)


def test_a_model_with_one_lazy_layer_is_refused_and_the_layer_is_named():
    with without_warnings():
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.LazyBatchNorm2d())
    with unchanged(model), pytest.raises(UnsupportedModelError, match="1 is not initialised"):
        splitgrow.growable(model, X.float())


def test_a_model_in_data_parallel_is_refused():
    model = Net().double()
    wrapped = nn.DataParallel(model)
    with (
        unchanged(wrapped),
        pytest.raises(UnsupportedModelError, match=r"wrapped in DataParallel; .*model\.module"),
    ):
        splitgrow.growable(wrapped, X)
    assert grows(splitgrow.growable(wrapped.module, X), "stem", 4)


def test_a_model_in_distributed_data_parallel_is_refused(tmp_path):
    model = Net().double()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        with without_warnings():
            wrapped = nn.parallel.DistributedDataParallel(model)
        with (
            unchanged(wrapped),
            pytest.raises(UnsupportedModelError, match="wrapped in DistributedDataParallel"),
        ):
            splitgrow.growable(wrapped, X)
    finally:
        torch.distributed.destroy_process_group()


def test_a_scripted_model_is_refused():
    with without_warnings():
        model = torch.jit.script(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(UnsupportedModelError, match="ScriptModule; grow it before scripting"):
        splitgrow.growable(model, torch.ones(1, 2))


def test_a_traced_model_is_refused():
    with without_warnings():
        model = torch.jit.trace(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2))
    with pytest.raises(UnsupportedModelError, match="ScriptModule"):
        splitgrow.growable(model, torch.ones(1, 2))


def test_a_compiled_model_is_refused_and_the_original_is_growable():
    model = Net().double()
    compiled = torch.compile(model, backend="eager")
    with (
        unchanged(compiled),
        pytest.raises(UnsupportedModelError, match="the model is compiled; make the original"),
    ):
        splitgrow.growable(compiled, X)
    assert grows(splitgrow.growable(model, X), "stem", 4)


class ValueDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if x.sum() > 0:  # the line that is to be named
            x = x * 2
        return self.linear(x)


def test_a_model_that_decides_by_values_grows_and_fuse_says_why_it_only_merges():
    model: Any = ValueDependent().double()
    x = torch.ones(1, 2, dtype=torch.float64)
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = next(
        i for i, text in enumerate(lines, 1) if text.endswith("# the line that is to be named")
    )
    with unchanged(model):
        graph = analyse(model, ExampleCall((x,)))
    assert not graph.reason(graph.sized()[0])
    assert grows(splitgrow.growable(model, x), "linear", 4, x)
    with pytest.warns(UserWarning, match=rf"merge.*test_bad_input\.py:{line}:"):
        fused = splitgrow.fuse(model)
    assert type(fused) is ValueDependent
    for sign in (1, -1):
        assert_equal(fused(sign * x), model(sign * x))


def test_a_model_on_meta_that_decides_by_values_is_refused_with_the_line_of_the_user():
    model = ValueDependent().to("meta")
    with pytest.raises(TraceError, match=r"test_bad_input\.py:\d+: .*no values"):
        splitgrow.growable(model, torch.ones(1, 2, device="meta"))


def test_a_model_whose_forward_raises_is_refused_with_its_own_words():
    class Raising(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("the user's own words")

    model = Raising()
    with unchanged(model), pytest.raises(ValueError, match='KeyError: "the user\'s own words"'):
        splitgrow.growable(model, torch.ones(1, 2))


def triple(middle: nn.Module) -> nn.Module:
    """Three layers, of which only the one in the middle is odd."""
    return nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 4), nn.ReLU(), middle, nn.Linear(4, 2))


class OwnLinear(nn.Linear):
    """A subclass might do anything in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).abs()


def _pruned(name: str) -> nn.Module:
    return prune.l1_unstructured(nn.Linear(4, 4), name, amount=0.5)


def _old_weight_norm() -> nn.Module:
    with without_warnings():
        return nn.utils.weight_norm(nn.Linear(4, 4))


def _with_a_parametrized_tensor_of_its_own() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.own = nn.Parameter(torch.ones(2))
    nn.utils.parametrize.register_parametrization(layer, "own", nn.Identity())
    return layer


ODD_LAYERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "spectral_norm": (
        lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
        "the parametrization of its `weight` has values of its own",
    ),
    "orthogonal": (
        lambda: parametrizations.orthogonal(nn.Linear(4, 4)),
        "the parametrization of its `weight` has values of its own",
    ),
    "parametrized extra tensor": (
        _with_a_parametrized_tensor_of_its_own,
        "does not know the parametrized tensor `own`",
    ),
    "parametrized subclass": (
        lambda: parametrizations.weight_norm(OwnLinear(4, 4)),
        "OwnLinear is a subclass of Linear",
    ),
    "old weight_norm": (_old_weight_norm, "`weight` is computed from other tensors"),
    "old spectral_norm": (
        lambda: nn.utils.spectral_norm(nn.Linear(4, 4)),
        "`weight` is computed from other tensors",
    ),
    "pruned weight": (lambda: _pruned("weight"), "`weight` is computed from other tensors"),
    "subclass": (lambda: OwnLinear(4, 4), "OwnLinear is a subclass of Linear"),
}


@pytest.mark.parametrize(("make", "reason"), ODD_LAYERS.values(), ids=ODD_LAYERS.keys())
@pytest.mark.parametrize("training", [True, False])
def test_an_odd_layer_is_refused_with_its_reason_and_the_others_still_grow(make, reason, training):
    torch.manual_seed(0)
    x = torch.randn(3, 2)
    model = triple(make()).train(training)
    with without_warnings():
        model = splitgrow.growable(model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    layers = {layer.name: layer for layer in model.layers}
    assert layers.keys() == {"0", "1", "3", "4"}
    for name in ("1", "3"):
        assert reason in layers[name].reason
        assert not layers[name].growable
        assert layers[name].step == 0
        with unchanged(model, optimizer), pytest.raises(FixedWidthError, match=reason):
            model.expand_layer(name, 2, optimizer=optimizer)
    for name in ("0", "4"):
        assert layers[name].growable
        assert grew(model, name, 3, x)


def test_all_layers_that_cannot_grow_are_named_at_once():
    model: Any = splitgrow.growable(triple(OwnLinear(4, 4)), torch.ones(1, 2))
    with unchanged(model), pytest.raises(FixedWidthError, match="`1` cannot grow") as caught:
        model.expand({"0": 1, "3": 1, "1": 2})
    assert "`3` cannot grow" in str(caught.value)
    assert "`0`" not in str(caught.value)


def test_a_pruned_layer_does_not_warn():
    splitgrow.growable(triple(_pruned("weight")), torch.ones(1, 2))


def test_a_layer_with_a_pruned_bias_is_refused():
    model: Any = splitgrow.growable(triple(_pruned("bias")), torch.ones(1, 2))
    with pytest.raises(FixedWidthError, match="`bias` is computed from other tensors"):
        model.expand_layer("3", 2)


def test_a_layer_grows_when_its_parametrization_has_been_removed():
    torch.manual_seed(0)
    x = torch.randn(3, 2)
    model: Any = splitgrow.growable(triple(parametrizations.spectral_norm(nn.Linear(4, 4))), x)
    nn.utils.parametrize.remove_parametrizations(model[3], "weight")
    model = splitgrow.growable(model, x)
    assert grows(model, "3", 2, x)


def test_a_quantized_layer_is_refused_and_the_others_still_grow():
    torch.manual_seed(0)
    x = torch.randn(3, 2)
    model: Any = triple(nn.Linear(4, 4))
    with without_warnings():
        model[3] = torch.ao.nn.quantized.dynamic.Linear.from_float(_with_qconfig(nn.Linear(4, 4)))
        model = splitgrow.growable(model, x)
        assert [layer.name for layer in model.layers] == ["0", "1", "4"]
        reason = model.layers[1].reason
        assert "`linear_dynamic` at " in reason
        assert "is not an op that splitgrow knows" in reason
        with unchanged(model), pytest.raises(FixedWidthError, match="`1` cannot grow"):
            model.expand_layer("1", 2)
        with unchanged(model), pytest.raises(UnsupportedLayerError, match="`3` has no width"):
            model.expand_layer("3", 2)
    for name in ("0", "4"):
        assert grows(model, name, 3, x)


def _with_qconfig(linear: nn.Linear) -> nn.Linear:
    linear.qconfig = torch.ao.quantization.default_dynamic_qconfig
    return linear


class Tied(nn.Module):
    """Two layers that share a Parameter, between others."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.before = nn.Linear(6, 4)
        self.one = nn.Linear(4, 4)
        self.two = nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.after = nn.Linear(4, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(self.first(x).relu())
        return self.last(self.after(self.two(self.one(x).relu())).relu())


def test_layers_that_share_a_weight_grow_together_and_go_on_sharing_it():
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    model: Any = splitgrow.growable(Tied(), x)
    assert not any(layer.reason for layer in model.layers)
    for name in ("before", "one", "first", "after", "last"):
        assert grows(model, name, 3, x)
    model.expand_layer("one", 3)
    assert all(a.weight is b.weight for a, b in zip(model.one, model.two, strict=True))


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.middle = nn.Linear(6, 6)
        self.last = nn.Linear(6, 2)
        self.layers_to_run = (self.first, self.middle)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers_to_run:
            x = layer(x).relu()
        return self.last(x)


def test_layers_that_a_tuple_holds_too_are_refused_and_the_others_still_grow():
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    model: Any = splitgrow.growable(Listed(), x)
    for name in ("first", "middle"):
        with (
            unchanged(model),
            pytest.raises(FixedWidthError, match=r"`layers_to_run`.*or nn\.ModuleList"),
        ):
            model.expand_layer(name, 2)
    assert grows(model, "last", 3, x)


@pytest.mark.parametrize(
    ("model", "x"),
    [(nn.Linear(4, 3), torch.ones(1, 4)), (nn.Conv2d(2, 3, 1), torch.ones(1, 2, 4, 4))],
    ids=["Linear", "Conv2d"],
)
def test_a_model_that_is_itself_one_layer_is_refused(model, x):
    model = splitgrow.growable(copy.deepcopy(model), x)
    (layer,) = model.layers
    assert (layer.name, layer.width, layer.growable) == ("", 3, False)
    for again in range(2):
        with (
            unchanged(model),
            pytest.raises(
                FixedWidthError, match=r"itself one layer; put it into an nn\.Sequential"
            ),
        ):
            model.expand_layer(0, 1)
        if not again:
            splitgrow.growable(model, x)


# --- generations ------------------------------------------------------------------------------


def _uses_of_a_generation() -> dict[str, Callable[[Any, Any], object]]:
    def show(model: Any, generation: Any) -> None:
        with model.at(generation):
            pytest.fail("the block ran")

    return {
        "at": show,
        "merge": splitgrow.merge,
        "fuse": lambda model, generation: splitgrow.fuse(model, generation=generation),
    }


every_use = pytest.mark.parametrize(
    "use", _uses_of_a_generation().values(), ids=_uses_of_a_generation().keys()
)


def parameters(model: Any, generation: Any) -> object:
    return model.generation_parameters(generation)


@pytest.mark.parametrize("generation", [3, 100, -1])
@pytest.mark.parametrize(
    "use",
    [*_uses_of_a_generation().values(), parameters],
    ids=[*_uses_of_a_generation(), "generation_parameters"],
)
def test_a_generation_that_does_not_exist_is_a_value_error(use, generation):
    model, optimizer = trained(grown=True)
    with (
        unchanged(model, optimizer),
        pytest.raises(ValueError, match=f"no generation {generation}: the open one is 2"),
    ):
        use(model, generation)


@pytest.mark.parametrize("generation", [True, False, 1.0, "1", np.int64(1)])
@pytest.mark.parametrize(
    "use",
    [*_uses_of_a_generation().values(), parameters],
    ids=[*_uses_of_a_generation(), "generation_parameters"],
)
def test_a_generation_that_is_no_int_is_a_type_error(use, generation):
    model, optimizer = trained(grown=True)
    with unchanged(model, optimizer), pytest.raises(TypeError, match="generation must be an int"):
        use(model, generation)


@every_use
@pytest.mark.parametrize("generation", [0, 1])
def test_a_generation_lost_to_unfreeze_is_refused(use, generation):
    model, optimizer = trained(grown=True)
    model.unfreeze()
    with (
        unchanged(model, optimizer),
        pytest.raises(GenerationError, match=f"generation {generation} is no longer exact"),
    ):
        use(model, generation)


def test_a_generation_closed_after_unfreeze_is_exact_again():
    model, optimizer = trained(grown=True)
    model.unfreeze()
    train(model, optimizer)
    model.eval()
    expected = model(X)
    assert model.next_generation() == 3
    model.expand_layer("stem", 4, optimizer=optimizer)
    train(model.train(), optimizer)
    with model.eval().at(2):
        assert torch.equal(model(X), expected)
    assert largest_difference(model(X), expected) > 1e-6


@pytest.mark.parametrize(
    ("what", "use"),
    [
        ("grow", lambda model: model.expand_layer("stem", 4)),
        ("grow", lambda model: model.expand({"wide": 4})),
        ("close a generation", lambda model: model.next_generation()),
        ("unfreeze", lambda model: model.unfreeze()),
        ("analyse the model", lambda model: splitgrow.growable(model, X)),
    ],
)
@pytest.mark.parametrize("generation", [0, 1, 2])
def test_changes_inside_at_are_refused(what, use, generation):
    model, optimizer = trained(grown=True)
    with (
        unchanged(model, optimizer),
        model.at(generation),
        unchanged(model, optimizer),
        pytest.raises(SplitGrowError, match=rf"cannot {what} inside `with model\.at"),
    ):
        use(model)


def test_an_error_inside_at_leaves_the_whole_network_shown():
    model, optimizer = trained(grown=True)
    with unchanged(model, optimizer), pytest.raises(KeyboardInterrupt), model.at(0):
        raise KeyboardInterrupt


# --- models changed by hand --------------------------------------------------------------------


def _replace_weight(module: nn.Module, *shape: int) -> None:
    module.weight = nn.Parameter(torch.randn(*shape, dtype=torch.float64))


HAND_MADE: dict[str, Callable[[Any], object]] = {
    "a module replaced": lambda m: setattr(m, "head", nn.Linear(12, 3).double()),
    "a module replaced by a wider one": lambda m: setattr(m, "head", nn.Linear(12, 5).double()),
    "a module replaced by another kind": lambda m: setattr(m, "norm", nn.Identity()),
    "a weight of another shape": lambda m: _replace_weight(m.head, 5, 12),
    "a module added": lambda m: m.add_module("extra", nn.Linear(2, 2).double()),
    "a module deleted": lambda m: delattr(m, "norm"),
}

by_hand = pytest.mark.parametrize("change", HAND_MADE.values(), ids=HAND_MADE.keys())


@by_hand
@pytest.mark.parametrize("layer", ["stem", "head"])
def test_a_model_changed_by_hand_is_refused(change, layer):
    model, optimizer = trained(grown=False)
    model.eval()
    change(model)
    with (
        unchanged(model, optimizer),
        pytest.raises(StructureChangedError, match=r"splitgrow\.growable\(model, .*\) again"),
    ):
        model.expand_layer(layer, 4, optimizer=optimizer)
    with unchanged(model, optimizer), pytest.raises(StructureChangedError):
        model.plan({layer: 4})


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "norm", nn.Identity()),
        lambda m: setattr(m, "head", nn.Linear(16, 7).double()),
        lambda m: setattr(m.stem, "0", nn.Conv2d(2, 8, 3, padding=1).double()),
        lambda m: _replace_weight(m.stem[0], 7, 2, 3, 3),
        lambda m: _replace_weight(m.wide[1], 5, 2, 1, 1),
        lambda m: m.add_module("extra", nn.Linear(2, 2).double()),
    ],
    ids=["replaced", "wider", "in a split layer", "a block's weight", "a new one's", "added"],
)
def test_a_grown_model_changed_by_hand_is_refused_and_so_are_its_closed_generations(change):
    model, optimizer = trained(grown=True)
    change(model)
    with unchanged(model, optimizer), pytest.raises(StructureChangedError):
        model.expand_layer("stem", 4)
    for use in _uses_of_a_generation().values():
        with unchanged(model, optimizer), pytest.raises(StructureChangedError):
            use(model, 0)


@by_hand
def test_a_model_changed_by_hand_can_grow_when_it_has_been_analysed_again(change):
    model, _ = trained(grown=False)
    change(model)
    if not hasattr(model, "norm"):
        model.norm = nn.Identity()
    model.head.out_features = model.head.weight.shape[0]
    if model.head.bias.shape[0] != model.head.weight.shape[0]:
        model.head.bias = nn.Parameter(torch.zeros(model.head.weight.shape[0]).double())
    model = splitgrow.growable(model, X)
    assert model.generation == 0
    assert grows(model, "stem", 4)
    assert grows(model, "head", 4)


def test_closed_generations_of_a_model_changed_by_hand_are_gone_after_the_new_analysis():
    model, _ = trained(grown=True)
    model.norm = nn.Identity()
    model = splitgrow.growable(model, X)
    assert model.generation == 2
    with pytest.raises(GenerationError, match=r"a change by hand"), model.at(1):
        pytest.fail("the block ran")
    assert grows(model, "stem", 4)


def test_a_growable_part_of_a_growable_model_notices_that_the_whole_has_grown():
    part: Any = splitgrow.growable(
        nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), torch.ones(1, 4)
    )
    whole: Any = splitgrow.growable(nn.Sequential(part, nn.Linear(3, 2)), torch.ones(1, 4))
    assert [layer.name for layer in whole.layers] == ["0.0", "0.1", "1"]
    whole.expand_layer("0.1", 2)
    with unchanged(whole), unchanged(part), pytest.raises(StructureChangedError):
        part.expand_layer("1", 2)
    assert whole(torch.ones(1, 4)).shape == (1, 2)


def test_a_growable_whole_notices_that_a_part_has_grown_by_itself():
    part: Any = splitgrow.growable(
        nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), torch.ones(1, 4)
    )
    whole: Any = splitgrow.growable(nn.Sequential(part, nn.Linear(3, 2)), torch.ones(1, 4))
    part.expand_layer("0", 2)
    with unchanged(whole), pytest.raises(StructureChangedError):
        whole.expand_layer("1", 2)
    with unchanged(whole), pytest.raises(StructureChangedError):
        whole.generation_parameters()
    for model in (whole, nn.Sequential(part, nn.Linear(3, 2)), nn.Sequential(part[0])):
        with (
            unchanged(model),
            pytest.raises(
                UnsupportedModelError, match=r"0.* did not grow here, as part of this model"
            ),
        ):
            splitgrow.growable(model, torch.ones(1, 4))
    fresh = splitgrow.growable(
        nn.Sequential(splitgrow.merge(part), nn.Linear(3, 2)), torch.ones(1, 4)
    )
    assert grows(fresh, "0.1", 2, torch.ones(1, 4))


def test_a_part_with_as_many_growths_of_its_own_is_told_from_the_whole():
    x = torch.ones(1, 4)
    part: Any = splitgrow.growable(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), x)
    whole: Any = splitgrow.growable(nn.Sequential(part, nn.Linear(3, 2)), x)
    whole.expand_layer("1", 2)
    part.expand_layer("0", 2)
    with (
        unchanged(whole),
        pytest.raises(UnsupportedModelError, match=r"0\.0, 0\.1 did not grow here"),
    ):
        splitgrow.growable(whole, x)


# --- faults in the middle ----------------------------------------------------------------------

FAULTS = {
    "placing a layer": "splitgrow.layers.split_layer.SplitLayer.set_blocks",
    "joining a group": "splitgrow.growth.optimizers.set_members_",
    "giving state": "splitgrow.growth.optimizers._give_state",
    "freezing the parameters": "splitgrow.layers.freezing.parameters_in",
    "holding statistics": "torch.nn.Module.register_forward_pre_hook",
    "building a block": "splitgrow.growth.prepared.build_block",
    "growing the groups": "splitgrow.analysis.channels.channel_groups.Groups.grow",
    "reading the structure": "splitgrow.growth.apply.structure",
}


def _replaced(target: str) -> tuple[Any, str, Any]:
    owner_path, _, name = target.rpartition(".")
    owner: Any = None
    for part in owner_path.split("."):
        owner = sys.modules[part] if owner is None else getattr(owner, part)
    return owner, name, getattr(owner, name)


@pytest.mark.parametrize(
    ("error", "late"),
    [(RuntimeError, True), (MemoryError, False), (KeyboardInterrupt, False)],
    ids=["an error after it", "no memory before it", "an interruption before it"],
)
@pytest.mark.parametrize("target", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_at_any_call_leaves_no_trace(monkeypatch, target, error, late):
    model, optimizer = trained(grown=False)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    owner, name, real = _replaced(target)
    fault: dict[str, int] = {"calls": 0, "at": 0}

    def faulty(*args: Any, **kwargs: Any) -> Any:
        fault["calls"] += 1
        if fault["calls"] == fault["at"] and not late:
            raise error("a fault")
        result = real(*args, **kwargs)
        if fault["calls"] == fault["at"] and late:
            raise error("a fault")
        return result

    monkeypatch.setattr(owner, name, faulty)
    request = {"stem": 4, "wide": 4}
    twin.expand(request, optimizer=twin_optimizer)
    calls = fault["calls"]
    assert calls > 0, "the fault is never reached"
    for call in range(1, calls + 1):
        with unchanged(model, optimizer):
            fault.update(calls=0, at=call)
            with pytest.raises(error, match="a fault"):
                model.expand(request, optimizer=optimizer)
            fault["at"] = 0
    model.expand(request, optimizer=optimizer)
    assert [layer.width for layer in model.layers] == [layer.width for layer in twin.layers]
    train(model, optimizer)


def test_a_growth_after_a_failed_one_draws_the_values_that_it_would_have_drawn():
    values = []
    for fails in (False, True):
        stranger = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
        model, optimizer = trained(grown=False)
        if fails:
            with pytest.raises(splitgrow.OptimizerError):
                model.expand_layer("stem", 4, optimizer=stranger)
        model.expand_layer("stem", 4, optimizer=optimizer)
        values.append(model.state_dict())
    assert values[0].keys() == values[1].keys()
    assert all(torch.equal(values[0][name], values[1][name]) for name in values[0])
    assert any(isinstance(module, SplitLayer) for module in model.modules())

"""Trials by values fix layers whose growth shapes alone would allow, with the place named."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES, Case
from helpers import assert_equal, outputs_of, randomise, randomise_new_blocks
from snapshots import ANALYSIS, unchanged
from torch import Tensor, nn
from torch.nn import functional as F
from written import X, laws_hold, reasons, written

import splitgrow
from splitgrow.utils.op_numbers import Scalars

Forward = Callable[[Any, Tensor], Any]


# --- what breaks in values only -----------------------------------------------------------------


def by_logarithm(model: Any, x: Tensor) -> Tensor:
    h = model.one(x)
    return model.head(h / math.log(h.size(-1)))


def by_parameters(model: Any, x: Tensor) -> Tensor:
    return model.head(model.one(x) / len(list(model.parameters())))


def by_modules(model: Any, x: Tensor) -> Tensor:
    return model.head(model.one(x) * sum(1 for _ in model.modules()))


def by_layer_type(model: Any, x: Tensor) -> Tensor:
    h = model.one(x)
    return model.head(h if isinstance(model.one, nn.Linear) else -h)


def by_repr(model: Any, x: Tensor) -> Tensor:
    return model.head(model.one(x) * len(repr(model.one)))


def by_state_dict(model: Any, x: Tensor) -> Tensor:
    return model.head(model.one(x) * sum(v.numel() for v in model.state_dict().values()))


def by_logarithm_of_units(model: Any, x: Tensor) -> Tensor:
    return model.head(model.one(x).log())


def by_root_of_units(model: Any, x: Tensor) -> Tensor:
    return model.head(model.one(x).sqrt())


def by_inverse_of_zeros(model: Any, x: Tensor) -> Tensor:
    return model.head(1 / F.relu(model.one(x)))


def by_numpy(model: Any, x: Tensor) -> Tensor:
    h = model.one(x)
    return model.head(h * float(h.detach().numpy().size))


def by_bytes(model: Any, x: Tensor) -> Tensor:
    h = model.one(x)
    return model.head(h * h.untyped_storage().nbytes())


def in_training_only(model: Any, x: Tensor) -> Tensor:
    h = model.one(x)
    return model.head(h * math.log(h.size(-1)) if model.training else h)


def in_evaluation_only(model: Any, x: Tensor) -> Tensor:
    h = model.one(x)
    return model.head(h if model.training else h * math.log(h.size(-1)))


BREAKING = (
    by_logarithm,
    by_parameters,
    by_modules,
    by_layer_type,
    by_repr,
    by_state_dict,
    by_logarithm_of_units,
    by_root_of_units,
    by_inverse_of_zeros,
    by_numpy,
    by_bytes,
    in_training_only,
    in_evaluation_only,
)


def looking(forward: Forward) -> Forward:
    """The same behind a look at values, so that no run on shapes alone can follow."""

    def looks(model: Any, x: Tensor) -> Any:
        assert x.isfinite().all()
        return forward(model, x)

    return looks


def large(forward: Forward) -> Any:
    """A model whose units stay positive where the tests' forwards need that."""
    model = written(forward)
    with torch.no_grad():
        model.one.weight.mul_(0.1)
        model.one.bias.uniform_(4.0, 5.0)
    return model


both = pytest.mark.parametrize("look", [False, True], ids=["shapes", "values"])


@both
@pytest.mark.parametrize("forward", BREAKING, ids=lambda f: f.__name__)
def test_a_layer_whose_growth_changes_values_is_fixed_and_the_rest_goes_on(forward, look):
    model = large(looking(forward) if look else forward)
    before = outputs_of(model, X)
    assert before.isfinite().all()
    splitgrow.growable(model, X)
    assert reasons(model)["one"]
    assert_equal(outputs_of(model, X), before)
    laws_hold(model)


@pytest.mark.parametrize("forward", [by_logarithm, by_layer_type, by_parameters, by_modules])
def test_control_unchecked_the_same_growth_changes_the_outputs(forward):
    model = large(looking(forward))
    splitgrow.growable(model, X, check=False)
    before = outputs_of(model, X)
    model.expand_layer("one", 4, check=False)
    with pytest.raises(AssertionError):
        assert_equal(outputs_of(model, X), before)


def test_the_reason_names_the_layer_and_the_line_where_values_first_differ():
    model = splitgrow.growable(large(looking(by_logarithm)), X)
    assert "`head` (Linear)" in reasons(model)["one"]
    assert "test_value_trials.py:" in reasons(model)["one"]


# --- what the example inputs do not show ---------------------------------------------------------


def hidden_by_a_clamp(model: Any, h: Tensor) -> Tensor:
    return (h * sum(1 for _ in model.parameters()) + 1e3).clamp(-1, 1)


def hidden_by_a_mask(model: Any, h: Tensor) -> Tensor:
    return (h + len(repr(model))).masked_fill(h.abs() >= 0, 1.0)


def hidden_by_a_norm(model: Any, h: Tensor) -> Tensor:
    return F.normalize(h * len(list(model.modules())), dim=-1)


def hidden_in_a_bound(model: Any, h: Tensor) -> Tensor:
    return h.clamp(max=1e3 * len(list(model.parameters())))


def hidden_in_a_comparison(model: Any, h: Tensor) -> Tensor:
    return torch.where(h > 1e3 * len(list(model.modules())), h * 0, h)


def hidden_in_a_tensor(model: Any, h: Tensor) -> Tensor:
    return F.normalize(h * torch.tensor(float(len(list(model.parameters())))), dim=-1)


def hidden_in_an_empty_sum(model: Any, h: Tensor) -> Tensor:
    return h + h.new_full((0, 1, 3), len(repr(model))).sum(0)


HIDDEN = (
    hidden_by_a_clamp,
    hidden_by_a_mask,
    hidden_by_a_norm,
    hidden_in_a_bound,
    hidden_in_a_comparison,
    hidden_in_a_tensor,
    hidden_in_an_empty_sum,
)


def behind_the_head(forward: Forward) -> Forward:
    return lambda model, x: forward(model, model.head(model.one(x)))


@both
@pytest.mark.parametrize("forward", HIDDEN, ids=lambda f: f.__name__)
def test_a_number_that_counts_the_model_is_found_where_no_output_shows_it(forward, look):
    forward = behind_the_head(forward)
    model = splitgrow.growable(written(looking(forward) if look else forward), X)
    assert "instead of" in reasons(model)["one"]
    assert "test_value_trials.py:" in reasons(model)["one"]
    laws_hold(model)


@pytest.mark.parametrize("forward", HIDDEN, ids=lambda f: f.__name__)
def test_an_edit_that_gives_an_op_another_number_is_taken_back(forward):
    model = splitgrow.growable(written(behind_the_head(forward)), X, check=False)
    with unchanged(model), pytest.raises(splitgrow.InexactError, match="on other inputs"):
        model.expand_layer("one", 4)


def test_numbers_are_told_apart_where_rounding_moves_outputs_a_long_way():
    """As where an argmax breaks ties: the tolerance is then larger than any output."""

    def divided(by: int, seen: Scalars) -> None:
        with seen:
            torch.ones(2) / by

    now, before = Scalars(), Scalars()
    divided(9, now)
    divided(8, before)
    assert "9 instead of 8" in now.unlike(before, 32.0, lambda seen: divided(9, seen))
    assert not now.unlike(now, 32.0, lambda seen: divided(9, seen))


def test_control_on_other_inputs_such_a_growth_shows():
    model = splitgrow.growable(written(behind_the_head(hidden_in_a_bound)), X, check=False)
    before = outputs_of(model, 1e6 * X)
    model.expand_layer("one", 4, check=False)
    with pytest.raises(AssertionError):
        assert_equal(outputs_of(model, 1e6 * X), before)


def infinite_on_its_way(model: Any, x: Tensor) -> Tensor:
    return model.head(1 / F.relu(model.one(x))).tanh()


def nan_on_its_way(model: Any, x: Tensor) -> Tensor:
    h = F.relu(model.one(x))
    return model.head(h / h).nan_to_num()


@both
@pytest.mark.parametrize("forward", [infinite_on_its_way, nan_on_its_way])
def test_a_layer_whose_reader_is_given_infinite_values_is_fixed(forward, look):
    model = written(looking(forward) if look else forward)
    with torch.no_grad():
        model.one.weight[0].zero_()
        model.one.bias[0] = -1.0  # one unit that gives 0 whatever the input
        model.one.bias[1:] = 9.0
    splitgrow.growable(model, X)
    assert "`head` reads infinite values or NaN" in reasons(model)["one"]
    assert not reasons(model)["head"]
    laws_hold(model)


def test_infinite_values_that_no_layer_mixes_fix_nothing():
    def forward(model: Any, x: Tensor) -> Tensor:
        h = model.one(x)
        scores = (h @ h.transpose(-1, -2)).masked_fill(torch.ones(4, 4).triu(1) > 0, -torch.inf)
        return model.head(scores.softmax(-1) @ model.other(x))

    model = splitgrow.growable(written(forward), X)
    assert not reasons(model)["other"]
    laws_hold(model)


def by_its_own_largest(model: Any, h: Tensor) -> Tensor:
    return h / h.abs().max().item()


def by_its_own_mean(model: Any, h: Tensor) -> Tensor:
    centred = h - h.mean().item()
    return h - centred.mean().item()  # rounding and nothing else


def by_a_count_of_inputs(model: Any, h: Tensor) -> Tensor:
    return h / h.size(0) + h.size(1)


def by_its_depth(model: Any, h: Tensor) -> Tensor:
    return h * h.dim() ** 0.5 + 0.5


@both
@pytest.mark.parametrize(
    "forward", [by_its_own_largest, by_its_own_mean, by_a_count_of_inputs, by_its_depth]
)
def test_a_number_that_growth_leaves_alone_fixes_nothing(forward, look):
    forward = behind_the_head(forward)
    model = splitgrow.growable(written(looking(forward) if look else forward), X)
    assert not reasons(model)["one"]
    model.expand_layer("one", 4)


def test_only_the_layer_that_breaks_is_fixed():
    def forward(model: Any, x: Tensor) -> Tensor:
        h = model.one(x)
        return model.head(h / math.log(h.size(-1)) + model.other(x).mean(-1, keepdim=True))

    model = splitgrow.growable(large(forward), X)
    found = reasons(model)
    assert found["one"]
    assert not found["head"]


# --- hooks --------------------------------------------------------------------------------------


def scaled(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return 2 * output


def mixed(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.softmax(-1)


def looks_only(module: nn.Module, args: Any, output: Tensor) -> None:
    assert output.isfinite().all()


VECTOR = torch.linspace(1, 2, 8, dtype=torch.float64)


def of_old_width(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * VECTOR


def before_mixed(module: nn.Module, args: Any) -> Any:
    return (args[0].cumsum(-1).flip(-1),)


def net_with_activation() -> Any:
    torch.manual_seed(0)
    return randomise(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double())


@pytest.mark.parametrize(
    ("hook", "grows"), [(scaled, True), (looks_only, True), (mixed, False), (of_old_width, False)]
)
def test_a_hook_decides_by_its_values_whether_the_layer_before_it_can_grow(hook, grows):
    model = net_with_activation()
    model[1].register_forward_hook(hook)
    splitgrow.growable(model, X)
    assert model.layers[0].growable == grows
    assert (
        grows
        or "hook on '1'" in model.layers[0].reason
        or "forward fails" in (model.layers[0].reason)
    )
    laws_hold(model)


def test_a_hook_before_a_module_counts_too():
    model = net_with_activation()
    model[1].register_forward_pre_hook(before_mixed)
    splitgrow.growable(model, X)
    assert not model.layers[0].growable


def test_a_hook_that_came_after_the_analysis_has_the_edit_taken_back():
    model = splitgrow.growable(net_with_activation(), X)
    optimizer = torch.optim.Adam(model.parameters())
    model(X).sum().backward()
    optimizer.step()
    model[1].register_forward_hook(mixed)
    with (
        unchanged(model, optimizer),
        pytest.raises(splitgrow.InexactError, match=r"`2` \(Linear\)"),
    ):
        model.expand_layer("0", 4, optimizer=optimizer)
    splitgrow.growable(model, X)
    assert "hook" in model.layers[0].reason


def test_every_kind_of_edit_is_taken_back_if_outputs_change():
    def edits(model: Any) -> list[Callable[..., Any]]:
        return [
            lambda **o: model.expand_layer("0", 4, **o),
            lambda **o: model.expand({"0": 2}, **o),
            lambda **o: model.expand_input(2, **o),
            lambda **o: model.insert_layer("0", "residual", **o),
        ]

    for index in range(4):
        model = splitgrow.growable(net_with_activation(), X)
        model.register_forward_hook(lambda m, a, out: out * len(list(m.parameters())))
        with unchanged(model, but=("hook",)), pytest.raises(splitgrow.InexactError):
            edits(model)[index]()
        edits(model)[index](check=False)


def test_an_edit_is_compared_with_nan_and_infinity_as_differences():
    model = splitgrow.growable(net_with_activation(), X)
    width = model[0].out_features
    model[1].register_forward_hook(
        lambda m, a, out: out.log() if out.size(-1) != width else out.abs()
    )
    with pytest.raises(splitgrow.InexactError, match="inf"):
        model.expand_layer("0", 4)


# --- what must go on growing --------------------------------------------------------------------


def with_dropout(model: Any, x: Tensor) -> Tensor:
    return model.head(F.dropout(model.one(x), 0.5, model.training))


def with_noise(model: Any, x: Tensor) -> Tensor:
    h = model.one(x)
    return model.head(h + torch.randn_like(h) * torch.rand(()))


def with_drop_path(model: Any, x: Tensor) -> Tensor:
    h = model.one(x)
    return model.head(h * torch.empty(h.size(0), 1, 1).bernoulli_(0.5))


def with_gumbel(model: Any, x: Tensor) -> Tensor:
    return model.head(model.one(x)) + torch.rand(2, 4, 3).exponential_().log()


def with_infinities(model: Any, x: Tensor) -> Tensor:
    scores = model.head(model.one(x)).masked_fill(x[..., :3] > 0, -torch.inf)
    return torch.cat([scores, scores.softmax(-1)], -1)


def with_nan(model: Any, x: Tensor) -> Tensor:
    return model.head(model.one(x)) / (x[..., :3] > 0)


def with_whole_numbers(model: Any, x: Tensor) -> Any:
    y = model.head(model.one(x))
    return y, y.argmax(-1), y > 0


def in_single_precision(model: Any, x: Tensor) -> Tensor:
    h = model.one(x).float()
    return model.head((h * 3).double())


def ill_conditioned(model: Any, x: Tensor) -> Tensor:
    y = model.head(model.one(x).double())
    return (y * 1e6).sin()


def with_a_generator(model: Any, x: Tensor) -> Tensor:
    return model.head(model.one(x)) + torch.rand(3, generator=model.generator, dtype=x.dtype)


GROWING = (
    with_dropout,
    with_noise,
    with_drop_path,
    with_gumbel,
    with_infinities,
    with_nan,
    with_whole_numbers,
    in_single_precision,
    ill_conditioned,
)


@both
@pytest.mark.parametrize("forward", GROWING, ids=lambda f: f.__name__)
def test_randomness_rounding_and_odd_values_fix_nothing(forward, look):
    model = splitgrow.growable(written(looking(forward) if look else forward), X)
    assert not reasons(model)["one"]
    model.expand_layer("one", 4)


def test_a_generator_that_a_module_holds_is_where_it_was():
    model = written(with_a_generator, generator=torch.Generator().manual_seed(3))
    before = model.generator.get_state()
    splitgrow.growable(model, X)
    model.expand_layer("one", 2)
    assert torch.equal(model.generator.get_state(), before)


PRECISIONS = [
    pytest.param(case, dtype, id=f"{case.name}-{dtype}")
    for index, case in enumerate(CASES)
    for dtype in (torch.bfloat16, (torch.float64, torch.float32)[index % 2])
]


@pytest.mark.filterwarnings("ignore:the outputs on the example inputs have moved")
@pytest.mark.parametrize(("case", "dtype"), PRECISIONS)
def test_the_check_refuses_nothing_that_is_exact_in_any_precision(case: Case, dtype: torch.dtype):
    model: Any = randomise(case.model()).to(dtype)
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in case.inputs())
    splitgrow.growable(model, inputs)
    unchecked: Any = splitgrow.growable(case.model().to(dtype), inputs, check=False)
    assert reasons(model) == reasons(unchecked)
    with torch.no_grad():
        for layer in model.layers:
            if layer.growable:
                model.expand_layer(layer.name, layer.step)


# --- what it costs, and what it leaves ----------------------------------------------------------


def counting(forward: Forward) -> Any:
    model = written(forward)
    model.calls = []
    model.register_forward_pre_hook(lambda m, args: m.calls.append(m.training))
    return model


def plain_forward(model: Any, x: Tensor) -> Tensor:
    return model.head(model.one(x).relu())


def test_two_forward_passes_are_enough_where_nothing_breaks():
    kept: list[bool] = []

    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for layer in self:
                x = layer(x)
            return x

    model: Any = Net(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    model.register_forward_pre_hook(lambda m, args: kept.append(m.training))
    splitgrow.growable(model, X)
    assert kept == [True, True]
    kept.clear()
    model.expand_layer("0", 4)
    assert kept == [False, False]
    kept.clear()
    model.expand_layer("0", 4, check=False)
    splitgrow.growable(model, X, check=False)
    assert kept == []


def modes_of_runs(model: Any) -> list[bool]:
    """The modes in which making the model growable runs it, whether training."""
    kept: list[bool] = []
    model.register_forward_pre_hook(lambda m, args: kept.append(m.training))
    splitgrow.growable(model, X)
    return kept


def with_another_activation_in_training(model: Any, x: Tensor) -> Tensor:
    y = model.one(x)
    return model.head(y.sigmoid() if model.training else y.tanh())


def test_both_modes_are_tried_where_they_run_other_ops():
    assert modes_of_runs(written(with_another_activation_in_training)) == [False, False, True, True]


def test_two_forward_passes_are_enough_where_the_mode_changes_no_op():
    assert modes_of_runs(written(with_dropout)) == [True, True]


def by_parameters_in_evaluation(model: Any, x: Tensor) -> Tensor:
    count = 6 if model.training else len(list(model.parameters()))
    return model.head(model.one(x) / count)


def by_width_in_evaluation(model: Any, x: Tensor) -> Tensor:
    y = model.one(x)
    wide = len(y[0, 0]) > 8 and not model.training
    return model.head(y.tanh() if wide else y.sigmoid())


def by_layer_type_in_evaluation(model: Any, x: Tensor) -> Tensor:
    same = model.training or type(model.one) is nn.Linear
    return model.head(model.one(x) if same else model.one(-x))


@pytest.mark.parametrize(
    "forward",
    [by_parameters_in_evaluation, by_width_in_evaluation, by_layer_type_in_evaluation],
)
def test_evaluation_is_tried_too_where_it_could_go_another_way_when_it_is_wider(forward: Forward):
    model = written(forward)
    kept = modes_of_runs(model)
    assert kept[0], "the narrow model runs the same ops in both modes"
    assert not model.layers[0].growable
    assert "test_value_trials.py:" in reasons(model)["one"]


def test_the_trial_leaves_no_trace_where_layers_break():
    model = large(by_parameters)
    with unchanged(model, but=ANALYSIS):
        splitgrow.growable(model, X)


def test_a_model_that_runs_in_evaluation_only_is_tried_there():
    model: Any = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    splitgrow.growable(model, torch.randn(1, 5))  # one value a channel: no statistics
    assert all(layer.growable for layer in model.layers)
    model.expand_layer("0", 2)


def test_a_model_on_the_meta_device_is_looked_at_by_shapes_only():
    with torch.device("meta"):
        model: Any = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
        x = torch.randn(2, 5)
    splitgrow.growable(model, x)
    model.expand_layer("0", 4)
    assert model(x).shape == (2, 3)


def test_a_model_that_does_not_run_on_values_says_so():
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.table(x))

    with pytest.warns(UserWarning, match="by shapes only.*IndexError"):
        model: Any = splitgrow.growable(Lookup(), torch.tensor([7]))
    with pytest.warns(UserWarning, match="not compared.*IndexError"):
        model.expand_layer("table", 4)


def test_a_model_that_rounding_alone_changes_is_said_not_to_be_checkable():
    def chaotic(model: Any, x: Tensor) -> Tensor:
        y = model.head(model.one(x))
        for _ in range(90):
            y = 3.99 * y.sigmoid() * (1 - y.sigmoid()) * 4 - 2
            y = (y * 1e3).sin()
        return y

    with pytest.warns(UserWarning, match="rounding alone"):
        splitgrow.growable(written(chaotic), X)


def test_an_edit_of_a_model_that_cannot_be_compared_says_so():
    model = splitgrow.growable(net_with_activation(), X)
    calls: list[int] = []
    model.register_forward_pre_hook(lambda m, a: calls.append(1))
    model.register_forward_hook(lambda m, a, out: out * len(calls) ** 2)
    with pytest.warns(UserWarning, match="not compared before and after"):
        model.expand_layer("0", 2)


def test_what_broke_stays_fixed_after_the_model_is_analysed_anew():
    model = splitgrow.growable(large(by_layer_type), X)
    assert reasons(model)["one"]
    model.insert_layer("head", "residual")
    assert reasons(model)["one"]
    with pytest.raises(splitgrow.FixedWidthError):
        model.expand_layer("one", 4)


def test_models_with_hooks_and_statistics_compute_in_training_what_they_did():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5), nn.Conv2d(6, 4, 1))
    model: Any = randomise(net.double())
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    splitgrow.growable(model, x)
    statistics = model[1].running_mean.clone(), model[1].num_batches_tracked.clone()
    model.expand_layer("0", 2, freeze=False)
    assert torch.equal(model[1][0].running_mean, statistics[0])
    assert torch.equal(model[1][0].num_batches_tracked, statistics[1])
    randomise_new_blocks(model)
    assert_equal(outputs_of(splitgrow.merge(model).eval(), x), outputs_of(model.eval(), x))


def test_what_broke_is_known_to_a_checkpoint(tmp_path):
    model = splitgrow.growable(large(looking(by_logarithm)), X)
    model.expand_layer("head", 1)
    splitgrow.save(model, tmp_path / "model.safetensors")
    fresh = large(looking(by_logarithm))
    splitgrow.load(fresh, tmp_path / "model.safetensors")
    assert reasons(fresh)["one"] == reasons(model)["one"]


def test_a_kernel_that_takes_multiples_only_leaves_these_to_grow() -> None:
    class Aligned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.head = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.one(x)
            if type(h) is Tensor and h.shape[1] % 4:  # not where only shapes are tried
                raise RuntimeError("strides should be multiples of four")
            return self.head(h)

    x = torch.randn(4, 3).double()
    model: Any = splitgrow.growable(Aligned().double().eval(), x)
    before = model(x)
    assert model.layers[0].step == 4
    with pytest.raises(ValueError, match=r"nearest widths are 12 and 16 .*multiples of four"):
        model.expand_layer("one", 5)
    assert model.expand_layer("one", 1, round_to=4).request["one"] == 4
    assert_equal(model(x), before)
    model.insert_layer("head", "residual")  # the model is analysed anew
    assert model.layers[0].step == 4

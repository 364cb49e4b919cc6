"""Fades: both ends bit for bit, the blend between them, and copies, compilation and resuming."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re
from typing import Any

import pytest
import torch
from helpers import (
    assert_equal,
    assert_identical,
    largest_difference,
    outputs_of,
    randomise,
    randomise_new_blocks,
)
from torch import Tensor, fx, nn

import splitgrow
from splitgrow.layers.fade import FadeIn, FadeSchedule, blend

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def paths(seed: int = 0) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    old = nn.Conv2d(3, 4, 1)
    new = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU())
    new.append(nn.Conv2d(5, 4, 3, padding=1))
    return randomise(old).double(), randomise(new).double()


def image(seed: int = 1) -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.manual_seed(seed), dtype=torch.float64)


class Gives(nn.Module):
    """Gives what it was made with, and counts its calls."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value, self.calls = value, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.value


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_the_output_is_the_blend_of_both_paths(alpha: float, training: bool) -> None:
    fade = FadeIn(*paths(), alpha=alpha).eval()
    fade.training = training  # not the paths: the norm keeps its statistics
    x = image()
    expected = (1 - alpha) * outputs_of(fade.old, x) + alpha * outputs_of(fade.new, x)
    assert_equal(outputs_of(fade, x), expected)
    if alpha in (0, 1):
        assert_identical(outputs_of(fade, x), outputs_of(fade.new if alpha else fade.old, x))
    else:
        assert largest_difference(outputs_of(fade, x), outputs_of(fade.old, x)) > 1e-3


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [0, 1])
def test_the_path_that_does_not_count_may_give_anything(alpha, dtype, training) -> None:
    value = torch.tensor([-0.0, 1.5, math.inf, -math.inf], dtype=dtype)
    other = torch.tensor([math.nan, math.inf, math.inf, math.nan], dtype=dtype)
    pair = (Gives(value), Gives(other)) if alpha == 0 else (Gives(other), Gives(value))
    fade = FadeIn(*pair, alpha=alpha).train(training)
    found = fade(torch.zeros(1))
    assert found.dtype == dtype
    assert_identical(found, value)
    assert_identical(torch.signbit(found), torch.signbit(value))
    fade.alpha = 0.5
    assert fade(torch.zeros(1)).isnan().any()


def test_blending_equal_values_changes_nothing() -> None:
    value = torch.randn(1000)
    for alpha in (0.1, 1 / 3, 0.5, 0.7, 0.999):
        fade = FadeIn(Gives(value), Gives(value), alpha=alpha)
        assert_identical(fade(value), value)


def test_in_evaluation_on_the_cpu_a_path_that_does_not_count_does_not_run() -> None:
    fade = FadeIn(Gives(torch.ones(2)), Gives(torch.zeros(2)))
    for training, alpha, ran in (
        (False, 0.0, (1, 0)),
        (False, 1.0, (0, 1)),
        (False, 0.5, (1, 1)),
        (True, 0.0, (1, 1)),
        (True, 1.0, (1, 1)),
    ):
        fade.alpha = alpha
        fade.old.calls = fade.new.calls = 0
        fade.train(training)(torch.ones(2))
        assert (fade.old.calls, fade.new.calls) == ran


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("passes", [nn.Identity, nn.Flatten, lambda: nn.Sequential(nn.Dropout())])
def test_what_follows_may_write_into_the_output_and_the_input_stays(alpha: float, passes) -> None:
    """Also where the path that counts gives its input, or a view of it."""
    fade = FadeIn(passes(), passes(), alpha).eval()
    x = torch.randn(2, 3)
    given = x.clone()
    y = fade(x)
    assert_identical(y, given)
    y.add_(1)
    assert_identical(x, given)


def test_what_is_written_into_alpha_by_others_counts() -> None:
    """Averaged models and DistributedDataParallel copy buffers in place, behind the setter."""
    fade = FadeIn(*paths()).eval()
    x = image()
    for share in (fade.share.data, fade.share):
        fade.alpha = 0.0
        assert_identical(outputs_of(fade, x), outputs_of(fade.old, x))
        share.copy_(torch.tensor(1.0))
        assert fade.finished
        assert_identical(outputs_of(fade, x), outputs_of(fade.new, x))


def test_gradients_are_shared_out_as_the_outputs_are() -> None:
    x = image()
    for alpha in (0.0, 0.25, 1.0):
        fade = FadeIn(*paths(), alpha=alpha)
        fade(x).sum().backward()
        alone = FadeIn(*paths())
        (alone.old(x).sum() + alone.new(x).sum()).backward()
        # All at once: of a bias in front of a norm that trains, the gradient is rounding only.
        found, expected = [], []
        for (name, parameter), other in zip(
            fade.named_parameters(), alone.parameters(), strict=True
        ):
            share = alpha if name.startswith("new") else 1 - alpha
            found.append(parameter.grad.flatten())
            expected.append(share * other.grad.flatten())
            assert share or not parameter.grad.any()
        assert_equal(torch.cat(found), torch.cat(expected))


def test_arguments_of_any_kind_reach_both_paths() -> None:
    class Scaled(nn.Module):
        def __init__(self, sign: float) -> None:
            super().__init__()
            self.sign = sign

        def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
            return self.sign * x * scale

    x, scale = torch.ones(3), torch.full((3,), 2.0)
    for training in (True, False):
        fade = FadeIn(Scaled(1.0), Scaled(-1.0), alpha=0.25).train(training)
        assert_identical(fade(x, scale=scale), torch.ones(3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_stays_exact_in_whatever_dtype_the_model_is(dtype: torch.dtype) -> None:
    fade = FadeIn(*paths(), alpha=0.9999)
    exact = fade.alpha
    assert not fade.to(dtype).finished
    assert (fade.alpha, fade.share.dtype) == (exact, torch.float32)
    assert fade.eval()(image().to(dtype)).dtype == dtype
    fade.alpha = 1 - 2.0**-20
    assert not fade.half().double().finished


def test_it_moves_with_the_model() -> None:
    fade = FadeIn(*paths(), alpha=0.5).to("meta")
    assert fade.share.is_meta
    assert "alpha" not in repr(fade)
    assert fade.half().share.dtype == torch.float32
    empty = fade.to_empty(device="cpu")
    assert (empty.share.device.type, empty.share.dtype) == ("cpu", torch.float32)
    shared = FadeIn(*paths(), alpha=0.5)
    shared.share_memory()
    assert shared.share.is_shared()


def test_paths_of_different_dtypes_meet_in_the_wider() -> None:
    one, other = torch.ones(2, dtype=torch.bfloat16), torch.zeros(2)
    assert FadeIn(Gives(one), Gives(other), alpha=0.5)(one).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fade = FadeIn(nn.Linear(3, 3), nn.Identity(), alpha=0.5)
        assert fade(torch.ones(1, 3)).dtype == torch.float32


@pytest.mark.parametrize("training", [True, False])
def test_outputs_of_other_shapes_or_kinds_are_refused(training: bool) -> None:
    fade = FadeIn(Gives(torch.ones(2, 1, 4)), Gives(torch.ones(2, 3, 4)), 0.5).train(training)
    with pytest.raises(ValueError, match=re.escape("(2, 1, 4), the new one's (2, 3, 4)")):
        fade(torch.ones(1))
    for value in ((torch.ones(1),), None):
        for alpha in (0.0, 0.5):
            with pytest.raises(TypeError, match="return one tensor, got"):
                FadeIn(Gives(value), Gives(torch.ones(1)), alpha).train(training)(torch.ones(1))


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan, math.inf])
def test_an_alpha_outside_of_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must lie from 0 to 1"):
        FadeIn(nn.Identity(), nn.Identity(), alpha)
    fade = FadeIn(nn.Identity(), nn.Identity(), 0.5)
    with pytest.raises(ValueError, match="alpha must lie from 0 to 1"):
        fade.alpha = alpha
    assert fade.alpha == 0.5


def test_arguments_of_other_types_are_refused() -> None:
    for alpha in ("1", True, None, torch.tensor(0.5)):
        with pytest.raises(TypeError, match="alpha must be a number"):
            FadeIn(nn.Identity(), nn.Identity(), alpha)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"new must be a torch\.nn\.Module, got builtin"):
        FadeIn(nn.Identity(), torch.relu)  # type: ignore[arg-type]


def test_it_tells_how_far_it_is() -> None:
    fade = FadeIn(nn.Identity(), nn.Identity())
    assert (fade.alpha, fade.begun, fade.finished) == (0, False, False)
    fade.alpha = 0.5
    assert (fade.alpha, fade.begun, fade.finished) == (0.5, True, False)
    assert "alpha=0.5" in repr(fade)
    fade.alpha = 1
    assert (fade.alpha, fade.begun, fade.finished) == (1, True, True)


def test_copies_and_pickles_are_things_of_their_own() -> None:
    fade, x = FadeIn(*paths(), alpha=0.25).eval(), image()
    for other in (copy.deepcopy(fade), pickle.loads(pickle.dumps(fade))):
        assert_identical(outputs_of(other, x), outputs_of(fade, x))
        other.alpha = 1.0
        assert fade.alpha == 0.25


@pytest.mark.parametrize("assign", [True, False])
def test_alpha_is_saved_with_the_weights(assign: bool) -> None:
    fade = FadeIn(*paths(0), alpha=0.3)
    file = io.BytesIO()
    torch.save(fade.state_dict(), file)
    file.seek(0)
    other = FadeIn(*paths(1))
    other.load_state_dict(torch.load(file, weights_only=True), assign=assign)
    assert other.alpha == fade.alpha
    assert_identical(outputs_of(other.eval(), image()), outputs_of(fade.eval(), image()))


@pytest.mark.parametrize("training", [True, False])
def test_a_compiled_fade_follows_alpha_without_another_compilation(training: bool) -> None:
    fade, x = FadeIn(*paths()).eval(), image()
    fade.training = training
    compilations = 0

    def backend(graph: fx.GraphModule, inputs: Any) -> Any:
        nonlocal compilations
        compilations += 1
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(fade, backend=backend, fullgraph=True)
    for alpha in (0.0, 0.3, 1.0, 0.0):
        fade.alpha = alpha
        expected = torch.lerp(fade.old(x), fade.new(x), fade.share.double())
        assert_equal(outputs_of(compiled, x), expected.detach())
    assert compilations == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_a_traced_fade_keeps_both_paths_and_its_alpha(alpha: float) -> None:
    model, x = randomise(Faded(alpha)).double().eval(), image()
    traced = fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes].count(blend) == 1
    with torch.no_grad():
        exported: Any = torch.export.export(model, (x,)).module()
    for later in (alpha, 0.5):
        traced.fade.share.fill_(later)
        exported.fade.share.fill_(later)
        model.fade.alpha = later
        assert_identical(outputs_of(traced, x), outputs_of(model, x))
        assert_equal(outputs_of(exported, x), outputs_of(model, x))


def test_a_batch_of_fades_runs_under_vmap() -> None:
    fades = [FadeIn(*paths(seed), alpha=alpha).eval() for seed, alpha in enumerate((0.0, 0.4))]
    parameters, buffers = torch.func.stack_module_state(fades)

    def run(parameters: Any, buffers: Any, x: Tensor) -> Any:
        return torch.func.functional_call(fades[0], (parameters, buffers), (x,))

    found = torch.vmap(run, in_dims=(0, 0, None))(parameters, buffers, image())
    for one, fade in zip(found, fades, strict=True):
        assert_equal(one.detach(), outputs_of(fade, image()))


class Faded(nn.Module):
    """A fade in the middle of a network, its paths of several layers each."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        old = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(4, 6, 1))
        new = nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU())
        new.extend([nn.Conv2d(5, 6, 3, padding=1), nn.AvgPool2d(2)])
        self.fade = FadeIn(old, new, alpha)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fade(self.stem(x)))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_layers_inside_a_fade_grow_and_its_outputs_grow_together(alpha: float) -> None:
    torch.manual_seed(0)
    model: Any = randomise(Faded(alpha)).double().eval()
    x = image()
    before = outputs_of(model, x)
    splitgrow.growable(model, x)
    layers = {layer.name: layer for layer in model.layers}
    assert all(layer.growable for layer in layers.values())
    assert layers["fade.old.1"].group == ("fade.new.3",)
    model.expand({"stem": 2, "fade.new.0": 3, "fade.new.3": 2}, freeze=False)
    assert layers["fade.old.1"].width + 2 == model.layers[1].width
    assert_equal(outputs_of(model, x), before)
    randomise_new_blocks(model)
    with torch.no_grad():
        old, new = (path(model.stem(x)) for path in (model.fade.old, model.fade.new))
        expected = model.head(torch.lerp(old, new, model.fade.share.double()))
    assert_equal(outputs_of(model, x), expected)
    assert_equal(outputs_of(splitgrow.merge(model), x), expected)
    assert_equal(outputs_of(splitgrow.fuse(model), x), expected)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_both_paths_are_analysed_where_forward_decides_by_values(alpha: float) -> None:
    class Deciding(Faded):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.abs().sum() > 0 else x + 1)

    model: Any = splitgrow.growable(Deciding(alpha).double().eval(), image())
    assert all(layer.growable for layer in model.layers)
    assert {layer.name for layer in model.layers} >= {"fade.old.1", "fade.new.0", "fade.new.3"}


def test_a_schedule_takes_every_fade_to_its_end() -> None:
    first, second = FadeIn(nn.Identity(), nn.Identity()), Faded(0.7)
    schedule = FadeSchedule([first, second, second.fade], steps=4, start=0.2)
    seen = []
    for _ in range(6):
        seen.append((schedule.alpha, schedule.finished))
        assert first.alpha == second.fade.alpha == pytest.approx(schedule.alpha)
        schedule.step()
    assert [alpha for alpha, _ in seen] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert [finished for _, finished in seen] == [False] * 4 + [True] * 2
    assert first.finished
    assert second.fade.finished


def test_a_cosine_begins_and_ends_slowly_and_exactly() -> None:
    fade = FadeIn(nn.Identity(), nn.Identity())
    schedule = FadeSchedule(fade, 10, shape="cosine")
    seen = [schedule.alpha]
    for _ in range(10):
        schedule.step()
        seen.append(schedule.alpha)
    assert seen == pytest.approx([(1 - math.cos(math.pi * t / 10)) / 2 for t in range(11)])
    assert (seen[0], seen[-1]) == (0.0, 1.0)
    assert seen[1] < 0.1 * 0.5


@pytest.mark.parametrize("shape", ["linear", "cosine"])
@pytest.mark.parametrize("taken", [0, 3, 7])
@pytest.mark.parametrize("model_first", [True, False])
def test_it_resumes_exactly(shape: Any, taken: int, model_first: bool) -> None:
    model = Faded(0.0)
    schedule = FadeSchedule(model, 7, shape=shape, start=0.125)
    for _ in range(taken):
        schedule.step()
    file = io.BytesIO()
    torch.save((model.state_dict(), schedule.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    other = Faded(0.0)
    if model_first:
        other.load_state_dict(weights)
    resumed = FadeSchedule(other, 1)
    resumed.load_state_dict(state)
    if not model_first:
        other.load_state_dict(weights)
    for _ in range(9):
        assert (resumed.alpha, resumed.finished) == (schedule.alpha, schedule.finished)
        assert other.fade.alpha == model.fade.alpha
        schedule.step()
        resumed.step()


def test_fades_that_are_over_stay_over() -> None:
    model = nn.Sequential(FadeIn(nn.Identity(), nn.Identity(), 1.0), Faded(0.0))
    schedule = FadeSchedule(model, 2)
    schedule.step()
    assert (model[0].alpha, model[1].fade.alpha) == (1.0, 0.5)
    assert FadeSchedule(model[0], 5).finished
    assert model[0].finished


def test_it_runs_beside_learning_rate_schedulers() -> None:
    model = Faded(0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=8)
    schedule = FadeSchedule(model, 4)
    for _ in range(8):
        optimizer.zero_grad()
        model(image().float()).square().mean().backward()
        optimizer.step()
        rates.step()
        schedule.step()
    assert schedule.finished
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("target", "options", "error", "message"),
    [
        (nn.Linear(2, 2), {"steps": 3}, ValueError, "no FadeIn in target"),
        ([], {"steps": 3}, ValueError, "no FadeIn in target"),
        (3, {"steps": 3}, TypeError, "target must be a FadeIn"),
        ([3], {"steps": 3}, TypeError, "target must be a FadeIn"),
        (None, {"steps": 0}, ValueError, "steps must be at least 1"),
        (None, {"steps": 2.0}, TypeError, "steps must be an int"),
        (None, {"steps": True}, TypeError, "steps must be an int"),
        (None, {"steps": 3, "shape": "step"}, ValueError, "no shape 'step'; there are linear, co"),
        (None, {"steps": 3, "start": 1.5}, ValueError, "start must lie from 0 to 1"),
        (None, {"steps": 3, "start": "0"}, TypeError, "start must be a number"),
    ],
)
def test_a_schedule_refuses_what_it_cannot_do(target, options, error, message) -> None:
    fade = FadeIn(nn.Identity(), nn.Identity(), 0.25)
    with pytest.raises(error, match=message):
        FadeSchedule(fade if target is None else target, **options)
    assert fade.alpha == 0.25


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"extra": 1}, ValueError, "has steps, shape, start, taken; got"),
        ({"taken": 9}, ValueError, "9 steps of 4"),
        ({"taken": -1}, ValueError, "taken must be at least 0"),
        ({"taken": "2"}, TypeError, "taken must be an int"),
        ({"shape": ""}, ValueError, "no shape"),
    ],
)
def test_a_state_that_is_none_is_refused_and_changes_nothing(change, error, message) -> None:
    fade = FadeIn(nn.Identity(), nn.Identity())
    schedule = FadeSchedule(fade, 4)
    schedule.step()
    before = schedule.state_dict()
    with pytest.raises(error, match=message):
        schedule.load_state_dict({**before, "taken": 2, **change})
    assert schedule.state_dict() == before
    assert fade.alpha == 0.25

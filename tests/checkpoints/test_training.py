"""A run that was saved and loaded continues bit for bit as if it had never stopped."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, Case
from helpers import MANY, assert_identical, outputs_of, randomise
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from networks import networks
from resuming import OPTIMIZERS, SCHEDULERS, Run, differences
from torch import Tensor, nn

import splitgrow

HISTORIES = int(30 * MANY)
KINDS = (
    "width",
    "width",
    "two widths",
    "identity",
    "residual",
    "bottleneck",
    "gate",
    "fade",
    "input",
    "consolidate",
    "next generation",
    "unfreeze",
    "freeze by hand",
)


def _edit_(run: Run, layer: Any, grown: Any, what: str) -> None:
    model, optimizer = run.model, {"optimizer": run.optimizer}

    def insert(kind: str, **options: Any) -> None:
        model.insert_layer(layer.name, kind, **options, **optimizer)

    def wider() -> None:
        model.expand_layer(grown.name, grown.step, **optimizer)

    def two_widths() -> None:
        other = model.layers[-1]
        model.expand({grown.name: grown.step, other.name: other.step}, **optimizer)

    def next_generation() -> None:
        model.next_generation()
        wider()

    def freeze_by_hand() -> None:
        next(p for p in model.parameters() if p.requires_grad).requires_grad_(False)
        wider()

    {
        "width": wider,
        "two widths": two_widths,
        "identity": lambda: insert("identity"),
        "residual": lambda: insert("residual"),
        "bottleneck": lambda: insert("residual", form="bottleneck", activation=nn.LeakyReLU(0.2)),
        "gate": lambda: insert("gate"),
        "fade": lambda: _fade_(run, layer),
        "input": lambda: model.expand_input(1, **optimizer),
        "consolidate": lambda: model.consolidate(**optimizer),
        "next generation": next_generation,
        "unfreeze": model.unfreeze,
        "freeze by hand": freeze_by_hand,
    }[what]()


def edit_(run: Run, index: int, what: str) -> str:
    """One edit of a run; a width where nothing of the drawn kind is possible."""
    model: Any = run.model
    layer = model.layers[index % len(model.layers)]
    grown = layer if layer.growable else next(one for one in model.layers if one.growable)
    try:
        _edit_(run, layer, grown, what)
    except (splitgrow.InsertionError, splitgrow.FixedWidthError, ValueError):
        _edit_(run, layer, grown, "width")
        return "width"
    for module in model.modules():
        if isinstance(module, splitgrow.FadeIn) and not module.finished:
            module.alpha += 0.25
    return what


def _fade_(run: Run, layer: Any) -> None:
    """Has a module fade in behind a layer, whether that has channels of space or features."""
    width = layer.width
    module = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.Hardtanh(-2.0, 2.0)).double()
    try:
        run.model.insert_layer(layer.name, "fade", module=module, optimizer=run.optimizer)
    except splitgrow.InsertionError:
        module = nn.Linear(width, width).double()
        run.model.insert_layer(layer.name, "fade", module=module, optimizer=run.optimizer)


def resumed(run: Run, fresh: nn.Module, how: tuple[str, str], path: Path, extra: Any) -> Run:
    """A second run, from what the first one saves at this moment."""
    other = Run.of(randomise(fresh), run.inputs, how)
    run.save(path, extra=extra)
    torch.rand(3)
    random.random()
    assert other.load(path) == extra
    return other


def assert_both_go_on_alike(run: Run, other: Run, rest: list[tuple[int, str]]) -> None:
    """Fails unless two runs are the same now, and at every step and after every edit to come."""
    assert not differences(run, other)
    states = torch.get_rng_state(), random.getstate()
    seen = []
    for each in (run, other):
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        losses = each.train()
        for index, what in rest:
            edit_(each, index, what)
            losses += each.train()
        inputs = splitgrow.handle(each.model)._history.inputs.args
        each.model.eval()
        shown = [outputs_of(each.model, *inputs)]
        for generation in range(each.model.generation):
            try:
                with each.model.at(generation):
                    shown.append(outputs_of(each.model, *_old_inputs(each, generation)))
            except splitgrow.GenerationError:
                shown.append(None)
        seen.append((losses, shown, torch.get_rng_state()))
    torch.set_rng_state(seen[0][2])
    assert seen[0][0] == seen[1][0]
    for one, another in zip(seen[0][1], seen[1][1], strict=True):
        assert (one is None) == (another is None)
        if one is not None:
            assert_identical(one, another)
    assert torch.equal(seen[0][2], seen[1][2])
    python = random.getstate()
    random.setstate(python)
    assert not differences(run, other)


def _old_inputs(run: Run, generation: int) -> tuple[Any, ...]:
    history = splitgrow.handle(run.model)._history
    return history.inputs_at(history.view_of(generation)).args


@settings(
    max_examples=HISTORIES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(
    networks(),
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from(KINDS)), min_size=1, max_size=6),
    st.integers(0, 6),
    st.sampled_from(sorted(OPTIMIZERS)),
    st.sampled_from(sorted(SCHEDULERS)),
)
def test_any_history_goes_on_bit_for_bit_after_it_was_saved_and_loaded(
    tmp_path_factory: pytest.TempPathFactory,
    network: tuple[nn.Module, Tensor],
    history: list[tuple[int, str]],
    stop: int,
    optimizer: str,
    scheduler: str,
) -> None:
    plain, x = network
    how = optimizer, scheduler
    fresh = copy.deepcopy(plain)
    run = Run.of(splitgrow.growable(randomise(plain), x), (x,), how)
    run.train()
    for index, what in history[:stop]:
        event(edit_(run, index, what))
        run.train()
    path = tmp_path_factory.mktemp("run") / "run.safetensors"
    other = resumed(run, fresh, how, path, {"epoch": stop})
    assert_both_go_on_alike(run, other, history[stop:])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_model_of_the_table_goes_on_bit_for_bit(case: Case, tmp_path: Path) -> None:
    how = "Adam", "cosine"
    inputs = case.inputs()
    run = Run.of(splitgrow.growable(randomise(case.model()), inputs), inputs, how)
    run.train()
    for index, what in ((0, "width"), (1, "gate"), (2, "next generation"), (3, "residual")):
        edit_(run, index, what)
        run.train()
    other = resumed(run, case.model(seed=5), how, tmp_path / "run.safetensors", None)
    assert_both_go_on_alike(run, other, [(4, "width"), (0, "consolidate"), (1, "two widths")])


@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [*((name, "step") for name in OPTIMIZERS), *(("SGD", name) for name in SCHEDULERS)],
)
def test_every_optimizer_and_scheduler_goes_on_bit_for_bit(
    optimizer: str, scheduler: str, tmp_path: Path
) -> None:
    how = optimizer, scheduler
    case = next(case for case in CASES if case.name == "residual")
    run = Run.of(splitgrow.growable(randomise(case.model()), case.inputs()), case.inputs(), how)
    run.train()
    edit_(run, 0, "width")
    run.train()
    other = resumed(run, case.model(seed=5), how, tmp_path / "run.safetensors", None)
    assert_both_go_on_alike(run, other, [(1, "width")])


def test_a_difference_in_one_bit_is_found(tmp_path: Path) -> None:
    how = "AdamW", "step"
    case = next(case for case in CASES if case.name == "residual")
    run = Run.of(splitgrow.growable(randomise(case.model()), case.inputs()), case.inputs(), how)
    edit_(run, 0, "width")
    run.train()
    path = tmp_path / "run.safetensors"
    for what in ("parameter", "state", "group", "random numbers"):
        other = resumed(run, case.model(seed=5), how, path, None)
        parameter = next(p for p in other.model.parameters() if p.requires_grad)
        if what == "parameter":
            parameter.data.view(-1)[0] = torch.nextafter(
                parameter.data.view(-1)[0], torch.tensor(9.0).double()
            )
        elif what == "state":
            other.optimizer.state[parameter]["exp_avg"].view(-1)[0] *= 1 + 1e-15
        elif what == "group":
            other.optimizer.param_groups[1]["lr"] *= 1 + 1e-15
        if what == "random numbers":
            before = run.train(1)
            assert other.train(1) != before
        else:
            found = differences(run, other)
            assert found, what
            assert all(what in name for name in found), found

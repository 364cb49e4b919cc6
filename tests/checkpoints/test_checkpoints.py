"""Saving and loading: the loaded state, the refusals, and the state after a refusal."""

from __future__ import annotations

import copy
import io
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_equal, assert_identical, outputs_of, randomise
from safetensors import safe_open
from safetensors.torch import load_file
from snapshots import unchanged
from torch import Tensor, nn

import splitgrow
from splitgrow import CheckpointError
from splitgrow.layers.execution import execution_mode

X = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, width: int = 4, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.act = activation()
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 5)
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        x = x + self.body(x)
        return self.head(x.mean((2, 3)) * self.scale)


def net(**options: Any) -> Any:
    return randomise(Net(**options).double())


def growable(**options: Any) -> Any:
    return splitgrow.growable(net(**options), X)


def disturb(model: nn.Module) -> None:
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point() and name != "scale":
                tensor.add_(torch.rand_like(tensor), alpha=0.1)


def grown() -> Any:
    """A model that was grown in every way, and then trained."""
    model = growable()
    model.expand_layer("stem", 2)
    model.insert_layer("body", "residual", form="bottleneck")
    model.insert_layer("body", "gate")
    model.next_generation()
    model.expand({"stem": 1, "head": 2})
    model.expand_layer("stem", 1)
    model.consolidate()
    model.expand_input(2)
    disturb(model)
    return model


def assert_same_model(one: Any, other: Any) -> None:
    own, others = one.state_dict(), other.state_dict()
    assert list(own) == list(others)
    assert_identical(list(own.values()), list(others.values()))
    assert splitgrow.handle(one).edits == splitgrow.handle(other).edits
    assert one.generation == other.generation
    assert [p.requires_grad for p in one.parameters()] == [
        p.requires_grad for p in other.parameters()
    ]


# --- what comes back ----------------------------------------------------------------------------


def test_a_grown_model_comes_back_whole_from_its_original_class(tmp_path: Path) -> None:
    model = grown()
    splitgrow.save(model, tmp_path / "a.safetensors")
    fresh = net()
    assert splitgrow.load(fresh, tmp_path / "a.safetensors") is None
    assert isinstance(fresh, Net)
    assert_same_model(model, fresh)
    inputs = splitgrow.handle(fresh)._history.inputs.args
    assert_identical(outputs_of(fresh.eval(), *inputs), outputs_of(model.eval(), *inputs))
    with model.at(0), fresh.at(0):
        assert_identical(fresh(X), model(X))
    assert splitgrow.merge(fresh).stem.out_channels == 8


def test_a_growable_model_that_has_done_the_first_edits_does_the_rest(tmp_path: Path) -> None:
    model = growable()
    fresh = growable()
    for each in (model, fresh):
        each.expand_layer("stem", 2)
    model.expand_layer("stem", 1)
    disturb(model)
    splitgrow.save(model, tmp_path / "a.safetensors")
    splitgrow.load(fresh, tmp_path / "a.safetensors")
    assert_same_model(model, fresh)


def test_an_ungrown_model_comes_back_and_grows(tmp_path: Path) -> None:
    model = growable()
    splitgrow.save(model, tmp_path / "a.safetensors")
    fresh = net()
    splitgrow.load(fresh, tmp_path / "a.safetensors")
    assert_same_model(model, fresh)
    assert fresh.expand_layer("stem", 2).changes == model.expand_layer("stem", 2).changes


def test_extra_comes_back_as_it_was(tmp_path: Path) -> None:
    extra = {
        "epoch": 3,
        1: [None, True, "text", 2.5, float("inf"), (1, 2), b"bytes"],
        "weights": torch.arange(6.0).reshape(2, 3),
        "complex": torch.tensor([1 + 2j], dtype=torch.complex128),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(7),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "generator": np.random.default_rng(0).bit_generator.state,
        "best": np.float32(0.5),
        "huge": 2**200,
    }
    splitgrow.save(growable(), tmp_path / "a.safetensors", extra=extra)
    found = splitgrow.load(net(), tmp_path / "a.safetensors")
    tensors = {key for key, value in extra.items() if isinstance(value, Tensor)}
    assert {k: v for k, v in found.items() if k not in tensors} == {
        k: v for k, v in extra.items() if k not in tensors
    }
    for key in tensors:
        assert found[key].dtype == extra[key].dtype
        assert torch.equal(found[key], extra[key])
    assert type(found[1][5]) is tuple


@pytest.mark.parametrize("extra", [object(), {"f": print}, [{1, 2}], {(1, 2): 3}])
def test_extra_that_is_no_plain_data_is_refused_and_writes_nothing(
    tmp_path: Path, extra: Any
) -> None:
    with pytest.raises(CheckpointError, match="extra"):
        splitgrow.save(growable(), tmp_path / "a.safetensors", extra=extra)
    assert not list(tmp_path.iterdir())


def test_extra_that_holds_itself_is_refused(tmp_path: Path) -> None:
    extra: list[Any] = []
    extra.append(extra)
    with pytest.raises(CheckpointError, match="holds itself"):
        splitgrow.save(growable(), tmp_path / "a.safetensors", extra=extra)


def _numpy() -> float:
    return float(np.random.random_sample())  # noqa: NPY002 - the global generator is meant


def test_random_states_and_the_execution_mode_come_back_unless_they_are_not_wanted(
    tmp_path: Path,
) -> None:
    model = growable()
    with splitgrow.execution("blockwise"):
        splitgrow.save(model, tmp_path / "a.safetensors")
    drawn = torch.rand(1).item(), random.random(), _numpy()
    splitgrow.load(net(), tmp_path / "a.safetensors", training=False)
    assert execution_mode() == "auto"
    assert torch.rand(1).item() != drawn[0]
    with splitgrow.execution("merged"):
        splitgrow.load(net(), tmp_path / "a.safetensors")
        assert execution_mode() == "blockwise"
    assert (torch.rand(1).item(), random.random(), _numpy()) == drawn


def test_frozen_and_held_things_stay_so(tmp_path: Path) -> None:
    model = growable()
    model.head.bias.requires_grad_(False)
    model.expand_layer("stem", 2)
    splitgrow.save(model, tmp_path / "a.safetensors")
    fresh = net()
    splitgrow.load(fresh, tmp_path / "a.safetensors")
    fresh.train()
    before = fresh.norm[0].running_mean.clone()
    fresh(X)
    assert torch.equal(fresh.norm[0].running_mean, before)
    fresh.unfreeze()
    assert not fresh.head.bias.requires_grad  # that was frozen by hand
    fresh(X)
    assert not torch.equal(fresh.norm[0].running_mean, before)


def test_a_fade_keeps_its_alpha_and_its_past(tmp_path: Path) -> None:
    model = growable()
    model.insert_layer("body", "fade", module=nn.Conv2d(4, 4, 1).double())
    schedule = splitgrow.FadeSchedule(model, steps=4)
    schedule.step()
    model.next_generation()
    past = outputs_of(model.eval(), X)
    schedule.step()
    splitgrow.save(model, tmp_path / "a.safetensors", scheduler=schedule)
    fresh = net()
    with pytest.raises(CheckpointError, match="the scheduler FadeSchedule"):
        splitgrow.load(fresh, tmp_path / "a.safetensors", scheduler=torch.optim.SGD)
    splitgrow.load(fresh, tmp_path / "a.safetensors")
    resumed = splitgrow.FadeSchedule(fresh, steps=4)
    splitgrow.load(fresh, tmp_path / "a.safetensors", scheduler=resumed)
    assert resumed.alpha == schedule.alpha == 0.5
    assert_identical(outputs_of(fresh.eval(), X), outputs_of(model, X))
    with fresh.at(1):
        assert_identical(outputs_of(fresh, X), past)


class Scaled(nn.Module):
    """A module that no file can describe."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def test_a_module_that_no_file_can_describe_is_given_again(tmp_path: Path) -> None:
    model = growable()
    edit = model.insert_layer("body", "fade", module=Scaled())
    disturb(model)
    splitgrow.save(model, tmp_path / "a.safetensors")
    fresh = net()
    name = edit.inserted[0].name
    with (
        unchanged(fresh),
        pytest.raises(CheckpointError, match=rf"Scaled of yours.*modules=\{{'{name}'"),
    ):
        splitgrow.load(fresh, tmp_path / "a.safetensors")
    splitgrow.load(fresh, tmp_path / "a.safetensors", modules={name: Scaled()})
    assert_same_model(model, fresh)


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 4), nn.Linear(4, 2)
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).tanh())


def test_a_copied_block_comes_back(tmp_path: Path) -> None:
    x = torch.randn(3, 6)
    model: Any = splitgrow.growable(Deep(), x)
    model.expand_layer("block.up", 3)
    edit = model.insert_layer("block", "block")
    model.expand_layer(f"{edit.inserted[0].name}.up", 2)
    disturb(model)
    splitgrow.save(model, tmp_path / "a.safetensors")
    fresh = Deep()
    splitgrow.load(fresh, tmp_path / "a.safetensors")
    assert_same_model(model, fresh)
    assert_identical(outputs_of(fresh, x), outputs_of(model, x))


class Counting(nn.Module):
    """A module with an extra state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.seen = {"calls": 0}

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)

    def get_extra_state(self) -> Any:
        return dict(self.seen)

    def set_extra_state(self, state: Any) -> None:
        self.seen = dict(state)


def test_an_extra_state_of_the_models_own_comes_back_both_ways(tmp_path: Path) -> None:
    model: Any = splitgrow.growable(Counting(), torch.ones(1, 3))
    model.seen["calls"] = 7
    model.expand_layer("fc", 1)
    splitgrow.save(model, tmp_path / "a.safetensors")
    fresh = Counting()
    splitgrow.load(fresh, tmp_path / "a.safetensors")
    assert fresh.seen == {"calls": 7}
    other: Any = splitgrow.growable(Counting(), torch.ones(1, 3))
    other.load_state_dict(model.state_dict())
    assert other.seen == {"calls": 7}
    assert other.layers[0].width == 4


def test_tied_parameters_stay_tied_and_are_stored_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self, tied: bool = True) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 4)
            if tied:
                self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x)))

    model: Any = splitgrow.growable(Tied(), torch.ones(1, 3))
    model.expand_layer("c", 2)
    splitgrow.save(model, tmp_path / "a.safetensors")
    assert "model.b.weight" not in load_file(tmp_path / "a.safetensors")
    fresh = Tied()
    splitgrow.load(fresh, tmp_path / "a.safetensors")
    assert fresh.b.weight is fresh.a.weight
    assert torch.equal(fresh.a.weight, model.a.weight)
    with torch.device("meta"):
        empty = Tied()
    splitgrow.load(empty, tmp_path / "a.safetensors")
    assert empty.b.weight is empty.a.weight
    apart = Tied(tied=False)
    with unchanged(apart), pytest.raises(CheckpointError, match=r"`b.weight` and `a.weight`"):
        splitgrow.load(apart, tmp_path / "a.safetensors")


def test_a_progressive_network_comes_back_at_its_level_in_the_middle_of_a_fade(
    tmp_path: Path,
) -> None:
    def build() -> Any:
        return splitgrow.ProgressiveAutoencoder.of_widths([6, 4, 3], image_channels=1, start=4)

    model = build()
    optimizer = torch.optim.Adam(model.parameters())
    model.grow(optimizer=optimizer, fade=False)
    model.grow(optimizer=optimizer)
    schedule = splitgrow.FadeSchedule(model, steps=4)
    images = torch.rand(2, 1, 16, 16)
    splitgrow.growable(model, images)
    model.expand_layer(
        next(layer.name for layer in model.layers if layer.growable), 1, optimizer=optimizer
    )
    model(images).sum().backward()
    optimizer.step()
    schedule.step()
    splitgrow.save(model, tmp_path / "a.safetensors", optimizer=optimizer)
    fresh = build()
    resumed = torch.optim.Adam(fresh.parameters())
    splitgrow.load(fresh, tmp_path / "a.safetensors", optimizer=resumed)
    assert (fresh.level, fresh.alpha) == (2, 0.25)
    assert_same_model(model, fresh)
    assert_identical(outputs_of(fresh, images), outputs_of(model, images))
    small = splitgrow.ProgressiveAutoencoder.of_widths([6, 4], image_channels=1, start=4)
    with unchanged(small), pytest.raises(CheckpointError, match="level 2"):
        splitgrow.load(small, tmp_path / "a.safetensors")


def test_what_came_back_can_be_used_in_every_way(tmp_path: Path) -> None:
    model = grown()
    splitgrow.save(model, tmp_path / "a.safetensors")
    fresh: Any = net()
    splitgrow.load(fresh, tmp_path / "a.safetensors")
    inputs = splitgrow.handle(fresh)._history.inputs.args
    expected = outputs_of(model.eval(), *inputs)
    buffer = io.BytesIO()
    torch.save(fresh, buffer)
    buffer.seek(0)
    copies = (
        copy.deepcopy(fresh),
        torch.load(buffer, weights_only=False),
        splitgrow.growable(fresh, inputs),
    )
    for each in copies:
        assert_identical(outputs_of(each.eval(), *inputs), expected)
    assert_equal(splitgrow.fuse(fresh)(*inputs), expected)
    assert_equal(splitgrow.merge(fresh).eval()(*inputs), expected)
    splitgrow.save(fresh, tmp_path / "b.safetensors")
    again = net()
    splitgrow.load(again, tmp_path / "b.safetensors")
    assert_same_model(model, again)


# --- optimizers and schedulers ------------------------------------------------------------------


def test_an_optimizer_of_either_model_takes_the_saved_groups(tmp_path: Path) -> None:
    model = growable()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    edit = model.expand_layer("stem", 2, optimizer=optimizer)
    model(X).sum().backward()
    optimizer.step()
    splitgrow.save(model, tmp_path / "a.safetensors", optimizer=optimizer)
    fresh = net()
    resumed = torch.optim.Adam(fresh.parameters(), lr=0.5)
    groups = resumed.param_groups[0]
    scheduler = torch.optim.lr_scheduler.StepLR(resumed, 3)
    splitgrow.load(fresh, tmp_path / "a.safetensors", optimizer=resumed)
    assert resumed.param_groups[0]["lr"] == 0.1
    assert len(resumed.param_groups[0]["params"]) == len(optimizer.param_groups[0]["params"])
    assert len(resumed.state) == len(optimizer.state) > 0
    assert set(fresh.parameters()) == set(resumed.param_groups[0]["params"])
    assert edit.parameters
    assert groups["lr"] == 0.5  # the old dictionary, which is left alone
    resumed.step()
    scheduler.step()


def test_parameters_that_are_not_the_models_keep_their_place_and_state(tmp_path: Path) -> None:
    def run(model: Any, other: nn.Module) -> Any:
        return torch.optim.Adam(
            [{"params": [*model.parameters(), *other.parameters()]}, {"params": []}], lr=0.1
        )

    model, loss = growable(), nn.Linear(5, 1).double()
    optimizer = run(model, loss)
    model.expand_layer("stem", 2, optimizer=optimizer)
    loss(model(X)).sum().backward()
    optimizer.step()
    splitgrow.save(model, tmp_path / "a.safetensors", optimizer=optimizer)
    fresh, other = net(), nn.Linear(5, 1).double()
    resumed = run(fresh, other)
    splitgrow.load(fresh, tmp_path / "a.safetensors", optimizer=resumed)
    for name in ("weight", "bias"):
        mine = optimizer.state[getattr(loss, name)]["exp_avg"]
        assert torch.equal(mine, resumed.state[getattr(other, name)]["exp_avg"])
    fresh = net()
    lonely = torch.optim.Adam(fresh.parameters())
    with unchanged(fresh, lonely), pytest.raises(CheckpointError, match="not the model's"):
        splitgrow.load(fresh, tmp_path / "a.safetensors", optimizer=lonely)


def test_parameters_that_were_not_saved_with_it_are_not_dropped_from_an_optimizer(
    tmp_path: Path,
) -> None:
    model, loss = growable(), nn.Linear(5, 1).double()
    optimizer = torch.optim.SGD(model.parameters())
    splitgrow.save(model, tmp_path / "a.safetensors", optimizer=optimizer)
    fresh = net()
    resumed = torch.optim.SGD([*fresh.parameters(), *loss.parameters()])
    with unchanged(fresh, resumed), pytest.raises(CheckpointError, match="neither the model's"):
        splitgrow.load(fresh, tmp_path / "a.safetensors", optimizer=resumed)


def test_several_optimizers_come_back_in_order(tmp_path: Path) -> None:
    def run(model: Any) -> list[Any]:
        return [
            torch.optim.SGD(model.stem.parameters(), lr=0.1, momentum=0.9),
            torch.optim.Adam([*model.body.parameters(), *model.norm.parameters()], lr=0.1),
            torch.optim.AdamW(model.head.parameters(), lr=0.1),
        ]

    model = growable()
    optimizers = run(model)
    model.expand_layer("stem", 2, optimizer=optimizers)
    model(X).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    splitgrow.save(model, tmp_path / "a.safetensors", optimizer=optimizers)
    fresh = net()
    resumed = run(fresh)
    splitgrow.load(fresh, tmp_path / "a.safetensors", optimizer=resumed)
    for one, other in zip(optimizers, resumed, strict=True):
        assert str(one) == str(other)
        assert len(one.state) == len(other.state)
    fresh = net()
    with unchanged(fresh), pytest.raises(CheckpointError, match="given is the optimizers AdamW"):
        splitgrow.load(fresh, tmp_path / "a.safetensors", optimizer=run(fresh)[::-1])


def test_lbfgs_goes_on_where_it_was(tmp_path: Path) -> None:
    def step(model: Any, optimizer: Any) -> float:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = model(X).square().mean()
            loss.backward()
            return loss

        return float(optimizer.step(closure).detach())

    model = growable().eval()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    step(model, optimizer)
    splitgrow.save(model, tmp_path / "a.safetensors", optimizer=optimizer)
    fresh = net().eval()
    resumed = torch.optim.LBFGS(fresh.parameters(), max_iter=3)
    splitgrow.load(fresh, tmp_path / "a.safetensors", optimizer=resumed)
    assert step(fresh, resumed) == step(model, optimizer)


class Stepping:
    """A scheduler of somebody's own, which does not take the state of one that is further."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if state["steps"] > self.steps:
            raise ValueError("it is further")
        self.steps = state["steps"]


def test_a_scheduler_that_refuses_its_state_leaves_model_and_optimizer_as_they_were(
    tmp_path: Path,
) -> None:
    def trained(model: Any, steps: int) -> Any:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1 / steps)
        for _ in range(steps):
            model(X).square().sum().backward()
            optimizer.step()
        return optimizer

    model, path = growable(), tmp_path / "a.safetensors"
    optimizer = trained(model, 3)
    splitgrow.save(model, path, optimizer=optimizer, scheduler=Stepping(3))
    fresh = net()
    own = trained(fresh, 2)
    refused = pytest.raises(CheckpointError, match="does not take its saved state: it is further")
    with unchanged(fresh, own), refused:
        splitgrow.load(fresh, path, optimizer=own, scheduler=Stepping(2))
    splitgrow.load(fresh, path, optimizer=own, scheduler=Stepping(4))
    assert own.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert_identical(own.state[fresh.stem.weight], optimizer.state[model.stem.weight])


def test_what_was_not_saved_is_not_given_back(tmp_path: Path) -> None:
    splitgrow.save(growable(), tmp_path / "a.safetensors")
    fresh = net()
    optimizer = torch.optim.SGD(fresh.parameters())
    with (
        unchanged(fresh, optimizer),
        pytest.raises(CheckpointError, match="saved was no optimizer, given is the optimizer SGD"),
    ):
        splitgrow.load(fresh, tmp_path / "a.safetensors", optimizer=optimizer)


# --- models without values, large models --------------------------------------------------------


def test_a_model_on_the_meta_device_is_made_as_it_is_read(tmp_path: Path) -> None:
    model = grown()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    splitgrow.save(model, tmp_path / "a.safetensors", optimizer=optimizer)
    with torch.device("meta"):
        empty = Net()
    resumed = torch.optim.SGD(empty.parameters(), lr=0.1)
    splitgrow.load(empty, tmp_path / "a.safetensors", device="cpu", optimizer=resumed)
    assert set(resumed.param_groups[0]["params"]) == set(empty.parameters())
    assert not any(t.is_meta for t in (*empty.parameters(), *empty.buffers()))
    assert_same_model(model, empty)
    assert torch.equal(empty.scale, model.scale)  # which is in no state_dict


MEMORY = """
import resource, sys, torch, splitgrow
from torch import nn
def build():
    return nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(40)))
if sys.argv[1] == "save":
    model = splitgrow.growable(build(), torch.ones(1, 1024))
    model.expand_layer("3", 8)
    splitgrow.save(model, sys.argv[2], shard_bytes=20_000_000)
else:
    if sys.argv[1] == "load":
        with torch.device("meta"):
            model = build()
        splitgrow.load(model, sys.argv[2])
        assert not any(p.is_meta for p in model.parameters())
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_loading_without_a_second_copy_takes_the_models_own_memory(tmp_path: Path) -> None:
    path = str(tmp_path / "a.safetensors")

    def run(what: str) -> int:
        call = [sys.executable, "-c", MEMORY, what, path]
        done = subprocess.run(call, check=True, capture_output=True, text=True)
        return int(done.stdout or 0)

    run("save")
    size = sum(file.stat().st_size for file in tmp_path.iterdir()) / 1024
    assert size > 150_000
    grew = run("load") - run("nothing")
    # What was read of a file is counted, too, as long as the system keeps it at hand: once.
    assert grew < 2.2 * size, (grew, size)


def test_large_contents_are_spread_over_files_that_go_when_they_are_not_used(
    tmp_path: Path,
) -> None:
    model = grown()
    path = tmp_path / "a.safetensors"
    splitgrow.save(model, path, shard_bytes=1500)
    first = sorted(file.name for file in tmp_path.iterdir())
    assert len(first) > 3
    fresh = net()
    splitgrow.load(fresh, path)
    assert_same_model(model, fresh)
    splitgrow.save(model, path, shard_bytes=1500, keep=2)
    assert {*first} < {file.name for file in tmp_path.iterdir()}
    splitgrow.save(model, path, shard_bytes=1500, keep=2)
    files = {file.name for file in tmp_path.iterdir()}
    assert not {*first[:-1]} & files
    assert len(files) == 2 * len(first)
    for kept in (path, tmp_path / "a.1.safetensors"):
        splitgrow.load(net(), kept)
    splitgrow.save(model, path)
    splitgrow.save(model, tmp_path / "a.1.safetensors")
    splitgrow.save(model, path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.1.safetensors", "a.safetensors"]


def test_the_last_k_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for epoch in range(6):
        splitgrow.save(growable(), path, extra=epoch, keep=4)
    found = {file.name: splitgrow.load(net(), file) for file in tmp_path.iterdir()}
    older = {"a.1.safetensors": 4, "a.2.safetensors": 3, "a.3.safetensors": 2}
    assert found == {"a.safetensors": 5, **older}
    splitgrow.save(growable(), path, extra=6, keep=2)
    found = {file.name: splitgrow.load(net(), file) for file in tmp_path.iterdir()}
    assert found == {"a.safetensors": 6, "a.1.safetensors": 5}


def test_the_file_is_plain_safetensors_without_pickle(tmp_path: Path) -> None:
    model = grown()
    splitgrow.save(model, tmp_path / "a.safetensors", extra={"a": 1})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        contents = json.loads(file.metadata()["splitgrow"])
    assert len(contents["journal"]["edits"]) == 7
    tensors = load_file(tmp_path / "a.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(tensors[f"model.{name}"], parameter)


# --- what is refused ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "a.safetensors"
    splitgrow.save(grown(), path)
    return path


class Other(Net):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(2, 2)


class Fewer(Net):
    def __init__(self) -> None:
        super().__init__()
        del self.act

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.body(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("build", "difference"),
    [
        (lambda: Net(width=5), r"`stem` is Conv2d\(3, 4, .*Conv2d\(3, 5"),
        (lambda: Net(activation=nn.GELU), r"`act` is ReLU\(\) in the saved model, GELU"),
        (Other, r"this model has `more` \(Linear\)"),
        (Fewer, r"the saved model has `act` \(ReLU\) where this one has `body`"),
        (Net, r"`scale` is torch.float64 in the file, torch.float32"),
        (lambda: nn.Linear(3, 3), r"`stem` \(Conv2d\), this has not"),
    ],
    ids=["width", "activation", "more", "fewer", "dtype", "another"],
)
def test_a_model_of_another_architecture_is_refused_with_the_first_difference(
    saved: Path, build: Any, difference: str
) -> None:
    model = build()
    if "torch.float" not in difference:
        model = model.double()
    optimizer = torch.optim.SGD(model.parameters())
    with unchanged(model, optimizer), pytest.raises(CheckpointError, match=difference):
        splitgrow.load(model, saved)


def test_types_and_settings_may_differ_if_that_is_asked_for(saved: Path) -> None:
    model = net(activation=nn.GELU)
    splitgrow.load(model, saved, strict=False)
    assert type(model.act) is nn.GELU
    wider = net(width=5)
    with unchanged(wider), pytest.raises(CheckpointError, match="`stem` has 3 inputs and 4 units"):
        splitgrow.load(wider, saved, strict=False)


class Activated(nn.BatchNorm1d):
    """A norm with modules of its own."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


def test_a_grown_layer_may_have_modules_of_its_own(tmp_path: Path) -> None:
    splitgrow.register_layer(Activated, like=nn.BatchNorm1d)

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), Activated(4), nn.Linear(4, 2))

    model: Any = splitgrow.growable(build(), torch.ones(2, 3))
    model.expand_layer("0", 2)
    assert len(model[1]) == 2
    splitgrow.save(model, tmp_path / "a.safetensors")
    fresh = build()
    splitgrow.load(fresh, tmp_path / "a.safetensors")
    assert_same_model(model, fresh)


def test_rates_of_dropout_and_momenta_may_differ(tmp_path: Path) -> None:
    def build(rate: float) -> nn.Module:
        norm = nn.BatchNorm1d(4, momentum=rate)
        return nn.Sequential(nn.Linear(3, 4), norm, nn.ReLU(rate > 0.5), nn.Dropout(rate))

    model: Any = splitgrow.growable(build(0.1), torch.ones(2, 3))
    splitgrow.save(model, tmp_path / "a.safetensors")
    fresh = build(0.7)
    splitgrow.load(fresh, tmp_path / "a.safetensors")
    assert fresh[3].p == 0.7


def test_a_model_with_another_past_is_refused(saved: Path) -> None:
    model = growable()
    model.expand_layer("stem", 1)
    with unchanged(model), pytest.raises(CheckpointError, match="edit 1 of this model is not"):
        splitgrow.load(model, saved)
    splitgrow.save(growable(), saved.with_name("ungrown.safetensors"))
    with (
        unchanged(model),
        pytest.raises(CheckpointError, match="has done 1 edits, the saved one 0"),
    ):
        splitgrow.load(model, saved.with_name("ungrown.safetensors"))


def test_wrapped_and_foreign_models_are_refused(saved: Path) -> None:
    with pytest.raises(splitgrow.UnsupportedModelError, match="DataParallel"):
        splitgrow.load(nn.DataParallel(net()), saved)
    foreign = net()
    foreign.stem = grown().stem
    with pytest.raises(CheckpointError, match="stem grew elsewhere"):
        splitgrow.load(foreign, saved)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"optimizer": 3}, TypeError, "optimizer must be"),
        ({"optimizer": [3]}, TypeError, "optimizer must be"),
        ({"scheduler": 3}, TypeError, "scheduler must have"),
        ({"modules": 3}, TypeError, "modules map"),
        ({"modules": {"a": 3}}, TypeError, "modules map"),
    ],
)
def test_misuse_of_load_is_told(
    saved: Path, arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    model = net()
    with unchanged(model), pytest.raises(error, match=match):
        splitgrow.load(model, saved, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"optimizer": 3}, TypeError, "optimizer must be"),
        ({"scheduler": 3}, TypeError, "scheduler must have"),
        ({"keep": 0}, ValueError, r"keep \(=0\)"),
        ({"keep": True}, TypeError, "keep must be an int"),
        ({"shard_bytes": -1}, ValueError, r"shard_bytes \(=-1\)"),
        ({"shard_bytes": 1e9}, TypeError, "shard_bytes must be an int"),
    ],
)
def test_misuse_of_save_is_told(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    model = grown()
    with unchanged(model), pytest.raises(error, match=match):
        splitgrow.save(model, tmp_path / "a.safetensors", **arguments)
    assert not list(tmp_path.iterdir())


def test_only_growable_models_with_values_are_saved(tmp_path: Path) -> None:
    with pytest.raises(splitgrow.SplitGrowError, match="not growable"):
        splitgrow.save(net(), tmp_path / "a.safetensors")
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        splitgrow.load(3, tmp_path / "a.safetensors")  # type: ignore[arg-type]
    model = grown()
    with model.at(0), pytest.raises(splitgrow.SplitGrowError, match="leave it first"):
        splitgrow.save(model, tmp_path / "a.safetensors")
    with model.at(0), pytest.raises(splitgrow.SplitGrowError, match="leave it first"):
        splitgrow.load(model, tmp_path / "a.safetensors")
    model.to("meta")
    with pytest.raises(CheckpointError, match="meta device"):
        splitgrow.save(model, tmp_path / "a.safetensors")


# --- through torch's own state_dict -------------------------------------------------------------


def through_torch(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_the_journal_rides_along_in_the_state_dict() -> None:
    model = grown()
    fresh = growable()
    assert str(fresh.load_state_dict(through_torch(model.state_dict()))) == (
        "<All keys matched successfully>"
    )
    assert_same_model(model, fresh)
    inputs = splitgrow.handle(fresh)._history.inputs.args
    assert_identical(outputs_of(fresh.eval(), *inputs), outputs_of(model.eval(), *inputs))


def test_a_model_that_never_grew_has_the_keys_of_its_class() -> None:
    assert list(growable().state_dict()) == list(net().state_dict())
    plain = net()
    plain.load_state_dict(growable().state_dict())


@pytest.mark.filterwarnings("ignore:the state_dict is from before")
def test_a_state_dict_from_before_any_growth_loads_into_the_original_blocks() -> None:
    before = net().state_dict()
    model = grown()
    newest = model.stem[1].weight.clone()
    model.load_state_dict(through_torch(before))
    assert torch.equal(model.stem[0].weight, before["stem.weight"])
    assert torch.equal(model.norm[0].running_var, before["norm.running_var"])
    assert torch.equal(model.head[0].weight, before["head.weight"])
    assert torch.equal(model.stem[1].weight, newest)
    del before["head.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"head.0.bias\""):
        model.load_state_dict(before)


@pytest.mark.filterwarnings("ignore:the state_dict is from before")
def test_a_state_dict_from_between_two_edits_loads_into_the_blocks_of_that_time() -> None:
    model = growable()
    model.expand_layer("stem", 2)
    disturb(model)
    between = {name: value.clone() for name, value in model.state_dict().items()}
    model.expand_layer("stem", 1)
    model.insert_layer("body", "gate")
    disturb(model)
    gate = model.body.inserted3.weight.clone()
    model.load_state_dict(between)
    assert torch.equal(model.stem[1].weight, between["stem.1.weight"])
    assert torch.equal(model.body[0].weight, between["body.0.weight"])
    assert torch.equal(model.body.inserted3.weight, gate)
    model.consolidate()
    with unchanged(model), pytest.raises(CheckpointError, match="joined blocks"):
        model.load_state_dict(between)


def test_it_works_inside_another_module() -> None:
    class Task(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model, self.loss = model, nn.Linear(2, 2)

    task, fresh = Task(grown()), Task(growable())
    fresh.load_state_dict(through_torch(task.state_dict()))
    assert_same_model(task.model, fresh.model)
    before = task.state_dict()
    before["model._extra_state"] = before["model._extra_state"][:-3]
    other = Task(growable())
    with pytest.raises(RuntimeError, match="the journal cannot be read"):
        other.load_state_dict(before)
    assert splitgrow.handle(other.model).edits == ()


def test_what_does_not_fit_is_refused_and_nothing_is_loaded() -> None:
    state = grown().state_dict()
    fresh = growable()
    for change in (
        {"stem.1.weight": torch.zeros(3, 3)},
        {"stem.0.weight": torch.zeros(3, 3)},
        {"more": torch.zeros(3)},
        {"_extra_state": torch.zeros(3)},
        {"_extra_state": torch.zeros(3, dtype=torch.uint8)},
    ):
        with unchanged(fresh), pytest.raises(CheckpointError):
            fresh.load_state_dict({**state, **change})
    short = dict(state)
    del short["body.original.weight" if "body.original.weight" in state else "body.0.weight"]
    with unchanged(fresh), pytest.raises(CheckpointError, match="missing"):
        fresh.load_state_dict(short)


def test_freezing_by_hand_outlives_the_loading_of_an_earlier_state() -> None:
    model = growable()
    model.expand_layer("stem", 2)
    best = {name: value.clone() for name, value in model.state_dict().items()}
    model.stem[1].weight.requires_grad_(False)
    model.load_state_dict(best)
    assert not model.stem[1].weight.requires_grad

"""Growth in loops of accelerate, and its saved states."""

from __future__ import annotations

import doctest
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from trainers.processes import X, loss_of, network
from trainers.torchrun import in_two_processes

import splitgrow
from benchmarks.vision import torchvision

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]


def integration() -> Any:
    torchvision()  # accelerate imports it
    pytest.importorskip("accelerate")
    from splitgrow.integrations import accelerate  # noqa: PLC0415

    return accelerate


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_an_accelerated_model_grows_by_a_policy_and_its_state_loads(
    precision: str, tmp_path: Path
) -> None:
    integration()
    import accelerate  # noqa: PLC0415

    def run(*, resumed: bool) -> list[Any]:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = accelerate.Accelerator(
            cpu=True, mixed_precision=precision, gradient_accumulation_steps=2
        )
        model: Any = network()
        optimizer: Any = splitgrow.by_name(torch.optim.AdamW(model.parameters(), 0.05), model)
        scheduler: Any = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=20)
        model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
        policy: dict[str, Any] = {"when": splitgrow.Every(2), "to": splitgrow.Factor(2.0)}
        grower = splitgrow.Grower(model, optimizer, scheduler, steps=2, **policy)
        accelerator.register_for_checkpointing(grower)
        torch.manual_seed(int(resumed))
        if resumed:
            accelerator.load_state(str(tmp_path))
        for step in range(6 if resumed else 0, 12):
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model, X[4 * step :][:4]))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                grower.step(samples=8)
            if step == 5 and not resumed:
                assert accelerator.unwrap_model(model).layers["0"].width == 6
                accelerator.save_state(str(tmp_path))
        plain = accelerator.unwrap_model(model)
        assert plain.layers["0"].width == 8
        states = [value for each in optimizer.state.values() for value in each.values()]
        return [p.detach() for p in plain.parameters()] + states

    whole, again = run(resumed=False), run(resumed=True)
    assert len(whole) == len(again)
    assert all(map(torch.equal, whole, again))


@pytest.mark.slow
def test_two_accelerated_processes_grow_alike_and_their_state_loads(tmp_path: Path) -> None:
    integration()
    for result in in_two_processes("accelerate", tmp_path):
        assert result["width"] == 8


@pytest.mark.parametrize("safe", [True, False])
def test_a_fresh_model_grows_as_the_saved_one_of_its_place(safe: bool, tmp_path: Path) -> None:
    ours = integration()
    import accelerate  # noqa: PLC0415

    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True)
    one, other = accelerator.prepare(network(), network())
    accelerator.unwrap_model(other).expand_layer("0", 5)
    with torch.no_grad():
        other[0][1].weight.add_(1)
    accelerator.save_state(str(tmp_path), safe_serialization=safe)
    fresh = network()
    assert ours.grow_as_saved(fresh, tmp_path, index=1) is fresh
    assert torch.equal(fresh(X), accelerator.unwrap_model(other)(X))
    assert torch.equal(ours.grow_as_saved(network(), tmp_path)(X), one(X))


def test_what_cannot_grow_as_saved_is_refused(tmp_path: Path) -> None:
    ours = integration()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors or pytorch_model\.bin"):
        ours.grow_as_saved(network(), tmp_path)
    with pytest.raises(splitgrow.UnsupportedModelError, match="no part of the Linear is growable"):
        ours.grow_as_saved(torch.nn.Linear(2, 2), tmp_path)


def test_its_examples_run() -> None:
    module = integration()
    found = doctest.testmod(sys.modules[module.__name__])
    assert found.failed == 0
    assert found.attempted > 5

"""No way to save a grown model of transformers reloads as another network without an exception."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_equal, assert_identical
from hf_models import IDS, everything, growable, grown, llama, tied
from safetensors.torch import load_file, save_file

import splitgrow
from benchmarks.vision import torchvision

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]

Saved = Callable[[Path], Any]
"""Reads what was saved into a model of the library, as its users do."""


def own_method(model: Any, folder: Path) -> Saved:
    model.save_pretrained(folder)
    return lambda folder: type(llama()).from_pretrained(folder)


def own_method_with_a_state(model: Any, folder: Path) -> Saved:
    model.save_pretrained(folder, state_dict=model.state_dict())
    return lambda folder: type(llama()).from_pretrained(folder)


def own_method_without_a_state(model: Any, folder: Path) -> Saved:
    model.save_pretrained(folder, state_dict=None)
    return lambda folder: type(llama()).from_pretrained(folder)


def torch_save(model: Any, folder: Path) -> Saved:
    torch.save(model.state_dict(), folder / "state.pt")

    def read(folder: Path) -> Any:
        plain = llama()
        plain.load_state_dict(torch.load(folder / "state.pt", weights_only=True), strict=False)
        return plain

    return read


def by_hand(model: Any, folder: Path) -> Saved:
    """A directory as the library writes it, made of the state_dict and the config."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    model.config.save_pretrained(folder)
    return lambda folder: type(llama()).from_pretrained(folder)


def given_state(model: Any, folder: Path) -> Saved:
    state = model.state_dict()
    return lambda _: type(llama()).from_pretrained(None, config=model.config, state_dict=state)


def accelerate(model: Any, folder: Path) -> Saved:
    torchvision()
    from accelerate import Accelerator  # noqa: PLC0415

    accelerator = Accelerator(cpu=True)
    accelerator.save_model(accelerator.prepare(model), folder)
    model.config.save_pretrained(folder)
    return lambda folder: type(llama()).from_pretrained(folder)


def lightning(model: Any, folder: Path) -> Saved:
    """A checkpoint of a module that has the model as a part."""
    outer = torch.nn.ModuleDict({"net": model})
    torch.save({"state_dict": outer.state_dict()}, folder / "last.ckpt")

    def read(folder: Path) -> Any:
        plain = torch.nn.ModuleDict({"net": llama()})
        state = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
        plain.load_state_dict(state, strict=False)
        return plain["net"]

    return read


WAYS = (
    own_method,
    own_method_with_a_state,
    own_method_without_a_state,
    torch_save,
    by_hand,
    given_state,
    accelerate,
    lightning,
)
GROWTHS: dict[str, Callable[[Any], Any]] = {
    "vocabulary": lambda m: m.expand_vocabulary(3),
    "depth": lambda m: m.insert_layer("model.layers.0", "block"),
    "everything": everything,
}


@pytest.mark.parametrize("grow", GROWTHS.values(), ids=GROWTHS.keys())
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_grown_model_is_refused_on_the_way_out_or_in(
    way: Callable[[Any, Path], Saved], grow: Callable[[Any], Any], tmp_path: Path
) -> None:
    model = grown(llama, grow)
    with pytest.raises((splitgrow.ExportError, RuntimeError)):  # noqa: PT012 - on either way
        read = way(model, tmp_path)
        again = read(tmp_path).double().eval()
        assert_equal(again(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("way", WAYS[1:], ids=lambda way: way.__name__)
def test_control_before_it_grows_each_way_is_read_as_it_is(
    way: Callable[[Any, Path], Saved], tmp_path: Path
) -> None:
    model = growable(llama)
    again = way(model, tmp_path)(tmp_path).double().eval()
    assert (again(IDS).logits - model(IDS).logits).abs().max() < 1e-5


@pytest.mark.parametrize("grow", GROWTHS.values(), ids=GROWTHS.keys())
@pytest.mark.parametrize("make", [llama, tied])
def test_a_growable_model_reads_what_others_refuse(
    make: Callable[[], Any], grow: Callable[[Any], Any], tmp_path: Path
) -> None:
    model = grown(make, grow)
    for strict, nested in ((True, False), (False, False), (True, True)):
        fresh = growable(make)
        if nested:
            outer = torch.nn.ModuleDict({"net": model})
            torch.nn.ModuleDict({"net": fresh}).load_state_dict(outer.state_dict(), strict=strict)
        else:
            fresh.load_state_dict(model.state_dict(), strict=strict)
        assert_identical(fresh(IDS).logits, model(IDS).logits)
    model.save_pretrained(tmp_path, state_dict=None)
    fresh = growable(make)
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert_identical(fresh(IDS).logits, model(IDS).logits)

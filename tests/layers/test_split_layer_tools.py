"""Tools on a grown model work, or one sentence says to call splitgrow.merge first."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_equal, assert_identical, randomise, randomise_new_blocks
from torch import Tensor, nn
from torch.ao.quantization import quantize_dynamic
from torch.func import functional_call, stack_module_state, vmap
from torch.package import PackageExporter, PackageImporter

import splitgrow
from splitgrow.errors import SplitGrowError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:TypedStorage:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def inputs() -> Tensor:
    return torch.randn(4, 6, generator=torch.manual_seed(1))


def grown(*, inserted: bool = False) -> Any:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    model = splitgrow.growable(randomise(model).eval(), inputs())
    if inserted:
        model.insert_layer("0")
    model.expand_layer("0", 4)
    randomise_new_blocks(model)
    return model


class Wrapped(nn.Module):
    """What tools for low-rank adapters put in the place of a layer."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x)


def adapted(model: nn.Module, put: Callable[[nn.Module, str, nn.Module], Any]) -> nn.Module:
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            parent, _, name = path.rpartition(".")
            put(model.get_submodule(parent), name, Wrapped(module))
    return model


def saved_whole(model: nn.Module) -> Any:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


def reloaded(model: nn.Module, *, assign: bool) -> nn.Module:
    other = copy.deepcopy(model)
    randomise(other)
    other.load_state_dict(model.state_dict(), assign=assign)
    return other


def assigned_by_name(parent: nn.Module, name: str, module: nn.Module) -> None:
    parent._modules[name] = module


WORKING: dict[str, Callable[[Any, Tensor], Any]] = {
    "torch.jit.trace": lambda m, x: torch.jit.trace(m, x)(x),
    "torch.export": lambda m, x: torch.export.export(m, (x,)).module()(x),
    "torch.export, strict": lambda m, x: torch.export.export(m, (x,), strict=True).module()(x),
    "torch.compile": lambda m, x: torch.compile(m, backend="eager")(x),
    "torch.compile, one graph": lambda m, x: torch.compile(m, backend="eager", fullgraph=True)(x),
    "functional_call": lambda m, x: functional_call(m, dict(m.named_parameters()), (x,)),
    "vmap": lambda m, x: vmap(m)(x[:, None])[:, 0],
    "an ensemble": lambda m, x: vmap(lambda p, b: functional_call(m, (p, b), (x,)))(
        *stack_module_state([m, m])
    )[1],
    "DataParallel": lambda m, x: nn.DataParallel(m)(x),
    "deepcopy": lambda m, x: copy.deepcopy(m)(x),
    "torch.save": lambda m, x: saved_whole(m)(x),
    "load_state_dict": lambda m, x: reloaded(m, assign=False)(x),
    "load_state_dict, assigned": lambda m, x: reloaded(m, assign=True)(x),
    "share_memory": lambda m, x: m.share_memory()(x),
    "half and back": lambda m, x: m.double()(x.double()).float(),
    "requires_grad_": lambda m, x: m.requires_grad_(False)(x),
    "zero_grad": lambda m, x: (m.zero_grad(set_to_none=False), m(x))[1],
    "an average": lambda m, x: torch.optim.swa_utils.AveragedModel(m)(x),
    "inference": lambda m, x: torch.inference_mode()(m)(x),
    "checkpointing": lambda m, x: torch.utils.checkpoint.checkpoint(m, x, use_reentrant=False),
    "scripting what is merged": lambda m, x: torch.jit.script(splitgrow.merge(m))(x),
    "tracing what is merged": lambda m, x: torch.fx.symbolic_trace(splitgrow.merge(m))(x),
}

REFUSED: dict[str, Callable[[Any, Tensor], Any]] = {
    "torch.jit.script": lambda m, x: torch.jit.script(m)(x),
    "torch.fx": lambda m, x: torch.fx.symbolic_trace(m)(x),
    "quantize_dynamic": lambda m, x: quantize_dynamic(m)(x),
    "quantize_dynamic, by type": lambda m, x: quantize_dynamic(m, {nn.Linear})(x),
    "adapters on all linear layers": lambda m, x: adapted(copy.deepcopy(m), setattr)(x),
    "adapters, put in directly": lambda m, x: adapted(copy.deepcopy(m), assigned_by_name)(x),
    "one block more": lambda m, x: (c := copy.deepcopy(m))[0].append(nn.Linear(6, 2)) and c(x),
}


@pytest.mark.parametrize("inserted", [False, True], ids=["grown", "deepened"])
@pytest.mark.parametrize("tool", WORKING)
def test_a_tool_works(tool: str, inserted: bool) -> None:
    model, x = grown(inserted=inserted), inputs()
    expected = model(x).detach()
    found = WORKING[tool](model, x)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("tool", REFUSED)
def test_a_tool_is_refused_in_one_sentence(tool: str) -> None:
    model, x = grown(), inputs()
    expected, modules = model(x), [*model.modules()]
    with pytest.raises(SplitGrowError, match=r"grown.*splitgrow\.merge"):
        REFUSED[tool](model, x)
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))
    assert_identical(model(x), expected)
    model.expand_layer("0", 1)


def test_scripting_a_module_with_something_inserted_is_refused() -> None:
    model: Any = splitgrow.growable(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)), inputs())
    model.insert_layer("0")
    with pytest.raises(SplitGrowError, match=r"splitgrow\.merge"):
        torch.jit.script(model)
    assert type(model[0]).__name__ == "InsertionWrapper"


@pytest.mark.parametrize("to", [torch.half, torch.bfloat16, torch.double])
def test_a_grown_model_is_converted(to: torch.dtype) -> None:
    model = grown().to(to)
    assert model(inputs().to(to)).dtype == to
    assert model[0].weight.dtype == to
    assert model[0].weight.requires_grad


def test_a_grown_model_is_emptied_and_has_no_values() -> None:
    model = grown()
    assert model.to_empty(device="cpu")(inputs()).shape == (4, 2)
    model = grown().to("meta")
    assert model(inputs().to("meta")).shape == (4, 2)
    assert model[0].weight.shape == (12, 6)
    assert model[0].weight.is_meta


def test_a_grown_model_is_packaged(tmp_path: Path) -> None:
    model = grown()
    expected = model(inputs())
    with PackageExporter(tmp_path / "model.pt") as package:
        package.extern(["splitgrow.**", "torch.**", "sys", "tests.**", "helpers"])
        package.save_pickle("model", "model.pkl", model)
    importer = PackageImporter(tmp_path / "model.pt")
    assert_equal(importer.load_pickle("model", "model.pkl")(inputs()), expected)


def test_initialising_every_layer_initialises_every_block() -> None:
    """What `apply` with a test for the layer type sees are the blocks; the layer itself is none."""
    model, seen = grown(), []

    def initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 0.5)
            seen.append(module)

    model.apply(initialise)
    assert seen == [*model[0], *model[3]]
    assert (splitgrow.merge(model).get_submodule("0").weight == 0.5).all()

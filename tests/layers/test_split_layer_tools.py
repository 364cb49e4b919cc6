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
from torch.ao.quantization.quantize_fx import prepare_fx
from torch.func import functional_call, stack_module_state, vmap
from torch.package import PackageExporter, PackageImporter

import splitgrow
from splitgrow.errors import SplitGrowError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:TypedStorage:UserWarning"),
    pytest.mark.filterwarnings("ignore:Please use quant_min:UserWarning"),
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
    "counting ops": lambda m, x: counted(copy.deepcopy(m), x),
    "counting ops twice": lambda m, x: [counted(c, x) for c in [copy.deepcopy(m)] * 2][1],
    "an average": lambda m, x: torch.optim.swa_utils.AveragedModel(m)(x),
    "inference": lambda m, x: torch.inference_mode()(m)(x),
    "checkpointing": lambda m, x: torch.utils.checkpoint.checkpoint(m, x, use_reentrant=False),
    "scripting what is merged": lambda m, x: torch.jit.script(splitgrow.merge(m))(x),
    "tracing what is merged": lambda m, x: torch.fx.symbolic_trace(splitgrow.merge(m))(x),
}


def counted(model: nn.Module, x: Tensor) -> Tensor:
    """What tools do that count ops: a buffer for each module, hooks that add, one sum."""

    def count(module: nn.Module) -> None:
        module.register_buffer("total_ops", torch.zeros(1))

        def add(module: Any, args: Any, output: Any) -> None:
            module.total_ops += output.numel()

        module.register_forward_hook(add)

    model.apply(count)
    output: Tensor = model(x)
    found = [(type(m).__name__, int(m.total_ops)) for m in model.modules()]
    assert all(number > 0 for kind, number in found if kind != "SplitLayer"), found
    model.apply(lambda module: module._buffers.pop("total_ops"))
    assert not any("total_ops" in dict(m._buffers) for m in model.modules())
    return output


def calibrated(model: nn.Module, x: Tensor) -> Any:
    """Static quantization, as torch has it for whole modules."""
    model = copy.deepcopy(model).eval()
    vars(model)["qconfig"] = torch.ao.quantization.get_default_qconfig("fbgemm")
    prepared = torch.ao.quantization.prepare(model)
    prepared(x)
    return torch.ao.quantization.convert(prepared)(x)


def quantization_aware(model: nn.Module, x: Tensor) -> Any:
    model = copy.deepcopy(model).train()
    vars(model)["qconfig"] = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    return torch.ao.quantization.prepare_qat(model)(x)


REFUSED: dict[str, Callable[[Any, Tensor], Any]] = {
    "torch.jit.script": lambda m, x: torch.jit.script(m)(x),
    "torch.fx": lambda m, x: torch.fx.symbolic_trace(m)(x),
    "quantize_dynamic": lambda m, x: quantize_dynamic(m)(x),
    "quantize_dynamic, by type": lambda m, x: quantize_dynamic(m, {nn.Linear})(x),
    "quantize_dynamic, by name": lambda m, x: quantize_dynamic(m, {"0"})(x),
    "static quantization": calibrated,
    "quantization-aware training": quantization_aware,
    "static quantization by torch.fx": lambda m, x: prepare_fx(
        m.eval(), torch.ao.quantization.get_default_qconfig_mapping("fbgemm"), (x,)
    ),
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


UNSCRIPTABLE: dict[str, Callable[[], nn.Module]] = {
    "FadeIn": lambda: splitgrow.FadeIn(nn.Linear(2, 2), nn.Linear(2, 2)),
    "SharedKernelConv2d": lambda: splitgrow.SharedKernelConv2d(3),
    "ProgressiveEncoder": lambda: splitgrow.ProgressiveEncoder.of_widths(
        [4, 2], image_channels=1, start=4
    ),
}


@pytest.mark.parametrize("kind", UNSCRIPTABLE)
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "inside"])
def test_scripting_what_is_no_torchscript_is_refused_with_a_way_out(
    kind: str, inside: bool
) -> None:
    module = UNSCRIPTABLE[kind]()
    model = nn.Sequential(module, nn.ReLU()) if inside else module
    refused = f"a {kind} cannot be scripted.*torch.jit.trace.*torch.export.*splitgrow.fuse"
    with pytest.raises(SplitGrowError, match=refused):
        torch.jit.script(model)
    assert [type(part) for part in model.modules()].count(type(module)) == 1


@pytest.mark.filterwarnings("ignore:The TorchScript type system")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_ways_out_of_scripting_work() -> None:
    x = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    fade = splitgrow.FadeIn(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), alpha=0.5)
    kernel = splitgrow.SharedKernelConv2d(3)
    model: Any = nn.Sequential(nn.Conv2d(2, 4, 1), kernel, fade, nn.Conv2d(4, 2, 1)).eval()
    model = splitgrow.growable(model, x)
    model.expand_layer("0", 2)
    expected = model(x)
    scripted = torch.jit.script(splitgrow.fuse(model))
    exported = torch.export.export(model, (x,)).module()
    for found in (torch.jit.trace(model, x)(x), exported(x), scripted(x)):
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_buffer_that_only_the_wrapped_module_has_is_not_shadowed() -> None:
    model: Any = splitgrow.growable(
        nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)), inputs()
    )
    model.insert_layer("1", "gate")
    assert type(model[1]).__name__ == "InsertionWrapper"
    with pytest.raises(KeyError, match="already exists"):
        model[1].register_buffer("running_mean", torch.zeros(8))
    model.apply(lambda module: module.register_buffer("noted", torch.zeros(1)))
    with pytest.raises(TypeError):
        model[1].register_buffer("noted", "no tensor")
    model[1].noted += 1
    assert [int(part.noted) for part in model.modules()] == [0, 0, 1, 0, 0, 0]


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

"""What is deployed is as fast as a plain network of the same widths: fused, compiled, as ONNX."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import splitgrow
from benchmarks.speed.networks import MLP, RESNET_18, Network, grown
from benchmarks.speed.results import Measurement
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.steps import Call, compared, inference


def run(settings: Settings) -> Iterator[Measurement]:
    """Each network grown by a quarter, with batches of one, beside its plain twin, in each way."""
    for one in (MLP,) if settings.quick else (RESNET_18, MLP):
        x = one.input(settings)[:1]
        model = grown(one, settings, 0.25).eval()
        fused, plain = splitgrow.fuse(model), _plain(one, model)
        for name, deployed in _WAYS.items():
            if name == "ONNX Runtime" and not _runs_onnx(settings):
                continue
            contestants = {"fused": deployed(fused, x), "plain": deployed(plain, x)}
            yield compared(f"{one.name}, {name}", contestants, settings, "fused", "plain")


def _plain(one: Network, model: nn.Module) -> nn.Module:
    """A plain network of the same widths, its norms folded by torch.fx where it has any."""
    # It warns about itself when it is imported.
    from torch.fx.experimental.optimization import fuse  # noqa: PLC0415

    merged = splitgrow.merge(model).eval()
    if one is MLP:
        return merged
    folded: nn.Module = fuse(merged)
    return folded


def _compiled(model: nn.Module, x: Tensor) -> Call:
    return inference(torch.compile(copy.deepcopy(model)), x)


def _runs_onnx(settings: Settings) -> bool:
    installed = all(find_spec(name) for name in ("onnxruntime", "onnxscript"))
    return installed and settings.device == "cpu"


def _in_onnx_runtime(model: nn.Module, x: Tensor) -> Call:
    import onnxruntime  # noqa: PLC0415 - it need not be installed

    program: Any = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with TemporaryDirectory() as folder:
        program.save(f"{folder}/model.onnx")
        session: Any = onnxruntime.InferenceSession(f"{folder}/model.onnx", options)
    given = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, given)


_WAYS: dict[str, Callable[[nn.Module, Tensor], Call]] = {
    "eager": inference,
    "compiled": _compiled,
    "ONNX Runtime": _in_onnx_runtime,
}

CLAIM = Claim(
    "deployed-latency",
    "One input through `splitgrow.fuse(grown)`, eager, compiled and in ONNX Runtime, over a plain "
    "network of the same widths, its norms folded by torch.fx, in the same way",
    run,
)

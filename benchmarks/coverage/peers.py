"""What torch-pruning makes of the same model: its dependency graph, and one group to prune.

That is less than what is asked of splitgrow: that a group is found, not that the pruned model runs.
"""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from benchmarks.coverage.catalogues import Sample, Subject
from benchmarks.coverage.findings import Findings, described
from benchmarks.coverage.outputs import tensors_of
from benchmarks.coverage.preparing import REAL_AT_MOST, build, defaulting_to, feed

LAYER_SECONDS = 10.0
"""How long it may look for the group of one layer; then the next layer is tried."""
TINY = 1_000_000
"""In models with fewer parameters, where a search takes milliseconds or does not end, less."""
TINY_SECONDS = 0.5


def ask_peer(subject: Subject, found: Findings) -> dict[str, Any]:
    """Whether the peer can analyse a model, as JSON data: status, reason, seconds, values.

    Args:
        subject: The model; a fresh one is made.
        found: What was found of it before, so that the peer gets the same inputs and dtype.
    """
    if found.status in {"unbuildable"} or not found.values:
        return {"status": "not run", "reason": "the model itself does not run here"}
    sample = next(s for s in subject.samples if _shapes(s) == found.inputs)
    if found.values != "shapes only":
        return _tried(subject, sample, getattr(torch, found.values))
    result = _tried(subject, sample, None)
    if result["status"] == "ok":
        return result
    if found.parameters >= REAL_AT_MOST:
        return {"status": "not run", "reason": "too large"}
    return _tried(subject, sample, torch.float32)


def _shapes(sample: Sample) -> list[list[int]]:
    return [list(tensor.shape) for tensor in tensors_of(feed(sample, None))]


def _tried(subject: Subject, sample: Sample, dtype: torch.dtype | None) -> dict[str, Any]:
    result: dict[str, Any] = {
        "status": "failed",
        "reason": "",
        "values": "shapes only" if dtype is None else str(dtype).split(".")[1],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model, inputs = build(subject, dtype), feed(sample, dtype)
            with defaulting_to(dtype or torch.get_default_dtype()):
                started = time.perf_counter()
                graph = tp.DependencyGraph().build_dependency(
                    model, example_inputs=inputs, output_transform=with_history, verbose=False
                )
                result["seconds"] = round(time.perf_counter() - started, 4)
                result["reason"] = _find_group(graph, model, result)
        except Exception as error:  # noqa: BLE001  what goes wrong is what is looked for
            result["reason"] = described(error)
    if not result["reason"]:
        result["status"] = "ok"
    return result


def with_history(outputs: Any) -> list[torch.Tensor]:
    """The output tensors that it can trace back."""
    return [tensor for tensor in tensors_of(outputs) if tensor.grad_fn is not None]


def _find_group(graph: Any, model: nn.Module, result: dict[str, Any]) -> str:
    """Why no layer can be pruned; empty if one can. Counts the layers before it in the result."""
    reason = "no convolution or linear layer in its graph"
    result["passed over"] = 0
    tiny = sum(parameter.numel() for parameter in model.parameters()) < TINY
    for module in model.modules():
        if not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):  # noqa: SLF001
            continue
        try:
            with at_most(TINY_SECONDS if tiny else LAYER_SECONDS):
                pruner = graph.get_pruner_of_module(module)
                group = graph.get_pruning_group(module, pruner.prune_out_channels, idxs=[0])
                if graph.check_pruning_group(group):
                    return ""
            reason = "check_pruning_group says no"
        except Exception as error:  # noqa: BLE001  the next layer may do
            reason = described(error)
        result["passed over"] += 1
    return reason


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Ends what runs inside with a TimeoutError when it takes that long on the processor."""

    def stop(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise TimeoutError(f"not done within {seconds:g} s of the processor")

    old = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)

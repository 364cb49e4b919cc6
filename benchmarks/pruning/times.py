"""How long pruning takes and how much memory: each repeat in a process of its own."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

import splitgrow
from benchmarks.coverage.peers import with_history
from benchmarks.coverage.results import machine
from benchmarks.pruning.helps import helps_for, mend_
from benchmarks.pruning.ours import output_layers, steps_of
from benchmarks.pruning.steps import count
from benchmarks.speed.child import ChildError, in_child
from benchmarks.speed.machine import commit
from benchmarks.speed.memory import MIB, peak
from benchmarks.speed.settings import Settings
from benchmarks.vision import torchvision

REPEATS = 3
NAME = "times.jsonl"
CASES = {
    "resnet50": "ResNet-50 of torchvision, one image of 224 by 224, half of each layer",
    "vit_b_16": "ViT-B/16 of torchvision, one image of 224 by 224, half of each layer",
    "llama": "Llama of 7B on the meta device, 16 tokens, a quarter of MLP units and of heads",
}
WAYS = {
    "splitgrow": "splitgrow",
    "splitgrow, unchecked": "splitgrow, check=False",
    "torch-pruning": "torch-pruning",
}


def measure(runs: Path, only: str | None, console: Console) -> None:
    """Makes the measurements that are missing.

    Args:
        runs: The folder of results.
        only: One case, which is measured anew.
        console: Told each result.
    """
    path = runs / NAME
    known = read(path)
    for repeat in range(REPEATS):
        for case in CASES:
            for way in WAYS:
                if case == "llama" and "unchecked" in way:
                    continue  # without values there is nothing to check
                done = sum(r["case"] == case and r["way"] == way for r in known)
                if (only is not None and only != case) or (only is None and done > repeat):
                    continue
                found: dict[str, Any] = {"case": case, "way": way, "error": ""}
                try:
                    found |= in_child(prune_once, Settings(False, "cpu", 1, 1), case=case, way=way)
                except ChildError as error:
                    found["error"] = str(error).strip().splitlines()[-1]
                console.print(found, highlight=False)
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a") as file:
                    where = {**machine(), "commit": commit()}
                    file.write(json.dumps({**found, "machine": where}) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The measurements so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def prune_once(settings: Settings, *, case: str, way: str) -> dict[str, float]:
    """Analyses and prunes once: seconds, MiB on top of the model, and parameters left."""
    del settings
    warnings.simplefilter("ignore")
    _warm_up()
    model, x = make(case)
    size = sum(p.numel() * p.element_size() for p in model.parameters()) / MIB
    analyse, prune = (_theirs if way == "torch-pruning" else _ours)(case, model, x, way)
    with peak("cpu") as memory:
        analysis, pruning = _timed(analyse), _timed(prune)
    with torch.no_grad():
        run(model, x)
    return {
        "analysis": analysis,
        "pruning": pruning,
        "memory": memory.extra,
        "model": size,
        "left": count(model),
    }


def _timed(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def make(case: str) -> tuple[Any, Any]:
    """A model of a case, and its input; of a text model its keyword arguments."""
    torch.manual_seed(0)
    if case != "llama":
        return torchvision().models.get_model(case).eval(), torch.randn(1, 3, 224, 224)
    torchvision()  # which transformers looks for
    transformers = import_module("transformers")
    with torch.device("meta"):
        config = transformers.LlamaConfig(use_cache=False, attn_implementation="eager")  # of 7B
        model = transformers.LlamaForCausalLM(config).eval()
        tokens = torch.ones(1, 16, dtype=torch.long)
        # With a mask it looks for no borders between texts, which takes values.
        return model, {"input_ids": tokens, "attention_mask": torch.ones(1, 16)}


def run(model: nn.Module, x: Any) -> None:
    """Calls a model with its input."""
    model(**x) if isinstance(x, dict) else model(x)


def _warm_up() -> None:
    """Prunes a tiny network both ways: code that is loaded on first use is nobody's time."""
    tp = import_module("torch_pruning")
    x = torch.randn(2, 3, 8, 8)
    for way in ("splitgrow", "torch-pruning"):
        layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)
        model: Any = nn.Sequential(*layers).eval()
        if way == "splitgrow":
            splitgrow.growable(model, x).shrink({"0": 2})
        else:
            importance = tp.importance.GroupMagnitudeImportance(p=2)
            tp.pruner.MetaPruner(model, x, importance, ignored_layers=[model[3]]).step()


def _ours(
    case: str, model: Any, x: Any, way: str
) -> tuple[Callable[[], object], Callable[[], object]]:
    check = "unchecked" not in way

    def prune() -> None:
        handle = splitgrow.handle(model)
        stay, seen, request = output_layers(model), set[str](), dict[int | str, Any]()
        steps = steps_of(model)
        for layer in handle.layers:
            if not layer.growable or {layer.name, *layer.group} & {*stay, *seen}:
                continue
            seen |= {layer.name, *layer.group}
            step = steps[layer.name]
            if case == "llama":
                # Without values there are no weakest units: the first ones go.
                if layer.name.endswith(("gate_proj", "up_proj", "q_proj", "v_proj")):
                    request[layer.name] = [*range(layer.width // 4 // step * step)]
            else:
                request[layer.name] = max(step, layer.width // 2 // step * step)
        handle.shrink(request, check=check)

    named, given = (x, ()) if case == "llama" else (None, x)
    return lambda: splitgrow.growable(model, given, example_kwargs=named, check=check), prune


def _theirs(
    case: str, model: Any, x: Any, _: str
) -> tuple[Callable[[], object], Callable[[], object]]:
    tp = import_module("torch_pruning")
    if case == "llama":
        return _their_llama(model, x)
    outputs = ["fc" if case == "resnet50" else "heads.head"]
    helps = helps_for(model, outputs)
    made: list[Any] = []

    def analyse() -> None:
        made.append(
            tp.pruner.MetaPruner(
                model,
                x,
                tp.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=0.5,
                ignored_layers=helps.ignored,
                round_to=helps.round_to,
            )
        )

    def prune() -> None:
        made[0].step()
        mend_(model, helps)

    return analyse, prune


def _their_llama(model: Any, x: Any) -> tuple[Callable[[], object], Callable[[], object]]:
    """By groups, since its pruner ranks values: MLP units by their makers, heads by the reader."""
    tp = import_module("torch_pruning")
    graph = tp.DependencyGraph()
    config = model.config

    def prune() -> None:
        helps = helps_for(model, ["lm_head"])
        units = [*range(config.intermediate_size // 4)]
        heads = config.num_attention_heads // 4
        positions = [*range(heads * config.hidden_size // config.num_attention_heads)]
        for block in model.model.layers:
            mlp, attention = block.mlp, block.self_attn
            into = tp.prune_linear_out_channels, tp.prune_linear_in_channels
            graph.get_pruning_group(mlp.gate_proj, into[0], units).prune()
            graph.get_pruning_group(attention.o_proj, into[1], positions).prune()
        helps.num_heads.update((layer, count - heads) for layer, count in helps.num_heads.items())
        mend_(model, helps)

    def analyse() -> None:
        graph.build_dependency(model, x, output_transform=with_history, verbose=False)

    return analyse, prune

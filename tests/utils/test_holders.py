"""Modules around a model that keep lists or flat copies of its parameters are found, others not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import splitgrow
from splitgrow.utils.holders import holder_of


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def engine_like(name: str) -> type[nn.Module]:
    """A class of this dotted name that holds a module, and copies of its parameters elsewhere."""

    class Engine(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module
            flat = torch.cat([p.detach().flatten() for p in module.parameters()])
            self.optimizer = type("ZeroOptimizer", (), {"flat": flat})()

    Engine.__module__, _, Engine.__qualname__ = name.rpartition(".")
    return Engine


class Around(nn.Module):
    """A module of a user's, with something of its own."""

    def __init__(self, inner: nn.Module, own: Any = None) -> None:
        super().__init__()
        self.inner, self.own = inner, own


ENGINES = (
    "deepspeed.runtime.engine.DeepSpeedEngine",
    "fairscale.nn.data_parallel.fully_sharded_data_parallel.FullyShardedDataParallel",
    "fairscale.nn.data_parallel.sharded_ddp.ShardedDataParallel",
    "apex.parallel.distributed.DistributedDataParallel",
    "megatron.core.distributed.data_parallel_base._BaseDataParallel",
)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("deep", [False, True], ids=["the model", "around the model"])
def test_an_engine_of_a_known_library_is_found(name: str, deep: bool) -> None:
    model = network()
    engine: Any = engine_like(name)(Around(model) if deep else model)
    holder = holder_of(model)
    assert holder is not None
    assert holder.holding == f"{name.partition('.')[0]}'s {type(engine).__name__} wraps the model"
    assert not holder.followed


def test_a_subclass_of_an_engine_is_one() -> None:
    model = network()
    pipeline: Any = type("PipelineEngine", (engine_like(ENGINES[0]),), {})(model)
    assert "PipelineEngine wraps" in getattr(holder_of(model), "holding", "")
    assert pipeline.module is model


def test_an_engine_in_an_attribute_that_torch_does_not_register_is_found() -> None:
    model = network()
    engine = engine_like(ENGINES[0])(nn.Linear(1, 1))
    assert holder_of(model) is None
    engine.__dict__["module"] = model
    assert holder_of(model) is not None


@pytest.mark.parametrize(
    "own",
    [
        list,
        tuple,
        set,
        lambda ps: dict.fromkeys(ps, "bucket"),
        lambda ps: {id(p): p for p in ps},
        lambda ps: [{"params": list(ps), "lr": 0.1}],
        lambda ps: [[], [ps[-1]]],
    ],
    ids=["list", "tuple", "set", "keys", "values", "groups", "some"],
)
def test_a_module_that_lists_parameters_in_any_container_is_found(own: Any) -> None:
    model = network()
    around = Around(model, own([*model.parameters()]))
    holder = holder_of(model)
    assert holder is not None
    assert holder.holding == "Around around the model lists its parameters in `own`"
    around.own = None
    assert holder_of(model) is None


@pytest.mark.parametrize(
    "harmless",
    [
        nn.Sequential,
        nn.DataParallel,
        lambda model: Around(model, [*network().parameters()]),
        lambda model: Around(model, {"names": [name for name, _ in model.named_parameters()]}),
        lambda model: Around(network(), [*model.parameters()]),
        lambda model: engine_like(ENGINES[0])(network()),
        torch.optim.swa_utils.AveragedModel,
    ],
    ids=["module", "DataParallel", "others' list", "names", "beside", "other engine", "average"],
)
def test_what_reads_the_model_anew_or_has_another_is_no_holder(harmless: Any) -> None:
    model = network()
    around = harmless(model)
    assert holder_of(model) is None
    assert isinstance(around, nn.Module)


def test_a_holder_that_is_told_does_not_count_and_another_one_does() -> None:
    model = network()
    told = engine_like(ENGINES[0])(model)
    assert holder_of(model, [told]) is None
    other = Around(told, [*model.parameters()])
    assert "`own`" in getattr(holder_of(model, [told]), "holding", "")
    assert holder_of(model, [told, other]) is None


def test_a_deleted_holder_in_a_cycle_no_longer_counts() -> None:
    model = network()
    engine = engine_like(ENGINES[0])(model)
    engine.__dict__["myself"] = engine
    del engine
    assert holder_of(model) is None


def test_data_parallel_runs_the_model_as_it_is_at_each_call() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3, dtype=torch.float64)
    model: Any = splitgrow.growable(network().double(), x)
    parallel, before = nn.DataParallel(model), model(x).detach()
    model.expand_layer("0", 2)
    assert (parallel(x) - before).abs().max() < 1e-12
    with torch.no_grad():
        model[0][1].weight.add_(1.0)
        model[1][1].weight.add_(1.0)
    assert (parallel(x) - before).abs().max() > 1e-3
    assert len([*parallel.parameters()]) == len([*model.parameters()]) == 7

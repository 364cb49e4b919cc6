"""The functions that processes of tests/distributed run: a module of its own, to be imported."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import kernels
import pytest
import torch
import torch.distributed as dist
from mixture_models import X as MIXED
from mixture_models import plain as mixture_network
from snapshots import unchanged
from tied_models import Tied
from torch import Tensor, nn
from torch.distributed._composable import replicate
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp import FullyShardedDataParallel as Fsdp1
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import splitgrow
import splitgrow.growth.apply
import splitgrow.layers.split_layer
import splitgrow.layers.weight_assembly
from splitgrow import distributed
from splitgrow.distributed import agreement, carrying, loading, saving, sessions, storing

kernels.choose()  # in every process

TIMEOUT = 15.0
BATCH = 8
Tensors = dict[str, Tensor]


# -- models and training ---------------------------------------------------------------------------


def network(*, norm: bool = False) -> Any:
    """A small network of convolutions and Linears, in float64, the same in every process."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6) if norm else nn.GroupNorm(3, 6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )
    return splitgrow.growable(model.double(), torch.zeros(2, 2, 4, 4, dtype=torch.float64))


def wrapped(model: Any, how: str) -> Any:
    """A model in the wrapper of that name."""
    if how == "ddp":
        return DistributedDataParallel(model)
    if how in {"fsdp", "hybrid"}:
        mesh = None
        if how == "hybrid":
            mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
        if isinstance(model, nn.Sequential):
            fully_shard(model[6 if len(model) > 6 else 1], mesh=mesh)
        return fully_shard(model, mesh=mesh)
    return model


def batch(step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
    """A process's share of a batch, which is the same however many share it."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 2, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(BATCH, 3, generator=generator, dtype=torch.float64)
    share = BATCH // world
    return x[rank * share : (rank + 1) * share], y[rank * share : (rank + 1) * share]


def train(model: Any, optimizer: Any, steps: range, *, alone: bool = False) -> None:
    """Some steps of training."""
    rank, world = (0, 1) if alone else (dist.get_rank(), dist.get_world_size())
    for step in steps:
        x, y = batch(step, rank, world)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer with state, and with decay, which would move what is frozen only by a mask."""
    return torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    """One that takes less time on parameters that are spread over processes."""
    return torch.optim.SGD(model.parameters(), lr=3e-2, momentum=0.9, weight_decay=0.01)


OPTIMIZERS = {"adam": adam, "momentum": momentum}


def tensors_of(model: Any) -> Tensors:
    """All parameters and buffers of a model, whole, as they are now."""
    with distributed.gathered(model, timeout=TIMEOUT) as plain:
        named = [*plain.named_parameters(), *plain.named_buffers()]
        return {name: tensor.detach().clone() for name, tensor in named}


Calls = Callable[..., Any]


def story(
    model: Any,
    optimizer: Any,
    call: Calls,
    *,
    alone: bool = False,
    part: slice = slice(None),
) -> None:
    """A hundred steps with growths of every kind between, or a part of it."""

    def grow(*calls: tuple[Any, ...]) -> Callable[[], None]:
        def run() -> None:
            for name, *args in calls:
                trains = {} if name in {"next_generation", "unfreeze"} else {"optimizer": optimizer}
                call(name, *args, **trains)

        return run

    def go(*steps: int) -> Callable[[], None]:
        return lambda: train(model, optimizer, range(*steps), alone=alone)

    chapters = [
        go(20),
        grow(("expand_layer", "0", 2)),
        go(20, 40),
        grow(("insert_layer", "3", "residual"), ("expand", {"6": 2, "3": 1})),
        go(40, 60),
        grow(("next_generation",), ("expand_layer", "6", 3), ("expand_layer", "6", 2)),
        go(60, 70),
        grow(("consolidate",), ("insert_layer", "6", "identity")),
        go(70, 80),
        grow(("absorb",)),
        go(80, 90),
        grow(("expand_layer", "0", 2)),
        go(90, 100),
    ]
    for chapter in chapters[part]:
        chapter()


def alone(optimizer_name: str = "adam", seed: int = 7) -> Tensors:
    """The weights after the story in one process, which sees the whole batch."""
    model = network()
    optimizer = OPTIMIZERS[optimizer_name](model)
    torch.manual_seed(seed)

    def call(name: str, *args: Any, **options: Any) -> None:
        getattr(model, name)(*args, **options)

    story(model, optimizer, call, alone=True)
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


# -- work of the processes -------------------------------------------------------------------------


def the_story(
    rank: int,
    how: str,
    optimizer_name: str = "adam",
    shares: bool = True,
    folder: str = "",
    part: slice = slice(None),
) -> Tensors:
    """The weights after the story in a process that sees its share of each batch.

    Args:
        rank: The process.
        how: The wrapper.
        optimizer_name: What trains.
        shares: Whether the ranks share what is new.
        folder: Where it goes on from, if it does, and where it is saved in the end.
        part: The chapters.
    """
    model = wrapped(network(), how)
    optimizer = OPTIMIZERS[optimizer_name](model)
    if not shares:
        carrying.share_ = lambda *_: None
    torch.manual_seed(7 if rank == 0 else 100 + rank)

    def call(name: str, *args: Any, **options: Any) -> None:
        getattr(distributed, name)(model, *args, **options, timeout=TIMEOUT)

    if part.start:
        steps = distributed.load(model, folder, optimizer=optimizer, timeout=TIMEOUT)
        assert steps == {"chapter": part.start}
    story(model, optimizer, call, part=part)
    if folder and not part.start:
        extra = {"chapter": part.stop}
        distributed.save(model, folder, optimizer=optimizer, extra=extra, timeout=TIMEOUT)
    return tensors_of(model)


def one_layer(rank: int, how: str) -> None:
    """Parameters, optimizer and wrapper stay the same objects; only what is new is new."""
    model = wrapped(network(), how)
    optimizer = adam(model)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    train(model, optimizer, range(2))
    before = dict(sharded_parameters(model))
    states = {id(p): state for p, state in optimizer.state.items()}
    options = {"optimizer": optimizer, "lr_scale": 0.5, "warmup": 2, "loss": lambda: 0.0}
    with pytest.raises(TypeError, match="scheduler must be a learning rate scheduler, got 3"):
        distributed.expand_layer(model, "0", 2, **options, scheduler=3, timeout=TIMEOUT)
    options["scheduler"] = schedule
    edit = distributed.expand_layer(model, "0", 2, **options, timeout=TIMEOUT)
    after = dict(sharded_parameters(model))
    assert sum(map(bool, optimizer.param_groups[0]["splitgrow_rates"])) == len(after) - len(before)
    old = [p for p in after.values() if any(p is q for q in before.values())]
    assert len(old) == len(before) < len(after)
    assert all(optimizer.state[p] is states[id(p)] for p in old)
    new = [p for p in after.values() if all(p is not q for q in before.values())]
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == set(
        map(id, after.values())
    )
    assert edit.parameters == sum(p.numel() for p in new)
    assert all(p.requires_grad for p in new)
    assert not any(p.requires_grad or p.grad is not None for p in old)
    train(model, optimizer, range(2, 4))
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 1.5e-3
    assert all(p in optimizer.state for p in new)


def sharded_parameters(model: Any) -> list[tuple[str, nn.Parameter]]:
    """The parameters as the optimizer knows them."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return [*model.named_parameters()]


@contextlib.contextmanager
def broken(rank: int, where: Any, name: str) -> Iterator[None]:
    """Has a function fail in the second process."""
    works = getattr(where, name)

    def fails(*args: Any, **options: Any) -> Any:
        if rank == 1:
            raise MemoryError("no room left")
        return works(*args, **options)

    setattr(where, name, fails)
    yield
    setattr(where, name, works)


def refused(rank: int, how: str) -> list[tuple[str, str]]:
    """The errors of calls that at least one process cannot follow; nothing is changed by them."""
    model = wrapped(network(), how)
    optimizer = adam(model)
    train(model, optimizer, range(3))
    sharded_parameters(model)
    other = adam(nn.Linear(2, 2)) if rank == 1 else optimizer
    settles = (carrying.Wrapped, "settle")

    def width(n: int, trains: Any = optimizer) -> Callable[[], Any]:
        return lambda: distributed.expand_layer(model, "0", n, optimizer=trains, timeout=TIMEOUT)

    def depth(kind: str) -> Callable[[], Any]:
        return lambda: distributed.insert_layer(model, "3", kind, timeout=TIMEOUT)

    def closed() -> Any:
        return distributed.next_generation(model, timeout=TIMEOUT)

    cases: dict[str, tuple[Callable[[], Any], tuple[Any, str] | None]] = {
        "another number": (width(2 * (rank + 1)), None),
        "another optimizer": (width(2, other), None),
        "another kind": (depth("gate" if rank else "residual"), None),
        "not planned": (width(2), (splitgrow.growth.apply, "plan_joining")),
        "not applied": (width(2), (splitgrow.growth.apply, "join_")),
        "not shared": (width(2), settles),
        "not closed": (closed, settles),
        "not inserted": (depth("residual"), settles),
        "nowhere possible": (width(0), None),
    }
    found = []
    for name, (attempt, fault) in cases.items():
        breaking = broken(rank, *fault) if fault else contextlib.nullcontext()
        inner = model.module if how == "ddp" else model
        with unchanged(inner, optimizer), unchanged(model, but=RENEWED), breaking:
            try:
                attempt()
            except Exception as error:  # noqa: BLE001
                found.append((name, f"{type(error).__name__}: {error}"))
            sharded_parameters(model)
    train(model, optimizer, range(3, 6))
    width(2)()
    train(model, optimizer, range(6, 9))
    return [*found, ("weights", fingerprint(model))]


RENEWED = tuple(
    f"model: attribute {name}"
    for name in (
        *("reducer", "logger", "_bucket_config", "_has_rebuilt_buckets", "parameters_to_ignore"),
        *("device", "_join_config", "_lazy_init_ran", "_non_persistent_buffers_set"),
    )
)
"""What a wrapper that was made anew has instead of the old; that it works is seen by training."""


def not_refused(rank: int, how: str) -> str:
    """What `refused` comes to where nothing was ever refused."""
    model = wrapped(network(), how)
    optimizer = adam(model)
    train(model, optimizer, range(6))
    distributed.expand_layer(model, "0", 2, optimizer=optimizer, timeout=TIMEOUT)
    train(model, optimizer, range(6, 9))
    return fingerprint(model)


def fingerprint(model: Any) -> str:
    """A text that tells models apart, to the last bit."""
    found = hashlib.sha256()
    for tensor in tensors_of(model).values():
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def forgotten(rank: int) -> list[str]:
    """The errors of growth behind a wrapper's back; and that it works once the wrapper is gone."""
    found = []
    model = network()
    attempts: list[Callable[[], Any]] = [
        lambda: model.expand_layer("0", 2),
        lambda: model.insert_layer("3"),
        lambda: model.expand_input(1),
        model.next_generation,
        model.unfreeze,
        model.consolidate,
        model.absorb,
        lambda: model.shrink({"3": 1}),
    ]
    for inner in (model, nn.Sequential(model)):
        wrapper = DistributedDataParallel(inner)
        for attempt in attempts if inner is model else attempts[:1]:
            with unchanged(model):
                found.append(error_of(attempt))
        del wrapper
    model.expand_layer("0", 2)
    progressive = splitgrow.ProgressiveEncoder.of_widths([4, 2], image_channels=1, start=4)
    wrapper = DistributedDataParallel(progressive)
    found.append(error_of(progressive.grow))
    del wrapper
    progressive.grow()
    sharded = wrapped(network(), "fsdp")
    found.append(error_of(lambda: sharded.expand_layer("0", 2)))
    found.append(error_of(lambda: splitgrow.merge(sharded)))
    found.append(error_of(lambda: splitgrow.growable(sharded, torch.zeros(2, 2, 4, 4))))
    return found


class Outer(nn.Module):
    """A module that holds the growable model."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class DeepSpeedEngine(Outer):
    """A stand-in for DeepSpeed's engine, which keeps flat copies of parameters."""


DeepSpeedEngine.__module__ = "deepspeed.runtime.engine"


class Bucketed(Outer):
    """A wrapper in the way of Megatron's, which notes the bucket of each parameter."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.bucket_of = dict.fromkeys(net.parameters(), 0)


def sharded_around(net: nn.Module, *, unit: bool) -> nn.Module:
    if unit:
        fully_shard(net)
    outer: nn.Module = fully_shard(Outer(net))
    return outer


DDP = "DistributedDataParallel wraps"
HELD: dict[str, tuple[Callable[[Any], Any], str]] = {
    "DDP around it": (lambda net: DistributedDataParallel(Outer(net)), DDP),
    "two DDPs": (
        lambda net: [DistributedDataParallel(net) for _ in "ab"],
        DDP,
    ),
    "a DDP in a DDP": (
        lambda net: DistributedDataParallel(Outer(DistributedDataParallel(net))),
        DDP,
    ),
    "a DDP in a module": (
        lambda net: Outer(DistributedDataParallel(net)),
        DDP,
    ),
    "FSDP around it": (lambda net: sharded_around(net, unit=False), "fully_shard was called on"),
    "FSDP around a unit": (lambda net: sharded_around(net, unit=True), "fully_shard of a module"),
    "replicate": (replicate, "replicate()"),
    "FSDP1": (lambda net: Fsdp1(net, device_id=torch.device("cpu")), "FSDP1"),
    "DeepSpeed": (DeepSpeedEngine, "deepspeed's DeepSpeedEngine"),
    "another one's": (Bucketed, "lists its parameters in `bucket_of`"),
}
"""Ways to hold a model so that a call on the model alone would leave the holder out, and a word of
the refusal."""
CHANGES: dict[str, Callable[[Any, str], Any]] = {
    "expand_layer": lambda net, _: distributed.expand_layer(net, "0", 2, timeout=TIMEOUT),
    "expand": lambda net, _: distributed.expand(net, {"0": 2}, timeout=TIMEOUT),
    "expand_input": lambda net, _: distributed.expand_input(net, 1, timeout=TIMEOUT),
    "insert_layer": lambda net, _: distributed.insert_layer(net, "3", timeout=TIMEOUT),
    "next_generation": lambda net, _: distributed.next_generation(net, timeout=TIMEOUT),
    "unfreeze": lambda net, _: distributed.unfreeze(net, timeout=TIMEOUT),
    "consolidate": lambda net, _: distributed.consolidate(net, timeout=TIMEOUT),
    "absorb": lambda net, _: distributed.absorb(net, timeout=TIMEOUT),
    "shrink": lambda net, _: distributed.shrink(net, {"3": 1}, timeout=TIMEOUT),
    "load": lambda net, place: distributed.load(net, place, timeout=TIMEOUT),
}


def held_elsewhere(rank: int, how: str, place: str) -> tuple[list[str], list[str]]:
    """The errors of changes of a model that something else holds; none once that is gone.

    Each holder is met by some of the changes, so that all changes meet several.
    """
    distributed.save(network(), place, timeout=TIMEOUT)
    net = network()
    hold = HELD[how][0]
    holder = hold(net)
    passed = [net]
    if isinstance(holder, list):
        passed = holder
    elif how != "DDP around it" and not how.startswith("FSDP around"):
        passed.append(holder)
    found = []
    first = 3 * list(HELD).index(how)
    changes = [list(CHANGES.values())[(first + n) % len(CHANGES)] for n in range(3)]
    for one in passed:
        for change in changes:
            with unchanged(net):
                found.append(error_of(lambda one=one, change=change: change(one, place)))
    marked = isinstance(net, FSDPModule) or how in {"replicate", "FSDP1", "FSDP around it"}
    del holder, passed, one
    if marked:
        return found, []
    return found, [error_of(lambda: distributed.expand_layer(net, "0", 2, timeout=TIMEOUT))]


def held_by_nothing(rank: int, place: str) -> list[str]:
    """The errors of every change of a model that nothing else holds."""
    distributed.save(network(), place, timeout=TIMEOUT)
    return [error_of(lambda c=c: c(network(), place)) for c in CHANGES.values()]


def grown_through_the_wrapper_around(rank: int, how: str) -> None:
    """The way that the refusal names works."""
    net = network()
    outer: Any = Outer(net)
    outer = DistributedDataParallel(outer) if how == "ddp" else sharded_around(net, unit=True)
    optimizer = adam(outer)
    train(outer, optimizer, range(2))
    distributed.expand_layer(outer, "0", 2, optimizer=optimizer, timeout=TIMEOUT)
    train(outer, optimizer, range(2, 4))
    assert equal_everywhere(outer)


def average_that_follows(rank: int) -> None:
    """An average grows in every process, and begins with the first one's values of what is new."""
    net = network()
    average = splitgrow.follow(AveragedModel(net, avg_fn=lambda a, b, _: 0.5 * (a + b)), net)
    ddp = DistributedDataParallel(net)
    optimizer = adam(ddp)
    torch.manual_seed(100 + rank)
    for step in range(3):
        if step == 1:
            distributed.expand_layer(ddp, "0", 2, freeze=False, optimizer=optimizer)
            distributed.insert_layer(ddp, "6", "residual", freeze=False, optimizer=optimizer)
            for parameter in splitgrow.handle(net).parameters_of(1):
                name = next(n for n, p in net.named_parameters() if p is parameter)
                assert torch.equal(average.module.get_parameter(name), parameter)
        train(ddp, optimizer, range(step, step + 1))
        average.update_parameters(net)
    assert equal_everywhere(average.module)
    names = [name for name, _ in net.named_parameters()]
    assert [name for name, _ in average.module.named_parameters()] == names


def equal_everywhere(model: nn.Module) -> bool:
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, fingerprint(model))
    return len(set(every)) == 1


def error_of(attempt: Callable[[], Any]) -> str:
    try:
        attempt()
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"
    return "nothing"


def lost_rank(rank: int, how: str, lost: int, gone: bool) -> str:
    """What the others hear when a rank is gone, or never comes."""
    agreement._MARGIN = 1.0
    model = wrapped(network(), how)
    optimizer = adam(model)
    train(model, optimizer, range(2))
    dist.barrier()
    if rank == lost:
        if gone:
            os._exit(3)
        time.sleep(100.0)
    sharded_parameters(model)
    inner = model.module if how == "ddp" else model
    with unchanged(inner, optimizer), unchanged(model):
        return error_of(lambda: distributed.expand_layer(model, "0", 2, timeout=1.0))


def lost_while_growing(rank: int) -> str:
    """What is heard when a rank dies between the planning and the sharing of what is new."""
    agreement._MARGIN = 1.0
    model = wrapped(network(), "ddp")
    optimizer = adam(model)
    train(model, optimizer, range(2))
    if rank == 1:
        carrying.share_ = lambda *_: os._exit(3)
    with unchanged(model.module, optimizer):
        return error_of(
            lambda: distributed.expand_layer(model, "0", 2, optimizer=optimizer, timeout=2.0)
        )


def late_first_rank(rank: int) -> str:
    """What is heard when the others have given up on the first rank, which then comes."""
    agreement._MARGIN = 0.2
    model = wrapped(network(), "ddp")
    if rank == 0:
        time.sleep(2.0)
    heard = error_of(lambda: distributed.expand_layer(model, "0", 2, timeout=0.5))
    # All of them are at the same vote again.
    dist.barrier()
    distributed.expand_layer(model, "0", 2, timeout=TIMEOUT)
    return heard


def among_leftovers(rank: int) -> str:
    """Growth where the store holds what earlier processes of these ranks wrote."""
    model = wrapped(network(), "ddp")
    distributed.expand_layer(model, "0", 2, timeout=TIMEOUT)
    # As if the processes were new, and one of them had come to the store before the other.
    sessions._SESSIONS.clear()
    if rank == 0:
        error_of(lambda: distributed.expand_layer(model, "0", 4, timeout=0.2))
        sessions._SESSIONS.clear()
    dist.barrier()
    torch.manual_seed(rank)
    distributed.expand_layer(model, "0", 2, timeout=TIMEOUT)
    return fingerprint(model.module)


def interrupted(rank: int) -> str:
    """What is heard when somebody stops one of the processes."""
    model = wrapped(network(), "ddp")
    if rank == 1:
        carrying.picture_of = raising(KeyboardInterrupt())
    try:
        distributed.expand_layer(model, "0", 2, timeout=TIMEOUT)
    except BaseException as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"
    return ""


def raising(error: BaseException) -> Callable[..., Any]:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    return fails


def own_randomness(rank: int) -> tuple[Tensor, Tensor]:
    """The random numbers that come next, after a growth and without one."""
    torch.manual_seed(rank)
    alone = network()
    torch.manual_seed(rank)
    alone.expand_layer("0", 2)
    expected = torch.rand(4)
    model = wrapped(network(), "ddp")
    torch.manual_seed(rank)
    distributed.expand_layer(model, "0", 2, timeout=TIMEOUT)
    return expected, torch.rand(4)


def options_of_ddp(rank: int) -> None:
    """A wrapper made anew has the options, hooks and modes that it had."""
    ran = []
    options: dict[str, Any] = {
        "bucket_cap_mb": 3,
        "find_unused_parameters": True,
        "gradient_as_bucket_view": True,
        "process_group": dist.new_group([0, 1]),
        "forward_sync_buffers": False,
    }
    model = DistributedDataParallel(network(norm=True), **options)
    model.register_forward_hook(lambda *_: ran.append(1))
    model.register_comm_hook(None, default_hooks.allreduce_hook)
    model.require_backward_grad_sync = False
    model.eval()
    before = dict(vars(model))
    model.train()
    model.eval()
    distributed.expand_layer(model, "0", 2, timeout=TIMEOUT)
    after = vars(model)
    assert after["reducer"] is not before["reducer"]
    for name in (
        "bucket_bytes_cap",
        "bucket_bytes_cap_default",
        "find_unused_parameters",
        "gradient_as_bucket_view",
        "process_group",
        "forward_sync_buffers",
        "require_backward_grad_sync",
        "static_graph",
        "training",
        "device_ids",
        "_comm_hooks",
    ):
        assert after[name] == before[name], name
    model.require_backward_grad_sync = True
    model.train()
    train(model, adam(model), range(3))
    assert len(ran) == 3
    static = DistributedDataParallel(network(), static_graph=True, bucket_cap_mb_list=[1, 2])
    train(static, adam(static), range(2))
    distributed.expand_layer(static, "0", 2, timeout=TIMEOUT)
    assert static.static_graph
    assert static.bucket_bytes_cap_list == [2**20, 2 * 2**20]
    train(static, adam(static), range(3))


def unsupported(rank: int) -> list[str]:
    """What cannot be followed, and why."""
    hooked = DistributedDataParallel(network())
    hooked.register_comm_hook(PowerSGDState(None), powerSGD_hook)
    model = network()
    ignoring = fully_shard(model, ignored_params={model[0].weight})
    together = network()
    fully_shard([together[6], together[8]])
    fully_shard(together)
    several = DistributedDataParallel(nn.Sequential(network(), network()))
    plain = DistributedDataParallel(nn.Linear(2, 2))
    models = (hooked, ignoring, together, several, plain)
    return [
        error_of(lambda model=model: distributed.expand_layer(model, "6", 3, timeout=TIMEOUT))
        for model in models
    ]


def nothing_trains(rank: int) -> None:
    """A generation may be closed and be followed by no other for a while."""
    model = wrapped(network(), "ddp")
    optimizer = adam(model)
    train(model, optimizer, range(2))
    distributed.next_generation(model, timeout=TIMEOUT)
    for step in range(3):
        assert not model(batch(step)[0]).requires_grad
    distributed.expand_layer(model, "0", 2, optimizer=optimizer, timeout=TIMEOUT)
    assert model.require_backward_grad_sync
    train(model, optimizer, range(2, 5))


def inner_and_plain(rank: int) -> tuple[str, str]:
    """Growth of a model inside what is wrapped, and of one that every process has for itself."""
    inner = network()
    model = DistributedDataParallel(nn.Sequential(nn.Identity(), inner))
    optimizer = adam(model)
    train(model, optimizer, range(2))
    torch.manual_seed(rank)
    distributed.expand_layer(model, "0", 2, optimizer=optimizer, timeout=TIMEOUT)
    train(model, optimizer, range(2, 4))
    plain = network()
    torch.manual_seed(rank)
    distributed.expand_layer(plain, "0", 2, timeout=TIMEOUT)
    return fingerprint(inner), fingerprint(plain)


def initialised(
    rank: int, how: str
) -> tuple[list[str], list[float], list[str], list[tuple[float, float]]]:
    """Growth by initializers that read all values, and that change some, after one that fails.

    Returns:
        The tensors after each growth, how far its outputs and its edit say that these have moved,
        the error of the failed one, and the loss before and after one from data: by the model in
        both processes, and by its edit.
    """
    model = wrapped(network(), how)
    optimizer = adam(model)
    train(model, optimizer, range(2))
    torch.manual_seed(rank)
    options = {"optimizer": optimizer, "freeze": False, "timeout": TIMEOUT}
    inner, errors = model.module if how == "ddp" else model, []
    sharded_parameters(model)
    with (
        unchanged(inner, optimizer),
        unchanged(model, but=RENEWED),
        broken(rank, carrying.Wrapped, "settle"),
    ):
        try:
            distributed.expand_layer(model, "6", 4, initializer="net2net", **options)
        except Exception as error:  # noqa: BLE001
            errors.append(f"{type(error).__name__}: {error}")
        sharded_parameters(model)
    tensors, moved = [], []
    for name in ("pair", "net2net", "variance_transfer"):
        before = model(batch(0)[0]).detach()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", splitgrow.SplitGrowWarning)
            edit = distributed.expand_layer(model, "6", 4, initializer=name, **options)
        moved.append(float((model(batch(0)[0]).detach() - before).abs().max()))
        moved.append(edit.moved or 0.0)
        tensors.append(fingerprint(model))
        train(model, optimizer, range(1))
    x, y = batch(3, rank, 2)

    def loss() -> Tensor:
        return (inner(x) - y).square().mean()

    measured = [_in_all(model(x), y)]
    edit = distributed.expand_layer(model, "0", 4, initializer="tiny", loss=loss, **options)
    measured.append(_in_all(model(x), y))
    tensors.append(fingerprint(model))
    assert edit.loss is not None
    return tensors, moved, errors, [(measured[0], measured[1]), edit.loss]


def _in_all(output: Tensor, y: Tensor) -> float:
    """The mean square error over the batches of all processes."""
    found = (output.detach() - y).square().mean()
    dist.all_reduce(found)
    return float(found) / dist.get_world_size()


def grown_before(steps: int = 4) -> Any:
    """A model that has grown and trained in one process: frozen parameters are views."""
    model = network()
    optimizer = adam(model)
    torch.manual_seed(7)
    for name in ("0", "3", "6"):
        model.expand_layer(name, 2, optimizer=optimizer)
        train(model, optimizer, range(steps), alone=True)
    return model


def sharded_afterwards(rank: int, managed: bool = True) -> tuple[list[str], Tensors]:
    """A grown model that is sharded then, trains, and gets other values from a state_dict."""
    model = grown_before()
    views = [name for name, p in model.named_parameters() if not p.is_contiguous()]
    for layer in (0, 6, 8):
        fully_shard(model[layer])
    fully_shard(model)
    if not managed:
        splitgrow.layers.weight_assembly.is_managed = lambda _: False
    optimizer = adam(model)
    train(model, optimizer, range(20, 24))
    with torch.no_grad():  # the frozen ones, too
        for _, parameter in sharded_parameters(model):
            parameter.mul_(0.5)
    train(model, optimizer, range(24, 28))
    assert all(run.way == "merged" for run in model.runs.values())
    return views, tensors_of(model)


def sharded_afterwards_alone() -> Tensors:
    model = grown_before()
    optimizer = adam(model)
    train(model, optimizer, range(20, 24), alone=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    train(model, optimizer, range(24, 28), alone=True)
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def kept_by_layers(rank: int) -> list[int]:
    """How many tensors grown layers keep after a call: wrapped in turn by DDP and by FSDP."""
    found = []
    for how in ("ddp", "fsdp"):
        model = wrapped(grown_before(1), how)
        train(model, adam(model), range(2))
        inner = model.module if how == "ddp" else model
        layers = [
            m for m in inner.modules() if isinstance(m, splitgrow.layers.split_layer.SplitLayer)
        ]
        found.append(sum(len(layer._runner._merged.assembly._wholes) for layer in layers))
    return found


def views_of_sharded(rank: int) -> None:
    """Closed generations are shown bit for bit, and merged and fused, of a sharded model too."""
    model = wrapped(network(), "fsdp")
    optimizer = adam(model)
    train(model, optimizer, range(3))
    x = batch(50)[0]
    model.eval()
    with torch.no_grad():
        first = model(x)
    distributed.expand_layer(model, "0", 2, optimizer=optimizer, timeout=TIMEOUT)
    model.train()
    train(model, optimizer, range(3, 6))
    model.eval()
    with torch.no_grad():
        now = model(x)
    with model.at(0):
        assert torch.equal(model(x), first)
    assert (now - first).abs().max() > 1e-6
    with distributed.gathered(model, timeout=TIMEOUT) as plain:
        merged, fused = splitgrow.merge(plain), splitgrow.fuse(plain)
        assert torch.equal(plain(x), now)
    assert (merged(x) - now).abs().max() < 1e-12
    assert (fused(x) - now).abs().max() < 1e-12
    assert not any(isinstance(module, FSDPModule) for module in merged.modules())
    splitgrow.growable(merged, x).expand_layer("0", 2)
    model.train()
    train(model, optimizer, range(6, 8))


def options_of_fsdp(rank: int) -> None:
    """A grown layer is the unit that it was before it grew, with the options that it had."""
    model = network()
    policy = MixedPrecisionPolicy(torch.float32, torch.float64, torch.float64)
    options: dict[str, Any] = {"mp_policy": policy, "reshard_after_forward": False}
    fully_shard(model[0], **options)
    fully_shard(model)
    optimizer = adam(model)
    train(model, optimizer, range(2))
    distributed.expand(model, {"0": 2, "6": 2}, optimizer=optimizer, timeout=TIMEOUT)
    assert isinstance(model[0], FSDPModule)
    assert not isinstance(model[0].original, FSDPModule)
    (group,) = model[0]._get_fsdp_state()._fsdp_param_groups
    assert group.mp_policy is policy
    assert group.post_forward_mesh_info is None
    assert {r._module_info.module for r in group.fsdp_params} == set(model[0])
    (root,) = model._get_fsdp_state()._fsdp_param_groups
    assert {r._module_info.module for r in root.fsdp_params} >= {*model[6], *model[8]}
    seen = []
    model[0].original.register_forward_pre_hook(lambda m, _: seen.append(m.weight.dtype))
    train(model, optimizer, range(2, 4))
    assert seen == [torch.float32] * 2
    state = model.state_dict()
    assert all(not t.is_floating_point() or t.dtype == torch.float64 for t in state.values())
    model.load_state_dict(state)
    train(model, optimizer, range(4, 6))


def blocks_sharded_one_by_one(rank: int) -> Tensors:
    """A grown model, each of whose stock layers is a unit of its own."""
    model = network()
    torch.manual_seed(7)
    model.expand_layer("6", 3)
    for module in [m for m in model.modules() if isinstance(m, nn.Linear)]:
        fully_shard(module)
    fully_shard(model)
    optimizer = adam(model)
    train(model, optimizer, range(4))
    distributed.expand_layer(model, "6", 2, optimizer=optimizer, timeout=TIMEOUT)
    train(model, optimizer, range(4, 8))
    return tensors_of(model)


def blocks_alone() -> Tensors:
    model = network()
    torch.manual_seed(7)
    model.expand_layer("6", 3)
    optimizer = adam(model)
    train(model, optimizer, range(4), alone=True)
    model.expand_layer("6", 2, optimizer=optimizer)
    train(model, optimizer, range(4, 8), alone=True)
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def hybrid(rank: int) -> Tensors:
    """A short story of a model that is sharded over half of the processes, twice."""
    model = wrapped(network(), "hybrid")
    optimizer = adam(model)
    torch.manual_seed(7 + rank)
    train(model, optimizer, range(3))
    distributed.expand(model, {"0": 2, "6": 3}, optimizer=optimizer, timeout=TIMEOUT)
    train(model, optimizer, range(3, 6))
    distributed.insert_layer(model, "6", "residual", optimizer=optimizer, timeout=TIMEOUT)
    train(model, optimizer, range(6, 9))
    return tensors_of(model)


def hybrid_alone() -> Tensors:
    model = network()
    optimizer = adam(model)
    torch.manual_seed(7)
    train(model, optimizer, range(3), alone=True)
    model.expand({"0": 2, "6": 3}, optimizer=optimizer)
    train(model, optimizer, range(3, 6), alone=True)
    model.insert_layer("6", "residual", optimizer=optimizer)
    train(model, optimizer, range(6, 9), alone=True)
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def with_batch_norm(rank: int) -> Tensors:
    """Weights after growth of a network whose norms see each rank's own share of the batch."""
    model = DistributedDataParallel(network(norm=True))
    optimizer = adam(model)
    torch.manual_seed(rank)
    train(model, optimizer, range(3))
    distributed.expand_layer(model, "0", 2, optimizer=optimizer, timeout=TIMEOUT)
    train(model, optimizer, range(3, 8))
    distributed.expand_layer(model, "0", 2, optimizer=optimizer, timeout=TIMEOUT)
    train(model, optimizer, range(8, 12))
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def tied_story(how: str, rank: int = 0, world: int = 1) -> tuple[Tensors, bool]:
    """A language model with tied weights that grows in its stream and its vocabulary.

    Returns:
        Its tensors in the end, and whether its layers still share their weights.
    """
    torch.manual_seed(0)
    words = torch.arange(32).view(4, 8) * 7 % 11
    net: Any = Tied().double()
    net.change = nn.Identity()  # DistributedDataParallel wants every parameter used
    net = splitgrow.growable(net, words)
    model: Any = wrapped(net, how)
    optimizer = momentum(model)
    calls = splitgrow.handle(net) if how == "alone" else distributed
    more = {} if how == "alone" else {"timeout": TIMEOUT}
    given = () if how == "alone" else (model,)

    def step() -> None:
        x = words[rank * 4 // world : (rank + 1) * 4 // world]
        optimizer.zero_grad()
        F.cross_entropy(model(x).flatten(0, 1)[:, :11], x.flatten()).backward()
        optimizer.step()

    step()
    torch.manual_seed(1)
    calls.expand_layer(*given, "embed", 2, optimizer=optimizer, freeze=False, **more)
    step()
    calls.expand_vocabulary(*given, 3, optimizer=optimizer, freeze=False, **more)
    step()
    step()
    if how == "alone":
        whole = {name: p.detach().clone() for name, p in net.named_parameters()}
        return whole, net.embed[1].weight is net.head[1].weight
    with distributed.gathered(model, timeout=TIMEOUT) as plain:
        whole = {name: p.detach().clone() for name, p in plain.named_parameters()}
        tied = plain.embed[1].weight is plain.head[1].weight
        tied = tied and plain.embed[2].weight is plain.head[2].weight
    return whole, tied


def experts_story(how: str, rank: int = 0, world: int = 1, shared: str = "") -> Tensors:
    """A network with mixtures of experts that grow, frozen and not; its tensors in the end."""
    net: Any = splitgrow.growable(mixture_network("Everything"), MIXED)
    model: Any = wrapped(net, how)
    optimizer = momentum(model)
    calls = splitgrow.handle(net) if how == "alone" else distributed
    more = {} if how == "alone" else {"timeout": TIMEOUT}
    given = () if how == "alone" else (model,)
    x = (
        torch.linspace(-1, 1, 4 * MIXED.shape[1] * MIXED.shape[2])
        .double()
        .view(4, *MIXED.shape[1:])
    )

    def step() -> None:
        optimizer.zero_grad()
        model(x[rank * 4 // world : (rank + 1) * 4 // world]).square().mean().backward()
        optimizer.step()

    step()
    if how == "fsdp":
        with pytest.raises(ValueError, match="lost where FSDP holds them in pieces"):
            calls.expand_experts(*given, 4, freeze=False, optimizer=optimizer, **more)
    noise = 0.0 if how == "fsdp" or shared == "fsdp" else 0.01
    calls.expand_experts(*given, 4, freeze=False, noise=noise, optimizer=optimizer, **more)
    step()
    calls.expand_experts(*given, 16, noise=noise, optimizer=optimizer, **more)
    step()
    step()
    if how == "alone":
        return {name: p.detach().clone() for name, p in net.named_parameters()}
    with distributed.gathered(model, timeout=TIMEOUT) as plain:
        return {name: p.detach().clone() for name, p in plain.named_parameters()}


def experts_together(rank: int, how: str) -> Tensors:
    """The same in several processes."""
    return experts_story(how, rank, dist.get_world_size())


def tied_together(rank: int, how: str) -> tuple[Tensors, bool]:
    """The same in several processes."""
    return tied_story(how, rank, dist.get_world_size())


def fails(rank: int) -> None:
    """Work that one process cannot do."""
    if rank == 1:
        raise ValueError("not on this one")


# -- checkpoints -----------------------------------------------------------------------------------


def trained(how: str) -> tuple[Any, Any]:
    """A model that has grown and trained in several processes."""
    model = wrapped(network(), how)
    optimizer = adam(model)
    train(model, optimizer, range(2))
    torch.manual_seed(dist.get_rank())
    distributed.expand(model, {"0": 2, "6": 3}, optimizer=optimizer, timeout=TIMEOUT)
    train(model, optimizer, range(2, 5))
    return model, optimizer


def states_of(model: Any, optimizer: Any) -> Tensors:
    """The optimizer's state, whole, by the names of parameters."""
    names = {id(p): name for name, p in sharded_parameters(model)}
    found = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            name = f"{names[id(parameter)].removeprefix('module.')}.{key}"
            found[name] = value.full_tensor() if hasattr(value, "full_tensor") else value
    return {name: found[name].detach().clone() for name in sorted(found)}


def saved(rank: int, how: str, folder: str) -> tuple[Tensors, Tensors, Tensor]:
    model, optimizer = trained(how)
    distributed.save(model, folder, optimizer=optimizer, keep=2, timeout=TIMEOUT)
    return tensors_of(model), states_of(model, optimizer), torch.rand(3)


def loaded(rank: int, how: str, folder: str) -> tuple[Tensors, Tensors, Tensor]:
    model = wrapped(network(), how)
    optimizer = torch.optim.AdamW(model.parameters(), lr=9.0)
    distributed.load(model, folder, optimizer=optimizer, timeout=TIMEOUT)
    assert optimizer.param_groups[0]["lr"] == 3e-3
    drawn = torch.rand(3)
    found = tensors_of(model), states_of(model, optimizer), drawn
    train(model, optimizer, range(5, 7))
    distributed.expand_layer(model, "6", 2, optimizer=optimizer, timeout=TIMEOUT)
    train(model, optimizer, range(7, 9))
    return found


def killed_while_saving(rank: int, folder: str) -> str:
    """Saves once, trains on, and one rank dies in the middle of saving again."""
    agreement._MARGIN = 1.0
    model, optimizer = trained("fsdp")
    distributed.save(model, folder, optimizer=optimizer, timeout=TIMEOUT)
    before = fingerprint(model)
    train(model, optimizer, range(5, 7))
    assert fingerprint(model) != before
    writes = saving.state_dict_saver.save

    def dies(*args: Any, **options: Any) -> Any:
        if rank == 1:
            os._exit(3)
        return writes(*args, **options)

    saving.state_dict_saver.save = dies
    heard = error_of(lambda: distributed.save(model, folder, optimizer=optimizer, timeout=2.0))
    assert heard.startswith("DistributedError"), heard
    return before


def all_killed_while_saving(rank: int, folder: str, where: str) -> None:
    """All die at some moment of saving again."""
    model, optimizer = trained("ddp")
    distributed.save(model, folder, optimizer=optimizer, extra="first", timeout=TIMEOUT)

    def dies(*_: Any, **__: Any) -> Any:
        os._exit(3)

    if where == "writing":
        saving.state_dict_saver.save = dies
    elif where == "naming":
        storing.Path.replace = dies
    else:
        storing.Path.rename = dies
    distributed.save(model, folder, optimizer=optimizer, extra="second", timeout=3.0)


def read_again(rank: int, folder: str) -> tuple[Any, str]:
    model = wrapped(network(), "ddp")
    optimizer = adam(model)
    extra = distributed.load(model, folder, optimizer=optimizer, timeout=TIMEOUT)
    found = fingerprint(model)
    distributed.save(model, folder, optimizer=optimizer, extra="third", timeout=TIMEOUT)
    assert distributed.load(model, folder, timeout=TIMEOUT) == "third"
    return extra, found


def not_loaded(rank: int, folder: str) -> list[tuple[str, str]]:
    """Loads that are refused, or fail in one process; nothing is changed by them."""
    found = []
    for how in ("ddp", "fsdp"):
        model = wrapped(network(), how)
        optimizer = adam(model)
        train(model, optimizer, range(2))
        sharded_parameters(model)

        def attempt(model: Any = model, trains: Any = optimizer, place: str = folder) -> Any:
            return distributed.load(model, place, optimizer=trains, timeout=TIMEOUT)

        cases: dict[str, tuple[Callable[[], Any], tuple[Any, str] | None]] = {
            "nowhere": (lambda attempt=attempt: attempt(place=folder + "-none"), None),
            "another optimizer": (
                lambda attempt=attempt, m=model: attempt(trains=momentum(m)),
                None,
            ),
            "not followed": (attempt, (loading, "follow_")),
            "not sharded": (attempt, (carrying.Wrapped, "settle")),
            "not read": (attempt, (loading._Source, "targets")),
            "not given": (attempt, (loading, "restore_optimizer_")),
        }
        inner = model.module if how == "ddp" else model
        for name, (load, fault) in cases.items():
            breaking = broken(rank, *fault) if fault else contextlib.nullcontext()
            with unchanged(inner, optimizer), unchanged(model, but=RENEWED), breaking:
                found.append((name, error_of(load)))
                sharded_parameters(model)
        train(model, optimizer, range(2, 4))
    return found


def behind_the_back(rank: int) -> list[str]:
    """Growing by way of a state_dict is growing."""
    model, _ = trained("ddp")
    state = model.module.state_dict()
    found = []
    for how in ("ddp", "fsdp"):
        fresh = wrapped(network(), how)
        inner = fresh.module if how == "ddp" else fresh
        with unchanged(inner):
            found.append(error_of(lambda inner=inner: inner.load_state_dict(state)))
    return found

"""What processes of tests/distributed/test_shrink_methods.py run: models that get smaller."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import distributed_work as work
import torch
from distributed_work import TIMEOUT, Tensors
from snapshots import unchanged
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import splitgrow
from splitgrow import distributed
from splitgrow.distributed import carrying
from splitgrow.pruning.shrinking import chosen_units, shrinking

CHAPTERS: list[tuple[tuple[Any, ...], ...]] = [
    (
        ("insert_layer", "3", "residual", {"freeze": False}),
        ("expand_layer", "6", 4, {"freeze": False}),
    ),
    (
        ("remove_layer", "4.inserted1", {}),
        ("shrink", {"6": [*range(8)], "3": 1}, {}),  # all that it had before it grew
    ),
    (("expand", {"0": 2, "6": 3}, {}),),  # closes generation 0
    (("shrink_layer", "6", [4, 5], {}),),  # newer units
    (("unfreeze",), ("shrink", {"0": 1, "6": 1}, {"round_to": 3, "give_up": True})),
    (("absorb", {}),),
]
"""Calls by name, with arguments and options; some steps of training come before and after each."""
SAVED = 5
"""The chapters after which the story is saved."""


def distance(one: Tensors, other: Tensors) -> float:
    """The largest difference of tensors by name."""
    assert one.keys() == other.keys()
    assert all(one[name].shape == other[name].shape for name in one)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def chapter(number: int, model: Any, optimizer: Any, call: Any, *, alone: bool) -> None:
    """Some calls, and some steps of training."""
    for name, *args in CHAPTERS[number]:
        options = {**args.pop(), "optimizer": optimizer} if args else {}
        call(name, *args, **options)
    work.train(model, optimizer, range(2 * number + 2, 2 * number + 4), alone=alone)


def story(rank: int, how: str, folder: str) -> dict[str, Any]:
    """A model that grows and shrinks in several processes, and goes on from a checkpoint.

    Returns:
        Its tensors, its optimizer's state, and both of a fresh model that went on from the
        checkpoint; its edits as they print.
    """
    model = work.wrapped(work.network(), how)
    optimizer = work.adam(model)
    torch.manual_seed(7 if rank == 0 else 100 + rank)

    def caller(model: Any) -> Callable[..., Any]:
        def call(name: str, *args: Any, **options: Any) -> Any:
            return getattr(distributed, name)(model, *args, **options, timeout=TIMEOUT)

        return call

    work.train(model, optimizer, range(2))
    for number in range(SAVED):
        chapter(number, model, optimizer, caller(model), alone=False)
    model.load_state_dict(model.state_dict())
    distributed.save(model, folder, optimizer=optimizer, timeout=TIMEOUT)
    fresh = work.wrapped(work.network(), how)
    resumed = work.adam(fresh)
    distributed.load(fresh, folder, optimizer=resumed, timeout=TIMEOUT)
    for each, trains in ((model, optimizer), (fresh, resumed)):
        for number in range(SAVED, len(CHAPTERS)):
            chapter(number, each, trains, caller(each), alone=False)
    inner = model.module if how == "ddp" else model
    return {
        "tensors": work.tensors_of(model),
        "states": work.states_of(model, optimizer),
        "tensors of the resumed": work.tensors_of(fresh),
        "states of the resumed": work.states_of(fresh, resumed),
        "edits": [str(edit) for edit in splitgrow.handle(inner).edits],
        "hooks": _hooks_of_units(model),
    }


def story_alone(*, other: bool = False) -> dict[str, Any]:
    """The same in one process, which sees the whole batch.

    Args:
        other: Whether other channels go.
    """
    model = work.network()
    optimizer = work.adam(model)
    torch.manual_seed(7)

    def call(name: str, *args: Any, **options: Any) -> Any:
        if other and name == "shrink_layer":
            args = ("6", [0, 4])
            options["give_up"] = True
        return getattr(model, name)(*args, **options)

    work.train(model, optimizer, range(2), alone=True)
    for number in range(len(CHAPTERS)):
        chapter(number, model, optimizer, call, alone=True)
    named = [*model.named_parameters(), *model.named_buffers()]
    return {
        "tensors": {name: tensor.detach().clone() for name, tensor in named},
        "states": work.states_of(model, optimizer),
        "edits": [str(edit) for edit in splitgrow.handle(model).edits],
    }


def _hooks_of_units(model: Any) -> list[str]:
    """The modules on which FSDP has hooks of parameters that they no longer have."""
    sharded = [name for name, m in model.named_modules() if isinstance(m, FSDPModule)]
    return [
        name
        for name, module in model.named_modules()
        if sharded
        and len(module._load_state_dict_post_hooks) > len([*module.parameters(recurse=False)])
    ]


@contextlib.contextmanager
def hooked(model: Any) -> Iterator[None]:
    """A model one of whose parameters has a hook."""
    layer = model.get_submodule("module.8" if isinstance(model, DistributedDataParallel) else "8")
    parameter = next(p for p in layer.parameters() if p.requires_grad)
    handle = parameter.register_post_accumulate_grad_hook(lambda _: None)
    yield
    handle.remove()


def refused(rank: int, how: str) -> dict[str, str]:
    """The errors of calls that at least one process cannot follow; nothing is changed by them.

    After them the model trains and shrinks as one to which nothing of that happened.
    """
    model, other = (work.wrapped(work.network(), how) for _ in "ab")
    optimizer, others = work.adam(model), work.adam(other)
    for each, trains in ((model, optimizer), (other, others)):
        torch.manual_seed(rank)
        work.train(each, trains, range(2))
        distributed.expand_layer(each, "6", 4, optimizer=trains, timeout=TIMEOUT)
        work.train(each, trains, range(2, 4))
    inner = model.module if how == "ddp" else model
    work.sharded_parameters(model)

    def take(request: Any, **options: Any) -> Callable[[], Any]:
        given = {"optimizer": optimizer, "give_up": True, "timeout": TIMEOUT, **options}
        return lambda: distributed.shrink(model, request, **given)

    cases: dict[str, tuple[Callable[[], Any], Any]] = {
        "another number": (take({"6": 1 + rank}), None),
        "other channels": (take({"6": [rank]}), None),
        "another optimizer": (take({"6": 1}, optimizer=others if rank else optimizer), None),
        "not chosen": (take({"6": 1}), (chosen_units, "weakest_channels")),
        "not planned": (take({"6": 1}), (shrinking, "plan_replacing")),
        "not applied": (take({"6": [0], "0": 2}), (shrinking, "replace_")),
        "not checked": (take({"0": 2}), (shrinking, "_held_to")),
        "not settled": (take({"6": 3, "3": 1}), (carrying.Wrapped, "settle")),
        "closed units": (take({"6": [0]}, give_up=False), None),
        "half a unit": (take({"0": [0]}), None),
        "everything": (take({"6": [*range(12)]}), None),
        "with a hook": (take({"6": [0, 11]}), hooked),
    }
    found = {}
    for name, (attempt, fault) in cases.items():
        breaking: Any = contextlib.nullcontext()
        if fault is not None:
            breaking = fault(model) if callable(fault) else work.broken(rank, *fault)
        with breaking, unchanged(inner, optimizer), unchanged(model, but=work.RENEWED):
            found[name] = work.error_of(attempt)
            work.sharded_parameters(model)
    for each, trains in ((model, optimizer), (other, others)):
        work.train(each, trains, range(4, 6))
        options = {"optimizer": trains, "give_up": True, "timeout": TIMEOUT}
        distributed.shrink(each, {"6": 2, "0": 2}, **options)
        work.train(each, trains, range(6, 8))
    found["afterwards"] = str(work.fingerprint(model) == work.fingerprint(other))
    return found


def of_its_own(rank: int) -> dict[str, Any]:
    """A model that every process trains in a way of its own, without a wrapper.

    Returns:
        The channels that this process alone would take, those that go, whether what stays has the
        process's own values, and how far the outputs moved.
    """
    model = work.network()
    torch.manual_seed(rank)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    own = model.plan_shrinking({"6": 3}).removed
    before = model[6].weight.detach().clone()
    edit = distributed.shrink_layer(model, "6", 3, timeout=TIMEOUT)
    (gone,) = (item.outs for item in edit.removed if item.name == "6")
    stays = torch.ones(8, dtype=torch.bool)
    for start, count in gone:
        stays[start : start + count] = False
    return {
        "own": [item.outs for item in own],
        "gone": [item.outs for item in edit.removed],
        "kept": torch.equal(model[6].weight, before[stays]),
        "moved": edit.moved,
    }


def average(rank: int) -> tuple[bool, bool, float]:
    """An average loses the same channels in every process, and goes on.

    Returns:
        Whether it is the same everywhere, whether it has the model's shapes, and how far its
        parameters are from the means of the parts that stayed.
    """
    net = work.network()
    followed = splitgrow.follow(AveragedModel(net, avg_fn=lambda a, b, _: 0.5 * (a + b)), net)
    ddp = DistributedDataParallel(net)
    optimizer = work.adam(ddp)
    for step in range(2):
        work.train(ddp, optimizer, range(step, step + 1))
        followed.update_parameters(net)
    before = followed.module[6].weight.detach().clone()
    distributed.shrink(ddp, {"6": [1, 4]}, optimizer=optimizer, timeout=TIMEOUT)
    apart = float((followed.module[6].weight - before[[0, 2, 3, 5, 6, 7]]).abs().max())
    work.train(ddp, optimizer, range(2, 4))
    followed.update_parameters(net)
    shapes = [[(n, p.shape) for n, p in m.named_parameters()] for m in (net, followed.module)]
    return work.equal_everywhere(followed.module), shapes[0] == shapes[1], apart


def all_of(rank: int, how: str, folder: str) -> dict[str, Any]:
    """All of this module in one wrapper."""
    found = {"story": story(rank, how, folder), "refused": refused(rank, how)}
    if how == "ddp":
        found |= {"own": of_its_own(rank), "average": average(rank)}
    return found


# -- pruning ---------------------------------------------------------------------------------------

PRUNED: dict[str, dict[str, Any]] = {
    "taylor": {"amount": 0.5, "steps": 2},
    "reconstruction": {"target": splitgrow.Target(macs=0.5)},
}
"""Prunings by their criterion; each process has batches of its own."""


def loss(model: Any, given: tuple[Tensor, Tensor]) -> Tensor:
    return (model(given[0]) - given[1]).square().mean()


def failing(rank: int) -> Callable[..., Tensor]:
    """A loss that the second process cannot compute for its second batch."""
    left = [None]

    def own(model: Any, given: tuple[Tensor, Tensor]) -> Tensor:
        if rank == 1 and not left:
            raise MemoryError("no room left")
        left[:] = left[1:]
        return loss(model, given)

    return own


def batches(ranks: range) -> list[tuple[Tensor, Tensor]]:
    """The batches of some of the two processes."""
    return [work.batch(step, rank, 2) for rank in ranks for step in (12, 13)]


def pruned(rank: int) -> dict[str, Any]:
    """Models that two processes prune, by the wrapper and the criterion; and refused prunings."""
    found: dict[str, Any] = {}
    for how in ("ddp", "fsdp"):
        model = work.wrapped(work.network(), how)
        optimizer = work.adam(model)
        work.train(model, optimizer, range(2))
        found[f"errors of {how}"] = _not_pruned(rank, model, optimizer)
        for criterion, asked in PRUNED.items():
            model = work.wrapped(work.network(), how)
            optimizer = work.adam(model)
            work.train(model, optimizer, range(2))
            edit = distributed.prune(
                model,
                **asked,
                criterion=criterion,
                loss=loss,
                batches=batches(range(rank, rank + 1)),
                recover=lambda _, m=model, o=optimizer: work.train(m, o, range(2, 4)),
                optimizer=optimizer,
                timeout=TIMEOUT,
            )
            found[f"{how} {criterion}"] = {
                "tensors": work.tensors_of(model),
                "states": work.states_of(model, optimizer),
                "edit": str(edit),
            }
    return found


def _not_pruned(rank: int, model: Any, optimizer: Any) -> dict[str, str]:
    """The errors of prunings that some process cannot follow; nothing is changed by them."""
    own = batches(range(rank, rank + 1))
    cases: dict[str, dict[str, Any]] = {
        "another amount": {"amount": 0.3 + rank / 10},
        "a loss of one": {"amount": 0.3, "loss": failing(rank)},
        "fewer layers": {"amount": 0.3, "loss": loss, "criterion": _Unlike(rank)},
        "too little": {"amount": 0.01, "loss": loss},
        "no batches": {"amount": 0.3, "loss": loss, "batches": ()},
        "no steps": {"amount": 0.3, "loss": loss, "steps": "two"},
    }
    found = {}
    inner = getattr(model, "module", model)
    work.sharded_parameters(model)
    for name, case in cases.items():
        given = {"criterion": "taylor", "batches": own, "optimizer": optimizer, **case}
        with unchanged(inner, optimizer), unchanged(model, but=work.RENEWED):
            found[name] = work.error_of(
                lambda g=given: distributed.prune(model, **g, timeout=TIMEOUT)
            )
            work.sharded_parameters(model)
    return found


class _Unlike(splitgrow.pruning.Taylor):
    """A criterion that has scores for other groups in each process."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def scores(self, view: Any) -> Any:
        found = dict(super().scores(view))
        return dict([*found.items()][self.rank :])


def pruned_alone(criterion: str, ranks: range = range(2)) -> dict[str, Any]:
    """The same in one process, which has the batches of both, or of some."""
    model = work.network()
    optimizer = work.adam(model)
    work.train(model, optimizer, range(2), alone=True)
    edit = model.prune(
        **PRUNED[criterion],
        criterion=criterion,
        loss=loss,
        batches=batches(ranks),
        recover=lambda _: work.train(model, optimizer, range(2, 4), alone=True),
        optimizer=optimizer,
    )
    named = [*model.named_parameters(), *model.named_buffers()]
    return {
        "tensors": {name: tensor.detach().clone() for name, tensor in named},
        "states": work.states_of(model, optimizer),
        "edit": str(edit),
    }

"""What a user does: growth, generations, training, averages, hooks, mistakes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

import splitgrow
from machine.averages import Averaged
from machine.life import Before, Life, Refused
from machine.oracle import Inserted
from machine.training import Trained

PLACES = ("stem", "act", "block.first", "block", "side", "tanh", "head",
          ("stem", "block"), ("block.first", "block.last"), ("block", "side"))  # fmt: skip
KINDS = ("identity", "residual", "gate", "block", "fade", "replacement", "given", "bottleneck")


# -- growth ------------------------------------------------------------------------------------


def expand(
    life: Life, request: Mapping[int, int], round_to: int, *, freeze: bool, tell: bool, index: bool
) -> None:
    """Layers grow, by name or index; a plan says before what comes."""
    layers = life.model.layers
    chosen = {layers[i % len(layers)].name: n for i, n in request.items()}
    wanted: Any = {(life.model.layers.index(_layer(life, p)) if index else p): n
                   for p, n in chosen.items()}  # fmt: skip
    fixed = (splitgrow.FixedWidthError,) if life.mirror.fades else ()
    if not _agrees(life, chosen):
        life.refuses(lambda: life.model.expand(wanted), ValueError)
        raise Refused
    planned = None
    with suppress(*fixed):
        planned = life.model.plan(wanted, round_to=round_to, freeze=freeze)

    def grow(optimizer: Any) -> Any:
        options = {"round_to": round_to, "freeze": freeze, "optimizer": optimizer}
        if len(wanted) == 1:
            return life.model.expand_layer(*next(iter(wanted.items())), **options)
        return life.model.expand(wanted, **options)

    def note(edit: Any) -> set[str]:
        assert planned is not None
        assert str(planned) == str(edit), "another edit than planned"
        rounded = {p: _rounded(life, p, n, round_to) for p, n in chosen.items()}
        return life.mirror.grow(rounded, edit.index)

    life.edit(grow, note, fixed, tell=tell)


def _agrees(life: Life, chosen: Mapping[str, int]) -> bool:
    """Whether layers that are tied are to gain the same."""
    axes = life.mirror.axes()
    asked: dict[str, int] = {}
    return all(asked.setdefault(axes.root(path), n) == n for path, n in chosen.items())


def _layer(life: Life, path: str) -> Any:
    return next(layer for layer in life.model.layers if layer.name == path)


def _rounded(life: Life, path: str, n: int, to: int) -> int:
    width = life.mirror.layers[path].width
    return -(-(width + n) // to) * to - width


def expand_input(life: Life, n: int, *, freeze: bool, tell: bool) -> None:
    name = "x" if n % 2 else None

    def note(edit: Any) -> set[str]:
        return life.mirror.grow({"x": n}, edit.index)

    life.edit(
        lambda o: life.model.expand_input(n, name=name, freeze=freeze, optimizer=o),
        note,
        (),
        tell=tell,
    )


def insert(life: Life, place: int, kind: str, *, freeze: bool, tell: bool) -> None:
    """A layer, or several, in between."""
    after: Any = PLACES[place % len(PLACES)]
    options: dict[str, Any] = {}
    if kind == "block":
        after = "block"
        if any(item.host.startswith("block.") for item in life.mirror.inserted):
            raise Refused
    if kind in {"fade", "replacement", "given"}:
        after = ("side", "block", "tanh", "act", "head")[place % 5]
        options["module"] = _module(life, after, kind)
    if kind == "bottleneck":
        options["form"] = kind
    kind = {"given": "residual", "bottleneck": "residual"}.get(kind, kind)
    may: tuple[type[BaseException], ...] = ()
    if kind in {"identity", "block", "fade", "replacement"} or life.mirror.inserted:
        may = (splitgrow.InsertionError,)
    if kind not in {"block", "fade", "replacement"}:
        with suppress(*may):
            life.model.plan_insertion(after, kind, freeze=freeze, **options)

    def note(edit: Any) -> None:
        item = edit.inserted[0]
        found = Inserted(item.host, item.before, item.kind, item.name)
        life.mirror.insert(found, life.model.get_submodule(item.name), edit.index)

    life.edit(
        lambda o: life.model.insert_layer(after, kind, freeze=freeze, optimizer=o, **options),
        note,
        may,
        tell=tell,
    )


def _module(life: Life, after: str, kind: str) -> nn.Module:
    """A module of the user's that fits there."""
    mirror = life.mirror
    widths = {"side": "side", "tanh": "side", "block": "block.last", "act": "norm", "head": "head"}
    outs = mirror.layers[widths[after]].width
    ins = outs
    if kind == "replacement":
        readers = mirror.cells(mirror.axes(), {"block": "block.norm"}.get(after, after)) if (
            after not in {"tanh", "act"}
        ) else range(outs)  # fmt: skip
        ins = (
            len(readers)
            if after != "block"
            else mirror.width_of(mirror.axes().ins["block.norm"][0])
        )
    flat = not life.space or after == "head"
    layer = nn.Linear(ins, outs) if flat else nn.Conv2d(ins, outs, 3, padding=1)
    parts = [layer, nn.Tanh()] if kind != "given" else [
        layer, nn.ReLU(), nn.Linear(outs, outs) if flat else nn.Conv2d(outs, outs, 1)]  # fmt: skip
    return nn.Sequential(*parts).to(life.dtype)


def fade_on(life: Life, quarter: int) -> None:
    for name in life.mirror.fades:
        fade = life.model.get_submodule(name)
        fade.alpha = min(1.0, fade.alpha + quarter / 4)


def consolidate(life: Life, *, tell: bool) -> None:
    """Joins the open generation's blocks; the oracle's plain tensors stay, and so do averages'."""
    before = life.mirror.wholes(life.snapshot())
    followed = [a for a in life.averages if a.follows]
    averaged = [life.mirror.wholes(life.values(a.copied)) for a in followed]

    def note(edit: Any) -> None:
        for joined in edit.joined:
            life.mirror.join(joined.name, joined.edits, edit.index)

    if tell and life.trained is not None and life.trained.lacks(life.model):
        tell = False
    # Blocks of which an optimizer was told later have a group of their own.
    later = life.trained is not None and not life.trained.names_hold
    may = (splitgrow.OptimizerError,) if later else ()
    edit = life.edit(
        lambda o: life.model.consolidate(optimizer=o), note, may, tell=tell, stir=False
    )
    if edit is None:
        return
    after = life.mirror.wholes(life.snapshot())
    for path, whole in before.items():
        for one, other in zip(whole, after[path], strict=True):
            assert torch.equal(one, other), f"{path} was changed by joining"
    for average, old in zip(followed, averaged, strict=True):
        new = life.mirror.wholes(life.values(average.copied))
        for path, whole in old.items():
            for one, other in zip(whole, new[path], strict=True):
                life.close(other, one, f"the joined averages of {path}")


# -- generations -------------------------------------------------------------------------------


def next_generation(life: Life) -> None:
    before = Before(life)
    number = life.model.next_generation()
    assert number == before.generation + 1
    life.closes(before)


def unfreeze(life: Life) -> None:
    life.model.unfreeze()
    life.era += 1
    life.mirror.hold(held=False)
    life.exact_from = life.model.generation
    for key in life.trains:
        life.trains[key] = key not in life.by_hand


def freeze_by_hand(life: Life, index: int) -> None:
    """requires_grad_ of one parameter of the open generation, off or on again."""
    open_ones = life.model.generation_parameters()
    frozen = [p for p in open_ones if id(p) in life.by_hand]
    chosen = frozen or [p for p in open_ones if life.trains[id(p)]]
    if not chosen:
        raise Refused
    parameter = chosen[index % len(chosen)]
    on = id(parameter) in life.by_hand
    parameter.requires_grad_(on)
    life.trains[id(parameter)] = on
    (life.by_hand.discard if on else life.by_hand.add)(id(parameter))


# -- training ----------------------------------------------------------------------------------


def make_optimizer(life: Life, how: str, grouping: str, *, by_name: bool) -> None:
    life.trained = Trained(how, grouping, life.model, by_name=by_name)


def tell_later(life: Life) -> None:
    """Parameters that no optimizer was told of get a group of their own."""
    trained = life.trained
    own = {id(p) for p in trained.listed()} if trained is not None else set()
    new = [(n, p) for n, p in life.model.named_parameters() if id(p) not in own]
    if trained is None or not new or trained.grouping == "trainable":
        raise Refused
    named = trained.grouping == "named"
    trained.optimizer.add_param_group({"params": new if named else [p for _, p in new]})
    # The scheduler of torch knows the groups that it was made with.
    trained.scheduler = torch.optim.lr_scheduler.StepLR(trained.optimizer, 2, 0.7)
    trained.told([p for _, p in new])


# -- averages ----------------------------------------------------------------------------------


def make_average(life: Life, kind: str, *, told: bool) -> None:
    average = Averaged(kind, life.model)
    life.averages.append(average)
    if told:
        follow(life, average)


def follow(life: Life, average: Averaged) -> None:
    assert splitgrow.follow(average.object, life.model) is average.object
    average.follows = True
    if average.behind:
        life.averages_follow(average, joined=_joined_behind(life, average))


def _joined_behind(life: Life, average: Averaged) -> bool:
    return any(edit.joined for edit in splitgrow.handle(life.model).edits)


def update_averages(life: Life, times: int) -> None:
    for average in life.averages:
        if average.behind:
            follow(life, average)
        for _ in range(times):
            average.update(life.model)


# -- habits ------------------------------------------------------------------------------------


def cast(life: Life, dtype: torch.dtype) -> None:
    """Another dtype: values are rounded, so closed generations are recorded anew."""
    {
        torch.float32: life.model.float,
        torch.float64: life.model.double,
        torch.bfloat16: life.model.bfloat16,
    }[dtype]()
    if dtype == life.dtype:
        return
    life.dtype = dtype
    life.trained, life.earlier = None, []
    life.averages = [average for average in life.averages if not average.behind]
    for average in life.averages:
        average.cast(dtype)
        # It has been rounded in its own way so far, which a finer dtype would show.
        named = dict(average.copied.named_parameters())
        for name, parameter in life.model.named_parameters():
            average.values[id(parameter)] = named[name].detach().clone()
    for closed in life.closed:
        closed.values = {
            name: value.to(dtype) if _is_cast(name, value) else value
            for name, value in closed.values.items()
        }
        closed.output = None


def _is_cast(name: str, value: torch.Tensor) -> bool:
    return value.is_floating_point() and not name.endswith(".share")


def channels_last(life: Life) -> None:
    life.model.to(memory_format=torch.channels_last)
    life.channels_last = True
    for closed in life.closed:
        closed.output = None


def hook(life: Life, path: str) -> None:
    """A hook that looks at a layer's output, put on or taken off."""
    if path in life.hooks:
        handle, _ = life.hooks.pop(path)
        handle.remove()
        return
    seen: list[Any] = []
    module = life.model.get_submodule(path)

    def look(_: Any, args: Any, output: Any) -> None:
        seen.append(tuple(output.shape))

    life.hooks[path] = module.register_forward_hook(look), seen


def hooks_see(life: Life) -> None:
    for path, (_, seen) in life.hooks.items():
        seen.clear()
        life.output()
        assert seen, f"the hook of {path} was not called"
        assert {shape[1] for shape in seen} == {life.mirror.layers[path].width}


def compile_it(life: Life) -> None:
    life.marked = True
    if life.compiled is None:
        life.compiled = torch.compile(life.model, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's compiler, which depend on what it has seen
        try:
            out = life.output(life.compiled)
        except torch._dynamo.exc.InternalTorchDynamoError:
            # Once in many thousands of runs a dict changes under it. What comes back is a fault.
            torch._dynamo.reset()
            out = life.output(life.compiled)
    life.close(out, life.output(), "compiled")


def again(life: Life) -> None:
    """`splitgrow.growable` once more, as after a change by hand."""
    own = splitgrow.handle(life.model).edits
    assert splitgrow.growable(life.model, life.probe()) is life.model
    assert splitgrow.handle(life.model).edits == own


def mistake(life: Life, index: int) -> None:
    """A call that cannot be right."""
    model: Any = life.model
    other = nn.Linear(77, 77)
    # Before the picture is taken: a state_dict gives every block storage of its own.
    prefixed = {f"module.{name}": value for name, value in model.state_dict().items()}
    foreign = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    calls: list[Any] = [
        lambda: model.expand_layer("stem", 0),
        lambda: model.expand_layer("nowhere", 1),
        lambda: model.expand_layer(99, 1),
        lambda: model.expand_layer("side", -1),
        lambda: model.expand_layer("side", 1.5),
        lambda: model.expand_layer("side", 1, optimizer=foreign),
        lambda: model.expand_layer("side", 1, optimizer="adam"),
        lambda: model.expand_layer("side", 1, initializer="nothing"),
        lambda: model.expand({}),
        lambda: model.expand_input(0),
        lambda: model.expand_input(1, name="y"),
        lambda: model.insert_layer("stem", "nothing"),
        lambda: model.insert_layer("nowhere"),
        lambda: model.insert_layer("stem", "gate", optimizer=foreign),
        lambda: model.insert_layer("side", "fade"),
        lambda: model.insert_layer("side", "residual", module=other),
        lambda: model.generation_parameters(99),
        lambda: model.parameters_of(99),
        lambda: model.at(99).__enter__(),
        lambda: splitgrow.merge(model, 99),
        lambda: splitgrow.fuse(model, generation=-1),
        lambda: splitgrow.follow([1], model),
        lambda: splitgrow.load(model, "/nowhere/a.safetensors"),
        lambda: model.load_state_dict({"nothing": torch.ones(1)}),
        lambda: model.load_state_dict(prefixed),
        lambda: model.param_groups({"a": {}}),
        lambda: splitgrow.growable(copy, life.probe()),
    ]
    errors = (ValueError, TypeError, splitgrow.SplitGrowError, RuntimeError, OSError)
    call = calls[index % len(calls)]
    life.refuses(call, *errors)


def inside_at(life: Life, generation: int) -> None:
    """What may not be done while a closed generation is shown."""
    shown = [g for g in range(len(life.closed)) if life.recoverable(g)]
    if not shown:
        raise Refused
    with life.model.at(shown[generation % len(shown)]):
        for call in (
            lambda: life.model.expand_layer("side", 1),
            life.model.next_generation,
            life.model.double,
            lambda: splitgrow.merge(life.model),
            lambda: copy.deepcopy(life.model),
        ):
            try:
                call()
            except splitgrow.SplitGrowError:
                continue
            raise AssertionError("a change was made inside of at()")

"""The laws that hold after every step of a life."""

from __future__ import annotations

import torch
from torch import nn

import splitgrow
from machine.averages import Averaged
from machine.life import TOLERANCES, Closed, Life

BF16 = 0.2


def check(life: Life, *, thorough: bool = False) -> None:
    """All of them; with `thorough` those that take longer, too."""
    computes_as_the_oracle(life)
    trains_as_foreseen(life)
    for generation, closed in enumerate(life.closed):
        shows(life, generation, closed)
    if life.trained is not None:
        life.trained.assert_told(life.model)
    for average in life.averages:
        averages(life, average)
    if thorough:
        merges(life)
        fuses(life)
        for generation in range(len(life.closed)):
            merges_closed(life, generation)


def computes_as_the_oracle(life: Life) -> None:
    out = life.output()
    if life.numeric:
        life.close(out, life.mirror.outputs(life.snapshot(), life.probe()), "the oracle")
    assert {layer.name: layer.width for layer in life.model.layers} == {
        path: layer.width for path, layer in life.mirror.layers.items() if not layer.norm
    }
    assert life.model.generation == len(life.closed)


def trains_as_foreseen(life: Life) -> None:
    for name, parameter in life.model.named_parameters():
        assert parameter.requires_grad == life.trains[id(parameter)], f"{name}: requires_grad"
        assert parameter.dtype == life.dtype, name
    born = [
        id(p)
        for generation in range(life.model.generation + 1)
        for p in life.model.generation_parameters(generation)
    ]
    assert sorted(born) == sorted(id(p) for p in life.model.parameters()), "generations' parameters"


def shows(life: Life, generation: int, closed: Closed) -> None:
    """A closed generation is shown bit for bit, unless it was set free or given up."""
    if not life.recoverable(generation):
        try:
            with life.model.at(generation):
                raise AssertionError(f"generation {generation} is shown, which is not as it was")
        except splitgrow.GenerationError:
            return
    width = closed.mirror.width
    if closed.output is None:
        closed.mode = life.mode
    with life.model.at(generation):
        found = life.output(width=width, mode=closed.mode)
    if life.numeric:
        life.close(
            found, closed.mirror.outputs(closed.values, life.probe(width)), f"at({generation})"
        )
    if closed.output is None:
        closed.output = found
    else:
        assert torch.equal(found, closed.output), f"at({generation}) is not what it was"


def averages(life: Life, average: Averaged) -> None:
    """Each average is that of its own parameter."""
    if average.behind:
        return
    own = dict(average.copied.named_parameters())
    assert list(own) == [name for name, _ in life.model.named_parameters()], "names of an average"
    for name, parameter in life.model.named_parameters():
        life.close(own[name].detach(), average.values[id(parameter)], f"the average of {name}")


def merges(life: Life) -> None:
    merged = splitgrow.merge(life.model)
    life.close(life.output(merged), life.output(), "merge")
    wholes = life.mirror.wholes(life.snapshot())
    wrapped = {item.host for item in life.mirror.inserted}
    modules = dict(merged.named_modules())
    for path, whole in wholes.items():
        module = modules.get(path)
        around = [path.rpartition(".")[0], path]
        if any(one in wrapped for one in around) or not isinstance(module, nn.Module):
            continue
        if not hasattr(module, "weight"):
            continue
        assert torch.equal(module.weight, whole[0]), f"the merged weight of {path}"
        if module.bias is not None:
            assert torch.equal(module.bias, whole[1]), f"the merged bias of {path}"


def merges_closed(life: Life, generation: int) -> None:
    if not life.recoverable(generation):
        return
    closed = life.closed[generation]
    merged = splitgrow.merge(life.model, generation)
    if life.numeric:
        width = closed.mirror.width
        found = life.output(merged, width=width)
        expected = closed.mirror.outputs(closed.values, life.probe(width))
        life.close(found, expected, f"merge({generation})")


def fuses(life: Life) -> None:
    if life.dtype not in TOLERANCES:
        return
    with life.told("hook"):
        fused = splitgrow.fuse(life.model)
    life.close(life.output(fused), life.output(), "fuse")

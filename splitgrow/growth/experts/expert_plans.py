"""Planning the growth of mixtures: their edit, with all that grows along, not applied."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from splitgrow.analysis.output_comparison import NotRunnableError, has_values
from splitgrow.errors import UnsupportedLayerError
from splitgrow.growth.edit_parts import Insertion, LayerChange, NumberChange
from splitgrow.growth.edits import Edit
from splitgrow.growth.experts.copies import further_experts
from splitgrow.growth.experts.mixtures import Mixture, capture, find_mixtures, is_inside
from splitgrow.growth.experts.rehearsal import Count, Rehearsed, rehearsed
from splitgrow.growth.history import History, check_structure
from splitgrow.growth.insertion.request import EXPERTS
from splitgrow.growth.planned_blocks import count_new_parameters, planned_blocks
from splitgrow.layers.block_numbers import CONFIGS
from splitgrow.layers.expert_sets import ExpertSet, entry_tensor
from splitgrow.layers.split_layer import SplitLayer, stock
from splitgrow.layers.tensor_holder import layer_at
from splitgrow.layers.types import Start, TensorBlock, TensorUse, layer_type_of, type_name

_OF_EXPERTS = re.compile(r"expert|top_?k|moe|group")
"""A part of the names of numbers that count experts, or groups of them, in configurations."""


@dataclass(frozen=True)
class MixtureGrowth:
    """The growth of one mixture, planned.

    Attributes:
        mixture: The mixture.
        more: All that has to grow.
        times: How many times it will have each expert.
    """

    mixture: Mixture
    more: Rehearsed
    times: int


def planned_experts(
    model: nn.Module, history: History, n: int, wanted: str | None, *, freeze: bool
) -> tuple[Edit, list[MixtureGrowth]]:
    """The edit, and the growth of each mixture.

    Args:
        model: The model.
        history: Its history.
        n: The number of experts that each mixture gains.
        wanted: The path of a mixture, or of its experts; None for all.
        freeze: Whether the first edit closes generation 0.

    Raises:
        TypeError: If n is no int, or the path no text.
        ValueError: If there is no such mixture, or n is no multiple of its experts.
        UnsupportedLayerError: If a mixture cannot grow.
    """
    _check_number(n, wanted)
    check_structure(model, history)
    found = mixtures_in(model, history)
    mixtures = _wanted(found, wanted)
    misfits = {m.path: m.count for m in mixtures if n % m.count}
    if misfits:
        known = ", ".join(f"`{path or 'the model'}` has {own}" for path, own in misfits.items())
        count = next(iter(misfits.values()))
        nearest = n - n % count or count
        raise ValueError(
            f"n (={n}) must be a multiple of the experts, of which each is copied as often: "
            f"{known}; the nearest are {nearest} and {nearest + count}"
        )
    calls = capture(model, history.inputs, [m.path for m in mixtures])
    alike: dict[Any, Rehearsed] = {}
    growths = []
    for each in mixtures:
        module, times = history.modules[each.path], 1 + n // each.count
        kind = _kind(module, each)
        if kind not in alike:
            alike[kind] = rehearsed(module, each, calls[each.path], times)
        growths.append(MixtureGrowth(each, alike[kind], times))
    index = len(history.edits) + 1
    generation, closes = history.next_edit(freeze=freeze)
    changes = [each for growth in growths for each in _changes(history, growth)]
    numbers = [each for growth in growths for each in _numbers(growth)]
    if len(mixtures) == len(found):
        numbers += _outer_numbers(history.modules, growths)
    edit = Edit(
        index=index,
        generation=generation,
        closes=closes,
        request={growth.mixture.path: n for growth in growths},
        growth={},
        changes=tuple(changes),
        numbers=tuple(numbers),
        inserted=tuple(_insertion(model, history.modules, growth, index) for growth in growths),
    )
    return edit, growths


def _check_number(n: object, mixture: object) -> None:
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n (={n!r}) must be an int, the number of experts to add")
    if n < 1:
        raise ValueError(f"n (={n}) must be at least 1")
    if mixture is not None and not isinstance(mixture, str):
        raise TypeError(f"mixture must be the path of a module, got {mixture!r}")


def mixtures_in(model: nn.Module, history: History) -> list[Mixture]:
    """The mixtures of a model, in order of execution.

    Raises:
        UnsupportedLayerError: If the model has no values, or does not run on its example inputs.
    """
    if not has_values(model, history.inputs):
        raise UnsupportedLayerError(
            "the experts of a model are found by running it, and on the meta device it has no "
            "values; add experts where it has"
        )
    try:
        return find_mixtures(model, history.inputs)
    except NotRunnableError as error:
        raise UnsupportedLayerError(
            f"the experts of a model are found by running it on its example inputs, and it does "
            f"not run: {error}"
        ) from None


def _wanted(found: list[Mixture], wanted: str | None) -> list[Mixture]:
    """The mixture that is asked for, or all.

    Raises:
        ValueError: If there is no such mixture.
        UnsupportedLayerError: If there is none.
    """
    if not found:
        raise UnsupportedLayerError(
            "the model has no mixture of experts: nothing in it chooses the largest of as many "
            "scores as there are modules in a list, or entries in the tensors of a module that is "
            "called with indices and weights"
        )
    if wanted is None:
        return found
    chosen = [each for each in found if wanted in (each.path, each.experts)]
    if not chosen:
        names = ", ".join(repr(each.path) for each in found)
        raise ValueError(f"no mixture of experts {wanted!r}; there are {names}")
    return chosen


def _kind(module: nn.Module, mixture: Mixture) -> Any:
    """What mixtures have in common that grow in the same way."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    shapes = tuple((name, tensor.shape) for name, tensor in tensors)
    return type(module), mixture.count, mixture.chosen, shapes


def _changes(history: History, growth: MixtureGrowth) -> Iterator[LayerChange]:
    """The changes of the layers and tensors that make the scores."""
    seen = set[str]()
    for name, dim in growth.more.scores:
        full = _inside(growth.mixture.path, name)
        parent = full.rpartition(".")[0]
        module = history.modules[parent]
        if layer_type_of(stock(module)) is None:
            yield _change_of_tensor(history, full, dim, growth)
        elif parent not in seen:
            seen.add(parent)
            yield _change_of_layer(parent, module, growth)


def _change_of_layer(path: str, module: nn.Module, growth: MixtureGrowth) -> LayerChange:
    layer = stock(module)
    entry = layer_type_of(layer)
    assert entry is not None
    sizes = module.sizes() if isinstance(module, SplitLayer) else entry.sizes(layer)
    if sizes[1] != growth.mixture.count or entry.diagonal(layer):
        raise UnsupportedLayerError(
            f"`{path}` gives scores to the {growth.mixture.count} experts, and has {sizes[1]} units"
        )
    return _change(path, layer, sizes, growth, None)


def _change_of_tensor(history: History, name: str, dim: int, growth: MixtureGrowth) -> LayerChange:
    node = history.graph.nodes.get(name)
    use = node.use if node is not None and node.use is not None else None
    if use is None:
        tensor = entry_tensor(history.modules[name.rpartition(".")[0]], name.rpartition(".")[2])
        use = TensorUse(dim, 1 - dim, "weighs") if tensor.dim() == 2 else TensorUse(dim)
    if use.outs is None:
        use = replace(use, outs=dim)
    layer = layer_at(history.modules, name, use)
    known = stock(layer)
    assert isinstance(known, TensorBlock)
    if known.use.outs != dim:
        raise UnsupportedLayerError(
            f"`{name}` gives scores to the {growth.mixture.count} experts along dimension {dim}, "
            f"and grows along another one"
        )
    entry = layer_type_of(known)
    assert entry is not None
    sizes = layer.sizes() if isinstance(layer, SplitLayer) else entry.sizes(known)
    return _change(name, known, sizes, growth, known.use)


def _change(
    name: str,
    layer: nn.Module,
    sizes: tuple[int, int],
    growth: MixtureGrowth,
    use: TensorUse | None,
) -> LayerChange:
    entry = layer_type_of(layer)
    assert entry is not None
    ins, outs = sizes
    gain = (growth.times - 1) * growth.mixture.count
    blocks = planned_blocks(entry, layer, (ins, outs), (0, gain))
    return LayerChange(
        name=name,
        kind=type_name(layer),
        in_width=(ins, ins),
        width=(outs, outs + gain),
        ins=(),
        outs=((outs, gain),),
        blocks=tuple(blocks),
        parameters=count_new_parameters(entry, layer, blocks, ()),
        start_outs=(Start.COPY.value,),
        use=use,
    )


def _numbers(growth: MixtureGrowth) -> Iterator[NumberChange]:
    for count in growth.more.counts:
        path = _inside(growth.mixture.path, count.module)
        yield NumberChange(path, count.attribute, (count.value, count.grown(growth.times)))


def _inside(outer: str, path: str) -> str:
    return ".".join(part for part in (outer, path) if part)


def _outer_numbers(
    modules: Mapping[str, nn.Module], growths: Sequence[MixtureGrowth]
) -> Iterator[NumberChange]:
    """The numbers of experts that the model holds elsewhere, for a loss or in configurations."""
    times = {growth.times for growth in growths}
    if len(times) > 1:
        return
    (by,) = times
    counts = {(count, growth.mixture) for growth in growths for count in growth.more.counts}
    known = {(_sort_of(count, mixture), count.value) for count, mixture in counts}
    known |= {("experts", growth.mixture.count) for growth in growths}
    scales = {(c.attribute, c.value) for c, _ in counts if isinstance(c.value, float)}
    for path, prefix, holder in _holders(modules, [growth.mixture.path for growth in growths]):
        for name, value in vars(holder).items():
            if type(value) is float and (name, value) in scales:
                yield NumberChange(path, prefix + name, (value, value / by))
            named = name[0] != "_" and _OF_EXPERTS.search(name)
            if named and type(value) is int and (_sort_by_name(name), value) in known:
                yield NumberChange(path, prefix + name, (value, value * by))


def _holders(
    modules: Mapping[str, nn.Module], mixtures: Sequence[str]
) -> Iterator[tuple[str, str, Any]]:
    """The modules outside of mixtures, and the configurations of all, each once.

    Yields:
        The path of the module, the prefix for attributes' names there, and what has them.
    """
    seen = set[int]()
    for path, module in modules.items():
        if not any(is_inside(path, each) for each in mixtures):
            yield path, "", module
        for key in CONFIGS:
            config = vars(module).get(key)
            if hasattr(config, "__dict__") and id(config) not in seen:
                seen.add(id(config))
                yield path, f"{key}.", config


def _sort_of(count: Count, mixture: Mixture) -> str:
    """What a number of a mixture counts."""
    if count.value == mixture.count:
        return "experts"
    named = _sort_by_name(count.attribute)
    return "chosen" if count.value == mixture.chosen and "groups" not in named else named


def _sort_by_name(name: str) -> str:
    chosen = re.search(r"tok|top_?k|moe_k|active|select", name)
    if "group" in name:
        return "chosen groups" if chosen else "groups"
    return "chosen" if chosen else "experts"


def _insertion(
    model: nn.Module, modules: Mapping[str, nn.Module], growth: MixtureGrowth, index: int
) -> Insertion:
    """The record of the further experts of a mixture."""
    mixture, more = growth.mixture, growth.more
    module, times = modules[mixture.experts], growth.times - 1
    first = next(iter(module.children()), module)
    experts = ExpertSet(
        mixture.count,
        times * mixture.count,
        mixture.index,
        mixture.weights,
        more.tensors,
        more.numbers,
    )
    recipe = {"copy": mixture.experts, EXPERTS: experts.written()}
    made, _ = further_experts(model, module, recipe, empty=True)
    return Insertion(
        host=mixture.experts,
        before=False,
        kind=EXPERTS,
        name=f"{mixture.experts}.inserted{index}",
        type=type(module if mixture.index is not None else first).__name__,
        width=times * mixture.count,
        parameters=sum(parameter.numel() for parameter in made.parameters()),
        recipe=recipe,
    )
